"""Twenty crops of eight clips, what the command makes beside what it makes without a network: which is nearer?

    toolkit reproduce venhancer upscaler_against_classic --root ROOT
    python experiments/venhancer/blind.py ROOT SHEET.png
    python experiments/venhancer/blind.py ROOT SHEET.png --choices ABB=... --out blind.json

The crops are drawn by a fixed seed, each the busiest of four places. The first call makes a sheet: the truth in the
middle, the two methods at its sides; which of them is left is drawn too, and said nowhere. The second takes what
somebody saw, a sign a crop (A for left, B for right, = for no difference), and writes it down beside PLIPS of the same.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from toolkit.claims.parse import load_claims
from toolkit.data.video.clips import clip_path
from toolkit.data.video.reader import VideoReader
from toolkit.data.video.scan import index_video
from toolkit.metrics.plips import PLIPS
from toolkit.runs.files import write_json
from toolkit.runs.machine import git_commit

NUM_CROPS, SIZE_PX, ZOOM, PLACES, BAND = 20, 96, 3, 4, 16
SEED = 20


@dataclass
class Crop:
    """Pictures uint8 (96, 96, 3) of one place: truth, ours, classic. ``left``: the method that is shown as A."""

    clip: str
    frame: int
    top: int
    left_px: int
    pictures: dict[str, np.ndarray]
    left: str

    @property
    def right(self) -> str:
        return "classic" if self.left == "ours" else "ours"


def frames(path: Path, first: int = 0, most: int = 1000) -> list[np.ndarray]:
    """uint8 (H, W, 3), up to ``most`` of them from ``first`` on."""
    found = []
    for number, frame in enumerate(VideoReader(index_video(path)).frames()):
        if number >= first + most:
            break
        if number >= first:
            found.append(frame)
    return found


def clips(root: Path) -> list[tuple[str, dict[str, list[np.ndarray]]]]:
    """(name, frames by method) of each run of ``upscaler_clips``, truth among the methods."""
    one = load_claims(Path(__file__).parent / "claims.yaml").runs["upscaler_clips"]
    found: list[tuple[str, dict[str, list[np.ndarray]]]] = []
    for seed in one.seeds:
        words = dict(word.split("=", 1) for word in one.words(seed) if "=" in word)
        run = root / "venhancer" / "upscaler_clips" / f"seed_{seed}"
        (ours,) = (run / "samples").glob("*.mp4")
        made = {"ours": frames(ours), "classic": frames(run / "baselines" / f"{ours.stem}_classic.mp4")}
        truth = clip_path(words["input"])
        first = round(float(words.get("start_s", 0)) * index_video(truth).rate)
        found.append((words["input"], made | {"truth": frames(truth, first, len(made["ours"]))}))
    return found


def busy(picture: np.ndarray) -> float:
    grey = picture.astype(np.float32).mean(axis=-1)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def draw(root: Path) -> list[Crop]:
    """The crops, the same for every caller that has the same clips."""
    rng, found = np.random.default_rng(SEED), []
    known = clips(root)
    for number in range(NUM_CROPS):
        name, made = known[number % len(known)]
        frame = int(rng.integers(min(len(one) for one in made.values())))
        height, width = made["truth"][frame].shape[:2]
        places = [(int(rng.integers(height - SIZE_PX)), int(rng.integers(width - SIZE_PX))) for _ in range(PLACES)]
        left = "ours" if rng.random() < 0.5 else "classic"
        cut = {
            place: {
                method: one[frame][place[0] : place[0] + SIZE_PX, place[1] : place[1] + SIZE_PX]
                for method, one in made.items()
            }
            for place in places
        }
        place = max(places, key=lambda one: busy(cut[one]["truth"]))
        found.append(Crop(name, frame, *place, cut[place], left))
    return found


def sheet(crops: list[Crop]) -> Image.Image:
    """Two columns of triples: A, truth, B."""
    side, rows = SIZE_PX * ZOOM, NUM_CROPS // 2
    page = Image.new("RGB", (6 * (side + 4), rows * (side + BAND)), "#222222")
    pen = ImageDraw.Draw(page)
    for number, crop in enumerate(crops):
        column, top = 3 * (number // rows), number % rows * (side + BAND)
        for place, method in enumerate((crop.left, "truth", crop.right)):
            large = Image.fromarray(crop.pictures[method]).resize((side, side), Image.Resampling.NEAREST)
            at = ((column + place) * (side + 4), top + BAND)
            page.paste(large, at)
            pen.text((at[0] + 2, top + 2), f"{number + 1} {('A', 'truth', 'B')[place]}", fill="white")
    return page


def tensor(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float()


def judged(crops: list[Crop], choices: str) -> dict[str, Any]:
    """What was chosen, and what PLIPS says, crop by crop and in all."""
    distance = PLIPS.load()
    rows: list[dict[str, Any]] = []
    for crop, letter in zip(crops, choices.upper(), strict=True):
        truth = tensor(crop.pictures["truth"])
        plips = {method: float(distance(tensor(crop.pictures[method]), truth)) for method in ("ours", "classic")}
        chosen = {"A": crop.left, "B": crop.right, "=": "neither"}[letter]
        place = {"clip": crop.clip, "frame": crop.frame, "top": crop.top, "left": crop.left_px}
        rows.append(place | {"shown_as_a": crop.left, "chosen": chosen, "plips": plips})
    return {
        "commit": git_commit(),
        "crops": rows,
        "ours_chosen": sum(row["chosen"] == "ours" for row in rows),
        "classic_chosen": sum(row["chosen"] == "classic" for row in rows),
        "ours_nearer_by_plips": sum(row["plips"]["ours"] < row["plips"]["classic"] for row in rows),
        "num_crops": len(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--choices")
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    crops = draw(words.root)
    if words.choices is None:
        sheet(crops).save(words.sheet)
    else:
        write_json(words.out, judged(crops, words.choices))


if __name__ == "__main__":
    main()
