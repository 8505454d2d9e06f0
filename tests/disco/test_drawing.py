"""The stage ``sample``: one set, whatever the batch, the number of processes and the interruptions."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.disco import tiny
from toolkit.data.sets import MemorySplit
from toolkit.disco import drawing
from toolkit.disco.artefact import Parts, save_part
from toolkit.disco.build import build_denoiser, build_encoder, build_prior
from toolkit.disco.config import Sampling
from toolkit.disco.drawing import SampleSet
from toolkit.errors import UserError
from toolkit.runs.record import Run, compare_configs
from toolkit.runs.seeds import derive

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


@pytest.mark.parametrize("latents", ["prior", "oracle"])
def test_networks_share_their_noise_and_ours_alone_has_z_and_a_null_network(trained, tmp_path, monkeypatch, latents):
    """Of five test items the sixth sample's z is that of the first again, with its label."""
    drawn, given, whole = [], [], trained[1]

    def samples(denoiser, z, num, sampling, noise, labels, **more):
        drawn.append((denoiser, z is not None, noise.seed, noise.index.tolist(), more))
        return torch.zeros(num, 1, 8, 8), 5

    def codes(parts, num, sampling, noise, class_labels, data):
        given.append((noise.seed, noise.index.tolist(), class_labels.tolist(), data))
        return torch.zeros(num, 2, dtype=torch.int64)

    monkeypatch.setattr(drawing, "draw_samples", samples)
    monkeypatch.setattr(drawing, "draw_latents", codes)
    test = MemorySplit(DATA.test.values[:5], DATA.test.labels[:5])
    data, null = dataclasses.replace(DATA, test=test, train=DATA.train), object()
    one = sample_set((trained[0], dataclasses.replace(whole, null=null)), tmp_path / "run", data, latents=latents)
    one.run.config.seed = 9
    one.draw()
    noise, blocks = derive(9, "sample", "noise"), ([0, 1, 2], [3, 4, 5], [6])
    of_each = ((whole.denoiser, True, {"null_denoiser": null}), (whole.baseline, False, {}))
    assert drawn == [(one, has_z, noise, block, more) for block in blocks for one, has_z, more in of_each]
    assert [row[:3] for row in given] == [(derive(9, "sample", "latents"), b, [n % 4 for n in b]) for b in blocks]
    for block, (*_, real) in zip(blocks, given, strict=True):
        items = [number % 5 for number in block]
        if latents == "oracle":
            assert torch.equal(real[0], test.batch(items)[0]) and real[1].tolist() == test.labels[items].tolist()
        else:
            assert real is None


def test_held_out_items_stand_beside_the_samples(trained, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(drawing, "_draw_figures", lambda run, drawn, latents, num: shown.update(drawn))
    data = dataclasses.replace(DATA, test=MemorySplit(DATA.test.values.flip(0)))
    one = sample_set(trained, tmp_path / "run", data)
    one.draw()
    one.finish()
    assert list(shown) == ["ours", "baseline", "real"] and torch.equal(shown["real"], data.test.all(7)[0])
    monkeypatch.setattr(drawing, "MOST_SHOWN", 2)  # of images; points are all shown
    one.draw()
    one.finish()
    assert len(shown["real"]) == 2


def test_real_latents_need_real_images(trained, tmp_path):
    with pytest.raises(UserError, match=r"sampling\.latents=oracle"):
        sample_set(trained, tmp_path / "run", dataset=None, latents="oracle")


@pytest.mark.parametrize(("shape", "beside"), [((2,), 500), ((1, 4, 4), drawing.MOST_SHOWN)])
def test_as_many_real_points_as_samples_stand_beside_them_and_images_as_many_as_are_shown(
    tmp_path, monkeypatch, shape, beside
):
    asked, samples = [], object.__new__(SampleSet)
    test = SimpleNamespace(all=lambda num: asked.append(num) or (torch.zeros(num, *shape), None))
    samples.num, samples.networks, samples.dataset = 500, {"ours": None}, SimpleNamespace(test=test)
    samples.run = SimpleNamespace(record={}, dir=tmp_path, path=lambda *parts: tmp_path / parts[-1])
    monkeypatch.setattr(SampleSet, "_blocks", lambda self: [range(3)])
    monkeypatch.setattr(SampleSet, "_file", lambda self, block: tmp_path / "block")
    monkeypatch.setattr(drawing, "_draw_figures", lambda *_: None)
    save_file({"ours": torch.zeros(3, *shape)}, tmp_path / "block", {"calls": "{}"})
    samples.finish()
    assert asked == [beside]
