"""Each arm of the testbed against its definition: data, rate, warm-up, budget, and the loss written out by hand."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from toolkit.launch import launch
from toolkit.stacking.pretrain.tokens import Sequences, TokenStore

CONTEXT, BATCH, WARMUP, LR, BASE_LR = 32, 8, 3, 4e-3, 1e-3
BASE_STEPS, MAP_SEQUENCES = 5, 2 * 3  # two steps of three sequences train G_learn's map
WORDS = [
    "experiment=grow_smoke",
    "seed=5",
    f"budget.growth_tokens={BASE_STEPS * BATCH * CONTEXT}",
    "budget.tokens=4096",
    f"optim.lr={LR}",
    f"optim.base_lr={BASE_LR}",
    f"optim.warmup_steps={WARMUP}",
    "operator=learn",
    "factor=3",
    "learn.num_steps=2",
    "learn.warmup_steps=1",
    "learn.batch_size=3",
    "compare.eval_tokens=256",
    "compare.eval_every_steps=4",
    "log_every_steps=1",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run of all arms, with operator=learn: its map is trained before the grown network is."""
    folder = tmp_path_factory.mktemp("arms")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOOLKIT_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert launch("grow-llm", [*WORDS, "hydra.run.dir=run"]) == 0
        yield folder / "run"


