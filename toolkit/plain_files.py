"""Files as somebody else names and writes them: paths, text, JSON and YAML as plain values, or one line of what is
wrong."""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from toolkit.errors import UserError, brief

MARKS = {  # that editors put before a text, the longer ones first: UTF-32's begins as UTF-16's does
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
MOST_BYTES = 2**26  # of JSON
POINTER = b"version https://git-lfs.github.com/spec/"  # what a clone holds in the place of a large file
MOST_YAML_BYTES = 2**18  # configs have a few KiB


def named_path(name: str | Path) -> Path:
    """What a user calls ``name``: ``~`` is the home folder, ``~WORD`` a file of that name where WORD is no user's."""
    return Path(os.path.expanduser(name))  # Path.expanduser() raises RuntimeError


def check_writable(path: str | Path | None, key: str, folders: bool = False) -> None:
    """Raises UserError naming ``key`` where no file can be written to ``path``, before work whose result it is.

    Its folder is made. None is no file. folders: whether the result may be a folder.
    """
    import tempfile

    if path is None:
        return
    try:
        if Path(path).is_dir() and not folders:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=Path(path).parent):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{key}={path}: cannot be written ({reason}); name one in a folder of yours") from None


def is_pointer(path: str | Path) -> bool:
    """Whether Git LFS left a pointer to the file in its place."""
    try:
        with open(path, "rb") as file:
            return file.read(len(POINTER)) == POINTER
    except (OSError, TypeError):  # the second of a member of an archive
        return False


def why(path: str | Path, said: object, most: int = 160) -> str:
    """In one line why ``path`` is not what was expected: a pointer in its place, else what the reader ``said``."""
    if is_pointer(path):
        return "a pointer of Git LFS stands in its place; git lfs pull fetches the file"
    return brief(said, most)


def visible_files(folder: Path) -> list[Path]:
    """The files below ``folder``, of any depth, sorted: none that is hidden, nor what lies in a hidden folder of it."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def read_text(path: str | Path, key: str = "") -> str:
    """The text in ``path``: UTF-8, or what a mark at its beginning says; without the mark, lines end in a newline.

    Raises UserError naming ``key`` and the file where it cannot be read, or is no such text.
    """
    named = f"{key}={path}" if key else str(path)
    try:
        content = (Path(path) if isinstance(path, str) else path).read_bytes()  # a member of an archive reads itself
        mark = next((mark for mark in MARKS if content.startswith(mark)), b"")
        text = content[len(mark) :].decode(MARKS.get(mark, "utf-8"))
    except OSError as error:
        raise UserError(f"{named}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{named}: cannot be read as UTF-8 text ({error}); save it as UTF-8") from None
    if content.startswith(POINTER):
        raise UserError(f"{named}: {why(path, '')}")
    if "\0" in text:
        raise UserError(f"{named}: holds NUL characters: no text, or UTF-16 without its mark; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_object(path: str | Path, **kinds: type) -> dict[str, Any]:
    """The JSON object in ``path``, in which ``kinds`` names keys that must be there and what their values are.

    Raises UserError naming the file where it holds something else, more than ``MOST_BYTES`` or deeper nesting than
    Python reads; OSError where it cannot be opened.
    """
    path = Path(path)
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path}: has {path.stat().st_size} bytes; at most {MOST_BYTES} are expected of such a file")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path}: damaged, or no JSON ({why(path, said)})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(found).__name__}")
    for key, kind in kinds.items():
        if not _is(found.get(key), kind):
            raise UserError(f"{path}: '{key}' is missing or not of type {kind.__name__}")
    return found


def _is(value: Any, kind: type) -> bool:
    """A whole number is a float too; true and false are numbers of no kind."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def read_yaml(path: str | Path, aliases: bool = False) -> Any:
    """What the file holds: no object is made, no resolver called. Raises ValueError saying what is wrong, OSError.

    aliases: whether a part may stand for another (``&a``, ``*a``); a few of them can stand for gigabytes.
    """
    import yaml

    with open(path, "rb") as file:
        content = file.read(MOST_YAML_BYTES + 1)
    if len(content) > MOST_YAML_BYTES:
        raise ValueError(f"it has more than {MOST_YAML_BYTES} bytes")
    try:
        return yaml.load(content, _plain_loader(aliases))
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else brief(error, 300)
        raise ValueError(said) from None


@cache
def _plain_loader(aliases: bool) -> Any:
    import yaml

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if not aliases and self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has an alias")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode) and name.value != "<<"]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise yaml.YAMLError(f"found duplicate key {twice}")
            return super().construct_mapping(node, deep)

    number = re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$")  # 1e-3 is a number, as in Hydra's files
    Plain.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return Plain
