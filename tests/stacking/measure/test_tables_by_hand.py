"""What is read off arms and written into tables, metrics and reports: which arm, which accounting, which unit."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from tests.stacking.measure.test_readings import arm
from tests.stacking.models import make_model, make_tokenizer
from toolkit.errors import UserError
from toolkit.runs.record import Run
from toolkit.stacking import grow_folder, job, stage_grow
from toolkit.stacking.checkpoints import probe
from toolkit.stacking.checkpoints.open import open_checkpoint
from toolkit.stacking.config import GrowLLM, Growth
from toolkit.stacking.measure import compare
from toolkit.stacking.measure.curves import ACCOUNTINGS, Arm, Curve
from toolkit.stacking.measure.readings import GRID, SLICES, band, crossing, recovery_tokens, valley
from toolkit.stacking.operators.tensors import Info
from toolkit.stacking.stage_advise import advice_table, advise

SETTINGS = {"base_layers": 3, "growth_tokens": 100.0, "hidden_size": 16, "factor": 4.0}


def made(label, points, **settings):
    """An arm; of a grown network the other accountings say less and more than of the others."""
    found = arm(label, points, **(SETTINGS | settings))
    for row in found.points if label == "grown" else ():
        row["flops.non_embedding"] *= 0.875
        row["flops.matmul"] *= 1.25
    return found


def seeds():
    """Two seeds: grown, scratch, base and continued of each, on straight lines."""
    found = {}
    for seed, drop in ((0, 0.0), (1, 0.5)):
        found[seed] = [
            made("grown", [(4, 5.0 - drop), (8, 4.0 - drop), (16, 3.0 - drop)], seed=seed),
            made("scratch", [(2, 6.0), (8, 5.0 - drop / 4), (32, 2.0)], seed=seed),
            made("base", [(1, 6.0), (4, 4.5 - drop)], seed=seed),
            made("continued", [(4, 4.5 - drop), (8, 4.25 - drop), (16, 4.0 - drop)], seed=seed),
        ]
    return found


# -- comparisons -------------------------------------------------------------------------------------------------------


def test_each_seed_is_held_against_its_own_controls_and_each_accounting_is_its_own():
    config, both = GrowLLM(), seeds()
    config.compare.losses, config.budget.tokens = [4.5], 1000
    everything = both[0] + both[1]
    for seed, arms in both.items():
        found = compare.read_arm(arms[0], everything, config)
        assert found["metrics"] == compare.read_arm(arms[0], arms, config)["metrics"], seed
        grown, scratch, base, continued = arms
        for accounting in ACCOUNTINGS:
            at = [one.curve(accounting).compute_to(4.5) for one in (scratch, grown)]
            reading = found["readings"][accounting]["loss_4p5"]
            assert (reading.scratch_flops, reading.grown_flops) == pytest.approx(at)
            told = found["metrics"][f"speedup_{accounting}.loss_4p5"]
            assert told == pytest.approx(at[0] / at[1] - 1)
        assert found["metrics"]["growth.spike"] == pytest.approx(
            grown.points[0]["valid_loss"] - base.points[-1]["valid_loss"]
        )
        assert found["metrics"]["crossing.flops"] == 8 and found["metrics"]["crossing.base_budgets"] == 2
        assert continued.final_loss - grown.final_loss == pytest.approx(found["metrics"]["final.gap_to_continued"])
    worse = made("grown", [(4, 5.0), (8, 4.5), (16, 4.3)])
    never = compare.read_arm(worse, [worse, *both[0][1:]], config)["metrics"]
    assert never["crossing.flops"] == never["crossing.base_budgets"] == math.inf


def test_a_record_has_the_means_of_its_own_arms(tmp_path):
    config, both = GrowLLM(), seeds()
    run = Run(tmp_path, config)
    run.record["metrics"] = {}
    compare._compare(config, run, both[0], both[1])
    assert run.record["metrics"]["final.grown"] == both[0][0].final_loss  # not the other run's
    run.record["metrics"] = {}
    compare._compare(config, run, [], both[0] + both[1])
    assert run.record["metrics"]["final.grown"] == pytest.approx((both[0][0].final_loss + both[1][0].final_loss) / 2)


def test_tables_have_means_over_seeds_in_their_own_columns():
    config, both = GrowLLM(), seeds()
    everything = both[0] + both[1]
    results = [compare.read_arm(arms[0], everything, config) for arms in both.values()]
    (row,) = compare.speedup_table(results, config).rows
    read = [one["readings"]["total"]["final"] for one in results]
    mean = lambda values: sum(values) / 2  # noqa: E731
    assert row[1:4] == pytest.approx(
        [mean([getattr(one, key) for one in read]) for key in ("loss", "scratch_flops", "grown_flops")]
    )
    for column, accounting in enumerate(ACCOUNTINGS, 4):
        several = [one["readings"][accounting]["final"].speedup for one in results]
        assert row[column] == compare._percent(several)
    rows = {row[0]: row[1:] for row in compare.arms_table(everything).rows}
    assert rows["scratch"][:5] == [12, 1e-3, 320, 32, 32]
    assert rows["grown"][5] == compare._loss([both[0][0].final_loss, both[1][0].final_loss])


def test_curves_of_a_figure_end_at_its_ceiling_and_speedups_are_read_where_all_seeds_are(monkeypatch, tmp_path):
    drawn, config, both = {}, GrowLLM(), seeds()
    monkeypatch.setattr(compare.figures, "curves", lambda path, series, **_: drawn.update({path.stem: series}))
    everything = both[0] + both[1]
    results = [compare.read_arm(arms[0], everything, config) for arms in both.values()]
    compare.draw(Run(tmp_path, config), config, everything, results)
    lowest = min(one.final_loss for one in everything)
    assert all(max(losses) <= lowest + 1.2 for _, losses in drawn["loss_tokens"].values())
    assert drawn["loss_tokens"]["grown"][0] == [160]  # the first seed's: 4 of 4.0 and 5.0 are above
    assert drawn["loss_tokens"]["grown"][1] == both[0][0].smoothed()[-1:] != both[1][0].smoothed()[-1:]
    series = drawn["speedup"]["grown"]
    assert len(series) == 4 and series[0][0] == pytest.approx(3.0) and series[0][-1] == pytest.approx(4.5)
    assert len(series[0]) == 25 and series[0] == pytest.approx([3 + 1.5 * i / 24 for i in range(25)])
    for loss, middle, low, high in zip(*series, strict=True):
        found = []
        for grown, scratch, *_ in both.values():
            found.append(100 * (scratch.curve("total").compute_to(loss) / grown.curve("total").compute_to(loss) - 1))
        sd = abs(found[0] - found[1]) / 2**0.5
        assert (middle, high - middle, middle - low) == pytest.approx((sum(found) / 2, sd, sd), rel=1e-6, abs=1e-6)


# -- curves ------------------------------------------------------------------------------------------------------------


def test_a_point_is_smoothed_over_one_neighbour_a_side_for_every_twenty_points():
    losses = [float(i % 3) for i in range(45)]
    smoothed = made("grown", [(1 + i, loss) for i, loss in enumerate(losses)]).smoothed()
    line = lambda ys: sum(ys) / len(ys)  # noqa: E731 - in the middle of a window the line is the mean
    assert smoothed[0] == losses[0] and smoothed[1] == pytest.approx(line(losses[:3]))
    assert smoothed[20] == pytest.approx(line(losses[18:23]))


def test_losses_between_points_are_on_a_line_in_log_compute():
    curve = Curve([1.0, 10.0, 1000.0], [5.0, 4.0, 2.0])
    assert curve.loss_at(10**0.25) == pytest.approx(4.75) and curve.loss_at(100) == pytest.approx(3.0)
    assert curve.loss_at(1.0) == 5.0 and curve.loss_at(1000.0) == 2.0
    first = Arm("a", {}, [{"flops.total": float(i), "valid_loss": 4.0 - i} for i in range(3)])
    assert list(first.curve("total").flops) == [1, 2] and first.has_curve()


def test_bands_valleys_and_crossings_by_hand():
    one, two = Curve([1.0, 100.0], [5.0, 3.0]), Curve([4.0, 400.0], [4.0, 1.0])
    grid, means, *_ = band([one, two])
    assert (grid[0], grid[-1], len(grid)) == (pytest.approx(4.0), pytest.approx(100.0), GRID)
    assert grid[1] / grid[0] == pytest.approx(25 ** (1 / 59))
    assert (
        means[0] == pytest.approx((one.loss_at(4) + 4) / 2) and band([one, Curve([200.0, 300.0], [2.0, 1.0])]) is None
    )
    arms = [made("grown", [(start, 5.0), (stop, 3.0)], factor=start) for start, stop in ((1, 40), (2, 60), (35, 50))]
    found = valley(arms, "factor", "total")
    assert SLICES == (0.5, 0.75, 1.0) and list(found) == [40.0]  # at 20 and 30 one of the arms has not begun
    assert set(found[40.0]) == {1.0, 2.0, 35.0} and found[40.0][1.0] == [3.0]
    first, second = Curve([2.0, 4.0, 8.0, 16.0], [3.0, 4.0, 2.0, 1.0]), Curve([3.0, 20.0], [3.5, 3.0])
    assert crossing(first, second) == 8.0  # below at 2, above at 4, below from 8 on; at 2 the other had not begun
    assert crossing(Curve([3.0, 16.0], [3.5, 3.0]), first) is None  # it ends above
    assert recovery_tokens(4.0, made("grown", [(3, 5.0), (5, 4.0), (9, 3.0)])) == 20


# -- scores of text ----------------------------------------------------------------------------------------------------


# -- reports -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    make_model().save_pretrained(tmp_path / "source")
    make_tokenizer().save_pretrained(tmp_path / "source")
    return open_checkpoint(tmp_path / "source")


def test_a_report_tells_layers_seed_and_what_it_was_measured_on(source, tmp_path, monkeypatch):
    texts = []
    own = probe.probe_ids
    monkeypatch.setattr(
        probe, "probe_ids", lambda checkpoint, text, seed: texts.append((text, seed)) or own(checkpoint, text, seed)
    )
    growth = Growth(operator="llama_pro", insert=3)
    report = grow_folder.grow_checkpoint(source, tmp_path / "out", growth, seed=4, text="the river and", run_id="me")
    assert (report["zeroed_layers"], report["new_layers"], report["fresh_layers"]) == ([1, 3, 5], [1, 3, 5], [])
    assert (report["seed"], report["run"]) == (4, "me") and texts == [("the river and", 4)]
    assert report["cost"]["target"]["parameters"] > report["cost"]["source"]["parameters"]
    fresh = Growth(operator="random", num_layers=5)
    reports = [grow_folder.open_grown(source, fresh, seed)[1] for seed in (1, 2)]
    name = "model.layers.4.mlp.up_proj.weight"
    assert not torch.equal(*(one.tensors.read(name) for one in reports))
    told = grow_folder.describe(source, reports[0], fresh)
    assert told["fresh_layers"] == [3, 4] and told["source_layers"] == [0, 1, 2, None, None]
    trained = SimpleNamespace(growth_map=SimpleNamespace(losses=[5.0, 4.5, 4.25]))
    assert "3 steps, loss 5.000 -> 4.250" in grow_folder.operator_notes(Growth(operator="learn", factor=2), trained)[0]


def test_probes_are_at_most_what_the_source_reads_and_without_a_tokenizer_random_by_the_seed(source):
    ids, kind = probe.probe_ids(source, "the river and " * 100, 0)
    assert ids.shape == (1, 64) and kind == "text"  # of 64 positions
    blank = SimpleNamespace(architecture=source.architecture, config=source.config, tokenizer=None)
    drawn = [probe.probe_ids(blank, None, seed)[0] for seed in (0, 1)]
    assert drawn[0].shape == (1, 64) and not torch.equal(*drawn)
    long = SimpleNamespace(**vars(blank) | {"config": SimpleNamespace(max_position_embeddings=999, vocab_size=97)})
    assert probe.probe_ids(long, None, 0)[0].shape == (1, 128)
    small = SimpleNamespace(
        **vars(blank)
        | {"tokenizer": source.tokenizer, "config": SimpleNamespace(max_position_embeddings=64, vocab_size=4)}
    )
    assert probe.probe_ids(small, "the the", 0)[1] == "random ids"  # "the" is number 4
    small.config.vocab_size = 5
    assert probe.probe_ids(small, "the the", 0)[1] == "text"


def test_rounding_of_the_stored_type_is_tolerated_in_units_of_the_logits_spread(monkeypatch, source, tmp_path):
    """16 epsilons: of bfloat16 an eighth, of float32 the floor 1e-4; a spread below one counts as one."""
    assert probe._tolerance({torch.bfloat16, torch.float32}) == pytest.approx(16 * 2**-7)
    assert probe._tolerance({torch.float32}) == 1e-4
    tensors = SimpleNamespace(infos={"a": Info((1,), torch.bfloat16)})
    for spread, wanted in ((0.1, 0.125), (4.0, 0.5)):
        logits = torch.tensor([-1.0, 1.0]).repeat(97 * 32).view(1, 64, 97) * spread
        monkeypatch.setattr(probe, "transformers_logits", lambda *_, logits=logits: logits)
        assert probe.preservation(source, tmp_path, tensors).tolerance == pytest.approx(wanted, rel=1e-3)


def test_a_map_that_was_trained_is_what_grows_and_reads_no_more_than_the_source_can(monkeypatch, tmp_path):
    asked, learned = [], object()
    monkeypatch.setattr("toolkit.stacking.pretrain.corpus.token_store", lambda _: "store")
    monkeypatch.setattr(
        stage_grow,
        "trained_map",
        lambda config, source, store, context, device: asked.append((store, context)) or learned,
    )
    monkeypatch.setattr(stage_grow, "accelerator_of", lambda _: SimpleNamespace(device="cpu"))
    checkpoint = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=48))
    opened, written = [], []
    monkeypatch.setattr(
        stage_grow,
        "open_grown",
        lambda *given: opened.append(given) or (checkpoint, SimpleNamespace(tensors=SimpleNamespace(infos={}))),
    )
    monkeypatch.setattr(stage_grow, "write_grown", lambda *given, **more: written.append(more) or {})
    monkeypatch.setattr(stage_grow, "find_network", lambda model, part: model)
    monkeypatch.setattr(stage_grow, "is_zoo_network", lambda _: False)
    (tmp_path / "text").write_text("some words")
    config = GrowLLM(
        stage="grow",
        model="a",
        operator="learn",
        factor=2,
        seed=9,
        text=str(tmp_path / "text"),
        measure=False,
        max_shard_gb=0.5,
    )
    run = SimpleNamespace(dir=tmp_path / "run", record={"started": "then"})
    for context, seen in ((64, 48), (32, 32)):
        config.network.context = context
        stage_grow._grow_into(config, run, tmp_path / "out")
        assert asked[-1] == ("store", seen)
    assert opened[0][0] == "a" and opened[0][2] == 9 and opened[1][2:] == (9, learned)
    assert written[0] | {"on_tensor": None} == {
        "seed": 9, "text": "some words", "measure": False, "max_shard_bytes": 500_000_000, "on_tensor": None,
        "run_id": "run then",
    }  # fmt: skip


def test_only_what_this_run_has_written_is_taken_up(tmp_path):
    run = Run(tmp_path / "mine", GrowLLM())
    run.record["started"] = "then"
    assert stage_grow.written_by(run, tmp_path) is None
    for name, taken in (("mine then", True), ("mine before", False), ("other then", False)):
        (tmp_path / grow_folder.REPORT_FILE).write_text(json.dumps({"run": name, "seed": 3}))
        assert (stage_grow.written_by(run, tmp_path) is not None) == taken


def test_advice_has_its_limits_and_its_units():
    """C = 6 N D; the base has a quarter of the parameters. Above a quarter of the compute it is doubted."""
    found = advise(7e9, 1e12)
    assert found.total_flops == 6 * 7e9 * 1e12 and found.base_params == 7e9 / 4
    assert found.base_share == pytest.approx(found.growth_tokens / 4 / 1e12) and found.growth_tokens < 1e11
    rows = dict(advice_table(found).rows)
    assert rows["target, tokens"] == 1e12 and rows["growth timing d, tokens"] == found.growth_tokens
    assert "extrapolates" in found.warnings[0] and len(found.warnings) == 1
    for params, words in ((999.0, "at least 1000"), (1000.0, "times the whole budget")):
        with pytest.raises(UserError, match=words):
            advise(params, 1e3)
    short = advise(1e9, found.growth_tokens)
    assert short.base_share > 0.25 and "training the base would take" in short.warnings[0]
    tokens = next(1e12 * 0.97**i for i in range(900) if 1 <= advise_share(1e9, 1e12 * 0.97**i) < 1.5)
    with pytest.raises(UserError, match="times the whole budget"):
        advise(1e9, tokens)


def advise_share(params, tokens):
    """The base's share by eq. 2."""
    d = 10 ** (0.88 * math.log10(params) + 163.27 / math.log10(6 * params * tokens) - 5.74)
    return d / 4 / tokens


def test_a_sweep_looks_at_the_grown_network_first_and_stages_that_are_done_are_left(monkeypatch):
    ran = []
    run = SimpleNamespace(
        record={"metrics": {"evaluate.loss": 1, "final.grown": 3, "final.scratch": 2, "pretrain.loss": 4}}, dir=None
    )
    run.stage_done = lambda name: name == "grow"
    run.stage = lambda name: __import__("contextlib").nullcontext()
    run.dir = SimpleNamespace(__truediv__=lambda *_: None)
    monkeypatch.setattr(
        job, "_stages", lambda config, run: {name: lambda name=name: ran.append(name) for name in ("grow", "compare")}
    )
    monkeypatch.setattr(job, "show_end", lambda *_, **__: None)
    monkeypatch.setattr(job, "rank", lambda: 1)
    config = GrowLLM(stage="grow", model="a")
    assert job.main(config, run) == 3 and ran == []
    config.stage = "compare"
    job.main(config, run)
    assert ran == ["compare"]
