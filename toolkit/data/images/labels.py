"""Labels files beside images: EDM's and StyleGAN's dataset.json, Hugging Face's metadata.csv and metadata.jsonl."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import UserError, brief
from toolkit.plain_files import read_text

NAMES = ("dataset.json", "metadata.csv", "metadata.jsonl", "metadata.parquet")
WITHOUT = "or set data.class_labels=false"
Labels = dict[str, str]  # file name, relative to the labels file -> class


def labels_file(folder: Path) -> Path | None:
    """The labels file in ``folder``, if there is one. UserError for two."""
    there = [folder / name for name in NAMES if (folder / name).is_file()]
    if len(there) > 1:
        raise UserError(f"{folder}: two labels files ({there[0].name}, {there[1].name}); keep one of them")
    return there[0] if there else None


def read_labels(path: Path) -> Labels | None:
    """The class of every image that ``path`` names; None where it says that there are no labels.

    Raises UserError for a file that cannot be read or names no classes.
    """
    if path.suffix == ".parquet":
        raise UserError(f"{path}: labels in parquet are not read; write them as metadata.csv, {WITHOUT}")
    text = read_text(path)
    if path.name == "dataset.json":
        return _from_edm(path, _parse(path, text))
    if path.suffix == ".csv":
        return _from_rows(path, _csv_rows(path, text))
    lines = (line for line in text.split("\n") if line.strip())
    return _from_rows(path, ((f"row {number}", _parse(path, line)) for number, line in enumerate(lines, 1)))


def labels_of(path: Path, known: Labels, files: list[Path]) -> tuple[tuple[str, ...], np.ndarray]:
    """(names of the classes, int64 (n,) class of each of ``files``); numbers are ordered by value, names as text.

    Raises UserError for an image that ``path`` does not name, a name without an image, and one class only.
    """
    names = [file.relative_to(path.parent).as_posix() for file in files]
    for name in names:
        if name not in known:
            raise UserError(f"{path}: has no label for {name}; add it, {WITHOUT}")
    if len(known) > len(names):
        extra = next(iter(known.keys() - set(names)))
        raise UserError(f"{path}: names {extra}, which is not among the images read here; add it or take it out")
    values = set(known.values())
    ordered = sorted(values, key=int) if all(one.isdecimal() and len(one) < 20 for one in values) else sorted(values)
    if len(ordered) < 2:
        raise UserError(f"{path}: one class only ({''.join(ordered)}); give two or more, {WITHOUT}")
    index = {name: number for number, name in enumerate(ordered)}
    return tuple(ordered), np.array([index[known[name]] for name in names], np.int64)


def _from_edm(path: Path, content: Any) -> Labels | None:
    """``{"labels": [["00000/img00000000.png", 3], ...]}``, or null for a set without labels."""
    if not isinstance(content, dict) or "labels" not in content:
        raise UserError(f'{path}: is not {{"labels": [[file, class], ...]}}; mend it, {WITHOUT}')
    pairs = content["labels"]
    if pairs is None:
        return None
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise UserError(f"{path}: 'labels' is not a list of [file, class]; mend it, {WITHOUT}")
    return _collect(path, ((f"entry {number}", *pair) for number, pair in enumerate(pairs, 1)))


def _from_rows(path: Path, rows: Iterable[tuple[str, Any]]) -> Labels:
    """Rows with a ``file_name`` and a ``label``."""

    def triples() -> Iterable[tuple[str, Any, Any]]:
        for where, row in rows:
            for column in ("file_name", "label"):
                if not isinstance(row, Mapping) or column not in row:
                    raise UserError(f"{path}: {where} has no column '{column}'; name the columns so, {WITHOUT}")
            yield where, row["file_name"], row["label"]

    return _collect(path, triples())


def _collect(path: Path, triples: Iterable[tuple[str, Any, Any]]) -> Labels:
    known: Labels = {}
    for where, name, label in triples:
        if not isinstance(name, str) or not name:
            raise UserError(f"{path}: {where} names no file")
        if isinstance(label, bool) or not isinstance(label, (int, str)) or not str(label).strip():
            said = " ".join(str(label).split())[:40]
            raise UserError(f"{path}: {where} has the label '{said}'; one number or name is read, {WITHOUT}")
        name = os.path.normpath(name.replace("\\", "/"))
        if known.setdefault(name, str(label).strip()) != str(label).strip():
            raise UserError(f"{path}: {where} gives {name} a second, different label")
    return known


def _csv_rows(path: Path, text: str) -> Iterable[tuple[str, Any]]:
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), strict=True), 1):
            yield f"row {number}", row
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read as a table ({brief(error)})") from error


def _parse(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({brief(error)})") from error
