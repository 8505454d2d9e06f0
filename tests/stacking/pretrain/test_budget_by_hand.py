"""Who trains on how much, from which seed, and where the CPU's own blocks stand in; nothing here trains for long."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.stacking.models import make_model, make_tokenizer, token_ids
from toolkit.errors import UserError
from toolkit.stacking import footprint
from toolkit.stacking.config import Budget, GrowLLM, Network, Optim
from toolkit.stacking.measure.curves import Spent, TrainingCurve
from toolkit.stacking.measure.flops import Cost
from toolkit.stacking.pretrain import cpu_blocks, dry_run, stages, train
from toolkit.stacking.pretrain.dry_run import arms, plan_table
from toolkit.stacking.pretrain.networks import check_context, check_vocabulary, llama_config, training_cost
from toolkit.stacking.pretrain.stages import Testbed as Bed
from toolkit.stacking.pretrain.states import OptimizerState, tiled_moments
from toolkit.stacking.pretrain.train import Task
from toolkit.zoo.checkpointing import checkpoint_activations

SMALL = Network(num_hidden_layers=2, hidden_size=16, intermediate_size=24, context=32)


# -- the CPU's own blocks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ],
    ids=["attention's biases", "the MLP's biases", "another activation", "another rotation"],
)
def test_what_the_blocks_do_not_compute_is_left_to_transformers(changes):
    model, ids = make_model(**changes).train(), token_ids(2, 9)
    assert not cpu_blocks.usable(model, ids) and cpu_blocks.usable(make_model().train(), ids)


def test_blocks_are_for_sequences_up_to_their_longest_and_for_networks_that_nobody_watches(monkeypatch):
    model = make_model().train()
    monkeypatch.setattr(cpu_blocks, "LONGEST", 9)
    assert cpu_blocks.usable(model, token_ids(1, 9)) and not cpu_blocks.usable(model, token_ids(1, 10))
    hook = model.model.layers[0].register_forward_pre_hook(lambda module, inputs: None)
    assert not cpu_blocks.usable(model, token_ids(1, 9))
    hook.remove()
    assert cpu_blocks.usable(model, token_ids(1, 9))
    spread = type("Spread", (torch.nn.Parameter,), {})  # as FSDP's weights are of a type of their own
    model.model.embed_tokens.weight = spread(model.model.embed_tokens.weight.detach())
    assert not cpu_blocks.usable(model, token_ids(1, 9))


def test_layers_are_computed_again_only_where_asked_and_only_with_gradients(monkeypatch):
    model, ids, again = make_model().train(), token_ids(1, 7), []
    monkeypatch.setattr(cpu_blocks, "recomputed", lambda run, *given: again.append(1) or run(*given))
    cpu_blocks.hidden_states(model, ids)
    assert not again
    checkpoint_activations(model)
    cpu_blocks.hidden_states(model, ids)
    with torch.no_grad():
        cpu_blocks.hidden_states(model, ids)
    assert len(again) == 3


# -- budgets -----------------------------------------------------------------------------------------------------------


def costs(config):
    """FLOPs of base and target by 6 N, and their layers."""
    base = llama_config(config.network, config.tokenize.vocab_size)
    counted = {}
    for layers in (2, 8):
        base.num_hidden_layers = layers
        counted[layers] = 6 * training_cost(base, config.network.context).parameters
    return counted


def test_what_is_left_of_scratchs_compute_pays_for_the_others():
    """A base of 2 layers on d tokens, a target of 8 on D: (D C8 - d C2) / C8 for the grown one, / C2 for the base."""
    config = GrowLLM(network=SMALL, budget=Budget(growth_tokens=3200, tokens=9600))
    two, eight = costs(config).values()
    left = 9600 * eight - 3200 * two
    found = {name: (network.num_hidden_layers, tokens) for name, network, tokens in arms(config)}
    assert found["base"] == (2, 3200) and found["scratch"] == (8, 9600)
    assert found["grown"] == (8, pytest.approx(left / eight)) and found["continued"] == (2, pytest.approx(left / two))
    config.budget.grown_tokens, config.budget.continued_tokens = 640.0, 960.0
    told = {name: tokens for name, _, tokens in arms(config)}
    assert (told["grown"], told["continued"]) == (640, 960)
    config.optim.scratch_lrs = [1e-3, 2e-3]
    rows = {row[0]: row[1:] for row in plan_table(config).rows}
    layers, parameters, gflop, tokens, flops, gib = rows["2 x scratch"]
    assert (layers, parameters, tokens) == (8, eight // 6, 9600) and gflop == pytest.approx(eight / 1e9)
    assert flops == pytest.approx(9600 * eight, rel=5e-3) and gib == pytest.approx(16 * eight / 6 / 2**30, rel=5e-3)
    alone = arms(GrowLLM(stage="pretrain", network=SMALL, budget=Budget(tokens=99)))
    assert [(name, tokens) for name, _, tokens in alone] == [("pretrain", 99)]
    for changes in ({"budget": Budget(growth_tokens=96_000, tokens=9600)}, {"operator": "learn"}):  # the map's: 6 M
        with pytest.raises(UserError, match=r"training the base.* takes all that compute; raise it"):
            arms(GrowLLM(network=SMALL, **{"budget": Budget(growth_tokens=3200, tokens=9600), **changes}))


def test_a_base_that_is_given_is_not_trained_and_has_cost_what_it_records(monkeypatch):
    """Half of scratch's compute is spent: the grown one gets the other half; the corpus is counted with what trains."""
    config = GrowLLM(network=SMALL, model="there", budget=Budget(growth_tokens=3200, tokens=9600), arms=["grown"])
    base = llama_config(SMALL, config.tokenize.vocab_size)
    target = 6 * training_cost(llama_config(replace(SMALL, num_hidden_layers=8), 1024), 32).parameters
    monkeypatch.setattr(dry_run, "find_network", lambda *_: "there")
    monkeypatch.setattr(dry_run, "open_checkpoint", lambda _: SimpleNamespace(config=base))
    half = Spent(flops=dict.fromkeys(("total", "non_embedding", "matmul"), 4800.0 * target))
    monkeypatch.setattr(dry_run, "history", lambda _: half)
    ((name, network, tokens),) = arms(config)
    assert (name, network.num_hidden_layers, tokens) == ("grown", 8, pytest.approx(4800))
    assert [(one.name, one.cache_bytes) for one in footprint.stages(config)] == [("grown", 2 * 4800)]


