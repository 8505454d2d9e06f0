"""A picture of crops out of runs that degraded a clip: input, bicubic and blend, classic, ours, truth.

    toolkit enhance-video hydra.run.dir=RUN
    python experiments/venhancer/crops.py OUT.png RUN [ANOTHER_RUN]

Rows are a key frame and a frame between, of each of two shots of bikes. ANOTHER_RUN, of the same clip, adds a column.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from toolkit.data.video.clips import clip_path
from toolkit.data.video.reader import VideoReader
from toolkit.data.video.scan import index_video

CROPS = {4: (200, 60), 5: (200, 60), 32: (330, 40), 33: (330, 40)}  # frame: left, top
WIDTH, HEIGHT, ZOOM, BAND = 150, 100, 2, 18


def frames(path: Path) -> dict[int, np.ndarray]:
    """The frames that are shown."""
    wanted = {}
    for number, frame in enumerate(VideoReader(index_video(path)).frames()):
        if number in CROPS:
            wanted[number] = frame
        if number == max(CROPS):
            break
    return wanted


def small(frame: np.ndarray) -> np.ndarray:
    """As the run's input had it: 4 times smaller, its pixels left as squares."""
    image = Image.fromarray(frame)
    low = image.resize((image.width // 4, image.height // 4), Image.Resampling.BICUBIC)
    return np.asarray(low.resize(image.size, Image.Resampling.NEAREST))


def columns(runs: list[Path]) -> dict[str, dict[int, np.ndarray]]:
    """Head -> frame's number -> frame."""
    truth = frames(clip_path("bikes"))
    found = {
        "input": {number: small(truth[number - number % 2]) for number in truth},
        "bicubic and blend": frames(runs[0] / "baselines" / "bikes_bicubic.mp4"),
        "classic": frames(runs[0] / "baselines" / "bikes_classic.mp4"),
        "ours, as it comes": frames(runs[0] / "samples" / "bikes.mp4"),
    }
    if len(runs) > 1:
        found["ours, the paper's way"] = frames(runs[1] / "samples" / "bikes.mp4")
    return found | {"truth": truth}


def main(out: str, *runs: str) -> None:
    shown = columns([Path(run) for run in runs])
    width, height = WIDTH * ZOOM, HEIGHT * ZOOM
    sheet = Image.new("RGB", (len(shown) * (width + 2), len(CROPS) * (height + 2) + BAND), "#222222")
    for column, (head, found) in enumerate(shown.items()):
        ImageDraw.Draw(sheet).text((column * (width + 2) + 6, 3), head, fill="white")
        for row, (number, (left, top)) in enumerate(CROPS.items()):
            if number in found:
                crop = Image.fromarray(found[number]).crop((left, top, left + WIDTH, top + HEIGHT))
                place = (column * (width + 2), BAND + row * (height + 2))
                sheet.paste(crop.resize((width, height), Image.Resampling.NEAREST), place)
    sheet.quantize(256, method=Image.Quantize.MEDIANCUT).save(out, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
