"""Photographs that packages ship, for networks that learn what a smaller picture lost; some that no training sees."""

from __future__ import annotations

from pathlib import Path

from toolkit.data.fetching import fetch, pins

SETS = ("photos_mate", "photos_lomiri", "photos_skimage", "photos_opencv", "photos_tuxpaint")
HELD_OUT = (
    "Bridge_by_Sander_Klootwijk.jpg",
    "umang_by_Abhishek_Mudgal.jpg",
    "Garden.jpg",
    "LadyBird.jpg",
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
)  # of two desktops and scikit-image: never trained on


def photographs(held_out: bool = False) -> list[Path]:
    """The files to train on, or those that are ``held_out``, fetched first where they must be. Raises UserError."""
    found = []
    for name in SETS:
        files = [file for file in pins(name) if (file in HELD_OUT) == held_out]
        if files:
            folder = fetch(name).path
            found += [folder / file for file in files]
    return found