def logged(run, stage, key):
    """The values of ``key``, step by step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if row["stage"] == stage and key in row]


def points(run, stage):
    return json.loads((run / "curves" / f"{stage}.json").read_text())["points"]


def sequences(run):
    (folder,) = (run.parent / "cache" / "tokens").iterdir()
    return Sequences(TokenStore.open(folder).train, CONTEXT, seed=5)


def loss_of(network, batch):
    """Mean cross-entropy of the next tokens."""
    ids, targets = batch
    return F.cross_entropy(network(ids, use_cache=False).logits.flatten(0, 1), targets.flatten())


def first_loss(run, name, first):
    """What ``model/NAME`` loses on the sequences from ``first`` on."""
    network = AutoModelForCausalLM.from_pretrained(run / "model" / name)
    with torch.no_grad():
        return loss_of(network, sequences(run).batch(first, BATCH)).item()


def test_no_arm_reads_a_sequence_twice(run):
    """The continued base goes on where the base ended, the grown network where the training of its map did."""
    after_base = BASE_STEPS * BATCH
    for stage, start, first in (("continued", "base", after_base), ("grown", "start", after_base + MAP_SEQUENCES)):
        assert logged(run, stage, "loss")[0] == pytest.approx(first_loss(run, start, first), rel=1e-5)
        for other in (0, BATCH, after_base - BATCH, after_base + MAP_SEQUENCES + (first == after_base) - 3):
            assert logged(run, stage, "loss")[0] != pytest.approx(first_loss(run, start, other), rel=1e-4)


def test_every_arm_trains_at_its_rate_and_only_new_optimisers_warm_up(run):
    warm = [LR * (step + 1) / WARMUP for step in range(WARMUP)]
    for stage in ("grown", "scratch"):
        rates = logged(run, stage, "lr")
        assert rates == pytest.approx([*warm, *[LR] * (len(rates) - WARMUP)])
    base = [BASE_LR * min(1, (step + 1) / WARMUP) for step in range(BASE_STEPS)]
    assert logged(run, "base", "lr") == pytest.approx(base)
    rates = logged(run, "continued", "lr")  # the base's optimiser goes on: no second warm-up
    assert rates == pytest.approx([BASE_LR] * len(rates)) and len(rates) > WARMUP


def parameters(run, name):
    network = AutoModelForCausalLM.from_pretrained(run / "model" / name)
    return sum(parameter.numel() for parameter in network.parameters())


def test_what_was_spent_before_counts(run):
    """FLOPs are 6 x parameters x tokens; the grown network pays for its base and for the training of its map."""
    small, large = 6 * parameters(run, "base") * CONTEXT, 6 * parameters(run, "start") * CONTEXT
    base = BASE_STEPS * BATCH * small
    assert points(run, "base")[0]["flops.total"] == 0 and points(run, "base")[-1]["flops.total"] == base
    assert points(run, "continued")[0]["flops.total"] == base
    assert points(run, "grown")[0]["flops.total"] == base + MAP_SEQUENCES * large
    assert points(run, "scratch")[0]["flops.total"] == 0


def test_all_arms_end_at_the_compute_of_scratch(run):
    """Each trains whole steps on the sequences that what is left of 6 N D pays for."""
    small, large = 6 * parameters(run, "base") * CONTEXT, 6 * parameters(run, "start") * CONTEXT
    whole = 4096 / CONTEXT * large
    spent = {"scratch": 0, "grown": BASE_STEPS * BATCH * small + MAP_SEQUENCES * large}
    spent["continued"] = BASE_STEPS * BATCH * small
    for stage, before in spent.items():
        per_sequence = small if stage == "continued" else large
        steps = math.ceil(math.ceil((whole - before) / per_sequence) / BATCH)
        assert len(logged(run, stage, "lr")) == steps
        assert points(run, stage)[-1]["flops.total"] == before + steps * BATCH * per_sequence


def test_losses_are_those_of_the_loop_written_out(run):
    """The grown arm again: torch's AdamW on transformers' logits, clipped, decaying matrices only, fresh moments."""
    network = AutoModelForCausalLM.from_pretrained(run / "model" / "start").train()
    groups = [
        {"params": [p for p in network.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in network.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    first, losses = BASE_STEPS * BATCH + MAP_SEQUENCES, []
    for step in range(4):
        loss = loss_of(network, sequences(run).batch(first + step * BATCH, BATCH))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / WARMUP)
        optimizer.step()
        losses.append(loss.item())
    assert logged(run, "grown", "loss")[:4] == pytest.approx(losses, rel=1e-4)


def test_the_continued_base_keeps_its_moments(run):
    """Its first step is one more of the base's: with Adam's moments at zero the step would have another length."""
    saved = sorted((run / "checkpoints" / "base").glob("step-*.pt"))[-1]
    state = torch.load(saved, weights_only=True)
    moments = next(value for key, value in state.items() if key == "state.optimizer")
    network = AutoModelForCausalLM.from_pretrained(run / "model" / "base").train()
    after = sequences(run)
    loss = loss_of(network, after.batch(BASE_STEPS * BATCH, BATCH))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            step = float(moments[f"{name}/step"]) + 1
            mean = 0.9 * moments[f"{name}/exp_avg"] + 0.1 * parameter.grad
            square = 0.95 * moments[f"{name}/exp_avg_sq"] + 0.05 * parameter.grad**2
            parameter *= 1 - BASE_LR * (0.1 if parameter.dim() > 1 else 0)
            parameter -= BASE_LR * mean / (1 - 0.9**step) / ((square / (1 - 0.95**step)).sqrt() + 1e-8)
        second = loss_of(network, after.batch((BASE_STEPS + 1) * BATCH, BATCH)).item()
    assert logged(run, "continued", "loss")[1] == pytest.approx(second, rel=1e-5)


def test_the_map_is_trained_on_sequences_that_the_base_has_not_read(run):
    """Its first loss is that of G_stack, which the untrained map is, on the sequences after the base's."""
    base = AutoModelForCausalLM.from_pretrained(run / "model" / "base")
    stacked = AutoModelForCausalLM.from_pretrained(run / "model" / "start")
    for layer in stacked.model.layers:
        layer.load_state_dict(base.model.layers[0].state_dict())
    with torch.no_grad():
        stacked.model.embed_tokens.load_state_dict(base.model.embed_tokens.state_dict())
        stacked.model.norm.load_state_dict(base.model.norm.state_dict())
        stacked.lm_head.load_state_dict(base.lm_head.state_dict())
        ids, _ = sequences(run).batch(BASE_STEPS * BATCH, 3)
        loss = loss_of(stacked, (ids[:, :-1], ids[:, 1:])).item()
    notes = json.loads((run / "model" / "start" / "growth.json").read_text())["notes"]
    assert f"trained for 2 steps, loss {loss:.3f} ->" in " ".join(notes)


def test_the_base_and_scratch_begin_untrained(run):
    """Their first loss is near ln(vocabulary)."""
    for stage in ("base", "scratch"):
        assert logged(run, stage, "loss")[0] == pytest.approx(math.log(300), abs=0.3)
    assert Path(run / "model" / "start" / "growth.json").is_file()
