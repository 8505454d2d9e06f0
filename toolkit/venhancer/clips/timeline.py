"""Which input frames every output frame is made of: rates, cuts and gaps.

The output has a constant rate. Every frame of it lies between two input frames, or on one; across a cut nothing is
interpolated: the nearer shot's frame stands still. A rate below the input's takes the nearest frames and drops others.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from toolkit.data.video.reader import VideoIndex
from toolkit.errors import UserError
from toolkit.venhancer.config import EnhanceVideo, parse_fps
from toolkit.venhancer.train.config import MOST_FRAME_FACTOR


@dataclass(frozen=True)
class Shot:
    """Frames between two cuts.

    keys: input frames that the shot's output is made of, rising. positions: of each output frame on the keys: 2.25 is a
    quarter of the way from keys[2] to keys[3]. first: number of the first of these output frames.
    """

    keys: tuple[int, ...]
    positions: tuple[Fraction, ...]
    first: int


@dataclass(frozen=True)
class Timeline:
    """The output's rate and shots. factor: the whole number of steps between keys that a network must make."""

    rate: Fraction
    num_frames: int
    factor: int
    shots: tuple[Shot, ...]


def output_rate(config: EnhanceVideo, index: VideoIndex, before_degrade: Fraction | None = None) -> Fraction:
    """Frames per second of the result. Raises UserError beyond eight times the input's.

    ``before_degrade``: the rate to go back to where the config names none.
    """
    if config.fps is not None:
        rate = parse_fps(config.fps)
    elif config.frame_factor is not None:
        rate = index.rate * config.frame_factor
    else:
        rate = before_degrade or index.rate
    if rate > MOST_FRAME_FACTOR * index.rate:
        most = float(MOST_FRAME_FACTOR * index.rate)
        raise UserError(
            f"fps={config.fps or float(rate)}: more than {MOST_FRAME_FACTOR} times the input's "
            f"{float(index.rate):.6g}; at most {most:.6g}"
        )
    return rate


def make_timeline(index: VideoIndex, rate: Fraction, cuts: Sequence[int] = ()) -> Timeline:
    """The shots of ``index`` at ``rate``; ``cuts``: the first frames of new shots.

    The result lasts as long as the input, to the nearest frame; after the last input frame its picture stands still. A
    last frame that is shown shortly, of a varying rate, is not dropped for that.
    """
    num_frames = max(1, math.floor(index.duration_s * rate + Fraction(1, 2)))
    if rate >= index.rate:
        num_frames = max(num_frames, math.floor(index.time(index.num_frames - 1) * rate + Fraction(1, 2)) + 1)
    starts = set(cuts)
    places = [_place(index, number / rate, rate, starts) for number in range(num_frames)]
    shots, first = [], 0
    for begin, end in itertools.pairwise([0, *cuts, index.num_frames]):
        last = bisect.bisect_left(places, end, lo=first)
        if last > first:
            shots.append(_shot(places[first:last], begin, end, first))
            first = last
    factor = min(MOST_FRAME_FACTOR, max(1, math.ceil(rate / index.rate)))
    return Timeline(rate, num_frames, factor, tuple(shots))


def _place(index: VideoIndex, time_s: Fraction, rate: Fraction, cuts: set[int]) -> Fraction:
    """Input frame number, with the fraction on the way to the next."""
    number, share = index.position(time_s)
    if rate <= index.rate or number + 1 in cuts:
        return Fraction(min(index.num_frames - 1, number + (share > Fraction(1, 2))))
    return number + share


def _shot(places: list[Fraction], begin: int, end: int, first: int) -> Shot:
    """Keep the input frames that are used, and say places on them."""
    used = sorted({key for place in places for key in _neighbours(place, end)})
    order = {key: position for position, key in enumerate(used)}
    positions = tuple(order[math.floor(place)] + place - math.floor(place) for place in places)
    assert used[0] >= begin
    return Shot(tuple(used), positions, first)


def _neighbours(place: Fraction, end: int) -> Iterator[int]:
    yield math.floor(place)
    if place > math.floor(place):
        assert math.floor(place) + 1 < end
        yield math.floor(place) + 1
