"""Lines that combine the pieces of growth, against formulas of the paper and of the authors written out."""

import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from tests.stacking.measure.test_readings import arm
from tests.stacking.models import grow_model, make_model, token_ids
from toolkit.launch import launch
from toolkit.stacking import grow_folder
from toolkit.stacking.config import Compare, GrowLLM, Growth, Optim
from toolkit.stacking.measure import compare
from toolkit.stacking.measure.curves import Spent, TrainingCurve, flops_per_token
from toolkit.stacking.measure.flops import Cost, cost
from toolkit.stacking.operators import learn
from toolkit.stacking.operators.architecture import Spaces, Spec
from toolkit.stacking.operators.llama import Llama
from toolkit.stacking.operators.masks import GrowthMasks
from toolkit.stacking.operators.tensors import InMemory
from toolkit.stacking.pretrain import tokens, train
from toolkit.stacking.pretrain.language_loss import LanguageModelLoss
from toolkit.stacking.pretrain.stages import Testbed as Bed
from toolkit.stacking.pretrain.train import make_optimizer, measurer, train_step

CPU = Accelerator(cpu=True)


def norm_of_first_gradients(optimizer):
    """After Adam's first step its first moment is (1 - 0.9) times the gradient that it was given."""
    moments = [state["exp_avg"] / (1 - 0.9) for state in optimizer.state.values()]
    return math.sqrt(sum(float(one.double().square().sum()) for one in moments))


def test_gradients_are_clipped_to_the_norm_asked_for():
    model, config = make_model().train(), GrowLLM(optim=Optim(grad_clip=0.03))
    optimizer, ids = make_optimizer(model, config.optim), token_ids(4, 13)
    _, norm = train_step(LanguageModelLoss(model), model, optimizer, (ids[:, :-1], ids[:, 1:]), 1e-3, config, CPU)
    assert norm > 0.1  # before it was clipped
    assert norm_of_first_gradients(optimizer) == pytest.approx(0.03, rel=1e-3)


@pytest.mark.parametrize("world_size", [1, 2])
def test_held_out_loss_is_the_mean_over_windows_whatever_the_batches_and_processes(monkeypatch, world_size):
    model, ids = make_model().eval(), token_ids(5, 13)
    windows = ids[:, :-1], ids[:, 1:]
    monkeypatch.setattr(train, "held_out", lambda *_: windows)
    monkeypatch.setattr(train, "world_size", lambda: world_size)
    monkeypatch.setattr(train, "gather", lambda total: [total])  # of one process alone: the shares are added below
    config = GrowLLM(optim=Optim(micro_batch_size=2), compare=Compare())
    parts = []
    for rank in range(world_size):
        monkeypatch.setattr(train, "rank", lambda rank=rank: rank)
        parts.append(measurer(LanguageModelLoss(model), SimpleNamespace(valid=None), config, CPU)())
    with torch.no_grad():
        losses = [F.cross_entropy(model(x[None]).logits[0], y).item() for x, y in zip(*windows, strict=True)]
    assert sum(parts) == pytest.approx(sum(losses) / 5, rel=1e-5)


def test_g_counts_neither_embedding_nor_head():
    base, target = Cost(1000, 100, 1.0, 1.0, 1.0, 8), Cost(1300, 400, 1.0, 1.0, 1.0, 8)
    bed = SimpleNamespace(
        config=SimpleNamespace(stage="all"),
        cost=lambda config: config,
        base_config=lambda: base,
        plan=lambda: SimpleNamespace(config=target),
    )
    assert Bed._factor(bed) == 4


def test_a_token_costs_six_flops_a_weight():
    model = make_model()
    outside = model.model.embed_tokens.weight.numel() + model.lm_head.weight.numel()
    total = sum(one.numel() for one in model.parameters())
    found = cost(Llama(), model.config)
    assert (found.flops_total, found.flops_non_embedding) == (6 * total, 6 * (total - outside))


def test_what_training_costs_is_added_to_what_was_spent():
    one = Cost(10, 5, 60.0, 30.0, 90.0, 4)
    before = Spent(100, 25, {"total": 1.0, "non_embedding": 2.0, "matmul": 3.0}, 7.0)
    after = before.after(one, 2, 4, 0.5)
    assert flops_per_token(one) == {"total": 60.0, "non_embedding": 30.0, "matmul": 90.0}
    assert after == Spent(108, 27, {"total": 481.0, "non_embedding": 242.0, "matmul": 723.0}, 7.5)


class Recorded(torch.optim.AdamW):
    """AdamW that notes the rate of every step."""

    made: "Recorded"

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.rates = []
        Recorded.made = self

    def step(self, closure=None):
        self.rates.append(self.param_groups[0]["lr"])
        return super().step(closure)


