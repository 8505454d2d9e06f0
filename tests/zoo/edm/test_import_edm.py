"""Import of official EDM weights: strict, atomic, reversible, and a starting point for a fine-tune with latents."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.zoo.golden import GOLDEN, golden_expected, golden_weights, write_source
from toolkit import zoo
from toolkit.errors import UserError
from toolkit.zoo.edm.denoiser import Denoiser
from toolkit.zoo.edm.import_edm import import_edm, to_official

CASES = ["edm_adm", "edm_ddpmpp", "edm_ncsnpp"]


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_used_and_comes_back(case, tmp_path):
    notice = import_edm(write_source(case, tmp_path / "official"), tmp_path / "ours")
    assert "CC BY-NC-SA 4.0" in notice
    back = to_official(zoo.load(tmp_path / "ours"))
    official = {name.removeprefix("model."): tensor for name, tensor in golden_weights(GOLDEN / case).items()}
    assert back.keys() == official.keys()
    assert all(torch.equal(back[name], official[name]) for name in official)


def test_names_without_prefix_half_precision_and_filters_present(tmp_path):
    source = write_source("edm_ncsnpp", tmp_path / "official")
    weights = {name.removeprefix("model."): one for name, one in golden_weights(GOLDEN / "edm_ncsnpp").items()}
    shapes = json.loads((GOLDEN / "edm_ncsnpp" / "state_dict_shapes.json").read_text())
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    for name in shapes:
        if name.endswith("resample_filter"):
            weights[name.removeprefix("model.")] = torch.outer(row, row)[None, None]
    save_file({name: one.half().contiguous() for name, one in weights.items()}, source / "model.safetensors")
    import_edm(source, tmp_path / "ours")
    network, expected = zoo.load(tmp_path / "ours"), golden_expected("edm_ncsnpp")
    with torch.no_grad():
        denoised = network(expected["x"], expected["sigma"], expected["class_labels"])
    assert denoised.dtype == torch.float32
    assert (denoised - expected["denoised"]).abs().max() < 0.02  # weights rounded to half


@torch.no_grad()
def test_fine_tune_starts_at_the_imported_network(tmp_path):
    import_edm(write_source("edm_adm", tmp_path / "official"), tmp_path / "ours")
    base, expected = zoo.load(tmp_path / "ours"), golden_expected("edm_adm")
    tuned = Denoiser.from_base(base, num_latents=4, codebook_size=10, latent_width=16, latent_layers=2)
    x, sigma, labels = expected["x"], expected["sigma"], expected["class_labels"]
    assert torch.equal(base(x, sigma, labels), tuned(x, sigma, labels, torch.randint(10, (3, 4))))


def source_with(tmp_path, config=None, **changes):
    source = write_source("edm_adm", tmp_path / "official", **changes)
    if config:
        written = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(written | config))
    return source


CONV = "model.enc.16x16_conv.weight"


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ({}, {CONV: None}, rf"1 missing tensor\(s\): {CONV.removeprefix('model.')}"),
        ({}, {"model.extra": torch.zeros(1)}, r"1 unexpected tensor\(s\): extra"),
        ({}, {CONV: torch.zeros(32, 3, 1, 1)}, r"enc.16x16_conv.weight: shape \(32, 3, 1, 1\), expected"),
        ({}, {"model.enc.8x8_down.conv0.resample_filter": torch.ones(1, 1, 2, 2)}, "resample_filter: not the filter"),
        ({"num_blocks": 3}, {}, "missing tensor"),
        ({"label_dim": 6}, {}, "map_label.weight"),
        ({"channel_mult": [1, 3]}, {}, "shape"),
        ({"model_type": "UViT"}, {}, "model_type=UViT: choose one of DhariwalUNet, SongUNet"),
        ({"class_name": "training.networks.VPPrecond"}, {}, "only EDMPrecond"),
        ({"atn_resolutions": [8]}, {}, "unknown key 'atn_resolutions'. did you mean 'attn_resolutions'"),
        ({"img_resolution": "sixteen"}, {}, "no network can be built"),
    ],
)
def test_refused_and_nothing_written(config, changes, message, tmp_path):
    source = source_with(tmp_path, config, **changes)
    with pytest.raises(UserError, match=message) as error:
        import_edm(source, tmp_path / "ours")
    assert str(source) in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["official"]


def test_damaged_files(tmp_path):
    source = write_source("edm_adm", tmp_path / "official")
    weights = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        import_edm(source, tmp_path / "ours")
    (source / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors: not found"):
        import_edm(source, tmp_path / "ours")
    (source / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged, or no JSON"):
        import_edm(source, tmp_path / "ours")
    (source / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json: not found"):
        import_edm(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_destination_in_use_is_left_alone(tmp_path):
    source = write_source("edm_adm", tmp_path / "official")
    (tmp_path / "empty").mkdir()
    import_edm(source, tmp_path / "empty")
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    before = load_file(tmp_path / "empty" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match="exists already"):
        import_edm(source, tmp_path / "empty")
    after = load_file(tmp_path / "empty" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
