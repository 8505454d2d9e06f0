"""Labels and prompts as the user gives them: inline, in a file, or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from toolkit.errors import UserError, did_you_mean
from toolkit.plain_files import named_path, read_text
from toolkit.runs.seeds import generator

NUMBER = re.compile("-?[0-9]+")  # str.isdigit takes superscripts too, which int() does not
PROMPTS = [
    "a photo of a lighthouse on a cliff",
    "a bowl of oranges on a wooden table",
    "an old steam train in the snow",
    "a red fox in a forest",
    "a watercolour of a harbour with sailing boats",
    "a bicycle leaning against a brick wall",
    "a cup of coffee beside an open book",
    "a portrait of an astronaut",
]
"""What a text model draws when no prompts are given."""


def read_labels(given: Any, num_classes: int, names: Mapping[str, int] | Callable[[], Mapping[str, int]]) -> list[int]:
    """Class numbers from ``labels``: a number, a name, a list of them, or a file with one per line.

    ``names`` may be a function, which is called where a label is no number; a number is then never a name.
    Raises UserError for an unknown name, a number out of range, or an empty file.
    """
    items = _items("labels", given)
    if callable(names):
        are_numbers = all(NUMBER.fullmatch(str(one)) for one in items)
        names = {} if are_numbers else {one: at for one, at in names().items() if not NUMBER.fullmatch(one)}
    return [_one_label(one, num_classes, names) for one in items]


def read_prompts(given: Any) -> list[str]:
    """Prompts from ``prompts``: a text, a list, a file with one per line, or None for PROMPTS.

    Raises UserError for an empty list, or a file that is missing, empty or not UTF-8.
    """
    return PROMPTS if given is None else [str(one) for one in _items("prompts", given)]


def draw_labels(seed: int, num: int, num_classes: int) -> list[int]:
    """A seeded draw of ``num`` classes."""
    return torch.randint(num_classes, (num,), generator=generator(seed, "labels")).tolist()


def _items(key: str, given: Any) -> list[Any]:
    if isinstance(given, str) and named_path(given).is_file():
        lines = read_text(named_path(given), key).split("\n")  # a prompt may hold Unicode's other line ends
        given = [line.strip() for line in lines if line.strip()]
        if not given:
            raise UserError(f"{key}: the file is empty; give one per line")
    if isinstance(given, str) and Path(given).suffix in (".txt", ".csv", ".json"):
        raise UserError(f"{key}={given}: no such file")
    items = given if isinstance(given, list) else [given]
    if not items:
        raise UserError(f"{key}=[]: give at least one")
    return items


def _one_label(one: Any, num_classes: int, names: Mapping[str, int]) -> int:
    text = str(one)
    if text in names:
        return names[text]
    if not NUMBER.fullmatch(text):
        hint = f"{did_you_mean(text, names)}give names, or" if names else "the model does not name its classes; give"
        raise UserError(f"labels: no class {text!r}; {hint} numbers from 0 to {num_classes - 1}")
    if not 0 <= int(text) < num_classes:
        raise UserError(f"labels: {text} is out of range; the model has the classes 0 to {num_classes - 1}")
    return int(text)