def bed(**changes):
    """A testbed whose parts are told."""
    config = GrowLLM(seed=7, network=SMALL, budget=Budget(growth_tokens=3200, tokens=9600), **changes)
    made = Bed.__new__(Bed)
    made.config, made.run, made.accelerator = config, SimpleNamespace(record={}), None
    store = SimpleNamespace(vocab_size=300, tokenizer=make_tokenizer)
    made.__dict__.update(source=None, store=store)
    return made


def test_sequences_of_a_network_are_those_that_are_left_rounded_up():
    made = bed()
    spent = Spent().after(made.cost(made.base_config()), 100, 32)
    base, target = (6 * made.cost(one).parameters for one in (made.base_config(), made.plan().config))
    left = 9600 * target - 3200 * base
    assert made.sequences_left(made.plan().config, spent, None) == math.ceil(left / target / 32)
    assert made.sequences_left(made.base_config(), spent, None) == math.ceil(left / base / 32)
    assert made.sequences_left(made.base_config(), spent, 65) == 3 and made._base_sequences() == 100
    all_of_it = Spent().after(made.cost(made.plan().config), 300, 32)
    with pytest.raises(UserError, match="training the base takes all that compute"):
        made.sequences_left(made.plan().config, all_of_it, None)


def trained_by(made, monkeypatch):
    """What is trained, stage by stage, instead of training it."""
    told = {}
    monkeypatch.setattr(made, "_train", lambda *given, **more: told.update({given[1]: (given, more)}))
    return told


def test_every_network_that_begins_here_has_its_own_seed(monkeypatch):
    made = bed(optim=Optim(lr=1e-3, base_lr=5e-4, scratch_lrs=[1e-3, 2e-3]))
    told = trained_by(made, monkeypatch)
    made.train_base()
    made.train_one()
    for name, lr in (("scratch", 1e-3), ("scratch-0.002", 2e-3)):
        made._scratch_trainer(name, lr)()
    rates = {name: (given[2], given[3]) for name, (given, _) in told.items()}
    assert rates == {"base": (5e-4, 100), "pretrain": (1e-3, 300), "scratch": (1e-3, 300), "scratch-0.002": (2e-3, 300)}
    weights = {name: given[0].model.layers[1].mlp.up_proj.weight for name, (given, _) in told.items()}
    assert torch.equal(weights["scratch"], weights["scratch-0.002"])  # a sweep over rates alone
    for one, other in (("base", "pretrain"), ("base", "scratch"), ("pretrain", "scratch")):
        assert not torch.equal(weights[one], weights[other])
    first = weights["base"].clone()
    made.config.seed = 8
    made.train_base()
    made.train_one()
    made._scratch_trainer("scratch", 1e-3)()
    for name in ("base", "pretrain", "scratch"):
        assert not torch.equal(told[name][0][0].model.layers[1].mlp.up_proj.weight, weights[name]), name
    assert torch.equal(first, weights["base"])


