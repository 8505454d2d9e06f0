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
    "psnr_held": "PSNR of frames held",
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
    source: VideoIndex,
    reference: VideoIndex | None,
    most_frames: int,
    perceptual: Any = None,
) -> dict[str, float]:
    """Scores of the first ``most_frames`` of the video ``path`` that was made of ``source`` on ``timeline``.

    Frames after the last one of ``source`` do not count: the picture stands still there.
    """
    index = index_video(path, key="output")
    starts = {shot.first for shot in timeline.shots}
    kinds, last_s = frame_kinds(source, timeline), source.time(source.num_frames - 1)
    references = None if reference is None else _matched(reference, timeline.rate)
    scores = VideoScores(perceptual)
    for number, frame in enumerate(VideoReader(index).frames()):
        if number == most_frames or number / timeline.rate > last_s:
            break
        true = None
        if references is not None:
            found = next(references)
            if found is None:
                continue
            true = to_tensor(resize(found, index.width, index.height, "bicubic"))
        scores.add(to_tensor(frame), true, kind=kinds[number], is_cut=number in starts)
    return scores.result()


def frame_kinds(source: VideoIndex, timeline: Timeline) -> list[str]:
    """``key``, ``between`` or ``held`` for every output frame.

    A key is an input frame at its own time, to the rounding of the file's times. An input frame shown at another time
    is held: before a cut, after the last frame, or because the rate is lower than the input's.
    """
    rounding = 0 if source.is_constant else source.time_base
    kinds = []
    for shot in timeline.shots:
        for number, place in enumerate(shot.positions, shot.first):
            off_s = abs(source.time(shot.keys[int(place)]) - number / timeline.rate)
            kinds.append("between" if place % 1 else "key" if off_s <= rounding else "held")
    return kinds


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
