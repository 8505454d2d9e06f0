"""Which small models a run trains and how, how many samples it draws, what a dry run counts, which limits it has."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from toolkit.errors import UserError
from toolkit.icg import dry_run, plan
from toolkit.icg.config import SampleICG
from toolkit.icg.guidance import Guidance
from toolkit.icg.methods import CFG, ICG, TSG, AutoGuidance
from toolkit.icg.sources.base import Source
from toolkit.zoo.config import MLPConfig

DATA = SimpleNamespace(
    train=SimpleNamespace(fingerprint=lambda: "same", __len__=lambda self: 5), num_classes=3, name="toy"
)


def config_of(guidance, compare, **changes):
    made = SampleICG(guidance=guidance, compare=compare, network=MLPConfig(), **changes)
    made.loss.label_drop, made.optim.num_steps = 0.3, 200
    return made


@pytest.mark.parametrize(
    ("guidance", "wanted"),
    [
        (ICG(), {"plain": (0.0, 200)}),
        (CFG(), {"plain": (0.0, 200), "dropping": (0.3, 200)}),
        (AutoGuidance(weak_fraction=0.1), {"plain": (0.0, 200), "weak": (0.0, 20)}),
        (AutoGuidance(weak="a run"), {"plain": (0.0, 200)}),
    ],
)
def test_only_classifier_free_guidance_has_a_model_that_dropped_labels(guidance, wanted):
    found = plan.small_models(config_of(guidance, ["none"]), DATA)
    assert {name: (one.loss.label_drop, one.optim.num_steps) for name, one in found.items()} == wanted


class Items:
    """So many items of a split."""

    def __init__(self, number):
        self.number = number

    def __len__(self):
        return self.number


class Any(Source):
    """Takes every method."""

    shape, num_classes = (1, 4, 4), 3

    def refuse(self, guidance):
        """None is refused."""


def test_as_many_samples_are_measured_as_there_are_training_items(monkeypatch):
    monkeypatch.setattr(plan, "why_not", lambda *_: "")
    data = SimpleNamespace(train=Items(70), test=Items(30), valid=Items(10))
    sources = {"plain": Any(), "dropping": Any()}

    def planned(num_samples, measured=None, dataset=data, **changes):
        config = config_of(ICG(), ["none"], **changes)
        config.sampling.num_samples, config.measure.num_samples = num_samples, measured
        made = plan.make_plan(config, sources, dataset)
        return made.num, made.num_measured

    assert planned(64) == (70, 70) and planned(100) == (100, 70)
    assert planned(64, measured=40) == (64, 40) and planned(16, measured=40) == (40, 40)
    monkeypatch.setattr(plan, "MOST_MEASURED", 50)
    assert planned(16) == (50, 50)
    assert planned(16, model="a run") == (16, 16)
    monkeypatch.setattr(plan, "why_not", lambda *_: "nothing to compare with")
    assert planned(16) == (16, 0)
    monkeypatch.setattr(plan, "_clip_score", lambda *_: "a score that needs no data")
    assert planned(16, measured=40) == (40, 40)


def test_the_curve_over_scales_is_of_what_is_measured(monkeypatch):
    for why, hidden in (("", [1.25, 2.0, 3.0]), ("nothing to compare with", [])):
        monkeypatch.setattr(plan, "why_not", lambda *_, why=why: why)
        made = plan.make_plan(config_of(ICG(scale=1.5), ["none"]), {"plain": Any()}, SimpleNamespace(train=Items(9)))
        assert [one.scale for one in made.columns if not one.shown] == hidden


def test_samples_and_batches_beyond_memory_are_refused_before_anything_is_trained_or_drawn(monkeypatch):
    """A sample of 1x4x4 has 64 bytes, kept of both methods; a step holds 3 x 64 + 8 of each item."""
    monkeypatch.setattr("toolkit.runs.machine.memory_bytes", lambda: 2**20)
    data = SimpleNamespace(name="toy", num_classes=3, shape=(1, 4, 4))
    monkeypatch.setattr(plan.data, "load", lambda config, seed: data)

    def refused(samples=1, measured=None, batch=1, **changes):
        config = config_of(ICG(), ["none"], **changes)
        config.sampling.num_samples, config.measure.num_samples, config.optim.batch_size = samples, measured, batch
        with pytest.raises(UserError) as error:
            plan.small_dataset(config) if config.model is None else plan.make_plan(config, {"given": Any()}, None)
        return str(error.value)

    assert refused(8193).startswith("sampling.num_samples=8193: 1.0 MiB of numbers at once, and this machine has 1.0")
    assert "give at most 8192, " in refused(8193, model="a run")
    assert refused(measured=16385).startswith("measure.num_samples=16385: ")
    assert "optim.batch_size=5243: " in refused(batch=5243) and "at most 5242, " in refused(batch=5243)
    config = config_of(ICG(), ["none"])
    config.sampling.num_samples, config.measure.num_samples, config.optim.batch_size = 8192, 16384, 5242
    assert plan.small_dataset(config) is data


def test_the_weak_model_is_the_one_that_was_trained_for_less(monkeypatch, tmp_path):
    class Opened:
        def __init__(self, folder, config, device):
            self.denoiser, self.weak = f"the network of {folder}", None

        def set_weak(self, *given):
            self.weak = given

    small = {"plain": "long", "weak": "short"}
    monkeypatch.setattr(plan, "small_dataset", lambda config: SimpleNamespace(class_names=("a", "b")))
    monkeypatch.setattr(plan, "small_models", lambda config, dataset: small)
    monkeypatch.setattr(plan, "make_small_model", lambda one, dataset, accelerator: tmp_path / one)
    monkeypatch.setattr("toolkit.icg.sources.denoiser.DenoiserSource", Opened)
    monkeypatch.setattr(plan.shutil, "copytree", lambda source, dest, **_: None)
    run = SimpleNamespace(record={}, stage=lambda name: contextlib.nullcontext(), path=lambda *names: tmp_path)
    sources, _ = plan._small_models(None, run, SimpleNamespace(device="cpu"))
    assert sources["plain"].weak == (f"the network of {tmp_path / 'short'}", str(tmp_path / "short"))
    assert sources["plain"].class_names == ("a", "b") and run.record["models"] == {
        "plain": str(tmp_path / "long"), "weak": str(tmp_path / "short"),
    }  # fmt: skip


def test_the_data_of_a_given_model_is_read_with_its_labels(monkeypatch):
    read = []
    names = SimpleNamespace(class_names=("a", "b"))
    monkeypatch.setattr(
        plan.data, "load", lambda chosen, seed: read.append((chosen.name, chosen.class_labels, seed)) or names
    )
    source = Any()
    source.training = {"data": {"name": "mnist", "class_labels": False}}
    config = config_of(ICG(), None, seed=4)
    assert plan._data_of(config, source) is names and read == [("mnist", True, 4)] and source.class_names == ("a", "b")
    config.measure.enabled = False
    assert plan._data_of(config, source) is None


def test_methods_know_what_they_perturb_and_look_for_it(monkeypatch):
    asked = []
    monkeypatch.setattr("toolkit.icg.guiders.time_embeddings.find_time_embeddings", lambda *given: asked.append(given))
    for method in (ICG(), TSG(time_embedding_modules=["a"], max_layers=3)):
        method.check_network("network")
    assert asked == [("network", ["a"], 3)] and [one().perturbs for one in (ICG, CFG, TSG)] == [False, False, True]
    assert [ICG(condition=one).from_bank for one in ("auto", "bank", "class", "gaussian")] == [True, True, False, False]


@pytest.mark.parametrize("key", ["prompts", "negative_prompt", "scheduler", "call", "size_px"])
def test_what_pipelines_alone_take_is_refused_for_a_network(monkeypatch, key):
    from toolkit.icg.sources import pipeline_files

    monkeypatch.setattr(pipeline_files, "find_index", lambda _: None)
    with pytest.raises(UserError, match=f"^{key}: the model in here is no pipeline of diffusers"):
        plan.open_source(SampleICG(model="here", **{key: 1}), torch.device("cpu"))


def test_a_dry_run_counts_heuns_calls(monkeypatch):
    """18 levels: two calls each but the last, 35; guided twice that, with both methods thrice; at 1 once less."""
    monkeypatch.setattr(dry_run, "_networks", lambda config: [])
    found = dry_run.describe(config_of(ICG(scale=[1.0, 1.5]), ["none", "tsg", "icg_tsg"]))
    calls = {row[0].removesuffix(", network calls per image"): row[1] for row in found.rows if "calls" in row[0]}
    assert {name: number for name, number in calls.items() if name in ("none", "icg 1", "icg 1.5")} == {
        "none": 35, "icg 1": 35, "icg 1.5": 70,
    }  # fmt: skip
    assert {name: number for name, number in calls.items() if name.startswith("icg_tsg")} == {
        "icg_tsg 1": 70, "icg_tsg 1.5": 105,
    }  # fmt: skip


@pytest.mark.parametrize("kind", [ICG, TSG, CFG])
def test_the_interval_of_a_method_is_its_guiders(kind):
    keys = {"start": 0.1, "stop": 0.9, "t_min": 100.0, "t_max": 800.0, "sigma_min": 0.2, "sigma_max": 3.0}
    guidance = kind(**keys)
    assert isinstance(guidance, Guidance) and guidance.interval == keys
    made = guidance.make(2.0, 0).interval
    assert {name: getattr(made, name) for name in keys} == keys


def test_methods_on_the_condition_are_compared_at_one_scale_and_small_models_on_two_seeds():
    found = {one.method: one.scale for one in config_of(ICG(scale=2.25), None).methods()}
    assert found == {"none": 1.0, "cfg": 2.25, "icg": 2.25, "tsg": TSG().scale, "icg_tsg": 2.25}
    asked = config_of(ICG(scale=2.25), [{"method": "cfg", "scale": 4.0}])
    assert {one.method: one.scale for one in asked.methods()} == {"cfg": 4.0, "icg": 2.25}
    assert {one.method: one.scale for one in config_of(TSG(scale=3.0), ["cfg"]).methods()}["cfg"] == CFG().scale
    assert config_of(ICG(scale=2.25), [{"method": "icg", "scale": 9.0}]).methods()[0].scale == 2.25  # what is asked for
    assert config_of(ICG(), None).repeats == 2 and config_of(ICG(), None, model="a run").repeats == 1
    own = config_of(ICG(), None)
    own.measure.num_repeats = 5
    assert own.repeats == 5


def test_a_dry_run_says_how_long_it_took(monkeypatch):
    told, clock = [], iter((10.0, 12.5))
    monkeypatch.setattr(dry_run, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(dry_run, "_networks", lambda config: [])
    monkeypatch.setattr(dry_run, "dry_run_table", lambda rows, seconds: told.append((rows, seconds)))
    config = SimpleNamespace(model=None, sampling=SimpleNamespace(num_steps=3), methods=lambda: [])
    dry_run.describe(config)
    assert told == [([], 2.5)]
