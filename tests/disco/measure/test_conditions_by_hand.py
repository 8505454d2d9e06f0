"""Which labels and latents the samples of a measure are conditioned on, whole and in blocks."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.disco import tiny
from toolkit.data.sets import MemorySplit
from toolkit.disco.artefact import Parts
from toolkit.disco.build import build_denoiser, build_encoder, build_prior
from toolkit.disco.measure import setting as module
from toolkit.disco.measure.setting import Setting
from toolkit.runs.record import Run

LABELS = np.repeat(np.arange(4), 10)  # sorted, as a folder of classes is


@pytest.fixture
def given(monkeypatch):
    """(variant's network, labels, the null network) of every call of the sampler, which draws zeros."""
    calls = []

    def draw(denoiser, latents, num, sampling, noise, labels, num_evaluations, **guidance):
        calls.append((denoiser, labels, guidance.get("null_denoiser")))
        return torch.zeros(num, *denoiser.shape), num_evaluations

    monkeypatch.setattr(module, "draw_samples", draw)
    return calls


@pytest.fixture
def setting(tmp_path):
    config = tiny.config(tiny.mlp())
    config.measure.num_samples, config.sampling.batch_size = 20, 15
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 1, 8, 8).contiguous()
    data = dataclasses.replace(tiny.images(num_classes=4), train=MemorySplit(images, LABELS, True))
    torch.manual_seed(0)
    parts = [build_denoiser(config, data), build_encoder(config, data), build_prior(config, data)]
    parts.append(build_denoiser(config, data, with_latents=False))
    return Setting(Parts(*(one.eval() for one in parts)), data, config, Run(tmp_path, config))


@pytest.mark.parametrize("most", [0, 2**20])
def test_blocks_get_the_labels_of_the_whole_set_which_are_of_all_classes(setting, given, monkeypatch, most):
    monkeypatch.setattr(module, "MOST_KEPT_VALUES", most)
    labels = setting.samples("ours", 3)[1]
    assert len(given) == (1 if most else 2)
    assert torch.equal(torch.cat([one for _, one, _ in given]), labels)
    assert torch.bincount(labels, minlength=4).min() > 0


def test_latents_of_training_items_come_with_the_items_labels(setting, given):
    labels = setting.samples("ours", 3, source="oracle")[1]
    items = setting.oracle_items(20)
    assert labels.tolist() == LABELS[items.numpy()].tolist() and torch.equal(given[0][1], labels)


def test_a_network_for_the_null_branch_is_of_ours_alone(setting, given):
    setting.parts = dataclasses.replace(setting.parts, null=setting.parts.baseline)
    for variant in ("ours", "baseline"):
        setting.samples(variant, 3)
    assert [null for _, _, null in given] == [setting.parts.baseline, None]
    assert [denoiser for denoiser, _, _ in given] == [setting.parts.denoiser, setting.parts.baseline]
