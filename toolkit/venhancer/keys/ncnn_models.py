"""``keys=ncnn:FOLDER/NAME``: a model of ncnn (NAME.param and NAME.bin), on the CPU.

Names of blobs, factor and what a network eats of the border are found out, not told: the first input and the last
output, and two small pictures. Halves of precision are off: on CPUs without them ncnn computes wrong pixels.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.errors import UserError
from toolkit.plain_files import named_path

MULTIPLE = 8  # sides are padded to it; networks with strides need it


class NcnnUpscaler:
    """Enlarges with an ncnn network. Raises UserError for one that does not make a picture of a picture."""

    def __init__(self, net: Any, blobs: tuple[str, str], notice: str, source: str) -> None:
        self.net, self.blobs, self.notice, self.source = net, blobs, notice, source
        small, large = (self._run(np.zeros((side, side, 3), np.uint8)).shape[0] for side in (32, 64))
        self.factor, rest = divmod(large - small, 32)
        eaten = self.factor * 32 - small
        if rest or self.factor < 1 or eaten % (2 * self.factor) or eaten < 0:
            raise UserError(f"keys=ncnn:{source}: makes {small} and {large} of 32 and 64 pixels, which is no enlarging")
        self.context = eaten // (2 * self.factor)

    def enlarge(self, pixels: np.ndarray) -> np.ndarray:
        """As in :class:`toolkit.venhancer.keys.Upscaler`."""
        height, width = pixels.shape[:2]
        edge = self.context
        below, beyond = (-(side + 2 * edge) % MULTIPLE for side in (height, width))
        padded = np.pad(pixels, ((edge, edge + below), (edge, edge + beyond), (0, 0)), mode="edge")
        return self._run(padded)[: height * self.factor, : width * self.factor]

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        import ncnn

        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1).astype(np.float32) / 255)
        extractor = self.net.create_extractor()
        extractor.input(self.blobs[0], ncnn.Mat(planes).clone())  # a Mat does not keep the array alive
        code, found = extractor.extract(self.blobs[1])
        made = np.array(found)
        if code != 0 or made.ndim != 3 or made.shape[0] != 3:
            raise UserError(f"keys=ncnn:{self.source}: does not make a picture of three channels of one")
        return np.clip(np.rint(made.transpose(1, 2, 0) * 255), 0, 255).astype(np.uint8)


def load(source: str, device: str) -> NcnnUpscaler:
    """The model ``source``: a path, or PACKAGE/path inside an installed package. Raises UserError."""
    try:
        import ncnn
    except ImportError:
        raise UserError(f"keys=ncnn:{source}: needs ncnn; pip install ncnn") from None
    path, notice = _find(source)
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = torch.get_num_threads()
    for halves in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
        setattr(net.opt, halves, False)
    if net.load_param(str(path.with_name(f"{path.name}.param"))) or net.load_model(
        str(path.with_name(f"{path.name}.bin"))
    ):
        raise UserError(f"keys=ncnn:{source}: ncnn cannot read {path.name}.param and {path.name}.bin")
    inputs, outputs = net.input_names(), net.output_names()
    if not inputs or not outputs:
        raise UserError(f"keys=ncnn:{source}: {path.name}.param has no input, or no output")
    return NcnnUpscaler(net, (inputs[0], outputs[-1]), notice, source)


def _find(source: str) -> tuple[Path, str]:
    """(path without the suffix, notice)."""
    path, notice = named_path(source), f"{Path(source).name}, a file of yours; its licence is its owner's"
    package, _, inside = source.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() and inside else None
    if not path.with_name(f"{path.name}.param").exists() and spec and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0]) / inside
        notice = f"{path.name} of {package}, licence {_licence(package)}"
    for suffix in ("param", "bin"):
        if not path.with_name(f"{path.name}.{suffix}").is_file():
            where = f"in {path.parent}, nor in an installed package {package}"
            raise UserError(f"keys=ncnn:{source}: no {path.name}.{suffix} {where}")
    return path, notice


def _licence(package: str) -> str:
    """What the package's own metadata say."""
    names = importlib.metadata.packages_distributions().get(package, [package])
    try:
        data = importlib.metadata.metadata(names[0])
    except importlib.metadata.PackageNotFoundError:
        return "not stated"
    told = "".join([data[key] for key in ("License-Expression", "License") if key in data][:1])
    classes = [one.rpartition(":: ")[2] for one in data.get_all("Classifier", []) if one.startswith("License")]
    return next(iter([*told.splitlines()[:1], *classes]), "not stated")
