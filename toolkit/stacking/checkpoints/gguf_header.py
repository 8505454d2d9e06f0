"""The header of a GGUF file, read within its bounds: the gguf library believes every count and every length in it.

Layout: "GGUF", version, number of tensors, number of fields; the fields (name, type, value); the tensors' names,
shapes, types and offsets; the data, aligned. Integers are little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import UserError
from toolkit.plain_files import why

VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass
class GGUFHeader:
    """``fields``: scalars and texts by name, of an array its length. ``shapes``: of every tensor, by name."""

    fields: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def read_gguf_header(path: Path) -> GGUFHeader:
    """Raises UserError naming the file where its header is cut, contradicts itself or describes more than is there."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(_Cursor(data))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except (ValueError, struct.error) as error:
        raise UserError(f"{path}: not a GGUF file, or not a whole one ({why(path, error)})") from None


class _Cursor:
    """Reads onwards in ``data``. Raises ValueError at its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> Any:
        """One number."""
        (value,) = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return value

    def count(self, least_bytes: int) -> int:
        """A number of things that take at least so many bytes each."""
        value = int(self.take("Q"))
        if value * least_bytes > len(self.data) - self.at:
            raise ValueError(f"at byte {self.at - 8} it counts {value}, and {len(self.data) - self.at} bytes follow")
        return value

    def text(self) -> str:
        length = self.count(1)
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def skip(self, num_bytes: int) -> None:
        self.at += num_bytes


def _read(cursor: _Cursor) -> GGUFHeader:
    if cursor.data[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    cursor.skip(4)
    version = cursor.take("I")
    if version not in VERSIONS:
        raise ValueError(f"version {version}; {' and '.join(map(str, VERSIONS))} are read, little-endian")
    num_tensors, num_fields = cursor.count(24), cursor.count(12)
    header = GGUFHeader()
    for _ in range(num_fields):
        name = cursor.text()
        _refuse_twice(name, header.fields)
        header.fields[name] = _value(cursor, cursor.take("I"))
    spans = {}
    for _ in range(num_tensors):
        name = cursor.text()
        _refuse_twice(name, header.shapes)
        header.shapes[name], spans[name] = _tensor(cursor, name)
    _check_spans(cursor, header, spans)
    return header


def _refuse_twice(name: str, found: dict[str, Any]) -> None:
    if name in found:
        raise ValueError(f"{name} is there twice")


def _value(cursor: _Cursor, kind: int) -> Any:
    if kind in _SCALARS:
        return cursor.take(_SCALARS[kind])
    if kind == _STRING:
        return cursor.text()
    if kind != _ARRAY:
        raise ValueError(f"a value of type {kind}")
    inner = cursor.take("I")
    if inner in _SCALARS:
        size = struct.calcsize(f"<{_SCALARS[inner]}")
        length = cursor.count(size)
        cursor.skip(length * size)
    elif inner == _STRING:
        length = cursor.count(8)
        for _ in range(length):
            cursor.skip(cursor.count(1))
    else:
        raise ValueError(f"an array of type {inner}")
    return length


def _tensor(cursor: _Cursor, name: str) -> tuple[tuple[int, ...], tuple[int, int]]:
    """(shape, (offset, bytes)) of one tensor."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    num_dimensions = cursor.take("I")
    if not 1 <= num_dimensions <= MOST_DIMENSIONS:
        raise ValueError(f"{name} has {num_dimensions} dimensions")
    shape = tuple(cursor.take("Q") for _ in range(num_dimensions))
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(cursor.take("I"))]
    if shape[0] % block:
        raise ValueError(f"{name} has rows of {shape[0]} values, its type has blocks of {block}")
    return shape, (cursor.take("Q"), math.prod(shape) // block * size)


def _check_spans(cursor: _Cursor, header: GGUFHeader, spans: dict[str, tuple[int, int]]) -> None:
    """The tensors lie in the file, one after the other."""
    alignment = header.fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment}; expected a power of two")
    start, end = -(-cursor.at // alignment) * alignment, 0
    for name, (offset, num_bytes) in sorted(spans.items(), key=lambda item: item[1]):
        if offset < end:
            raise ValueError(f"{name} begins within another tensor")
        end = offset + num_bytes
        if start + end > len(cursor.data):
            raise ValueError(f"{name} ends at byte {start + end}, the file at {len(cursor.data)}")
