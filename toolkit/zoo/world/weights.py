"""Weight files of a world model: plain safetensors, read strictly."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.zoo.importing import refuse_tensors

TOKENIZER_WEIGHTS = "diffusion_pytorch_model.safetensors"

TRANSFORMER_WEIGHTS = "model.safetensors"


def write_tensors(network: nn.Module, path: Path) -> None:
    """Its state dict, plainly laid out. transformers reads only files that say who wrote them."""
    save_file({name: one.contiguous() for name, one in network.state_dict().items()}, path, {"format": "pt"})


def fill(network: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Every tensor used once, every shape checked, all in float32."""
    expected = network.state_dict()
    try:
        refuse_tensors("missing", set(expected) - set(weights))
        refuse_tensors("unexpected", set(weights) - set(expected))
        for name, tensor in weights.items():
            if tensor.shape != expected[name].shape:
                raise UserError(f"{name}: shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
            if not tensor.is_floating_point():
                raise UserError(f"{name}: dtype {tensor.dtype}, expected floating point")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    network.load_state_dict({name: one.float() for name, one in weights.items()}, strict=True, assign=True)
