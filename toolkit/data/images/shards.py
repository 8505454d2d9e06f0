"""Images in tar shards of WebDataset and in parquet files of Hugging Face, read in place by their position."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import struct
import tarfile
import threading
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import ImageFile

from toolkit.data.images.suffixes import is_image, open_picture, suffix_of
from toolkit.data.splits import split_of
from toolkit.errors import UserError
from toolkit.installation import install_hint

KINDS = (".tar", ".parquet")
CLASS_MEMBER = ".cls"  # of WebDataset: the class as a number in text
Label = int | str


class Item(NamedTuple):
    """An image in a shard: its label, its size in bytes (or a number that changes with it)."""

    label: Label | None
    size: int


class Shard(Protocol):
    """One file of many images. ``items`` by name, in order; ``class_names`` where the file says how they are called."""

    items: dict[str, Item]
    class_names: tuple[str, ...]

    def read(self, name: str) -> bytes: ...


def find_shards(path: Path) -> list[Path]:
    """The shards that a folder consists of, at its top and in folders called data or as splits; or ``path`` alone.

    None where there are image files or other folders beside them: then it is a folder of images.
    """
    if path.is_file():
        return [path] if path.suffix in KINDS else []
    inner = [one for one in sorted(path.iterdir()) if one.is_dir() and one.name[0] not in "._"] if path.is_dir() else []
    found: list[Path] = []
    for place in [path, *inner]:
        files = [one for one in sorted(place.iterdir()) if one.name[0] not in "._"] if place.is_dir() else []
        is_plain = any(is_image(one.name) for one in files) or (place != path and any(one.is_dir() for one in files))
        if is_plain or (place != path and not (place.name == "data" or split_of(place))):
            return []
        found += [one for one in files if one.suffix in KINDS and one.is_file() and one.stem != "metadata"]
    return found


class ShardArchive:
    """All shards of a set as an archive: ``SHARD/IMAGE`` below ``path``.

    A shard's split is the one that its path below ``path`` names (``train-00000-of-00004.parquet``, ``val/0.tar``);
    where none names any, all are "train". Raises UserError for what cannot be read, and names that fit no split.
    """

    def __init__(self, path: Path, shards: list[Path]) -> None:
        self.path = path
        if len({one.suffix for one in shards}) > 1:
            raise UserError(f"{path}: holds tar and parquet files; take one kind away")
        self._shards: dict[str, Shard] = {}
        self.splits: dict[str, list[str]] = {}
        for shard in shards:
            name = "" if shard == path else shard.relative_to(path).as_posix()
            opened: Shard = TarShard(shard) if shard.suffix == ".tar" else ParquetShard(shard)
            self._shards[name] = opened
            self.splits.setdefault(_split_of(path, name), []).extend(
                f"{name}/{item}".lstrip("/") for item in opened.items
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
    found = {split_of(Path(word)) for word in re.split(r"[^a-z]+", name.lower())} - {""}
    if len(found) > 1:
        raise UserError(f"{path}: {name} names more than one split ({', '.join(sorted(found))}); rename it")
    return next(iter(found), "")


class TarShard:
    """A tar of WebDataset, not compressed: images beside texts of the same key, of which ``.cls`` is the class.

    Only the headers are read here. Links and whatever is no regular file are passed over; nothing is unpacked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.class_names: tuple[str, ...] = ()
        self._places: dict[str, tuple[int, int]] = {}
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
            raise UserError(f"{path}: not an uncompressed tar file that can be read ({error})") from error
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

    def read(self, name: str) -> bytes:
        return self._bytes(*self._places[name])

    def _bytes(self, offset: int, size: int) -> bytes:
        with open(self.path, "rb") as file:
            return os.pread(file.fileno(), size, offset)


def _key(name: str) -> str:
    """What the members of one sample share: the path up to the first dot of the last word."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


class ParquetShard:
    """A parquet file with a column of encoded images, as Hugging Face keeps them, and perhaps one called "label"."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet
        except ImportError:
            raise UserError(f"{path}: parquet files are read by pyarrow: {install_hint('formats')}") from None
        self.path, self._lock = path, threading.Lock()
        self._errors: tuple[type[Exception], ...] = (pyarrow.ArrowException, OSError)
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
            schema = self._file.schema_arrow
            self._column = self._image_column(schema)
            names = [name for name in ("label", "labels") if name in schema.names]
            labels = self._file.read(columns=names).column(0).to_pylist() if names else None
        except self._errors as error:
            raise UserError(f"{path}: cannot be read as parquet: {' '.join(str(error).split())[:160]}") from None
        self.class_names = _names_of(schema, names[0]) if names else ()
        groups = [self._file.metadata.row_group(number) for number in range(self._file.num_row_groups)]
        self._rows = [(number, row) for number, group in enumerate(groups) for row in range(group.num_rows)]
        self.items = {
            f"{position:08d}": Item(None if labels is None else labels[position], groups[number].total_byte_size)
            for position, (number, _) in enumerate(self._rows)
        }
        self._group = functools.lru_cache(maxsize=2)(self._read_group)

    def _image_column(self, schema: Any) -> str:
        import pyarrow

        def is_image(kind: Any) -> bool:
            if pyarrow.types.is_struct(kind):
                return any(kind.field(number).name == "bytes" for number in range(kind.num_fields))
            return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)

        found = [field.name for field in schema if is_image(field.type)]
        if len(found) != 1:
            said = f"columns {', '.join(found)}" if found else f"no column of encoded images among {schema.names}"
            raise UserError(f"{self.path}: must have one column of encoded images (bytes); has {said}")
        return found[0]

    def _read_group(self, number: int) -> list[Any]:
        return self._file.read_row_group(number, columns=[self._column]).column(0).to_pylist()

    def read(self, name: str) -> bytes:
        number, row = self._rows[int(name)]
        try:
            with self._lock:
                value = self._group(number)[row]
        except self._errors as error:
            raise OSError(f"{' '.join(str(error).split())[:160]}") from error
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None:
            raise OSError("the row holds no bytes of an image")
        return content


def _names_of(schema: Any, column: str) -> tuple[str, ...]:
    """The names of a ClassLabel of Hugging Face's datasets, from the file's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
        return tuple(names) if all(isinstance(name, str) for name in names) else ()
    except (KeyError, ValueError, TypeError):
        return ()
