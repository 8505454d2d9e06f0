"""Numbered pictures as a video: ``frames/%05d.png``, or a folder of them, at a rate that the user gives."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from toolkit.errors import UserError

PICTURE_SUFFIXES = frozenset([".bmp", ".dpx", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"])
GUESSED_RATE = Fraction(25)  # of what has none, and of which only the pictures count
MOST_NUMBER = 2**31 - 1  # of FFmpeg
_PATTERN = re.compile(r"%(0(\d))?d")
_NUMBERED = re.compile(r"(.*?)(\d+)$")


@dataclass(frozen=True)
class Sequence:
    """Pictures ``first`` to ``last`` in ``folder``, called ``prefix``, a number of ``digits`` or more, ``suffix``."""

    folder: Path
    prefix: str
    digits: int
    suffix: str
    first: int
    last: int

    @property
    def name(self) -> str:
        """What it is called: by the words before the numbers, else by the folder."""
        return self.prefix.rstrip("_-. ") or self.folder.absolute().name or "frames"

    def file(self, number: int) -> Path:
        """Of one picture."""
        return self.folder / f"{self.prefix}{number:0{self.digits}d}{self.suffix}"

    def open(self, rate: Fraction) -> Any:
        """As a PyAV container."""
        before = f"{self.folder}{os.sep}{self.prefix}".replace("%", "%%")
        pattern = f"file:{before}%0{self.digits}d{self.suffix}"
        options = {"framerate": str(rate), "start_number": str(self.first), "pattern_type": "sequence"}
        return av.open(pattern, format="image2", options=options)

    def state(self) -> tuple[int, int]:
        """Size in bytes, and newest change in ns, of all pictures together."""
        states = [self.file(number).stat() for number in range(self.first, self.last + 1)]
        return sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)


def find_sequence(path: Path, key: str = "input") -> Sequence | None:
    """The pictures that ``path`` stands for: a folder of them, or a pattern; None where it is neither.

    Raises UserError naming ``key`` where a number is missing, and for a folder of several sequences.
    """
    if path.is_dir():
        names: dict[tuple[str, str], list[str]] = {}
        for one in path.iterdir():
            numbered = _NUMBERED.match(one.stem) if one.suffix.lower() in PICTURE_SUFFIXES else None
            if numbered and not one.name.startswith("."):
                names.setdefault((numbered[1], one.suffix), []).append(numbered[2])
        if len(names) > 1:
            kinds = ", ".join(f"{prefix}%d{suffix}" for prefix, suffix in sorted(names))
            raise UserError(f"{key}={path}: holds several rows of pictures ({kinds}); name one, as {path}/NAME%05d.png")
        for (prefix, suffix), digits in names.items():
            return _checked(path, prefix, suffix, digits, path, key)
        return None
    if path.exists() or not _PATTERN.search(path.name):
        return None
    prefix, suffix = _PATTERN.split(path.name)[0], _PATTERN.split(path.name)[-1]
    if len(_PATTERN.findall(path.name)) > 1 or suffix.lower() not in PICTURE_SUFFIXES:
        raise UserError(f"{key}={path}: one number and the suffix of a picture, as in frames/%05d.png")
    form = re.compile(re.escape(prefix) + r"(\d+)" + re.escape(suffix))
    found = [match[1] for one in path.parent.glob("*") if (match := form.fullmatch(one.name))]
    if not found:
        raise UserError(f"{key}={path}: no such pictures")
    return _checked(path.parent, prefix, suffix, found, path, key)


def _checked(folder: Path, prefix: str, suffix: str, digits: list[str], path: Path, key: str) -> Sequence:
    padded = any(text.startswith("0") and len(text) > 1 for text in digits)
    width = min(map(len, digits)) if padded else 1
    numbers = sorted(map(int, digits))
    made = Sequence(folder, prefix, width, suffix, numbers[0], numbers[-1])
    if numbers[-1] > MOST_NUMBER:
        raise UserError(
            f"{key}={path}: {made.file(numbers[-1]).name}: numbers up to {MOST_NUMBER} are read; rename them"
        )
    for number, expected in zip(numbers, range(numbers[0], numbers[-1] + 1), strict=False):
        if number != expected:
            raise UserError(f"{key}={path}: {made.file(expected).name} is missing")
    missing = [number for number in numbers if not made.file(number).exists()]
    if missing:
        raise UserError(f"{key}={path}: numbers are written in several ways; {made.file(missing[0]).name} is missing")
    return made
