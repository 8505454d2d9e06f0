"""``toolkit measure videos``: FVD; PSNR, SSIM and LPIPS of paired clips; by iVideoGPT's protocol (appendix A.3)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.data.fetching import sha256_of
from toolkit.data.video.clips import videos_in
from toolkit.data.video.reader import VideoReader
from toolkit.data.video.scan import index_video
from toolkit.errors import UserError, first_line
from toolkit.measure.arrays import read_samples, samples_shape
from toolkit.measure.statistics import Moments
from toolkit.metrics.frechet import GaussianStats, frechet_distance
from toolkit.metrics.ssim import ssim
from toolkit.plain_files import check_writable
from toolkit.runs.device import check_device
from toolkit.runs.files import write_json
from toolkit.runs.progress import bar
from toolkit.show.table import Table
from toolkit.zoo.lpips import LPIPS, load_lpips

_MIN_FRAMES = 10  # I3D halves time three times, then pools over two
_EPSILON = 1e-8  # of the mean squared error, as piqa's PSNR
_FRAMES = 16  # through LPIPS at a time
_WORST = {"psnr": -float("inf"), "ssim": -float("inf"), "lpips": float("inf")}


class VideoSet:
    """Clips of one length and size: an ``.npz`` of uint8 (n, frames, height, width, 3), or a folder of video files.

    Raises UserError: nothing there, or clips that differ.
    """

    def __init__(self, source: Path, num_frames: int | None = None):
        self.source, self.num_frames = source, num_frames
        self._shape: tuple[int, ...] | None = None
        if source.suffix == ".npz" and source.is_file():
            self._shape = samples_shape(source, "n frames height width 3")
        self._paths = [] if self._shape else videos_in(source, "videos")

    def __len__(self) -> int:
        return self._shape[0] if self._shape else len(self._paths)

    def __iter__(self) -> Iterator[Tensor]:
        """uint8 (frames, 3, H, W), one clip at a time."""
        first = None
        for name, clip in self._clips():
            if self.num_frames is not None and len(clip) < self.num_frames:
                raise UserError(f"{name}: {len(clip)} frames; expected {self.num_frames} or more")
            clip = clip[: self.num_frames]
            first = first or (name, clip.shape)
            if clip.shape != first[1]:
                shapes = [f"{shape[0]} frames of {shape[2]}x{shape[1]}" for shape in (clip.shape, first[1])]
                raise UserError(f"{name}: {shapes[0]} where {first[0]} has {shapes[1]}; expected one (--num-frames)")
            yield torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2)

    def _clips(self) -> Iterator[tuple[str, np.ndarray]]:
        if self._shape:
            for number, piece in enumerate(read_samples(self.source, self._shape, 1)):
                yield f"{self.source}[{number}]", piece[0]
        for path in self._paths:
            frames = VideoReader(index_video(path, key="videos")).frames()
            yield str(path), np.stack(list(itertools.islice(frames, self.num_frames)))


@dataclass(frozen=True)
class VideoPlan:
    """What to measure. ``paired``: clip i of the generated belongs to clip i modulo n of the n real ones; of several
    for one the best counts, for each metric by itself. ``lpips``: its weights, for clips that are paired."""

    generated: Path
    reference: Path
    i3d: Path | None = None
    paired: bool = False
    lpips: Path | None = None
    num_frames: int | None = None
    device: str = "cpu"


def load_i3d(path: Path) -> tuple[Any, str]:
    """The TorchScript network (``i3d_torchscript.pt`` of StyleGAN-V) and the file's SHA-256.

    Raises UserError: no such file, or not TorchScript.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected StyleGAN-V's i3d_torchscript.pt")
    try:
        network = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not a TorchScript file ({first_line(error)[:120]})") from None
    return network, sha256_of(path)