def test_the_base_goes_on_where_its_schedule_was_and_each_arm_has_its_own_tokens(monkeypatch):
    made = bed(optim=Optim(lr=1e-3, base_lr=5e-4, batch_size=8))
    made.config.budget.continued_tokens, made.config.budget.grown_tokens = 320.0, 640.0
    told = trained_by(made, monkeypatch)
    network = make_model()
    checkpoint = SimpleNamespace(config=network.config, tensors=None)
    monkeypatch.setattr(made, "base", lambda: checkpoint)
    monkeypatch.setattr(stages, "build", lambda *_: network)
    monkeypatch.setattr(stages, "history", lambda _: Spent(tokens=3200, sequences=100))
    monkeypatch.setattr(stages, "open_checkpoint", lambda _: checkpoint)
    monkeypatch.setattr(made, "_start_history", lambda _: Spent(sequences=100))
    monkeypatch.setattr(made, "_folder", lambda name: name)
    for moments, first in (({"a": 1}, 12), (None, 0)):
        monkeypatch.setattr(made, "_base_moments", lambda moments=moments: moments)
        made.train_continued()
        given, more = told["continued"]
        assert given[2:4] == (5e-4, 10) and more == {"moments": moments, "first_step": first}
    made.train_grown()
    given, more = told["grown"]
    assert given[2:4] == (1e-3, 20) and more == {"masks": None, "moments": None}
    made.config.operator, made.config.optim.mask_steps = "random", 17
    monkeypatch.setattr(stages, "GrowthMasks", lambda *given: given)
    made.train_grown()
    plan = made.plan()
    assert told["grown"][1]["masks"] == (network, plan.plan, plan.old, plan.new, 17)


def test_a_growth_is_told_its_seed_and_operator_and_probed_on_held_out_text(monkeypatch, tmp_path):
    made, told, written = bed(operator="zero", scale_eps=0.25), {}, []
    tokenizer = SimpleNamespace(decode=list)
    made.__dict__["store"] = SimpleNamespace(valid=range(1000, 9000), train=range(1000), tokenizer=lambda: tokenizer)
    made.run = SimpleNamespace(dir=tmp_path, add_metrics=lambda *given: written.append(given))
    report = {"function": {"max_difference": 0.5, "kept": True}, "connection_rate": 0.75}
    monkeypatch.setattr(made, "base", lambda: "the base")
    monkeypatch.setattr(made, "_growth_map", lambda base: f"map of {base}")
    monkeypatch.setattr(stages, "identity", lambda _: "this run")
    monkeypatch.setattr(stages, "written_by", lambda run, out: None)
    monkeypatch.setattr(stages, "grow_checkpoint", lambda *given, **more: told.update(given=given, **more) or report)
    made.grow_base()
    assert told.pop("given") == ("the base", tmp_path / "model" / "start", made.config.growth())
    assert told.pop("text") == list(range(1000, 1256))
    assert written == [("grow", {"max_difference": 0.5}), ("grow", {"connection_rate": 0.75})]
    assert told == {"seed": 7, "growth_map": "map of the base", "run_id": "this run"}


def test_moments_are_those_of_the_run_and_part_that_trained_the_base(monkeypatch, tmp_path):
    found = {
        tmp_path / "mine" / "checkpoints" / "base": (9, {"state.optimizer": "mine"}),
        tmp_path / "other" / "checkpoints" / "base": (9, {"state.optimizer": "the base's"}),
        tmp_path / "other" / "checkpoints" / "grown": (9, {"state.optimizer": "the grown network's"}),
    }
    monkeypatch.setattr(stages.checkpoints, "load", found.get)
    made = bed()
    made.run = SimpleNamespace(dir=tmp_path / "mine")
    for model, part, wanted in (
        (None, None, "mine"),
        ("other", None, "the base's"),
        ("other", "grown", "the grown network's"),
        ("third", None, None),
    ):
        made.config.model, made.config.part = model and str(tmp_path / model), part
        assert made._base_moments() == wanted


