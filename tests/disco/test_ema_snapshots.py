"""Snapshots of power-function averages: written by training, to the bit after an interruption, and put together."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from tests.disco import tiny
from toolkit.disco import job
from toolkit.disco.ema_snapshots import EMASnapshots, load_post_hoc
from toolkit.errors import UserError
from toolkit.runs.device import make_accelerator
from toolkit.runs.record import Run
from toolkit.runs.states.sharding import shard, spread_like
from toolkit.schema import check
from toolkit.zoo.edm.post_hoc_ema import gamma_of

STEPS = 60


def train(folder):
    config = tiny.config(num_workers=0, log_every_steps=1)
    config.optim.num_steps, config.optim.batch_size, config.optim.ema_sigma_rels = 5, 8, [0.05, 0.1]
    config.optim.ema_snapshot_every_steps = 2
    run = Run(folder, config)
    run.open([])
    try:
        with run.stage("denoiser"):
            job._train_denoiser(run, config, tiny.images(), make_accelerator(config), "denoiser")
    finally:
        run.close("interrupted")
    return run, config


def test_training_stores_them_and_the_run_samples_from_any_length(tmp_path, monkeypatch):
    whole, config = train(tmp_path / "whole")
    step = job.train_step

    def fails(number, *rest):
        if number == 3:
            raise OSError("the disk is gone")
        step(number, *rest)

    monkeypatch.setattr(job, "train_step", fails)
    with pytest.raises(OSError, match="gone"):
        train(tmp_path / "again")
    monkeypatch.setattr(job, "train_step", step)
    train(tmp_path / "again")
    found = [sorted((tmp_path / name / "ema" / "denoiser").iterdir()) for name in ("whole", "again")]
    assert [path.stem for path in found[0]] == [f"{n:09d}-{s}" for n in (2, 4, 5) for s in ("0.05", "0.1")]
    assert [path.read_bytes() for path in found[0]] == [path.read_bytes() for path in found[1]]

    networks = []
    for sigma_rel in (None, 0.1, 0.2):
        config.sampling.ema_sigma_rel = sigma_rel
        networks.append(dict(job._trained(whole, config, None).denoiser.named_parameters()))
    plain, tracked, other = networks
    stored = load_file(found[0][-1])
    assert any(not torch.equal(plain[name], stored[name]) for name in stored)
    for name, tensor in stored.items():
        torch.testing.assert_close(tracked[name].detach(), tensor, rtol=1e-5, atol=1e-7)
    assert any((other[name] - tracked[name]).abs().max() > 1e-5 for name in stored)


def walk(folder, sigma_rels=(0.05, 0.1)):
    """A network on a random walk with snapshots every 5 steps; its weights after every step (STEPS, 3)."""
    network, rng, weights = nn.Linear(3, 1, bias=False), np.random.default_rng(0), []
    snapshots, value = EMASnapshots(folder, network, list(sigma_rels)), np.zeros(3)
    for number in range(STEPS):
        value = value + 0.1 * rng.standard_normal(3)
        with torch.no_grad():
            network.weight.copy_(torch.from_numpy(value)[None])
        snapshots.update(16)
        weights.append(network.weight.detach().numpy()[0].astype(float))
        if (number + 1) % 5 == 0:
            snapshots.store(number + 1)
    return network, np.array(weights)


def test_what_is_put_together_is_near_the_average_taken_directly(tmp_path):
    network, weights = walk(tmp_path)
    edges = np.arange(STEPS + 1) / STEPS
    for sigma_rel in (0.05, 0.07, 0.1, 0.2):
        exact = np.diff(edges ** (gamma_of(sigma_rel) + 1)) @ weights
        load_post_hoc(network, tmp_path, sigma_rel)
        np.testing.assert_allclose(network.weight.detach().numpy()[0], exact, atol=0.02)
    assert np.abs(exact - weights[-1]).max() > 0.1


def test_averages_that_are_spread_over_processes_leave_the_same_files(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for name in ("whole", "spread"):
            torch.manual_seed(0)
            network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
            snapshots = EMASnapshots(tmp_path / name, network, [0.05, 0.1])
            if name == "spread":
                shard(network, [network[0]])
                for average in snapshots.averages.values():
                    spread_like(average.model, network)
            for _ in range(3):
                with torch.no_grad():
                    for number, parameter in enumerate(network.parameters()):
                        parameter.mul_(1.1 + 0.1 * number)
                snapshots.update(8)
            snapshots.store(3)
    finally:
        dist.destroy_process_group()
    one, other = ([path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in ("whole", "spread"))
    assert len(one) == 2 and one == other


def test_files_of_a_training_that_was_given_up_go(tmp_path):
    network, _ = walk(tmp_path)
    EMASnapshots(tmp_path, network, [0.05]).store(30)
    assert sorted({int(path.name[:9]) for path in tmp_path.iterdir()}) == [*range(5, 31, 5)]


def test_refusals(tmp_path):
    network, _ = walk(tmp_path / "some")
    with pytest.raises(UserError, match=r"sampling\.ema_sigma_rel=0\.1: no snapshots in .*none; train with optim"):
        load_post_hoc(network, tmp_path / "none", 0.1)
    with pytest.raises(UserError, match="of another network"):
        load_post_hoc(nn.Linear(3, 1), tmp_path / "some", 0.1)
    path = tmp_path / "some" / "000000020-0.1.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"000000020-0\.1\.safetensors: not a whole snapshot"):
        load_post_hoc(network, tmp_path / "some", 0.1)


def test_keys_that_do_not_fit():
    config = tiny.config()
    config.sampling.ema_sigma_rel = 0.1
    with pytest.raises(UserError, match=r"sampling\.ema_sigma_rel=0\.1: training must keep snapshots"):
        check(config)
    config.optim.ema_sigma_rels = [0.05, 0.05]
    with pytest.raises(UserError, match="holds a width twice"):
        check(config)
    config.optim.ema_sigma_rels = [0.3]
    with pytest.raises(UserError, match=r"optim\.ema_sigma_rels=0\.3: must be at most 0\.28"):
        check(config)


def test_a_training_that_tracks_no_average_leaves_no_folder(tmp_path):
    EMASnapshots(tmp_path / "ema", torch.nn.Linear(1, 1), []).store(1)
    assert not (tmp_path / "ema").exists()


def test_a_snapshot_says_how_many_images_were_seen(tmp_path):
    snapshots = EMASnapshots(tmp_path, nn.Linear(1, 1), [0.05])
    for num_images in (8, 4):
        snapshots.update(num_images)
    snapshots.store(2)
    with safe_open(tmp_path / "000000002-0.05.safetensors", "pt") as file:
        assert file.metadata() == {"num_images": "12"}
