"""Images in tar shards of WebDataset, in parquet and arrow files of Hugging Face, read in place by their position."""

from __future__ import annotations

import functools
import io
import json
import os
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import ImageFile

from toolkit.data.images.suffixes import is_image, open_picture, suffix_of
from toolkit.data.splits import split_of, splits_in
from toolkit.errors import UserError, brief
from toolkit.installation import install_hint
from toolkit.plain_files import why

STATE = "state.json"  # beside arrow files: which of them are the set
END_OF_STREAM = bytes.fromhex("ffffffff00000000")  # of arrow's IPC format
CLASS_MEMBER = ".cls"  # of WebDataset: the class as a number in text
Label = int | str


class Item(NamedTuple):
    """An image in a shard: its label, its size in bytes (or a number that changes with it)."""

    label: Label | None
    size: int


class Shard(Protocol):
    """One file of many images. ``items`` by name, in order; ``class_names`` where the file says how they are called.

    others: what it holds besides and is not read: columns, or suffixes of members.
    """

    items: dict[str, Item]
    class_names: tuple[str, ...]
    others: list[str]

    def read(self, name: str) -> bytes: ...


def find_shards(path: Path) -> list[Path]:
    """The shards that a folder consists of, at its top and in folders called data or as splits; or ``path`` alone.

    None where there are image files or other folders beside them: then it is a folder of images.
    """
    if path.is_file():
        return [path] if path.suffix in OPENERS else []
    inner = [one for one in sorted(path.iterdir()) if one.is_dir() and one.name[0] not in "._"] if path.is_dir() else []
    found: list[Path] = []
    for place in [path, *inner]:
        files = [one for one in sorted(place.iterdir()) if one.name[0] not in "._"] if place.is_dir() else []
        is_plain = any(is_image(one.name) for one in files) or (place != path and any(one.is_dir() for one in files))
        if is_plain or (place != path and not (place.name == "data" or split_of(place))):
            return []
        shards = [one for one in files if one.suffix in OPENERS and one.is_file() and one.stem != "metadata"]
        is_saved = any(one.suffix == ".arrow" for one in shards) and (place / STATE).is_file()
        found += _saved(place / STATE, shards) if is_saved else shards
    return found


def _saved(state: Path, shards: list[Path]) -> list[Path]:
    """Those of ``shards`` that Hugging Face's ``save_to_disk`` wrote last, in its order; older ones may be left."""
    try:
        content = json.loads(state.read_text(encoding="utf-8"))
        names, selection = [one["filename"] for one in content["_data_files"]], content.get("_indices_data_files")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{state}: not the state of a set that save_to_disk wrote ({error!r:.100})") from None
    if selection:  # of datasets before 2.0: the rows in use are listed beside all rows
        raise UserError(f"{state}: holds a selection of its rows; save what flatten_indices() gives")
    there = {one.name: one for one in shards}
    if lacking := [name for name in names if name not in there]:
        raise UserError(f"{state}: names {lacking[0]!s:.100}, which is not there; save or copy the set again")
    return [there[name] for name in names]


