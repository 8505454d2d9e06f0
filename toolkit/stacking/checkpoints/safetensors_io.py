"""Safetensors files read and written one tensor at a time (the library saves all tensors of a file at once)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.plain_files import why
from toolkit.stacking.operators.tensors import Info, Tensors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
CONSTANTS = (  # that old exports store: rotary frequencies, masks of gpt2 and gpt_neox
    "rotary_emb.inv_freq",
    *(f".{place}.{mask}" for place in ("attn", "attention") for mask in ("bias", "masked_bias")),
)
_CHUNK_BYTES = 1 << 20


class SafetensorsFile(Tensors):
    """The tensors of one file, whose header is checked against its size.

    Raises UserError for a file that is cut short, damaged, or holds types other than floating point.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.infos: dict[str, Info] = {}
        self._offsets: dict[str, tuple[int, int]] = {}
        with self._opened() as file:
            size = os.fstat(file.fileno()).st_size
            self._start, header = self._header(file, size)
        try:
            for name, entry in header.items():
                self._add(name, entry)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: not a safetensors file (its header has no valid entry for {name})") from None
        places = sorted(self._offsets.values())
        if [start for start, _ in places] != [0, *(end for _, end in places)][: len(places)]:
            raise UserError(f"{path}: not a safetensors file (its tensors overlap or leave gaps)")
        expected = self._start + max([0, *(end for _, end in places)])
        if size != expected:
            raise UserError(f"{path}: {size} bytes, but its header describes {expected}: damaged or cut")

    def _opened(self) -> FileIO:
        try:
            return FileIO(self.path)
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror or error}") from None

    def _header(self, file: FileIO, size: int) -> tuple[int, dict]:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise UserError(f"{self.path}: not a whole safetensors file ({why(self.path, 'its header is cut')})")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise UserError(f"{self.path}: not a safetensors file (its header cannot be read)") from None
        return 8 + length, header

    def _add(self, name: str, entry: dict) -> None:
        if name.endswith(CONSTANTS):
            start, end = entry["data_offsets"]
            self._offsets[name] = (int(start), int(end))
            return
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{self.path}: {name} is stored as {entry['dtype']}; expected one of {', '.join(DTYPES)}")
        info, (start, end) = Info(tuple(entry["shape"]), DTYPES[entry["dtype"]]), entry["data_offsets"]
        if start < 0 or end - start != info.num_bytes:
            raise UserError(f"{self.path}: {name} takes {end - start} bytes, but its shape asks for {info.num_bytes}")
        self.infos[name], self._offsets[name] = info, (start, end)

    def read(self, name: str) -> Tensor:
        info = self.infos[name]
        data = torch.empty(info.num_bytes, dtype=torch.uint8)
        view, done = memoryview(data.numpy().data), 0
        with self._opened() as file:
            file.seek(self._start + self._offsets[name][0])
            while done < len(view):
                done += self._read_into(file, view[done:])
        return data.view(info.dtype).reshape(info.shape)

    def write(self, name: str, file: BinaryIO) -> None:
        left = self.infos[name].num_bytes
        buffer = memoryview(bytearray(min(left, _CHUNK_BYTES)))
        with self._opened() as source:
            source.seek(self._start + self._offsets[name][0])
            while left:
                count = self._read_into(source, buffer[:left])
                file.write(buffer[:count])
                left -= count

    def _read_into(self, file: FileIO, view: memoryview) -> int:
        try:
            count = file.readinto(view)
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror or error}") from None
        if not count:
            raise UserError(f"{self.path}: ends early")
        return count


def write_safetensors(path: Path, tensors: Tensors, names: list[str]) -> None:
    """One file with these tensors, flushed to disk; memory for one tensor. Raises OSError (disk full, permission)."""
    ordered = sorted(names, key=lambda name: -tensors.infos[name].dtype.itemsize)  # so that every one is aligned
    with open(path, "wb") as file:
        file.write(_encode_header({name: tensors.infos[name] for name in ordered}))
        for name in ordered:
            tensors.write(name, file)
        file.flush()
        os.fsync(file.fileno())


def _encode_header(infos: Mapping[str, Info]) -> bytes:
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, info in infos.items():
        start, end = end, end + info.num_bytes
        header[name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def split_into_shards(infos: Mapping[str, Info], max_bytes: int) -> list[list[str]]:
    """Names in order, cut so that no shard exceeds ``max_bytes`` (a larger tensor has a shard of its own)."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, info in infos.items():
        if shards[-1] and filled + info.num_bytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += info.num_bytes
    return shards


def total_bytes(infos: Mapping[str, Info]) -> int:
    """Bytes of all tensors."""
    return sum(info.num_bytes for info in infos.values())
