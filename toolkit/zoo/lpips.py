"""LPIPS (Zhang et al. 2018): VGG16's features at five depths, unit-normalised over channels, squared differences
weighed by learnt heads. Its weights do not come with the toolkit.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from toolkit.errors import UserError, brief
from toolkit.plain_files import named_path
from toolkit.zoo.importing import load_tensors

VGG_LAYERS = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]
TAPS = (3, 8, 15, 22, 29)  # indices of torchvision's vgg16.features after relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
TAP_WIDTHS = (64, 128, 256, 512, 512)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of inputs in [-1, 1], as LPIPS has them


class LPIPS(nn.Module):
    """LPIPS with VGG16. ``weights``: ``features.<i>.weight``/``bias`` of VGG16 and heads ``lin<k>`` (1, C, 1, 1)."""

    name = "LPIPS (VGG16)"
    shift: Tensor
    scale: Tensor

    def __init__(self, weights: dict[str, Tensor]):
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for layer in VGG_LAYERS:
            if isinstance(layer, int):
                layers += [nn.Conv2d(width, layer, 3, padding=1), nn.ReLU()]
                width = layer
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.heads = nn.ParameterList([nn.Parameter(weights[f"lin{k}"]) for k in range(len(TAPS))])
        self.features.load_state_dict(
            {name.removeprefix("features."): value for name, value in weights.items() if name.startswith("features.")}
        )
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance per image, [N], of images (N, 3, H, W) in [0, 1]."""
        maps = [(2 * image - 1 - self.shift) / self.scale for image in (x, y)]
        total = x.new_zeros(len(x))
        for index, layer in enumerate(self.features):
            maps = [layer(one) for one in maps]
            if index in TAPS:
                unit = [one / (one.square().sum(1, keepdim=True).sqrt() + 1e-10) for one in maps]
                weighed = ((unit[0] - unit[1]).square() * self.heads[TAPS.index(index)]).sum(1)
                total = total + weighed.mean((1, 2))
        return total


def load_lpips(source: str | Path, key: str = "tokenizer_loss.perceptual_path") -> LPIPS:
    """LPIPS from a folder or a hub id with VGG16's features (torchvision's file) and the heads (the lpips package's).

    Files are .safetensors, .pth or .pt, read without unpickling. ``key``: what
    named ``source``. Raises UserError naming what is missing or misshapen.
    """
    folder = _folder(source, key)
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".pth", ".pt"):
            tensors |= {_plain_name(name): value for name, value in _read(path).items()}
    wanted = _expected_shapes()
    for name, shape in wanted.items():
        if name not in tensors:
            raise UserError(
                f"{key}={source}: no tensor '{name}' for LPIPS (VGG16's features and the heads lin0..lin4) in it"
            )
        if tuple(tensors[name].shape) != shape:
            raise UserError(f"{key}={source}: '{name}' has shape {list(tensors[name].shape)}, expected {list(shape)}")
    return LPIPS({name: tensors[name].float() for name in wanted})


def unweighted_lpips() -> LPIPS:
    """LPIPS with zeros for weights: what it costs, not what it says."""
    return LPIPS({name: torch.zeros(shape) for name, shape in _expected_shapes().items()})


def _expected_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    index, width = 0, 3
    for layer in VGG_LAYERS:
        if isinstance(layer, int):
            shapes[f"features.{index}.weight"], shapes[f"features.{index}.bias"] = (layer, width, 3, 3), (layer,)
            index, width = index + 2, layer
        else:
            index += 1
    return shapes | {f"lin{k}": (1, TAP_WIDTHS[k], 1, 1) for k in range(len(TAPS))}


def _plain_name(name: str) -> str:
    """``lin0.model.1.weight`` (the lpips package) -> ``lin0``; VGG's own names stay."""
    return name.partition(".")[0] if name.startswith("lin") else name


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(path)
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as weights ({error})") from None


def _folder(source: str | Path, key: str) -> Path:
    folder = named_path(source)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.safetensors", "*.pth", "*.pt"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{key}={source}: no such folder, nor to be had from the hub ({brief(error, 120)})") from None
