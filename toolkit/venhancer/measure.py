"""How good a result is: against a reference where there is one, without one always, beside its baselines."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from toolkit.data.video.reader import VideoIndex, VideoReader
from toolkit.data.video.scan import index_video
from toolkit.metrics.video import VideoScores
from toolkit.show.table import Table
from toolkit.venhancer.clips.classic import resize, to_tensor
from toolkit.venhancer.clips.timeline import Timeline
from toolkit.venhancer.config import EnhanceVideo

ROWS = {
    "psnr": "PSNR, dB",
    "psnr_key": "PSNR of key frames",
    "psnr_between": "PSNR of frames between",
    "ssim": "SSIM",
    "plips": "PLIPS (lower)",
    "warp_error": "warp error (lower)",
    "flow_error_px": "flow error, px (lower)",
    "change_ratio": "change ratio (1)",
    "own_warp_error": "own warp error *",
    "sharpness": "sharpness *",
    "noise": "noise *",
}
TOLERANCE = Fraction(1, 4)  # of an output interval, within which a reference frame is the same moment
NOTE = "* without the reference: reads invented detail as detail"


def load_perceptual(config: EnhanceVideo) -> Any:
    """The network of PLIPS where ``config.perceptual`` asks for it. Raises UserError where it cannot be fetched."""
    if not config.perceptual:
        return None
    from toolkit.metrics.plips import PLIPS

    return PLIPS.load()


def score_video(
    path: Path,
    timeline: Timeline,
    reference: VideoIndex | None,
    last_key_s: Fraction,
    most_frames: int,
    perceptual: Any = None,
) -> dict[str, float]:
    """Scores of the first ``most_frames`` of the video ``path`` that was made on ``timeline``.

    Frames after ``last_key_s``, the time of the last input frame, do not count: the picture stands still there.
    """
    index = index_video(path, key="output")
    starts = {shot.first for shot in timeline.shots}
    keys = {
        shot.first + number for shot in timeline.shots for number, place in enumerate(shot.positions) if place % 1 == 0
    }
    references = None if reference is None else _matched(reference, timeline.rate)
    scores = VideoScores(perceptual)
    for number, frame in enumerate(VideoReader(index).frames()):
        if number == most_frames or number / timeline.rate > last_key_s:
            break
        true = None
        if references is not None:
            found = next(references)
            if found is None:
                continue
            true = to_tensor(resize(found, index.width, index.height, "bicubic"))
        scores.add(to_tensor(frame), true, is_key=number in keys, is_cut=number in starts)
    return scores.result()


def _matched(reference: VideoIndex, rate: Fraction) -> Iterator:
    """Per output frame the reference frame of the same moment, None where it has none."""
    frames = VideoReader(reference).frames()
    number, current = 0, next(frames)
    moment = Fraction(0)
    while True:
        while number + 1 < reference.num_frames and _nearer(reference, number, moment):
            number, current = number + 1, next(frames)
        near = abs(reference.time(number) - moment) <= TOLERANCE / rate
        yield current if near else None
        moment += 1 / rate


def _nearer(reference: VideoIndex, number: int, moment: Fraction) -> bool:
    return abs(reference.time(number + 1) - moment) <= abs(reference.time(number) - moment)


def scores_table(title: str, scores: dict[str, dict[str, float]]) -> Table:
    """One column per method, and the measures that some method has."""
    shown = {key: head for key, head in ROWS.items() if any(key in found for found in scores.values())}
    rows = [[head, *(found.get(key) for found in scores.values())] for key, head in shown.items()]
    return Table(title, ["measure", *scores], rows, NOTE)
