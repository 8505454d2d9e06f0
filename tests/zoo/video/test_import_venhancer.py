"""Import of official VEnhancer weights: strict, whole or not at all, reversible, from folders and from files."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.zoo.golden import GOLDEN, golden_weights, write_source
from toolkit import zoo
from toolkit.errors import UserError
from toolkit.zoo.video.import_venhancer import RELEASE, build, from_official, import_venhancer, to_official

TINY = {"dim": 32, "dim_mult": [1, 2], "head_dim": 16, "num_heads": 2, "num_res_blocks": 2, "attn_scales": [0.5]} | {
    "context_dim": 8
}


def tiny_source(folder, **changes):
    """A source smaller than the golden case: two levels, attention on the second only."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(TINY))
    shapes = {name: one.shape for name, one in to_official(build(TINY, folder)).items()}
    weights = {name: torch.randn(shape) for name, shape in shapes.items()} | changes
    save_file({name: one for name, one in weights.items() if one is not None}, folder / "model.safetensors")
    return folder


def test_every_tensor_is_used_and_comes_back(tmp_path):
    import_venhancer(write_source("venhancer", tmp_path / "official"), tmp_path / "ours")
    back, official = to_official(zoo.load(tmp_path / "ours")), golden_weights(GOLDEN / "venhancer")
    assert back.keys() == official.keys()
    assert all(torch.equal(back[name], official[name]) for name in official)


def test_names_and_count_at_full_size():
    from pathlib import Path

    network = build({}, Path("config.json"))
    assert len(to_official(network)) == 2180
    assert zoo.registry.count_parameters(network.unet) == 1_411_233_860
    assert zoo.registry.count_parameters(network.controlnet) == 633_575_936


@pytest.mark.parametrize("nested", [False, True])
def test_official_pt_file(nested, tmp_path):
    source = tiny_source(tmp_path / "official")
    weights = load_file(source / "model.safetensors")
    torch.save({"state_dict": weights} if nested else weights, source / "venhancer_v2.pt")
    (source / "model.safetensors").unlink()
    import_venhancer(source / "venhancer_v2.pt", tmp_path / "ours")  # with the config beside it
    import_venhancer(source, tmp_path / "too")
    back = to_official(zoo.load(tmp_path / "ours"))
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_half_precision_stays_half(tmp_path):
    source = tiny_source(tmp_path / "official")
    weights = {name: one.half() for name, one in load_file(source / "model.safetensors").items()}
    save_file(weights, source / "model.safetensors")
    import_venhancer(source, tmp_path / "ours")
    stored = load_file(tmp_path / "ours" / "diffusion_pytorch_model.safetensors")
    assert {one.dtype for one in stored.values()} == {torch.float16}
    assert zoo.load(tmp_path / "ours").unet.conv_in.weight.dtype == torch.float32


CONV = "input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ({}, {CONV: None}, rf"1 missing tensor\(s\): {CONV}"),
        ({}, {"VideoControlNet.extra": torch.zeros(1)}, r"1 unexpected tensor\(s\): VideoControlNet.extra"),
        ({}, {CONV: torch.zeros(32, 4, 1, 1)}, r"input_blocks.0.0.weight: shape \(32, 4, 1, 1\), expected"),
        ({"num_res_blocks": 1}, {}, "missing tensor"),
        ({"attn_scales": [1.0, 0.5]}, {}, "missing tensor"),
        ({"dim_mults": [1]}, {}, "unknown key 'dim_mults'. did you mean 'dim_mult'"),
        ({"dim_mult": [2, 2]}, {}, "dim_mult=.* must be a list that begins with 1"),
        ({"dim": "wide"}, {}, "no network can be built"),
    ],
)
def test_refused_and_nothing_written(config, changes, message, tmp_path):
    source = tiny_source(tmp_path / "official", **changes)
    (source / "config.json").write_text(json.dumps(TINY | config))
    with pytest.raises(UserError, match=message) as error:
        import_venhancer(source, tmp_path / "ours")
    assert str(source) in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["official"]


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return open, (str(tmp_path / "run"), "w")

    torch.save({"state_dict": Code()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="be read safely") as error:
        import_venhancer(tmp_path / "evil.pt", tmp_path / "ours")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_not_there_damaged_or_in_use(tmp_path):
    with pytest.raises(UserError, match="not found"):
        import_venhancer(tmp_path / "nothing", tmp_path / "ours")
    (tmp_path / "damaged.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(UserError, match=r"damaged.pt: not a checkpoint"):
        import_venhancer(tmp_path / "damaged.pt", tmp_path / "ours")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "mine").touch()
    with pytest.raises(UserError, match="exists already"):
        import_venhancer(tmp_path / "damaged.pt", tmp_path / "ours")


def test_a_file_alone_has_the_published_size(tmp_path):
    torch.save({CONV: torch.zeros(320, 4, 3, 3)}, tmp_path / "venhancer_paper.pt")
    with pytest.raises(UserError, match=r"2179 missing tensor"):
        import_venhancer(tmp_path / "venhancer_paper.pt", tmp_path / "ours")
    assert RELEASE["dim"] == 320


def test_from_official_refuses_by_name():
    from pathlib import Path

    with pytest.raises(UserError, match="missing tensor"):
        from_official(build(TINY, Path("config.json")), {})