def test_the_growth_map_is_trained_as_the_authors_say(monkeypatch):
    monkeypatch.setattr(learn.torch.optim, "AdamW", Recorded)
    model = make_model()
    grown = grow_model(model, Growth(operator="learn", factor=2))
    source = InMemory({name: value.clone() for name, value in model.state_dict().items()})
    rates = {"max_learning_rate": 1e-2, "min_learning_rate": 1e-3}
    learn.train_map(grown.growth_map, grown.config, source, iter([token_ids()]), num_steps=1, clip_norm=1e-4, **rates)
    assert norm_of_first_gradients(Recorded.made) == pytest.approx(1e-4, rel=1e-2)
    for state in Recorded.made.state.values():  # (1 - 0.95) g^2 over (0.1 g)^2
        seen = state["exp_avg"].abs() > 1e-12
        ratio = state["exp_avg_sq"][seen].double() / state["exp_avg"][seen].double().square()
        assert torch.allclose(ratio, torch.full_like(ratio, 5.0), rtol=1e-3)
    batches = iter([token_ids()] * 6)
    learn.train_map(grown.growth_map, grown.config, source, batches, num_steps=6, warmup_steps=2, **rates)
    cosine = [1e-3 + 9e-3 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert Recorded.made.rates == pytest.approx([0.5e-2, 1e-2, *cosine])


def test_new_features_begin_as_noise_of_the_width_of_the_new_network():
    rows = learn._identity_on_noise(40, 400, "hidden", seed=0)
    assert torch.equal(rows[:40], torch.eye(40))
    assert float(rows[40:].std()) == pytest.approx(400**-0.5, rel=0.05)


def test_numbers_of_a_comparison():
    grown = arm("grown", [(10, 3.5), (20, 2.5), (30, 2.0)])
    seed = [
        grown,
        arm("scratch", [(10, 4.0), (20, 3.0), (30, 2.25)]),
        arm("scratch", [(10, 4.5), (20, 3.5), (30, 2.75)]),
        arm("continued", [(10, 3.0), (20, 2.75), (30, 2.625)]),
        arm("base", [(5, 4.0), (10, 3.0)]),
    ]
    config = GrowLLM()
    config.budget.tokens = 1000
    found = compare._metrics(grown, seed, {name: {} for name in compare.ACCOUNTINGS}, config)
    last = {one.label: one.smoothed()[-1] for one in (grown, seed[1], seed[3])}  # the first scratch is the better one
    assert found["final.scratch"] == last["scratch"] < seed[2].smoothed()[-1]
    assert found["final.gap_to_scratch"] == pytest.approx(last["scratch"] - last["grown"]) and last["grown"] < 2.2
    assert found["final.gap_to_continued"] == pytest.approx(last["continued"] - last["grown"])
    assert found["growth.spike"] == pytest.approx(3.5 - 3.0)
    assert found["growth.recovery_share"] == pytest.approx(found["growth.recovery_tokens"] / 1000)
    assert 0 < found["growth.recovery_tokens"] < 1000


def test_a_point_has_the_mean_of_the_losses_since_the_point_before():
    curve = TrainingCurve()
    curve.add(0, Spent(), 5.0)
    for losses in ((2.0, 4.0), (7.0,)):
        for loss in losses:
            curve.note(torch.tensor(loss), 0.25)
        curve.add(len(curve.points), Spent(), 4.0)
    assert [point["train_loss"] for point in curve.points] == [None, 3.0, 7.0]
    assert [point["time_s"] for point in curve.points] == [0, 0.5, 0.75]


def test_a_tokenizer_learns_from_training_texts_alone(monkeypatch, tmp_path):
    def learn_from(texts):
        raise InterruptedError(" ".join(texts))

    documents = [("train", "a"), ("valid", "b"), ("train", "c")]
    monkeypatch.setattr(tokens, "split_documents", lambda corpus, fraction: documents)
    with pytest.raises(InterruptedError, match=r"^a c$"):
        tokens._write(tmp_path, None, 0.1, learn_from, "key")


def test_masks_open_step_by_step_while_the_grown_network_trains(monkeypatch, tmp_path):
    steps, before = [], GrowthMasks.set_step
    monkeypatch.setattr(GrowthMasks, "set_step", lambda self, step: (steps.append(step), before(self, step)))
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    words = [
        "experiment=grow_smoke",
        "operator=random",
        "optim.mask_steps=2",
        "arms=[grown]",
        "budget.growth_tokens=512",
        "budget.tokens=1536",
    ]
    assert launch("grow-llm", [*words, "hydra.run.dir=run"]) == 0
    trained = steps[steps.index(0) + 1 :]  # the first one is of the network as it is made
    assert len(trained) > 2 and trained == list(range(len(trained)))


def test_queries_keys_and_values_stand_one_after_the_other():
    """Four query heads and two of keys and values, of eight features: 32, and 32 + 16 + 16 together."""
    spaces = Spaces(residual=24, heads=4, kv_heads=2, head_size=8, mlp=96)
    sizes = {name: spaces.size(name) for name in ("residual", "mlp", "query", "attended", "key", "value", "qkv")}
    assert sizes == {"residual": 24, "mlp": 96, "query": 32, "attended": 32, "key": 16, "value": 16, "qkv": 64}


def test_what_an_output_is_a_sum_of():
    """A row of a linear map, a column of GPT-2's, an entry of a table, all pixels and channels of a patch."""
    linear, gpt2 = Spec("linear", ("mlp", "residual"), reads=1), Spec("linear", ("residual", "mlp"), reads=0)
    assert linear.fan_in((7, 5)) == 5 and gpt2.fan_in((7, 5)) == 7
    assert Spec("embedding", ("", "residual")).fan_in((11, 6)) == 6
    assert Spec("embedding", ("residual", "", "", "")).fan_in((8, 3, 4, 5)) == 60


@pytest.mark.parametrize(("system", "unit"), [("Darwin", 1024**2), ("FreeBSD", 1024)])
def test_where_there_is_no_proc_memory_is_the_systems_highest_in_mib(monkeypatch, system, unit):
    monkeypatch.setattr(grow_folder.Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(OSError))
    monkeypatch.setattr(grow_folder.platform, "system", lambda: system)
    usage = SimpleNamespace(ru_maxrss=96 * unit)  # bytes on a Mac, KiB elsewhere
    monkeypatch.setattr(grow_folder.resource, "getrusage", lambda who: usage)
    assert grow_folder._status_mib("VmHWM") == 96
