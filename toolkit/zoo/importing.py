"""What every importer of official weights shares: read, refuse by name, write whole or not at all.

Each layout has a file of its own beside the network it fills, ``import_<layout>.py``, and an entry in
``catalogue.LAYOUTS``.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from toolkit.errors import UserError, brief, with_kind
from toolkit.paths import share
from toolkit.plain_files import read_object, why

UnpicklingError = torch.serialization.pickle.UnpicklingError  # what torch refuses all but tensors with
_DAMAGES = (  # of old files too; a file too long to be mapped is a MemoryError
    *(RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, struct.error, MemoryError),
)


def refuse_existing(dest: Path) -> None:
    """Raises UserError unless ``dest`` is absent or an empty folder."""
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UserError(f"{dest}: exists already, name a new folder")


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises UserError when it is absent or something else."""
    try:
        return read_object(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found (the source is a folder with config.json and model.safetensors)") from None


def load_tensors(path: Path, mapped: bool = False) -> dict[str, Tensor]:
    """What a .safetensors file holds, or what .pth and .pt hold beside code, which is not run: mostly tensors by name.

    mapped: read from the disk when they are used, where the file allows it (torch's own before version 1.6 do not).
    Raises ValueError, one line, where it cannot be read or holds more.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        mapped = mapped and zipfile.is_zipfile(path)
        with warnings.catch_warnings(action="ignore"):  # of what is refused below in one line
            return torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)  # type: ignore[no-any-return]
    except (SafetensorError, UnpicklingError, *_DAMAGES) as error:
        raise ValueError(why(path, _refusal(error))) from None


def _refusal(error: Exception) -> str:
    """Why a file was not read, in one line. torch's own words advise to run what the file holds."""
    said = str(error)
    if held := re.search(r"Unsupported \w+: GLOBAL (\S+)", said):
        return f"it holds a {held[1]}, which its code would have to make, beside tensors; save the state_dict alone"
    if "TorchScript" in said:
        return "it is a program of TorchScript, which is not run; save the module's state_dict"
    if isinstance(error, UnpicklingError):
        said = brief(said.partition("WeightsUnpickler error:")[2].partition("Check the documentation")[0], 80)
        return f"torch.save writes no such file ({said})"
    if isinstance(error, LookupError):  # which says a byte or a place in the file, and no more
        return f"torch.save writes no such file ({with_kind(error, 80)})"
    return brief(error, 120)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError when it is absent or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found") from None
    except (SafetensorError, OSError, MemoryError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from None


def refuse_tensors(what: str, names: Iterable[str]) -> None:
    """Raises UserError naming them (eight at most) when there are any."""
    names = sorted(names)
    if names:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise UserError(f"{len(names)} {what} tensor(s): {', '.join(names[:8])}{more}")


def write_network(network: Any, official: Path, convert: Callable[[], dict[str, Tensor]], dest: Path) -> None:
    """Fill ``network`` with what ``convert`` makes of the tensors in the file ``official``, and write it to ``dest``.

    Raises UserError naming ``official`` where ``convert`` refuses them. Nothing is written then.
    """
    try:
        state = convert()
    except UserError as error:
        raise UserError(f"{official}: {error}") from None
    network.load_state_dict(state, strict=True, assign=True)
    with written_aside(dest) as folder:
        network.save_pretrained(folder)


@contextmanager
def written_aside(dest: Path) -> Iterator[Path]:
    """A temporary folder beside ``dest`` that becomes ``dest`` when the block ends well: it is whole or absent."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", dir=dest.parent))
    try:
        yield temporary
        share(temporary)
        temporary.chmod(0o755)
        os.replace(temporary, dest)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