class ShardArchive:
    """All shards of a set as an archive: ``SHARD/IMAGE`` below ``path``.

    A shard's split is the one that its path below ``path`` names (``train-00000-of-00004.parquet``, ``val/0.tar``);
    where none names any, all are "train". Raises UserError for what cannot be read, and names that fit no split.
    """

    def __init__(self, path: Path, shards: list[Path], label_column: str | None = None) -> None:
        self.path = path
        if len({one.suffix for one in shards}) > 1:
            raise UserError(f"{path}: holds shards of several kinds (tar, parquet, arrow); keep one kind")
        self._shards: dict[str, Shard] = {}
        self.splits: dict[str, list[str]] = {}
        for shard in shards:
            name = "" if shard == path else shard.relative_to(path).as_posix()
            self._shards[name] = OPENERS[shard.suffix](shard, label_column)
            self.splits.setdefault(_split_of(path, name), []).extend(
                f"{name}/{item}".lstrip("/") for item in self._shards[name].items
            )
        self._name_splits(shards)

    def _name_splits(self, shards: list[Path]) -> None:
        unnamed = self.splits.pop("", [])
        if not self.splits:
            self.splits = {"train": unnamed}
        elif unnamed or "train" not in self.splits:
            lone = f"{unnamed[0].rsplit('/', 1)[0]} names none" if unnamed else "none is for training"
            raise UserError(f"{self.path}: of {len(shards)} shards some name a split and {lone}; rename or move them")
        if "valid" in self.splits and "test" not in self.splits:
            self.splits["test"] = self.splits.pop("valid")
        for name, inside in self.splits.items():
            if not inside:
                raise UserError(f"{self.path}: no images in the shards of {name}")

    def labels(self, split: str) -> list[Label] | None:
        """The labels of a split's images; None where none has one. UserError where some lack one."""
        items = [shard.items[item] for shard, item in map(self._item, self.splits[split])]
        found = [item.label for item in items if item.label is not None]
        if found and len(found) < len(items):
            raise UserError(f"{self.path}: {len(items) - len(found)} images of {split} have no class, and others have")
        return found or None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes 0, 1, ... where the shards give them."""
        return next(iter(self._shards.values())).class_names

    @property
    def others(self) -> list[str]:
        """What the shards hold besides, and is not read."""
        return sorted({one for shard in self._shards.values() for one in shard.others})

    def _item(self, name: str) -> tuple[Shard, str]:
        """The shard, whose own name has at most two words, and what is left of the name."""
        words = name.split("/")
        depth = next(depth for depth in (0, 1, 2) if "/".join(words[:depth]) in self._shards)
        return self._shards["/".join(words[:depth])], "/".join(words[depth:])

    def entries(self, folder: str) -> dict[str, bool]:
        return {}  # what there is stands in ``splits``

    def size(self, name: str) -> int:
        shard, item = self._item(name)
        return shard.items[item].size

    def read(self, name: str) -> bytes:
        shard, item = self._item(name)
        return shard.read(item)

    def image(self, name: str) -> ImageFile.ImageFile:
        return open_picture(io.BytesIO(self.read(name)))


def _split_of(path: Path, name: str) -> str:
    found = splits_in(name)
    if len(found) > 1:
        raise UserError(f"{path}: {name} names more than one split ({', '.join(sorted(found))}); rename it")
    return next(iter(found), "")


class TarShard:
    """A tar of WebDataset, not compressed: images beside texts of the same key, of which ``.cls`` is the class.

    Only the headers are read here. Links and whatever is no regular file are passed over; nothing is unpacked.
    """

    def __init__(self, path: Path, label_column: str | None = None) -> None:
        if label_column is not None:
            raise UserError(f"data.label_column={label_column}: {path} has no columns; of a tar, .cls gives the class")
        self.path = path
        self.class_names: tuple[str, ...] = ()
        self._places: dict[str, tuple[int, int]] = {}
        self.others: list[str] = []
        labels: dict[str, Label] = {}
        end = path.stat().st_size
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.size < 0:
                        raise UserError(f"{path}: {member.name} says that it has {member.size} bytes")
                    if not member.isreg():
                        continue
                    if member.offset_data + member.size > end:
                        raise UserError(f"{path}: is cut short within {member.name}")
                    self._note(member, labels)
        except (tarfile.TarError, EOFError, ValueError, OSError, struct.error, IndexError, OverflowError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: not an uncompressed tar file that can be read ({why(path, error)})") from error
        self.items = {name: Item(labels.get(_key(name)), size) for name, (_, size) in self._places.items()}

    def _note(self, member: tarfile.TarInfo, labels: dict[str, Label]) -> None:
        name = member.name.removeprefix("./")
        if suffix_of(name) == CLASS_MEMBER and member.size < 1000:
            text = self._bytes(member.offset_data, member.size).decode("ascii", "replace").strip()
            if not text.isdecimal():
                raise UserError(f"{self.path}: {name} is '{text[:40]}', not the number of a class")
            labels[_key(name)] = int(text)
        elif is_image(name):
            if name in self._places or any(word in ("", ".", "..") for word in name.split("/")):
                raise UserError(f"{self.path}: the member '{name}' leads out of the archive or is there twice")
            self._places[name] = (member.offset_data, member.size)
        elif (suffix := suffix_of(name) or name) not in self.others:
            self.others.append(suffix)

    def read(self, name: str) -> bytes:
        return self._bytes(*self._places[name])

    def _bytes(self, offset: int, size: int) -> bytes:
        with open(self.path, "rb") as file:
            return os.pread(file.fileno(), size, offset)


def _key(name: str) -> str:
    """What the members of one sample share: the path up to the first dot of the last word."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


# -- tables of Hugging Face ------------------------------------------------------------------------------------------


class ParquetShard:
    """A parquet file with a column of encoded images, as Hugging Face keeps them, and perhaps one of labels."""

    def __init__(self, path: Path, label_column: str | None = None) -> None:
        self.path, self._lock = path, threading.Lock()
        with _pyarrow(path) as arrow:
            self._file = arrow.parquet.ParquetFile(path)
            schema = self._file.schema_arrow
            self._column, label = _columns(path, schema, label_column)
            self.others = _others(schema, self._column, label)
            labels = self._file.read(columns=[label]).column(0).to_pylist() if label else None
        self._errors: tuple[type[Exception], ...] = (arrow.ArrowException, OSError)
        self.class_names = _names_of(_features(schema), label)
        groups = [self._file.metadata.row_group(number) for number in range(self._file.num_row_groups)]
        self._rows = [(number, row) for number, group in enumerate(groups) for row in range(group.num_rows)]
        self.items = {
            f"{position:08d}": Item(None if labels is None else labels[position], groups[number].total_byte_size)
            for position, (number, _) in enumerate(self._rows)
        }
        self._group = functools.lru_cache(maxsize=2)(self._read_group)

    def _read_group(self, number: int) -> list[Any]:
        return self._file.read_row_group(number, columns=[self._column]).column(0).to_pylist()

    def read(self, name: str) -> bytes:
        number, row = self._rows[int(name)]
        try:
            with self._lock:
                value = self._group(number)[row]
        except self._errors as error:
            raise OSError(brief(error)) from error
        return _there(value.get("bytes") if isinstance(value, dict) else value)


