"""What the stages of train-disco hand on: micro-batches, seeds, splits, averages, the network of the null branch."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.disco import tiny
from toolkit.disco import job


@pytest.fixture
def given(monkeypatch):
    """The arguments of what the stages call, by name."""
    calls = {}

    def noted(name, answer=None):
        monkeypatch.setattr(
            job, name, lambda *of, **more: calls.setdefault(name, []).append((*of, *more.values())) or answer
        )

    return SimpleNamespace(calls=calls, noted=noted)


ACCELERATOR = SimpleNamespace(device="cpu", gather=lambda x: x)


def test_a_step_has_its_rate_its_micro_batches_and_a_seed_for_restarts(given, monkeypatch):
    logits = torch.zeros(6, 2, 3)
    given.noted("backward", (torch.tensor(0.5), logits))
    for name in ("update", "_watch_latents", "seed_all"):
        given.noted(name)
    monkeypatch.setattr(job, "RESTART_EVERY_STEPS", 4)
    config = tiny.config(seed=9, log_every_steps=2)
    config.optim.batch_size, config.optim.micro_batch_size, config.optim.grad_clip = 6, 2, None
    config.optim.num_steps, config.optim.warmup_steps, config.latents.restart_dead_codes = 100, 10, True
    noted, images = [], []
    joint = SimpleNamespace(
        draw=lambda num: {"level": torch.arange(num)}, parameters=lambda: "weights", denoiser=None,
        note_usage=noted.append, restart_dead_codes=lambda: 1,
    )  # fmt: skip
    loop = SimpleNamespace(alike=lambda draw: draw(), log=lambda **values: None)
    optimizer = SimpleNamespace(param_groups=[{"base_lr": 2.0, "lr": 0.0}, {"base_lr": 3.0, "lr": 0.0}])
    for step in range(4):
        job.train_step(
            step, "trained", joint, optimizer, SimpleNamespace(update=images.append), "batch", loop, config, ACCELERATOR
        )
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2 * (step + 1), 0.3 * (step + 1)])
    assert [(call[0], call[2], len(call[3]["level"]), call[4]) for call in given.calls["backward"]] == [
        ("trained", "batch", 6, 2)
    ] * 4
    assert given.calls["update"] == [(optimizer, "weights", float("inf"), ACCELERATOR)] * 4 and images == [6] * 4
    assert [call[0] for call in given.calls["_watch_latents"]] == [1, 3] and len(noted) == 4
    assert given.calls["seed_all"] == [(9, "restart", 3)]


def test_a_prior_is_trained_on_the_training_split_and_chosen_on_the_validation_split(given, tmp_path):
    parts = SimpleNamespace(to=lambda device: "parts")
    prior = SimpleNamespace(to=lambda device: "prior")
    for name, answer in (("load_parts", parts), ("build_prior", prior), ("seed_all", None), ("train_prior", None)):
        given.noted(name, answer)
    given.noted("save_part")
    run, config = SimpleNamespace(dir=tmp_path, path=lambda *names: tmp_path), tiny.config(seed=4)
    data = SimpleNamespace(train="train", valid="valid", test="test")
    job._train_prior(run, config, data, ACCELERATOR)
    assert given.calls["train_prior"] == [(run, config, "parts", "prior", "train", "valid", ACCELERATOR)]
    assert given.calls["load_parts"] == [(tmp_path, ("denoiser", "encoder"))]
    assert given.calls["seed_all"] == [(4, "prior", "init")] and given.calls["save_part"] == [
        (tmp_path, "prior", prior)
    ]


def test_both_networks_get_the_average_that_is_asked_for_and_ours_its_null_network(given, tmp_path):
    ours = SimpleNamespace(shape=(1,), num_classes=4)
    parts = SimpleNamespace(denoiser=ours, baseline="baseline", null=None)
    for name, answer in (("load_parts", parts), ("load_post_hoc", None), ("null_network", "null")):
        given.noted(name, answer)
    config = tiny.config()
    config.sampling.ema_sigma_rel, config.sampling.null_model = 0.07, "other"
    assert job._trained(SimpleNamespace(dir=tmp_path), config, None) is parts and parts.null == "null"
    ema = tmp_path / "ema"
    assert given.calls["load_post_hoc"] == [(ours, ema / "denoiser", 0.07), ("baseline", ema / "baseline", 0.07)]
    assert given.calls["null_network"] == [("other", "baseline", (1,), 4)]


def test_a_model_is_measured_anew(given, monkeypatch):
    given.noted("_trained", SimpleNamespace(to=lambda device: "parts"))
    monkeypatch.setattr(job.measures, "measure", lambda *of: given.calls.setdefault("measure", of))
    run, config = SimpleNamespace(record={"metrics": {"old": 1.0}}), tiny.config()
    job._measure(run, config, "data", ACCELERATOR)
    assert run.record["metrics"] == {} and given.calls["measure"] == ("parts", "data", config, run)


def test_the_initial_weights_of_each_network_are_of_a_seed_of_its_own(given, monkeypatch, tmp_path):
    class Stop(Exception):
        """After the seeds."""

    def stop(*_):
        raise Stop

    given.noted("seed_all")
    monkeypatch.setattr(job, "build_stage", stop)
    for name in ("denoiser", "baseline"):
        with pytest.raises(Stop):
            job._train_denoiser(None, tiny.config(seed=4), None, ACCELERATOR, name)
    assert given.calls["seed_all"] == [(4, "denoiser", "init"), (4, "baseline", "init")]


def test_a_sweep_minimises_the_distance_at_the_largest_budget(monkeypatch):
    config = tiny.config(tiny.mlp())
    config = dataclasses.replace(config, measure=dataclasses.replace(config.measure, evaluations=[5, 20, 9]))
    metrics = {f"quality.frechet.ours.nfe_{budget}": 100.0 - budget for budget in (5, 20, 9)}
    run = SimpleNamespace(stage_done=lambda name: True, record={"metrics": metrics}, dir=Path("run"))
    for name in ("data_for_samples", "accelerator_of", "show_end"):
        monkeypatch.setattr(job, name, lambda *_: None)
    assert job.main(config, run) == 80.0
