"""What an enhancement is asked to do and what it reports: settings, source, chunks, plan, progress. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np

from toolkit.errors import UserError, did_you_mean
from toolkit.schema import free_text, number
from toolkit.venhancer.config import MOST_NOISE_LEVEL, Sampling, Windows
from toolkit.venhancer.train.config import MOST_FRAME_FACTOR, MOST_SCALE


@dataclass(frozen=True)
class EnhanceSettings:
    """What one enhancement computes: ``EnhanceVideo``'s own words, and the size in pixels that they come to.

    Attributes:
        height, width: output size in pixels, any, odd sizes included.
        frame_factor: k in 1..8; N input frames give (N - 1) k + 1 output frames, every k-th being a key frame.
        noise_level, scale_condition, conditioning_scale, sampling, windows, seed: as in ``EnhanceVideo``.
        prompt, negative_prompt: ignored (with a warning in ``Plan.notes``) by a model with a null text embedding.
        chunk_mib: largest chunk handed out, in MiB of uint8 frames (at least one frame).
    """

    height: int = number(0, least=1)
    width: int = number(0, least=1)
    frame_factor: int = number(1, least=1, most=MOST_FRAME_FACTOR)
    scale_condition: float | None = number(None, least=1, most=MOST_SCALE)
    noise_level: int = number(0, least=0, most=MOST_NOISE_LEVEL)
    conditioning_scale: float = number(1.0, least=0)
    prompt: str = free_text("")
    negative_prompt: str = free_text("")
    sampling: Sampling = field(default_factory=lambda: Sampling(guidance_scale=1.0))
    windows: Windows = field(default_factory=Windows)
    chunk_mib: int = number(64, least=1)
    seed: int = 0

    def changed(self, **words: Any) -> EnhanceSettings:
        """With ``words`` changed: fields of its own, of ``Sampling`` and of ``Windows`` (num_steps asks for its mode).

        Raises UserError for a word that none of them has.
        """
        if "num_steps" in words:
            words.setdefault("mode", "normal")
        mine = set(_names(self))
        groups: dict[str, Any] = {"sampling": self.sampling, "windows": self.windows}
        given = {name: words.pop(name) for name in mine & set(words)}
        for group, value in groups.items():
            inner = {name: words.pop(name) for name in _names(value) if name in words}
            given.setdefault(group, replace(value, **inner))
        if words:
            known = mine.union(*map(_names, groups.values()))
            raise UserError(f"{next(iter(words))}: no such setting; {did_you_mean(next(iter(words)), known)}"
                            f"one of {', '.join(sorted(known))}")  # fmt: skip
        return replace(self, **given)

    def computing(self) -> dict[str, Any]:
        """The fields that change what comes out."""
        return {name: value for name, value in asdict(self).items() if name != "chunk_mib"}


def _names(settings: Any) -> list[str]:
    return [one.name for one in fields(settings)]


class FrameSource(Protocol):
    """One shot, decoded on demand: constant size, no cut inside."""

    num_frames: int
    height: int
    width: int

    def frames(self, start: int) -> Iterator[np.ndarray]:
        """Frames start, start + 1, ... to the end, each uint8 (height, width, 3) RGB. Called once per (re)start."""
        ...


@dataclass(frozen=True)
class Chunk:
    """Finished output frames ``start`` .. ``start + len(frames)``: uint8 (F, height, width, 3) RGB."""

    start: int
    frames: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What an enhancement will do, known before it starts.

    Attributes:
        num_frames, height, width: of the output.
        windows: temporal windows as (first frame, one past the last). tiles: per window and step.
        evaluations: network evaluations per window and tile, guidance counted.
        forwards: all of them. peak_bytes, disk_bytes: estimates of memory and of what ``work_dir`` will hold.
        notes: one line each, for the user.
    """

    num_frames: int
    height: int
    width: int
    windows: tuple[tuple[int, int], ...]
    tiles: int
    evaluations: int
    forwards: int
    peak_bytes: int
    disk_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """Passed to ``Enhancer.enhance(..., progress=)`` after every finished window of a step."""

    done: int  # finished (step, window) pairs
    total: int
    step: int
    window: int