class ArrowShard:
    """An arrow file of Hugging Face (a stream of record batches, as ``save_to_disk`` writes), of the same columns.

    It is mapped into memory: opening it reads offsets and labels, and a row is read where it lies.
    """

    def __init__(self, path: Path, label_column: str | None = None) -> None:
        with _pyarrow(path) as arrow:
            with arrow.ipc.open_stream(arrow.memory_map(str(path))) as stream:
                schema, batches = stream.schema, list(stream)
            _check_end(path)
            column, label = _columns(path, schema, label_column)
            self.others = _others(schema, column, label)
            labels: list[Label | None] = []
            sizes: list[int] = []
            self._rows: list[tuple[Any, int]] = []  # an array of encoded images, a row of it
            for batch in batches:
                batch.validate(full=True)  # offsets of a damaged file would be followed anywhere
                images = batch.column(column)
                content = images.field("bytes") if arrow.types.is_struct(images.type) else images
                labels += batch.column(label).to_pylist() if label else [None] * len(batch)
                sizes += arrow.compute.binary_length(content).fill_null(0).to_pylist()
                self._rows += [(content, row) for row in range(len(batch))]
        self.class_names = _names_of(_described(path) or _features(schema), label)
        self.items = {
            f"{row:08d}": Item(label, size) for row, (label, size) in enumerate(zip(labels, sizes, strict=True))
        }

    def read(self, name: str) -> bytes:
        content, row = self._rows[int(name)]
        return _there(content[row].as_py())


@contextmanager
def _pyarrow(path: Path) -> Iterator[Any]:
    """The package; UserError where it is not installed, and for what it cannot read of ``path`` within the block."""
    kind = path.suffix[1:]
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: {kind} files are read by pyarrow: {install_hint('formats')}") from None
    try:
        yield pyarrow
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as {kind}: {why(path, error)}") from None


def _check_end(path: Path) -> None:
    """UserError for a stream that lacks its last mark: cut between two batches it would pass for a whole one."""
    with open(path, "rb") as file:
        file.seek(-len(END_OF_STREAM), os.SEEK_END)
        if file.read() != END_OF_STREAM:
            raise UserError(f"{path}: is cut short: an arrow stream ends with a mark, which is not there")


def _columns(path: Path, schema: Any, label: str | None) -> tuple[str, str | None]:
    """The column of images, and of labels: ``label``, else one called so. UserError where they are of other types."""
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    def is_image(kind: Any) -> bool:
        if types.is_struct(kind):
            fields = [kind.field(number) for number in range(kind.num_fields)]
            return any(field.name == "bytes" and is_bytes(field.type) for field in fields)
        return is_bytes(kind)

    images = [field.name for field in schema if is_image(field.type)]
    if len(images) != 1:
        said = f"columns {', '.join(images)}" if images else f"no column of encoded images among {schema.names}"
        raise UserError(f"{path}: must have one column of encoded images (bytes); has {said}")
    if label is not None and label not in schema.names:
        raise UserError(f"data.label_column={label}: {path} has no such column; it has {', '.join(schema.names)}")
    label = label or next((name for name in ("label", "labels") if name in schema.names), None)
    kind = schema.field(label).type if label else None
    if kind is not None and not any(
        is_kind(kind) for is_kind in (types.is_integer, types.is_string, types.is_large_string, types.is_dictionary)
    ):
        raise UserError(f"{path}: the column {label} must be whole numbers or text, a class each; is {kind}")
    return images[0], label


def _others(schema: Any, *read: str | None) -> list[str]:
    return [name for name in schema.names if name not in read]


def _there(content: bytes | None) -> bytes:
    if content is None:
        raise OSError("the row holds no bytes of an image")
    return content


def _features(schema: Any) -> Any:
    """What Hugging Face's datasets say of the columns, from the file's metadata."""
    try:
        return json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return None


def _described(path: Path) -> Any:
    """The same from ``dataset_info.json`` beside the file, which goes before; None where there is none."""
    file = path.with_name("dataset_info.json")
    try:
        return json.loads(file.read_text(encoding="utf-8"))["features"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{file}: does not describe the columns of a set of Hugging Face ({error!r:.100})") from None


def _names_of(features: Any, column: str | None) -> tuple[str, ...]:
    """The names of the ClassLabel ``column``; none where it is no such."""
    try:
        names = features[column]["names"]
        return tuple(names) if all(isinstance(name, str) for name in names) else ()
    except (KeyError, TypeError):
        return ()


OPENERS: dict[str, Callable[[Path, str | None], Shard]] = {
    ".tar": TarShard,
    ".parquet": ParquetShard,
    ".arrow": ArrowShard,
}
