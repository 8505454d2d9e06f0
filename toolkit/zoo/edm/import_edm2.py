"""Official EDM2 weights into ours, strictly: every tensor is used once, shapes are checked, nothing is half-written.

EDM2 (NVlabs/edm2) publishes pickles. Unpickling runs code, so this package never does it; make a folder with
``config.json`` and ``model.safetensors`` once, in an environment of your own with a clone of the official repository:

    import json, pickle
    from safetensors.torch import save_file
    network = pickle.load(open("edm2-img512-xs-2147483-0.135.pkl", "rb"))["ema"]
    save_file({name: t.float().contiguous() for name, t in network.state_dict().items()}, "edm2/model.safetensors")
    json.dump(dict(network.init_kwargs), open("edm2/config.json", "w"))

and then ``toolkit zoo import edm2 edm2 OUR_FOLDER``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from toolkit.errors import UserError, did_you_mean
from toolkit.zoo.edm.edm2 import EDM2UNet
from toolkit.zoo.importing import read_config, read_tensors, refuse_existing, refuse_tensors, write_network
from toolkit.zoo.sizes import build_on_meta

EDM2_NOTICE = (
    "The EDM2 code and weights are by NVIDIA under CC BY-NC-SA 4.0 (non-commercial, share alike); "
    "weights imported or fine-tuned from them keep that licence."
)
_KEYS = {
    "img_resolution": "image_size",
    "img_channels": "in_channels",
    "label_dim": "num_classes",
    **{
        key: key
        for key in (
            "sigma_data",
            "model_channels",
            "channel_mult",
            "channel_mult_noise",
            "channel_mult_emb",
            "num_blocks",
            "attn_resolutions",
            "channels_per_head",
            "dropout",
            "label_balance",
            "concat_balance",
        )
    },
    "res_balance": "block_balance",
}
# What this network does not vary: official key -> the one value it knows; the rest only says how it is run.
_FIXED: dict[str, Any] = {"logvar_channels": 128, "resample_filter": [1, 1], "clip_act": 256}
_EXECUTION_KEYS = ("use_fp16", "class_name")
# Statistics of Stable Diffusion's latents on ImageNet, as the official encoder has them.
_LATENTS = {"latents_mean": [5.81, 3.25, 0.12, -2.15], "latents_std": [4.17, 4.62, 3.71, 3.28]}
_BLOCK = {
    "emb_gain": "gain",
    "conv_res0.weight": "first.weight",
    "emb_linear.weight": "embed.weight",
    "conv_res1.weight": "second.weight",
    "conv_skip.weight": "shortcut.weight",
    "attn_qkv.weight": "qkv.weight",
    "attn_proj.weight": "attention_out.weight",
}
_TOP = {
    "unet.emb_fourier.freqs": "fourier.frequencies",
    "unet.emb_fourier.phases": "fourier.phases",
    "unet.emb_noise.weight": "embed_noise.weight",
    "unet.emb_label.weight": "embed_class.weight",
    "unet.out_conv.weight": "outputs.weight",
    "unet.out_gain": "out_gain",
    "logvar_fourier.freqs": "uncertainty_fourier.frequencies",
    "logvar_fourier.phases": "uncertainty_fourier.phases",
    "logvar_linear.weight": "uncertainty.weight",
}


def import_edm2(source: str | Path, dest: str | Path) -> str:
    """Convert an EDM2 network to a ``save_pretrained`` folder.

    Args:
        source: folder with config.json (constructor arguments of the official Precond) and model.safetensors (its state
            dict). dest: folder to make; it must not exist, or be empty.

    Returns:
        The notice that the weights come with.

    Raises:
        UserError: keys, values or tensors that this network does not have, that are missing, or of another shape.
    """
    source, dest = Path(source), Path(dest)
    refuse_existing(dest)
    config = read_config(source / "config.json")
    weights = read_tensors(source / "model.safetensors")
    network = _build(config, weights, source / "config.json")
    write_network(network, source / "model.safetensors", lambda: from_official(network, weights), dest)
    return EDM2_NOTICE


def from_official(network: EDM2UNet, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official state dict -> that of ``network`` (float32; the network may be on the meta device).

    Raises UserError naming the tensors that are missing, unknown or of a wrong shape.
    """
    names, state = official_names(network), network.state_dict()
    refuse_tensors("missing", set(names) - set(weights))
    refuse_tensors("unknown", set(weights) - set(names))
    refuse_tensors("wrongly shaped", [name for name in names if weights[name].shape != state[names[name]].shape])
    return {names[name]: tensor.float() for name, tensor in weights.items()}


def official_names(network: EDM2UNet) -> dict[str, str]:
    """Official tensor name -> ours, for every tensor of this network."""
    ours = network.state_dict()
    names = {official: name for official, name in _TOP.items() if name in ours}
    size, levels = network.config["image_size"], len(network.config["channel_mult"])
    num_blocks = network.config["num_blocks"]
    encoder, decoder = [], []
    for level in range(levels):
        at = f"{size >> level}x{size >> level}"
        encoder += [f"{at}_down"] * (level > 0) + [f"{at}_block{index}" for index in range(num_blocks)]
    for level in reversed(range(levels)):
        at = f"{size >> level}x{size >> level}"
        decoder += [f"{at}_in0", f"{at}_in1"] if level == levels - 1 else [f"{at}_up"]
        decoder += [f"{at}_block{index}" for index in range(num_blocks + 1)]
    names[f"unet.enc.{size}x{size}_conv.weight"] = "inputs.weight"
    for part, blocks, mine in (("enc", encoder, "encoder"), ("dec", decoder, "decoder")):
        for index, block in enumerate(blocks):
            for official, name in _BLOCK.items():
                if f"{mine}.{index}.{name}" in ours:
                    names[f"unet.{part}.{block}.{official}"] = f"{mine}.{index}.{name}"
    assert set(names.values()) == set(ours)
    return names


def _build(config: dict[str, Any], weights: dict[str, Tensor], path: Path) -> EDM2UNet:
    """On the meta device, no larger than ``weights``. Raises UserError naming ``path``."""
    known = [*_KEYS, *_FIXED, *_EXECUTION_KEYS, "attn_balance"]
    for key, value in config.items():
        if key not in known:
            raise UserError(f"{path}: unknown key '{key}'; {did_you_mean(key, known)}known: {', '.join(known)}")
        if key in _FIXED and value != _FIXED[key]:
            raise UserError(f"{path}: {key}={value}: this network has {_FIXED[key]}")
    if config.get("attn_balance", 0.3) != config.get("res_balance", 0.3):
        raise UserError(f"{path}: attn_balance: must equal res_balance")
    for key in ("img_resolution", "img_channels", "label_dim"):
        if key not in config:
            raise UserError(f"{path}: '{key}' is missing")
    ours = {_KEYS[key]: value for key, value in config.items() if key in _KEYS}
    if ours["in_channels"] == len(_LATENTS["latents_mean"]):
        ours |= _LATENTS
    return build_on_meta(lambda: EDM2UNet(**ours).eval(), weights, path)
