"""A config may not ask for a larger network than the weights beside it fill: it is counted while it is built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from toolkit.errors import UserError, brief
from toolkit.plain_files import why

QUANTISED = ("I8", "U8")  # as safetensors calls the types
SPARE = 4  # times what is stored: heads that share a tensor, and tensors that are registered again when they are filled
SPARE_TENSORS, SPARE_VALUES = 100, 2**24  # and tables that are no weights


@contextmanager
def no_larger_than(stored: Sequence[int], config: Path) -> Iterator[None]:
    """Stop networks that are built inside at some more tensors, or values in them, than are ``stored``.

    stored: how many values each tensor has. Raises UserError naming ``config``.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    if not stored:  # missing weights are refused elsewhere
        yield
        return
    left = [SPARE * len(stored) + SPARE_TENSORS, SPARE * sum(stored) + SPARE_VALUES]

    def count(_module: Any, _name: str, parameter: Any) -> None:
        left[0] -= 1
        left[1] -= 0 if parameter is None else parameter.numel()
        if min(left) < 0:
            raise UserError(
                f"{config}: asks for a larger network than its weights are ({len(stored)} tensors of {sum(stored)} "
                "values in all)"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def build_on_meta(make: Callable[[], Any], weights: dict[str, Any] | None, config: Path) -> Any:
    """``make()`` on the meta device, for the tensors ``weights`` if given. Raises UserError naming ``config``."""
    import torch

    try:
        with torch.device("meta"), nullcontext() if weights is None else no_larger_than(sizes(weights), config):
            return make()
    except Exception as error:  # a config of somebody's can fail anywhere in a library
        if isinstance(error, UserError) and str(error).startswith(str(config)):
            raise
        reason = brief(error, 500)
        raise UserError(f"{config}: no network can be built from it: {reason}") from error


def sizes(weights: dict[str, Any]) -> list[int]:
    """How many values each tensor has."""
    return [tensor.numel() for tensor in weights.values()]


def sizes_in(paths: Iterable[Path]) -> list[int]:
    """How many values each tensor of safetensors files has.

    Raises UserError naming a file whose header is damaged, or that holds quantised weights.
    """
    import math

    from safetensors import SafetensorError, safe_open

    found = []
    for path in paths:
        try:
            with safe_open(path, "np") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                found += [math.prod(one.get_shape()) for one in slices.values()]
                whole = [f"{name} is {one.get_dtype()}" for name, one in slices.items() if one.get_dtype() in QUANTISED]
        except (OSError, SafetensorError, MemoryError) as error:  # the last where it is too long to be mapped
            raise UserError(f"{path}: damaged, not a whole safetensors file ({why(path, error)})") from None
        if whole:  # without their scales, which each quantiser keeps elsewhere, they are no weights
            raise UserError(f"{path}: {whole[0]}; quantised weights are not read, give those in floating point")
    return found