def test_a_run_goes_on_with_its_corpus_under_either_of_its_names(monkeypatch):
    monkeypatch.setattr(stages, "token_store", lambda _: SimpleNamespace(fingerprint="now", former="before"))
    for begun_with, fits in ((None, True), ("now", True), ("before", True), ("another", False)):
        made = bed()
        del made.__dict__["store"]
        made.run = SimpleNamespace(dir="run", record={"tokens": begun_with} if begun_with else {})
        if fits:
            assert made.store.fingerprint == "now" and made.run.record == {"tokens": begun_with or "now"}
        else:
            with pytest.raises(UserError, match="the corpus has changed since this run began"):
                _ = made.store


def test_masks_are_open_before_training_ends():
    """20 sequences in batches of 4 are five steps: masks may take four, in width three phases of one."""
    made = bed(operator="random", optim=Optim(batch_size=4, mask_steps=4))
    made.config.budget.grown_tokens = 20 * 32.0
    made._check_fit()
    made.config.optim.mask_steps = 5
    with pytest.raises(UserError, match=r"optim\.mask_steps=5: .* at most 4 here"):
        made._check_fit()
    made.config.direction, made.config.factor, made.config.optim.mask_steps = "width", 2.0, 1
    made._check_fit()
    made.config.optim.mask_steps = 2
    with pytest.raises(UserError, match=r"at most 1 here"):
        made._check_fit()


def test_what_an_arm_is_told_apart_by():
    made = bed(operator="interleave", noise=0.25)
    target = made.plan().config
    found = made._settings("grown", 1e-3, target)
    base = llama_config(SMALL, 300)
    wide = training_cost(target, 32).non_embedding / training_cost(base, 32).non_embedding
    assert found == {
        "seed": 7, "lr": 1e-3, "layers": 8, "hidden_size": 16, "base_layers": 2, "growth_tokens": 3200,
        "factor": pytest.approx(wide), "operator": "interleave", "direction": "depth", "noise": 0.25,
    }  # fmt: skip
    assert "operator" not in made._settings("scratch", 1e-3, target)
    made.config.stage = "pretrain"
    assert made._settings("pretrain", 1e-3, base)["factor"] == 1


def test_an_arm_ends_at_its_smoothed_last_loss_and_a_sweep_is_one_arm(monkeypatch, tmp_path):
    made, saved = bed(), []
    losses = [6.0 - 0.1 * i + (0.3 if i % 2 else 0) for i in range(45)]
    curve = TrainingCurve()
    cost = made.cost(made.base_config())
    for step, loss in enumerate(losses):
        curve.add(step, Spent().after(cost, step, 32), loss)
    trained = SimpleNamespace(curve=curve, spent=Spent().after(cost, 45, 32))
    monkeypatch.setattr(stages, "train", lambda *_: trained)
    monkeypatch.setattr(stages, "save_trained", lambda *given: saved.append(given[1:]))
    made.run = SimpleNamespace(record={}, dir=tmp_path, path=lambda *parts: tmp_path.joinpath(*parts))
    (tmp_path / "curves").mkdir()
    told = {}
    made.run.add_metrics = lambda stage, values: told.update({stage: values})
    network = SimpleNamespace(config=made.base_config())
    made._train(network, "scratch-0.002", 2e-3, 45, Spent())
    arm = stages.Arm.load(tmp_path / "curves" / "scratch-0.002.json")
    assert arm.label == "scratch" and arm.settings["lr"] == 2e-3 and saved[0][0] == tmp_path / "model" / "scratch-0.002"
    final = told["scratch-0.002"]
    assert final["last_loss"] == losses[-1] and final["loss"] == arm.final_loss != losses[-1]
    assert final["tokens"] == 45 * 32 and final["flops"] == trained.spent.flops
    assert made.run.record["parameters"] == {"scratch-0.002": cost.parameters}


def test_networks_may_know_as_many_tokens_and_places_as_are_asked_for():
    config = SimpleNamespace(vocab_size=300, max_position_embeddings=32)
    check_vocabulary(config, 300, "a")
    check_context(config, 32, "a")
    with pytest.raises(UserError, match="has 300 tokens, the tokenizer has 301"):
        check_vocabulary(config, 301, "a")
    with pytest.raises(UserError, match="is configured for 32 positions"):
        check_context(config, 33, "a")


# -- the loop ----------------------------------------------------------------------------------------------------------


