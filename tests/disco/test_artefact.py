"""The artefact: parts of one training round-trip, parts of two are refused."""

import json
import shutil

import pytest
import torch

from tests.disco import tiny
from toolkit.disco.artefact import Parts, load_parts, null_network, save_part
from toolkit.disco.build import build_denoiser, build_encoder, build_prior
from toolkit.errors import UserError


def save_run(folder, seed, codebook_size=3):
    torch.manual_seed(seed)
    config, data = tiny.config(), tiny.images()
    config.latents.codebook_size = codebook_size
    model = folder / "model"
    save_part(model, "denoiser", build_denoiser(config, data))
    save_part(model, "encoder", build_encoder(config, data))
    save_part(model, "prior", build_prior(config, data))
    save_part(model, "baseline", build_denoiser(config, data, with_latents=False))
    return model


def test_parts_come_back_as_they_were(tmp_path):
    save_run(tmp_path, 0)
    parts = load_parts(tmp_path)
    again = load_parts(tmp_path)
    assert parts.baseline.num_latents == 0 and not parts.denoiser.training
    for name in ("denoiser", "encoder", "prior", "baseline"):
        ours, theirs = getattr(parts, name).state_dict(), getattr(again, name).state_dict()
        assert ours and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_prior_of_another_training_is_refused(tmp_path):
    first, second = save_run(tmp_path / "a", 0), save_run(tmp_path / "b", 1)
    shutil.rmtree(first / "prior")
    shutil.copytree(second / "prior", first / "prior")
    with pytest.raises(UserError, match=r"prior: not the weights this model was stored with"):
        load_parts(tmp_path / "a")


def test_a_prior_of_another_size_is_refused_even_with_its_checksum(tmp_path):
    first, second = save_run(tmp_path / "a", 0), save_run(tmp_path / "b", 0, codebook_size=4)
    shutil.rmtree(first / "prior")
    shutil.copytree(second / "prior", first / "prior")
    noted = json.loads((first / "parts.json").read_text())
    noted["prior"] = json.loads((second / "parts.json").read_text())["prior"]
    (first / "parts.json").write_text(json.dumps(noted))
    with pytest.raises(UserError, match=r"prior: models other latents than the denoiser's \(2, 3\)"):
        load_parts(tmp_path / "a")


def test_missing_damaged_and_absent_artefacts_are_named(tmp_path):
    model = save_run(tmp_path, 0)
    shutil.rmtree(model / "encoder")
    with pytest.raises(UserError, match="encoder: missing"):
        load_parts(tmp_path)
    (model / "parts.json").write_text("{")
    with pytest.raises(UserError, match=r"parts\.json: damaged"):
        load_parts(tmp_path)
    with pytest.raises(UserError, match="no trained DisCo-Diff model there"):
        load_parts(tmp_path / "nothing")


def test_weights_cut_short_or_overwritten_are_damaged_and_not_of_another_training(tmp_path):
    folder = save_run(tmp_path, 0) / "denoiser"
    (path,) = folder.glob("*.safetensors")
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:4], b"", b"<html>" + whole[6:], whole + b"more"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"denoiser/.*\.safetensors: damaged, not a whole") as caught:
            load_parts(tmp_path)
        assert "training" not in str(caught.value)
    path.write_bytes(whole[:-4] + b"\0\1\2\3")
    with pytest.raises(UserError, match=r"denoiser: not the weights .* damaged, or of another training"):
        load_parts(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"denoiser: no \*\.safetensors file in it"):
        load_parts(tmp_path)


def test_all_parts_move_together():
    config, images = tiny.config(tiny.mlp()), tiny.images()
    ours, other = build_denoiser(config, images), build_denoiser(config, images, with_latents=False)
    moved = Parts(ours, build_encoder(config, images), build_prior(config, images), other, other).to("meta")
    assert {getattr(moved, name).device.type for name in ("denoiser", "encoder", "prior", "baseline", "null")} == {
        "meta"
    }
    alone = build_denoiser(config, images, with_latents=False)
    assert Parts(ours, null=alone).to("meta").null.device.type == "meta"


def test_the_network_of_the_null_branch_is_checked(tmp_path):
    config, images = tiny.config(tiny.mlp()), tiny.images()
    plain = build_denoiser(config, images, with_latents=False)
    plain.save_pretrained(tmp_path / "plain")
    build_denoiser(config, images).save_pretrained(tmp_path / "latent")
    shape = (1, 8, 8)
    assert null_network("baseline", plain, shape, 0) is plain
    loaded = null_network(str(tmp_path / "plain"), None, shape, 0)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), plain.parameters(), strict=True))
    for source, expected in (("latent", shape), ("plain", (3, 8, 8))):
        with pytest.raises(UserError, match=r"sampling\.null_model=.*must be a denoiser without latents"):
            null_network(str(tmp_path / source), None, expected, 0)
    with pytest.raises(UserError, match=r"sampling\.null_model=baseline: this model has no baseline"):
        null_network("baseline", None, shape, 0)
