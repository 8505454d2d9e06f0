"""Data sets by name, batches whose position is a pure function of the step, and fetching with pinned hashes.

``load(config, seed)`` gives a ``Dataset``; ``batches(split, ...)`` streams one of its splits; ``rows()`` and
``fetch(name)`` serve ``toolkit data list`` and ``toolkit data fetch``. torch is imported only when data is read.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from toolkit.data.catalogue import CATALOGUE, Entry, Row, check, fetch, load, load_episodes, rows, stand_in

if TYPE_CHECKING:
    from toolkit.data.sets import Dataset, MemorySplit, Split
    from toolkit.data.stream import batches
    from toolkit.data.text import Corpus, check_text, load_text
    from toolkit.data.toys import GaussianMixture

_HOMES = {
    "batches": "toolkit.data.stream",
    "Dataset": "toolkit.data.sets",
    "MemorySplit": "toolkit.data.sets",
    "Split": "toolkit.data.sets",
    "GaussianMixture": "toolkit.data.toys",
    "Corpus": "toolkit.data.text",
    "check_text": "toolkit.data.text",
    "load_text": "toolkit.data.text",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


__all__ = [
    "CATALOGUE",
    "Corpus",
    "Dataset",
    "Entry",
    "GaussianMixture",
    "MemorySplit",
    "Row",
    "Split",
    "batches",
    "check",
    "check_text",
    "fetch",
    "load",
    "load_episodes",
    "load_text",
    "rows",
    "stand_in",
]
