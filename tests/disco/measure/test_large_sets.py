"""Measures read sets in batches and give the numbers that reading them whole would give."""

import dataclasses
import sys

import pytest
import torch

from tests.disco import tiny
from toolkit.disco.artefact import Parts
from toolkit.disco.build import build_denoiser, build_encoder, build_prior
from toolkit.disco.measure import setting as setting_module
from toolkit.disco.measure.loss import use
from toolkit.disco.measure.quality import memorisation, prior_gap, quality
from toolkit.disco.measure.setting import Setting
from toolkit.metrics import features, judge
from toolkit.runs.record import Run

LARGEST = 32


class Watched:
    """A split that notes how many items are asked for at once."""

    def __init__(self, split, seen):
        self.split, self.seen = split, seen

    def __getattr__(self, name):
        return getattr(self.split, name)

    def __len__(self):
        return len(self.split)

    def batch(self, indices):
        self.seen.append(len(indices))
        return self.split.batch(indices)

    def all(self, limit=None):
        self.seen.append(len(self.split) if limit is None else limit)
        return self.split.all(limit)


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    config, data = tiny.config(tiny.mlp()), tiny.images(200)
    return Parts(
        build_denoiser(config, data).eval(), build_encoder(config, data).eval(), build_prior(config, data).eval(),
        build_denoiser(config, data, with_latents=False).eval(),
    )  # fmt: skip


def measured(parts, folder, *names, null=None):
    """All metrics of the measures ``names``, the sizes of what was read at once, and the setting."""
    config, seen = tiny.config(tiny.mlp()), []
    config.measure.num_samples, config.measure.evaluations, config.sampling.batch_size = 100, [3], 30
    config.measure.num_trajectories, config.sampling.sigma_max = 16, 0.5
    held_out = tiny.images(200).train
    held_out.values = held_out.values.flip(0, 3)
    splits = {"train": tiny.images(200).train, "valid": held_out, "test": held_out}
    data = dataclasses.replace(tiny.images(), **{name: Watched(one, seen) for name, one in splits.items()})
    run = Run(folder, config)
    folder.mkdir()
    setting = Setting(dataclasses.replace(parts, null=null), data, config, run)
    found = {}
    for measure in names:
        found |= {f"{measure.__name__}.{key}": value for key, value in measure(setting).items()}
    return found, seen, setting


@pytest.fixture
def few_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys.modules[quality.__module__], "MOST_MEMORISED", LARGEST)
    monkeypatch.setattr(features, "train_classifier", lambda net, data: None)


def test_no_set_is_read_whole_and_the_numbers_stay(parts, tmp_path, monkeypatch, few_at_once):
    whole, seen, _ = measured(parts, tmp_path / "whole", use, quality, memorisation)
    assert max(seen) > LARGEST
    monkeypatch.setattr(judge, "READ_AT_ONCE", LARGEST)
    monkeypatch.setattr(setting_module, "ENCODE_BATCH", LARGEST)
    monkeypatch.setattr("toolkit.disco.stage2.ENCODE_BATCH", LARGEST)
    parted, seen, _ = measured(parts, tmp_path / "parted", use, quality, memorisation)
    assert max(seen) == LARGEST
    assert parted.keys() == whole.keys()
    for name in ("quality.frechet.floor", "quality.precision.floor", "memorisation.prior", "memorisation.baseline"):
        assert parted[name] == pytest.approx(whole[name], rel=1e-4), name


def test_a_large_set_of_samples_is_drawn_in_blocks_on_the_cpu(parts, tmp_path, monkeypatch, few_at_once):
    monkeypatch.setattr(setting_module, "MOST_KEPT_VALUES", 0)
    found, _, setting = measured(parts, tmp_path / "blocks", quality, prior_gap)
    samples = setting.samples("ours", 3)[0]
    assert samples.shape == (100, 1, 8, 8) and len(samples.unique(dim=0)) == 100
    assert torch.allclose(samples, setting.samples("ours", 3)[0])
    assert found["quality.frechet.ours.nfe_3"] > 0 and found["prior_gap.frechet.oracle"] > 0


def test_another_network_in_place_of_the_null_branch_is_measured(parts, tmp_path, few_at_once):
    torch.manual_seed(5)
    other = build_denoiser(tiny.config(tiny.mlp()), tiny.images(), with_latents=False).eval()
    torch.nn.init.normal_(next(iter(other.parameters())))
    plain = measured(parts, tmp_path / "plain")[2]
    for one, null in ((plain, None), (measured(parts, tmp_path / "other", null=other)[2], other)):
        one.config.sampling.latents_off_below = 1e9
        one._kept.clear()
        wanted = null or parts.denoiser
        x = setting_module.draw_samples(
            wanted, None, 100, one.config.sampling, one.rng("noise", 0), one.random_labels(100), 3
        )[0]
        assert torch.equal(one.samples("ours", 3)[0], x)
        assert not torch.equal(one.samples("baseline", 3)[0], x)
