"""A picture of one roll-out that enhanced_rollouts.py left: small, enlarged, enhanced, and the simulator's large one.

    python experiments/together/picture.py OUT.png FOLDER

Rows are the imagined clip and the simulator's own small one, at the last of their frames.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from toolkit.data.video.reader import VideoReader
from toolkit.data.video.scan import index_video

WORLD, SIDE, LEFT, TOP = "5003", 160, 92, 24
HEADS = ("small", "bicubic", "enhance-video", "simulator, large")


def last(path: Path) -> Image.Image:
    """The last frame of a film, or the last of numbered pictures."""
    if path.is_dir():
        return Image.open(max(path.glob("*.png"))).convert("RGB")
    *_, frame = VideoReader(index_video(path)).frames()
    return Image.fromarray(np.asarray(frame))


def main(out: str, work: str) -> None:
    import matplotlib

    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 13)
    folder, step = Path(work) / WORLD, SIDE + 4
    sheet = Image.new("RGB", (LEFT + len(HEADS) * step - 4, TOP + 2 * step - 4), "white")
    draw = ImageDraw.Draw(sheet)
    for row, kind in enumerate(("imagined", "simulated")):
        run = folder / kind / "run"
        places = (folder / kind / "input", run / "baselines" / "input_bicubic.mp4", run / "samples" / "input.mp4")
        draw.text((LEFT - 8, TOP + row * step + SIDE / 2), kind, "#222222", font, anchor="rm")
        for column, (head, place) in enumerate(zip(HEADS, (*places, folder / "reference"), strict=True)):
            frame = last(place).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(frame, (LEFT + column * step, TOP + row * step))
            draw.text((LEFT + column * step + SIDE / 2, TOP / 2), head, "#222222", font, anchor="mm")
    sheet.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
