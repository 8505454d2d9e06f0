"""The stage ``sample``: one set, whatever the batch, the number of processes and the interruptions."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.disco import tiny
from toolkit.disco import drawing
from toolkit.disco.artefact import Parts, save_part
from toolkit.disco.build import build_denoiser, build_encoder, build_prior
from toolkit.disco.config import Sampling
from toolkit.disco.drawing import SampleSet
from toolkit.errors import UserError
from toolkit.runs.record import Run, compare_configs

DATA = tiny.images(num_classes=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of parts, and the parts."""
    torch.manual_seed(0)
    config, folder = tiny.config(tiny.mlp()), tmp_path_factory.mktemp("trained")
    parts = Parts(build_denoiser(config, DATA), build_encoder(config, DATA), build_prior(config, DATA))
    parts.baseline = build_denoiser(config, DATA, with_latents=False)
    with torch.no_grad():  # let z matter
        parts.denoiser.embed_latents.weight.normal_(std=0.3)
        parts.prior.head.weight.normal_()
    (folder / "model").mkdir()
    for name in ("denoiser", "baseline"):
        save_part(folder / "model", name, getattr(parts, name))
    return folder, Parts(*(getattr(parts, name).eval() for name in ("denoiser", "encoder", "prior", "baseline")))


def sample_set(trained, folder, dataset=DATA, **changes):
    run = Run(folder, tiny.config(tiny.mlp()))
    folder.mkdir(exist_ok=True)
    sampling = Sampling(num_samples=7, num_steps=3, batch_size=3, sigma_max=0.5, solver="churn")
    return SampleSet(run, dataclasses.replace(sampling, **changes), trained[1], trained[0], dataset)


def drawn(trained, folder, **changes):
    one = sample_set(trained, folder, **changes)
    one.draw()
    one.finish()
    return load_file(folder / "samples" / "samples.safetensors")


def agree(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        torch.testing.assert_close(other[name], values, atol=1e-4, rtol=0)


@pytest.mark.parametrize("solver", ["heun", "churn"])
@pytest.mark.parametrize("latents", ["prior", "oracle"])
def test_a_sample_depends_on_its_number_alone(trained, tmp_path, solver, latents):
    whole = drawn(trained, tmp_path / "whole", solver=solver, latents=latents, batch_size=7)
    assert {name: tuple(one.shape) for name, one in whole.items()} == {
        "ours": (7, 1, 8, 8), "baseline": (7, 1, 8, 8), "latents": (7, 2), "class_labels": (7,),
    }  # fmt: skip
    assert len(whole["ours"].unique(dim=0)) == 7 and whole["class_labels"].tolist() == [0, 1, 2, 3, 0, 1, 2]
    agree(whole, drawn(trained, tmp_path / "parts", solver=solver, latents=latents, batch_size=2))
    more = drawn(trained, tmp_path / "more", solver=solver, latents=latents, num_samples=11)
    agree(whole, {name: values[:7] for name, values in more.items()})


def test_two_processes_and_an_interruption_leave_the_files_of_one(trained, tmp_path, monkeypatch):
    drawn(trained, tmp_path / "one")
    monkeypatch.setattr(drawing, "barrier", lambda: None)
    monkeypatch.setattr(drawing, "world_size", lambda: 2)
    monkeypatch.setattr(drawing, "rank", lambda: 1)
    sample_set(trained, tmp_path / "two").draw()
    [kept] = (tmp_path / "two" / "draws").rglob("*.safetensors")
    assert kept.name == "00000003-00000006.safetensors" and (tmp_path / "two/images/ours/00005.png").exists()
    written = kept.stat().st_mtime_ns
    damaged = kept.with_name("00000006-00000007.safetensors")
    damaged.write_bytes(b"half of a file")
    monkeypatch.setattr(drawing, "rank", lambda: 0)
    rest = sample_set(trained, tmp_path / "two")
    rest.draw()
    assert kept.stat().st_mtime_ns == written
    rest.finish()
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(names) == 2 * 7 + 5  # single pictures; three grids, the one beside each other, the tensors
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert not (tmp_path / "two" / "draws").exists()
    assert rest.run.record["evaluations_per_sample"] == {"ours": 5, "baseline": 5}


def test_a_set_goes_on_with_another_batch_size(trained, tmp_path):
    """Its blocks begin at the same samples and hold other numbers of them: none is taken for another."""
    whole, config = drawn(trained, tmp_path / "whole"), tiny.config(tiny.mlp())
    sample_set(trained, tmp_path / "two", batch_size=4).draw()
    agree(whole, drawn(trained, tmp_path / "two", batch_size=2))
    before = dataclasses.asdict(config)
    config.sampling.batch_size += 1
    assert compare_configs(tmp_path, before, config) == ({}, {})


def test_blocks_of_other_weights_are_not_taken(trained, tmp_path):
    first = sample_set(trained, tmp_path / "run")
    first.draw()
    (tmp_path / "other" / "model").mkdir(parents=True)
    (tmp_path / "other" / "model" / "parts.json").write_text(json.dumps({"denoiser": "0" * 16}))
    other = sample_set((tmp_path / "other", trained[1]), tmp_path / "run")
    assert other.folder != first.folder and not other.folder.exists()


def test_a_large_set_has_single_pictures_a_small_grid_and_bounded_tensors(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "MOST_SHOWN", 4)
    monkeypatch.setattr(drawing, "MOST_KEPT_VALUES", 5 * 64)
    tensors = drawn(trained, tmp_path / "run")
    assert len(tensors["ours"]) == len(tensors["baseline"]) == 5 and len(tensors["latents"]) == 7
    files = sorted(Path(tmp_path / "run/images/ours").iterdir())
    assert [file.name for file in files] == [f"{number:05d}.png" for number in range(7)]
    for file, x in zip(files, tensors["ours"], strict=False):
        assert np.abs(np.asarray(Image.open(file)) / 127.5 - 1 - x[0].numpy()).max() < 0.5 / 127.5 + 1e-6
    with Image.open(tmp_path / "run/samples/ours.png") as grid:
        assert grid.size == (130, 130) and grid.info["Description"] == "ours: the first 4 of 7"


def test_real_latents_need_real_images(trained, tmp_path):
    with pytest.raises(UserError, match=r"sampling\.latents=oracle"):
        sample_set(trained, tmp_path / "run", dataset=None, latents="oracle")