def trace(monkeypatch, num_sequences, first_step=0, every=0, schedule_tokens=None):
    """What the loop is told, step by step, with nothing trained."""
    told = SimpleNamespace(first=[], rates=[], points=[], state=None, valid=[])
    config = GrowLLM(network=SMALL, optim=Optim(batch_size=4, schedule="cosine", warmup_steps=0))
    config.optim.schedule_tokens = schedule_tokens
    config.compare.eval_every_steps = every

    class Steps:
        def __init__(self, run, stage, num_steps, state):
            told.state, self.num = state, num_steps

        def __iter__(self):
            return iter(range(self.num))

        def log(self, **values):
            told.valid += [len(told.rates)] if "valid_loss" in values else []

    class Numbers:
        def __init__(self, *_):
            pass

        def batch(self, first, size, rank, world_size):
            told.first.append((first, size))
            return None

    def step(trained, network, optimizer, batch, lr, *_):
        told.rates.append(lr)
        return torch.tensor(1.0), torch.tensor(1.0)

    for name, stand_in in (("Loop", Steps), ("Sequences", Numbers), ("train_step", step)):
        monkeypatch.setattr(train, name, stand_in)
    monkeypatch.setattr(train, "measurer", lambda *_: lambda: 2.0)
    monkeypatch.setattr(train, "_prepared", lambda network, *_: network)
    network = make_model()
    cost = Cost(10, 5, 60.0, 30.0, 90.0, 4)
    before = Spent(tokens=32, sequences=100, flops=dict.fromkeys(("total", "non_embedding", "matmul"), 7.0), time_s=5.0)
    task = Task("a", network, cost, 1e-2, num_sequences, before, first_step=first_step)
    store = SimpleNamespace(train=None, valid=None)
    told.trained = train.train(task, None, config, store, SimpleNamespace(device="cpu", scaler=None))
    return told


def test_a_loop_reads_on_measures_now_and_then_and_at_its_end(monkeypatch):
    told = trace(monkeypatch, 41, first_step=20, every=4)  # 41 sequences: eleven steps of four
    assert told.first == [(100 + 4 * step, 4) for step in range(11)] and told.valid == [4, 8, 11]
    cosine = [1e-2 * (0.1 + 0.9 * (1 + math.cos(math.pi * (20 + step) / 31)) / 2) for step in range(11)]
    assert told.rates == pytest.approx(cosine)
    told = trace(monkeypatch, 41, first_step=20, every=4, schedule_tokens=50 * 4 * 32)
    assert told.rates == pytest.approx(
        [1e-2 * (0.1 + 0.9 * (1 + math.cos(math.pi * (20 + step) / 50)) / 2) for step in range(11)]
    )
    points = told.trained.curve.points
    assert [point["step"] for point in points] == [0, 4, 8, 11]
    assert [point["flops.total"] for point in points] == [7 + 60 * 4 * 32 * step for step in (0, 4, 8, 11)]
    assert points[-1]["tokens"] == 32 + 44 * 32 and points[-1]["time_s"] >= 5
    assert told.trained.spent.sequences == 144 and told.trained.spent.time_s > 5
    assert set(told.state) == {"model", "optimizer", "curve"} and told.state["curve"] is told.trained.curve
    assert [len(trace(monkeypatch, 4 * steps).valid) for steps in (40, 85)] == [40, 43]  # about 40 points


def test_moments_are_taken_over_as_copies():
    """Neither two copies of a layer nor what they were copied from share their moments."""
    model = make_model().train()
    optimizer = torch.optim.AdamW(model.parameters())
    model(token_ids(), labels=token_ids()).loss.backward()
    optimizer.step()
    state = OptimizerState(optimizer, model).state_dict()
    plan = [SimpleNamespace(source=i % 3, fresh=False) for i in range(6)]
    from toolkit.stacking.operators.llama import Llama

    shapes = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(6)]
    tiled = tiled_moments(state, plan, Llama(), shapes)
    for part in ("step", "exp_avg", "exp_avg_sq"):
        pointers = {tiled[f"{name}/{part}"].data_ptr() for name in shapes} | {state[f"{shapes[1]}/{part}"].data_ptr()}
        assert len(pointers) == 7
    other = make_model().train()
    taken = torch.optim.AdamW(other.parameters())
    OptimizerState(taken, other).load_state_dict(state)
    kept = {name: value.clone() for name, value in state.items()}
    other(token_ids(), labels=token_ids()).loss.backward()
    taken.step()
    assert all(torch.equal(state[name], value) for name, value in kept.items())
    assert len(OptimizerState(torch.optim.AdamW(other.parameters()), other).state_dict()) == 0