def video_stats(videos: VideoSet, network: Any, device: str, name: str) -> GaussianStats:
    """Mean and covariance (divided by n, as iVideoGPT's evaluation does) of I3D's 400 features."""
    moments = None
    network = network.to(device)
    with bar(name, 0, len(videos), "clip") as shown, torch.no_grad():
        for done, clip in enumerate(videos, 1):
            if len(clip) < _MIN_FRAMES:
                raise UserError(f"{videos.source}: clips of {len(clip)} frames; I3D takes {_MIN_FRAMES} or more")
            pixels = clip.permute(1, 0, 2, 3)[None].float().to(device)
            features = network(pixels, rescale=True, resize=True, return_features=True)
            moments = moments or Moments(features.shape[1])
            moments.add(features)
            shown.advance(done)
    if moments is None or moments.num < 2:
        raise UserError(f"{videos.source}: {len(videos)} clip; expected two or more")
    found = moments.stats()
    return GaussianStats(found.mean, found.covariance * ((found.num - 1) / found.num), found.num)


def paired_scores(generated: VideoSet, reference: VideoSet, lpips: LPIPS | None = None) -> dict[str, float]:
    """PSNR (dB), SSIM and LPIPS of RGB, a mean over the frames of a clip, the best of the samples of each clip, then a
    mean over clips.

    Raises UserError where the number of generated clips is no multiple of the real ones', or sizes differ.
    """
    if len(generated) % len(reference):
        raise UserError(f"{generated.source}: {len(generated)} clips for {len(reference)}; expected a multiple")
    real = list(reference)
    best: dict[str, list[float]] = {}
    for number, clip in enumerate(generated):
        place = number % len(real)
        if clip.shape != real[place].shape:
            raise UserError(f"{generated.source}: clips {tuple(clip.shape)}, real ones {tuple(real[place].shape)}")
        for name, value in _scores(clip, real[place], lpips).items():
            values = best.setdefault(name, [_WORST[name]] * len(real))
            values[place] = (min if name == "lpips" else max)(values[place], value)
    return {name: float(np.mean(values)) for name, values in best.items()}


def _scores(clip: Tensor, real: Tensor, lpips: LPIPS | None) -> dict[str, float]:
    """Of one clip, uint8 (frames, 3, H, W) each: means over its frames."""
    x, y = clip.double() / 255, real.double() / 255
    error = (x - y).square().mean((1, 2, 3))
    found = {"psnr": float(-10 * (error + _EPSILON).log10().mean()), "ssim": float(ssim(x, y).mean())}
    if lpips is not None:
        device = lpips.shift.device
        pairs = zip(x.float().split(_FRAMES), y.float().split(_FRAMES), strict=True)
        found["lpips"] = float(
            torch.cat([lpips(one.to(device), other.to(device)).cpu() for one, other in pairs]).mean()
        )
    return found


def measure_videos(plan: VideoPlan, out: Path | None = None) -> Table:
    """FVD where I3D's weights are given, PSNR and SSIM where clips are paired; as JSON too where ``out`` is given.

    Raises UserError: nothing asked for, or a file that is missing, damaged or of another kind.
    """
    if plan.i3d is None and not plan.paired:
        raise UserError("nothing to measure: give --i3d FILE for FVD, --paired for PSNR and SSIM, or both")
    if plan.lpips is not None and not plan.paired:
        raise UserError("--lpips compares clip with clip: give --paired too")
    check_device(plan.device, f"--device {plan.device}")
    check_writable(out, "--out")
    lpips = load_lpips(plan.lpips, "--lpips").to(plan.device) if plan.lpips else None
    generated, reference = (VideoSet(path, plan.num_frames) for path in (plan.generated, plan.reference))
    found: dict[str, Any] = {"generated": str(plan.generated), "reference": str(plan.reference)}
    found |= {"num_generated": len(generated), "num_reference": len(reference), "metrics": {}}
    note = f"{len(generated)} clips, {len(reference)} of the reference"
    if plan.i3d is not None:
        network, found["i3d_sha256"] = load_i3d(plan.i3d)
        stats = [video_stats(videos, network, plan.device, "clips") for videos in (generated, reference)]
        found["metrics"]["fvd"] = frechet_distance(*stats)
        note += f"; I3D {found['i3d_sha256'][:8]}"
    if plan.paired:
        found["metrics"] |= paired_scores(generated, reference, lpips)
    if out is not None:
        write_json(out, found)
    return Table(
        str(plan.generated), ["metric", "value"], [[name.upper(), v] for name, v in found["metrics"].items()], note
    )
