"""What a run of ``sample-icg`` draws, keeps, measures and shows, by samples whose pixels and scores are known."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from toolkit.icg import job, measure, results
from toolkit.icg.columns import GIVEN, Column
from toolkit.icg.config import SampleICG
from toolkit.icg.methods import ICG, NoGuidance
from toolkit.icg.plan import Plan
from toolkit.icg.results import Result
from toolkit.icg.sample_store import SampleStore, to_bytes, to_floats
from toolkit.icg.sources.base import Request, Source
from toolkit.runs.record import Run


class Numbered(Source):
    """Sample n of a scale w is grey, n + w levels of 255 above black everywhere; two classes in turn."""

    shape, num_classes, labels = (1, 2, 3), 2, [0, 1]

    def draw(self, guidance, scale, request, num_steps=None):
        levels = [number + scale for number in request.numbers]
        return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, *self.shape) / 127.5 - 1, 8.0 * (1 + guidance.guides)


def columns():
    source = Numbered()
    return [Column("none", NoGuidance(), 1.0, GIVEN, source, True), Column("icg", ICG(), 3.0, GIVEN, source, True)]


def plan_of(made, num=7, num_measured=0):
    return Plan(made, made[0].source, None, num, num_measured, "not asked for", None)


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path, SampleICG())
    made.record["metrics"] = {}
    return made


# -- what is drawn and kept ------------------------------------------------------------------------------------------


def test_batches_lie_on_a_grid_and_their_costs_are_added(tmp_path):
    store = SampleStore(tmp_path, 7, 3)
    assert list(store.missing()) == [(0, 3), (3, 6), (6, 7)]
    for start, stop in store.missing():
        levels = torch.arange(start, stop).view(-1, 1, 1, 1) / 127.5 - 1
        store.write(start, levels, seconds=2.0 + start, calls=8.0 + start)
    assert not list(store.missing())
    batch = store.read()
    assert batch.images.flatten().tolist() == list(range(7))
    assert batch.seconds == 2 + 5 + 8 and batch.calls == 14  # added, and the most that an image took
    assert len({SampleStore(tmp_path, *sizes).folder for sizes in ((7, 3), (7, 2), (8, 3))}) == 3
    (store.folder / "00000003.safetensors").write_bytes(b"cut short")
    assert list(store.missing()) == [(3, 6)]


def test_levels_are_the_nearest_and_points_are_kept_as_they_are():
    levels = torch.arange(256.0)
    for off in (-0.4, 0.4):
        assert torch.equal(to_bytes((levels + off) / 127.5 - 1), levels.to(torch.uint8))
    assert to_bytes(torch.tensor([-2.0, 2.0])).tolist() == [0, 255]
    torch.testing.assert_close(to_floats(levels.to(torch.uint8)), levels / 127.5 - 1)
    points = torch.tensor([[3.0, -4.0]])
    assert torch.equal(to_floats(points), points)


def test_every_process_draws_its_own_batches_and_what_is_not_finite_is_made_so(tmp_path, monkeypatch):
    config = SampleICG(seed=0)
    config.sampling.batch_size = 2
    column = columns()[1]
    monkeypatch.setattr(job, "world_size", lambda: 3)
    for rank, starts in enumerate(([0, 6], [2, 8], [4])):
        monkeypatch.setattr(job, "rank", lambda rank=rank: rank)
        store = SampleStore(tmp_path / str(rank), 9, 2)
        job._draw(config, store, column, 0)
        assert sorted(int(path.stem) for path in store.folder.iterdir()) == starts
    monkeypatch.setattr(job, "world_size", lambda: 1)
    monkeypatch.setattr(job, "rank", lambda: 0)
    broken = torch.tensor([[float("nan"), float("inf"), -float("inf"), 0.5]])
    monkeypatch.setattr(Numbered, "draw", lambda *_: (broken, 8.0))
    store = SampleStore(tmp_path, 1, 2)
    job._draw(config, store, column, 0)
    assert store.read().images.tolist() == [[0.0, 1.0, -1.0, 0.5]]


def test_pictures_are_drawn_once_and_what_is_measured_with_every_seed(run):
    config = SampleICG()
    config.sampling.num_samples, config.measure.num_repeats = 9, 3
    column = columns()[0]
    hidden = dataclasses.replace(column, shown=False)
    plan = plan_of([column, hidden], num=9, num_measured=5)
    for which, repeat, num in ((column, 0, 9), (column, 1, 5), (hidden, 0, 5)):
        assert job.store_of(config, run, plan, which, repeat).num == num
    assert job._repeats(config, plan, column) == 3
    assert job._repeats(config, plan_of([column]), column) == 1
    column.source.batch_size = 4
    assert job.store_of(config, run, plan, column, 0).batch_size == 4


def test_a_repeat_has_noise_of_its_own(tmp_path, monkeypatch):
    asked, (column, _) = [], columns()
    draw = Numbered.draw
    monkeypatch.setattr(Numbered, "draw", lambda self, *given: asked.append(given[2]) or draw(self, *given))
    job._draw(SampleICG(seed=3), SampleStore(tmp_path, 3, 2), column, 2)
    assert asked == [Request(3, 2, 0, 2), Request(3, 2, 2, 3)]


def test_every_column_is_tried_for_a_few_steps_on_two_samples_before_any_is_drawn(monkeypatch):
    calls = []
    monkeypatch.setattr(Numbered, "draw", lambda self, guidance, scale, *rest: calls.append((scale, *rest)))
    monkeypatch.setattr(Numbered, "prepare", lambda self, guidance: calls.append(guidance.method))
    config = SampleICG(seed=3, guidance=ICG())
    for num_samples, num_steps, wanted in ((9, 18, (2, 4)), (1, 3, (1, 3))):
        config.sampling.num_samples, config.sampling.num_steps = num_samples, num_steps
        request = Request(3, 0, 0, wanted[0])
        job.try_out(config, plan_of(columns()))
        assert calls == ["none", (1.0, request, wanted[1]), "icg", (3.0, request, wanted[1])]
        calls.clear()


def test_the_objective_is_the_distance_of_the_last_method_shown():
    one, other = columns()
    hidden = dataclasses.replace(other, scale=5.0, shown=False)
    found = {"none.frechet": 3.0, "icg.w_3.frechet": 2.0, "icg.w_5.frechet": 1.0}
    assert job._objective(found, plan_of([one, other, hidden])) == 2.0
    assert job._objective({"none.frechet": 3.0}, plan_of([one, other])) == 3.0
    assert job._objective({}, plan_of([one])) is None


def test_samples_have_numbers_of_their_own_whatever_the_batch_and_batches_a_seed():
    whole, part = Request(0, 0, 2, 6), Request(0, 0, 4, 6)
    assert whole.seeds("x")[2:] == part.seeds("x") and len(set(whole.seeds("x"))) == 4
    drawn = [torch.rand(3, generator=one).tolist() for one in whole.generators("x")]
    assert drawn[2:] == [torch.rand(3, generator=one).tolist() for one in part.generators("x")] and drawn[0] != drawn[1]
    others = [Request(1, 0, 2, 6), Request(0, 1, 2, 6), Request(0, 0, 3, 6)]
    assert len({one.one_seed("x") for one in (whole, *others)} | {whole.one_seed("y")}) == 5
    assert Request(0, 1, 2, 6).seeds("x") != whole.seeds("x") != whole.seeds("y")


# -- what is measured ------------------------------------------------------------------------------------------------


class Judge:
    """Says of which calls it was asked."""

    def __init__(self):
        self.dataset = SimpleNamespace(test=SimpleNamespace(labels=np.array([1]), all=lambda: (torch.zeros(1),)))

    def score(self, images, labels):
        return {"all": len(images), "first": labels[:3].tolist()}

    def accuracy(self, images, labels):
        return {"accuracy": len(images), "labels": None if labels is None else labels.tolist()}

    def off_mode(self, images):
        return {"off_mode": len(images)}

    def floor(self, num):
        return {"floor": num}


def test_distances_need_a_hundred_samples_and_accuracy_only_the_classes_asked_for():
    images = torch.zeros(100, 1, 2, 2)
    plan, source = dataclasses.replace(plan_of(columns()), unmeasured=""), Numbered()
    assert job._scores(plan, Judge(), source, images) == {"all": 100, "first": [0, 1, 0]}
    few = {"accuracy": 3, "labels": [0, 1, 0], "off_mode": 3}
    assert job._scores(plan, Judge(), source, images[:3]) == few
    assert measure.floor(Judge(), 100) == {"floor": 100, "accuracy": 1, "labels": [1]}
    assert "floor" not in measure.floor(Judge(), 99)


def test_a_judge_takes_the_neighbours_asked_for_and_looks_at_the_validation_split_too(monkeypatch):
    monkeypatch.setattr(job, "features_of", lambda dataset: "features")
    monkeypatch.setattr(job, "FeatureJudge", lambda *given, **keys: (given, keys))
    config, plan = SampleICG(), dataclasses.replace(plan_of(columns()), unmeasured="", dataset="data")
    config.measure.neighbours = 7
    assert job._judge(config, plan) == (("data", "features"), {"neighbours": 7, "with_valid": True})
    assert job._judge(config, plan_of(columns())) is None


def test_as_many_samples_are_measured_as_the_plan_says_of_every_repeat(run, monkeypatch):
    config, (column, _), asked = SampleICG(seed=0), columns(), []
    config.sampling.num_samples, config.measure.num_repeats = 5, 2
    monkeypatch.setattr(
        job, "_scores", lambda plan, judge, source, images: asked.append(len(images)) or {"frechet": 1.0}
    )
    monkeypatch.setattr(Numbered, "extra_metrics", lambda self: {"bias": 0.25})
    kept(monkeypatch, "image_grid")
    plan = plan_of([column], num=5, num_measured=3)
    for repeat in range(2):
        job._draw(config, job.store_of(config, run, plan, column, repeat), column, repeat)
    job._report(config, run, plan)
    assert asked == [3, 3] and run.record["metrics"]["bias"] == 0.25


def test_prompts_in_turn_are_what_samples_are_held_against():
    source, seen = Numbered(), []
    source.prompts = ["a fox", "a boat"]
    plan = dataclasses.replace(plan_of(columns()), clip=lambda images, prompts: seen.append(prompts) or 0.5)
    assert job._scores(plan, None, source, torch.zeros(3, 1, 2, 2)) == {"clip": 0.5}
    assert seen == [["a fox", "a boat", "a fox"]]


def test_why_nothing_is_measured():
    def dataset(num_test=100, shape=(1, 8, 8), classes=("a", "b")):
        return SimpleNamespace(name="toy", shape=shape, class_names=classes, test=range(num_test))

    assert measure.why_not(dataset(), (1, 8, 8), 2) == measure.why_not(dataset(), None, 0) == ""
    assert "not known" in measure.why_not(None, None, 0)
    assert "samples of 1x8x8, the model makes 3x8x8" in measure.why_not(dataset(), (3, 8, 8), 2)
    assert "2 classes, the model 3" in measure.why_not(dataset(), (1, 8, 8), 3)
    assert "3 classes, the model 2" in measure.why_not(dataset(classes="abc"), (1, 8, 8), 2)
    assert "99 test items, too few" in measure.why_not(dataset(99), (1, 8, 8), 2)


# -- what is shown ---------------------------------------------------------------------------------------------------


def kept(monkeypatch, name):
    """The calls of one kind of figure: arguments after the path, and words."""
    calls = []
    monkeypatch.setattr(results.figures, name, lambda path, *rest, **words: calls.append((path.name, rest, words)))
    return calls


def test_a_run_is_reported_column_by_column(run, monkeypatch):
    """Without a judge: costs per image, the grid, and single pictures of the samples asked for."""
    config = SampleICG(seed=0)
    config.sampling.num_samples, config.sampling.batch_size = 5, 4
    made = columns()
    plan, calls = plan_of(made, num=7), kept(monkeypatch, "image_grid")
    for column in made:
        store = job.store_of(config, run, plan, column, 0)
        for start, stop in store.missing():
            images, num = column.source.draw(column.guidance, column.scale, Request(0, 0, start, stop))
            store.write(start, images, 3.5, num)
    job._report(config, run, plan)
    found = run.record["metrics"]
    assert found["none.calls"] == 8 and found["icg.w_3.calls"] == 16
    assert found["none.seconds"] == found["icg.w_3.seconds"] == pytest.approx(2 * 3.5 / 7)
    ((_, (grid,), words),) = calls
    levels = ((grid.flatten(1) + 1) * 127.5).round().mean(1).tolist()
    assert levels == [1, 2, 3, 4, 5, 3, 4, 5, 6, 7] and words["columns"] == 5
    assert words["row_labels"] == ["none", "ICG 3"] and words["column_labels"] == ["0", "1", "0", "1", "0"]
    paths = sorted((run.dir / "images" / "icg.w_3").iterdir())
    assert [np.asarray(Image.open(path)).mean() for path in paths] == [3, 4, 5, 6, 7]
    assert not (run.dir / "draws").exists()


def test_what_is_read_as_another_class_is_framed(run, monkeypatch):
    calls = kept(monkeypatch, "image_grid")
    column = columns()[0]
    images = torch.full((2, 1, 4, 5), 0.25)
    results.draw_grid(run, [(column, images)], column.source, {column.key: torch.tensor([0, 0])})
    right, wrong = calls[0][1][0]
    assert right.shape == (3, 6, 7)
    for one, edge in ((right, [1.0, 1.0, 1.0]), (wrong, [0.84, -0.26, -1.0])):
        inner = torch.zeros(6, 7, dtype=torch.bool)
        inner[1:-1, 1:-1] = True
        assert (one[:, inner] == 0.25).all()
        torch.testing.assert_close(one[:, ~inner], torch.tensor(edge).view(3, 1).expand(-1, 22))


@pytest.mark.parametrize(("size", "across"), [(63, 20), (64, 8)])
def test_small_images_stand_twenty_side_by_side_and_large_ones_eight(run, monkeypatch, size, across):
    calls, (column, _) = kept(monkeypatch, "image_grid"), columns()
    results.draw_grid(run, [(column, torch.zeros(30, 1, 2, size))], column.source, {})
    assert calls[0][2]["columns"] == across and len(calls[0][1][0]) == across


def test_curves_begin_at_no_guidance_and_real_images_are_a_line_over_all_scales(run, monkeypatch):
    calls, source = kept(monkeypatch, "curves"), Numbered()

    def result(name, scale, frechet, accuracy):
        guidance = ICG() if name == "icg" else NoGuidance()
        score = {"frechet": frechet, "accuracy": accuracy}
        return Result(Column(name, guidance, scale, GIVEN, source, True), [score])

    made = [result("none", 1.0, 9.0, 0.5), result("icg", 3.0, 4.0, 0.9), result("icg", 2.0, 5.0, 0.7)]
    results.draw_curves(run, made, {"frechet": 1.5})
    lines = {name: (rest[0], words.get("logy")) for name, rest, words in calls}
    assert lines["frechet.png"] == (
        {"ICG": ([1, 2, 3], [9, 5, 4]), "real images": ([1, 3], [1.5, 1.5])},
        True,
    )
    assert lines["accuracy.png"] == ({"ICG": ([1, 2, 3], [0.5, 0.7, 0.9])}, False)
    assert lines["frontier.png"] == ({"ICG": ([0.5, 0.7, 0.9], [9, 5, 4])}, True)


def test_points_of_all_columns_share_their_axes(run, monkeypatch):
    calls, made = kept(monkeypatch, "scatter"), columns()
    shown = [(made[0], torch.tensor([[1.0, -2.0]])), (made[1], torch.tensor([[0.5, 0.5], [3.0, 0.0]]))]
    results.draw_points(run, shown, made[0].source)
    assert [(name, rest[1], words["limit"]) for name, rest, words in calls] == [
        ("none.png", [0], 3.0),
        ("icg.w_3.png", [0, 1], 3.0),
    ]
