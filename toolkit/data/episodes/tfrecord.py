"""TFRecord files of ``tf.train.Example`` messages, without TensorFlow: just what the robot data sets are stored in."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import UserError, brief

log = logging.getLogger(__name__)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3  # fields of a Feature


def read_examples(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield each example as ``{name: list of bytes, float32 array or int64 array}``.

    Raises UserError when the file ends inside a record or holds no examples. Checksums are not verified.
    """
    with open(path, "rb") as file:
        while header := file.read(12):  # length, and its checksum
            record = file.read(struct.unpack("<Q", header[:8])[0]) if len(header) == 12 else b""
            if not record or len(file.read(4)) < 4:
                raise UserError(f"{path}: ends inside a record (truncated?); download it again")
            try:
                yield _example(memoryview(record))
            except (IndexError, struct.error, UnicodeDecodeError, KeyError) as error:
                raise UserError(f"{path}: a record is no tf.train.Example ({brief(error)})") from None


def readable_examples(path: Path) -> Iterator[dict[str, Any]]:
    """The examples of a file up to the first damaged one, which is logged."""
    try:
        yield from read_examples(path)
    except UserError as error:
        log.warning("%s; what came before it is kept", error)


def _example(message: memoryview) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _, features in _fields(message):
        for _, entry in _fields(features):
            parts = dict(_fields(entry))
            found[bytes(parts[1]).decode()] = _feature(parts[2]) if 2 in parts else []
    return found


def _feature(message: memoryview) -> Any:
    for kind, content in _fields(message):
        values = list(_fields(content))
        if kind == _BYTES_LIST:
            return [bytes(value) for _, value in values]
        if kind == _FLOAT_LIST:
            return np.frombuffer(b"".join(bytes(value) for _, value in values), "<f4")
        if kind == _INT64_LIST:
            return np.array([number for _, value in values for number in _integers(value)], np.int64)
    return []


def _integers(value: Any) -> list[int]:
    """A single varint, or a packed run of them."""
    if isinstance(value, int):
        return [value]
    numbers, place = [], 0
    while place < len(value):
        number, place = _varint(value, place)
        numbers.append(number - 2**64 if number >= 2**63 else number)
    return numbers


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, content) of a message; content is bytes, or an int for varints."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == _VARINT:
            number, place = _varint(message, place)
            yield key >> 3, number
            continue
        if kind == _BYTES:
            size, place = _varint(message, place)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise IndexError(f"wire type {kind}")
        if place + size > len(message):
            raise IndexError("a field is longer than its message")
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place
