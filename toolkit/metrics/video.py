"""Measures of videos, streamed: fidelity to a reference, temporal consistency, and what needs no reference.

Fidelity (PSNR, SSIM) rewards what is right and blurred; the scores without a reference reward detail, invented detail
included: read them together. All take frames as float tensors (1, 3, h, w) in [0, 255].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from toolkit.metrics.flow import estimate_flow, to_grey, warp
from toolkit.metrics.ssim import ssim

PEAK = 255.0
OCCLUDED = 20.0  # grey levels by which the reference itself misses its own motion: not counted as warp error
FLOW_LEVEL = 1
KINDS = ("key", "between", "held")  # of frames: an input's at its time, one made between two, one that stands still


def squared_error(x: Tensor, reference: Tensor) -> float:
    """Mean squared error over all pixels and channels."""
    if x.shape != reference.shape:
        raise ValueError(f"shapes {tuple(x.shape)} and {tuple(reference.shape)} differ")
    return float((x.double() - reference.double()).square().mean())


def decibel(mean_squared_error: float) -> float:
    """PSNR of a mean squared error of values up to 255; infinite for 0."""
    return math.inf if mean_squared_error == 0 else 10 * math.log10(PEAK**2 / mean_squared_error)


def luma_ssim(x: Tensor, reference: Tensor) -> float:
    """Structural similarity of the luma."""
    return float(ssim(to_grey(x).double(), to_grey(reference).double(), data_range=PEAK))


def sharpness(x: Tensor) -> float:
    """Mean gradient magnitude of the luma, grey levels per pixel; needs no reference, and noise raises it."""
    grey = to_grey(x)
    across = grey[..., 1:, 1:] - grey[..., 1:, :-1]
    down = grey[..., 1:, 1:] - grey[..., :-1, 1:]
    return float((across.square() + down.square()).sqrt().mean())


def noise_deviation(x: Tensor) -> float:
    """Standard deviation of white noise in the luma, estimated without a reference (Immerkaer 1996)."""
    kernel = x.new_tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]]).view(1, 1, 3, 3)
    return float(F.conv2d(to_grey(x), kernel).abs().mean() * math.sqrt(math.pi / 2) / 6)


@dataclass
class VideoScores:
    """Feed frames in order with :meth:`add`, then read :meth:`result`; ``perceptual`` adds a distance such as PLIPS."""

    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    distances: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    similarities: list[float] = field(default_factory=list)
    sharp: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)
    warp_errors: list[float] = field(default_factory=list)
    own_warp_errors: list[float] = field(default_factory=list)
    flow_errors: list[float] = field(default_factory=list)
    changes: list[tuple[float, float]] = field(default_factory=list)
    _before: tuple[Tensor, Tensor | None] | None = None

    def add(self, x: Tensor, reference: Tensor | None, *, kind: str = "key", is_cut: bool = False) -> None:
        """The next frame, one of ``KINDS``; ``is_cut``: it begins a new scene."""
        self.sharp.append(sharpness(x))
        self.noise.append(noise_deviation(x))
        if reference is not None:
            self.errors.append(squared_error(x, reference))
            self.similarities.append(luma_ssim(x, reference))
            if self.perceptual is not None:
                self.distances.append(float(self.perceptual(x, reference)))
            self.kinds.append(kind)
        if self._before is not None and not is_cut:
            self._add_pair(x, reference)
        self._before = (x, reference)

    def _add_pair(self, x: Tensor, reference: Tensor | None) -> None:
        assert self._before is not None
        before, reference_before = self._before
        own = _flow(before, x)
        self.own_warp_errors.append(_warp_error(before, x, own))
        if reference is None or reference_before is None:
            return
        true = _flow(reference_before, reference)
        seen = (warp(reference, true) - reference_before).abs().mean(1, keepdim=True) < OCCLUDED
        self.warp_errors.append(_warp_error(before, x, true, seen))
        self.flow_errors.append(float((own - true).square().sum(1).sqrt().mean()))
        self.changes.append((float((x - before).abs().mean()), float((reference - reference_before).abs().mean())))

    def result(self) -> dict[str, float]:
        """Every score by name; those that need a reference are left out where there was none.

        psnr, psnr_key, psnr_between, psnr_held: dB of RGB, errors pooled, of all frames and of each kind where there
        are several. ssim (of the luma), plips: means. warp_error: mean squared difference x 1000 (values up to 1) along
        the reference's motion, where that explains the reference. flow_error_px: distance of the motions. change_ratio:
        mean change from frame to frame over the reference's (1: as lively). sharpness, noise and own_warp_error need no
        reference.
        """
        scores: dict[str, float] = {}
        if self.errors:
            scores["psnr"] = decibel(_mean(self.errors))
            for kind in KINDS:
                chosen = [error for error, its in zip(self.errors, self.kinds, strict=True) if its == kind]
                if chosen and len(chosen) < len(self.errors):
                    scores[f"psnr_{kind}"] = decibel(_mean(chosen))
            scores["ssim"] = _mean(self.similarities)
            if self.distances:
                scores["plips"] = _mean(self.distances)
        if self.warp_errors:
            scores["warp_error"] = _mean(self.warp_errors)
            scores["flow_error_px"] = _mean(self.flow_errors)
            still = math.fsum(change for _, change in self.changes)
            scores["change_ratio"] = math.fsum(change for change, _ in self.changes) / still if still else math.nan
        if self.own_warp_errors:
            scores["own_warp_error"] = _mean(self.own_warp_errors)
        return scores | {"sharpness": _mean(self.sharp), "noise": _mean(self.noise)}


def _flow(x: Tensor, y: Tensor) -> Tensor:
    return estimate_flow(to_grey(x), to_grey(y), finest_level=FLOW_LEVEL)


def _warp_error(before: Tensor, x: Tensor, flow: Tensor, seen: Tensor | None = None) -> float:
    error = ((warp(x, flow) - before) / PEAK).square().mean(1, keepdim=True)
    if seen is not None:
        error = error[seen]
    return 1000 * float(error.mean()) if error.numel() else 0.0


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
