"""What is seen of a drive: the imagined frame beside the simulated one, their difference, and the drive as a clip."""

from __future__ import annotations

import base64
import io
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toolkit.errors import UserError
from toolkit.ivideogpt.film import save_gif, save_mp4, side_by_side

Frame = NDArray[np.uint8]  # (H, W, 3)
FORMATS = {"gif": "image/gif", "mp4": "video/mp4"}
CLIP_FPS = 8
CLIP_PX = 192  # about the side of a frame in a clip
EQUAL_DB = 99.0  # what is said of frames without any difference: JSON knows no infinity
BRIGHTEST = 128  # grey levels of difference that are drawn in the last colour
COLORS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])  # from none to BRIGHTEST


@dataclass(frozen=True)
class Seen:
    """One moment of a drive: the imagined frame, the true one where there is one, and what the model said."""

    frame: Frame
    truth: Frame | None
    facts: dict[str, Any] = field(default_factory=dict)


def psnr(frame: Frame, truth: Frame) -> float:
    """Decibel of ``frame`` against ``truth``, over all pixels and colours; ``EQUAL_DB`` where they do not differ."""
    error = float(np.square(frame.astype(np.float64) - truth).mean())
    return EQUAL_DB if error == 0 else min(EQUAL_DB, 10 * math.log10(255**2 / error))


def difference(frame: Frame, truth: Frame) -> Frame:
    """The mean absolute difference of the colours, from black (none) over red to pale yellow (BRIGHTEST or more)."""
    apart = np.abs(frame.astype(np.float64) - truth).mean(-1).clip(0, BRIGHTEST) / BRIGHTEST
    stops = np.linspace(0, 1, len(COLORS))
    return np.stack([np.interp(apart, stops, channel) for channel in COLORS.T], -1).round().astype(np.uint8)


def answer(seen: Sequence[Seen], goal: Frame | None) -> dict[str, Any]:
    """What a page shows of the newest moment; pictures as data URLs.

    psnr: of the imagined frame; still: of the first frame, held. These and the truth are None where there is none, or
    none any more.
    """
    now, first = seen[-1], seen[0]
    compared: dict[str, Any] = dict.fromkeys(("truth", "difference", "psnr", "still"))
    if now.truth is not None:
        compared = {
            "truth": _png(now.truth),
            "difference": _png(difference(now.frame, now.truth)),
            "psnr": psnr(now.frame, now.truth),
            "still": psnr(first.frame, now.truth),
        }
    shown = {} if goal is None else {"goal": _png(goal)}
    return {"frame": _png(now.frame), **compared, **now.facts, **shown}


def clip(seen: Sequence[Seen], form: str) -> tuple[bytes, str]:
    """The drive as a GIF or mp4, imagined, simulated and their difference side by side; and its media type.

    Raises UserError on another ``form``, and where there are fewer than two moments.
    """
    if form not in FORMATS:
        raise UserError(f"format={form}: choose one of {', '.join(FORMATS)}")
    if len(seen) < 2:
        raise UserError("no clip yet: drive first")
    columns = [np.stack([one.frame for one in seen])]
    label = "imagined"
    if seen[0].truth is not None:
        truth, held = [], seen[0].truth
        for one in seen:  # past the end of its episode the last true frame stays
            held = held if one.truth is None else one.truth
            truth.append(held)
        apart = [difference(one.frame, true) for one, true in zip(seen, truth, strict=True)]
        columns += [np.stack(truth), np.stack(apart)]
        label = "imagined, simulated, difference"
    video = side_by_side({label: np.stack(columns)}, max(1, CLIP_PX // columns[0].shape[1]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"drive.{form}"
        (save_gif if form == "gif" else save_mp4)(path, video, CLIP_FPS)
        return path.read_bytes(), FORMATS[form]


def _png(frame: Frame) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
