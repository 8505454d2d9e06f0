"""EDM2's network: parity with the official one on golden weights, strict import, and what it keeps by construction."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.zoo.golden import GOLDEN, golden_expected, golden_tensor
from toolkit import zoo
from toolkit.errors import UserError
from toolkit.icg.guiders.time_embeddings import find_time_embeddings
from toolkit.zoo.edm.edm2 import EDM2Block, EDM2UNet, Weights, blend, concatenate, silu
from toolkit.zoo.edm.import_edm2 import import_edm2, official_names


def source(tmp_path, config=None, **changes):
    folder = tmp_path / "official"
    folder.mkdir()
    shapes = json.loads((GOLDEN / "edm2" / "state_dict_shapes.json").read_text())
    weights = {name: golden_tensor(name, shape or [1]).reshape(shape) for name, shape in shapes.items()} | changes
    save_file({name: one for name, one in weights.items() if one is not None}, folder / "model.safetensors")
    given = json.loads((GOLDEN / "edm2" / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(given))
    return folder


@torch.no_grad()
def test_parity_with_the_official_network(tmp_path):
    assert "CC BY-NC-SA 4.0" in import_edm2(source(tmp_path), tmp_path / "ours")
    network, expected = zoo.load(tmp_path / "ours"), golden_expected("edm2")
    x, sigma = expected["x"], expected["sigma"]
    for labels in (expected["class_labels"], expected["class_labels"].argmax(1)):
        torch.testing.assert_close(network(x, sigma, labels), expected["denoised"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network(x, sigma), expected["denoised_no_class"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(network.log_variance(sigma), expected["log_variance"], atol=1e-5, rtol=1e-5)
    assert [name for name, _ in find_time_embeddings(network)] == ["embed_noise"]


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ({}, {"unet.out_gain": None}, r"model\.safetensors: 1 missing tensor\(s\): unet\.out_gain"),
        ({}, {"extra": torch.zeros(1)}, r"model\.safetensors: 1 unknown tensor\(s\): extra"),
        (
            {},
            {"unet.emb_noise.weight": torch.zeros(2, 2)},
            r"model\.safetensors: 1 wrongly shaped tensor\(s\): unet\.emb_noise\.weight",
        ),
        ({"chanel_mult": [1]}, {}, "unknown key 'chanel_mult'; did you mean 'channel_mult'"),
        ({"clip_act": None}, {}, "clip_act=None: this network has 256"),
        ({"attn_balance": 0.5}, {}, "must equal res_balance"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, config, changes, message):
    with pytest.raises(UserError, match=message):
        import_edm2(source(tmp_path, config, **changes), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_the_paper_size_and_every_tensor_has_one_official_name():
    network = zoo.build_on_meta("edm2_xs_imagenet512")
    assert zoo.count_parameters(network) == 124_713_253  # of the official class
    names = official_names(network)
    assert len(set(names.values())) == len(names) == len(network.state_dict())


def test_layers_keep_magnitude():
    torch.manual_seed(0)
    a, b = torch.randn(4, 64, 8, 8), torch.randn(4, 32, 8, 8)
    rms = lambda x: float(x.square().mean().sqrt())  # noqa: E731
    assert rms(silu(a)) == pytest.approx(1, abs=0.02) and rms(blend(a, a.flip(0), 0.3)) == pytest.approx(1, abs=0.02)
    assert rms(concatenate(a, b, 0.5)) == pytest.approx(1, abs=0.02)
    assert rms(Weights(64, 48, 3).eval()(a)) == pytest.approx(1, abs=0.1)


def test_a_block_is_held_between_bounds_and_drops_out_in_training_alone():
    torch.manual_seed(0)
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    block = EDM2Block(8, 8, 6, "decoder", dropout=0.5, clip=0.25).eval()
    made = block(x, embedding)
    assert made.abs().max() == 0.25 and torch.equal(block(x, embedding), made)
    assert not torch.equal(block.train()(x, embedding), made)


def test_training_puts_weights_back_to_unit_length():
    layer = Weights(8, 4).train()
    with torch.no_grad():
        layer.weight.mul_(7)
    layer(torch.randn(2, 8))
    assert float(layer.weight.square().mean().sqrt()) == pytest.approx(1, abs=1e-3)


def test_latents_of_the_autoencoder():
    settings = {"image_size": 8, "in_channels": 2, "num_classes": 0, "model_channels": 8, "channel_mult": (1, 2)}
    network = EDM2UNet(**settings, channels_per_head=8, latents_mean=[1.0, -2.0], latents_std=[4.0, 2.0])
    raw = network.to_raw_latents(torch.full((1, 2, 8, 8), 0.5))
    assert raw[0, :, 0, 0].tolist() == [5.0, 0.0]
    with pytest.raises(UserError, match="makes pixels"):
        EDM2UNet(**settings, channels_per_head=8).to_raw_latents(raw)
