"""Data sets by name, batches whose position is a pure function of the step, and fetching with pinned hashes.

``load(config, seed)`` gives a ``Dataset``; ``batches(split, ...)`` streams one of its splits; ``rows()`` and
``fetch(name)`` serve ``toolkit data list`` and ``toolkit data fetch``. torch is imported only when data is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.data.catalogue import CATALOGUE, Entry, Row, check, fetch, load, load_episodes, rows, stand_in
from toolkit.lazy import lazy

if TYPE_CHECKING:
    from toolkit.data.sets import Dataset, GaussianMixture, MemorySplit, Split
    from toolkit.data.stream import batches
    from toolkit.data.text.corpora import Corpus, check_text, load_text

if not TYPE_CHECKING:  # which would take any name for one of ours
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "batches": "toolkit.data.stream",
            "Dataset": "toolkit.data.sets",
            "MemorySplit": "toolkit.data.sets",
            "Split": "toolkit.data.sets",
            "GaussianMixture": "toolkit.data.sets",
            "Corpus": "toolkit.data.text.corpora",
            "check_text": "toolkit.data.text.corpora",
            "load_text": "toolkit.data.text.corpora",
        },
    )

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
