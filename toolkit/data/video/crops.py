"""Short crops of long videos, decoded once into one file that training reads at random.

Seeking in a compressed film for every training sample costs more than the training step of a small network. One pass
over each video picks ``num_crops`` places, leaves out those that cross a cut or show next to nothing, and keeps them as
uint8 in the cache, found again by what they are made of.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toolkit.data.fetching import cache_folder, cache_root
from toolkit.data.video.clips import caption_of
from toolkit.data.video.reader import VideoIndex, VideoReader, file_state
from toolkit.data.video.scan import declared_frames, index_video
from toolkit.data.video.together import in_order
from toolkit.errors import UserError
from toolkit.plain_files import read_text
from toolkit.runs import progress
from toolkit.runs.files import into_place

log = logging.getLogger(__name__)
RECIPE = 1  # of _make: raise it with every change there that makes other crops of the same videos
CUT = 30.0  # mean absolute difference of neighbouring frames, in grey levels, that counts as a cut
LEAST_CONTRAST = 4.0  # standard deviation of a crop's grey levels that is worth learning from


@dataclass(frozen=True)
class ClipCrops:
    """``file`` holds (num, F, size, size, 3) uint8. ``captions``: a text per crop, from a .txt beside its video."""

    file: Path
    shape: tuple[int, int, int, int, int]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, indices: Sequence[int], num_frames: int) -> Tensor:
        """uint8 (B, num_frames, 3, size, size): the first frames of those crops."""
        mapped = np.memmap(self.file, dtype=np.uint8, mode="r", shape=self.shape)
        clips = np.stack([mapped[index, :num_frames] for index in indices])
        return torch.from_numpy(clips).permute(0, 1, 4, 2, 3)


def clip_crops(
    paths: Sequence[Path], num_crops: int, num_frames: int, size_px: int, rate_fps: float | None, seed: int
) -> ClipCrops:
    """Crops of ``num_frames`` consecutive frames (at about ``rate_fps``, where the video has more) and ``size_px``.

    Raises UserError: a file that is no video, videos too short, small or dull for a single crop, a caption that is no
    text.
    """
    texts = [_caption(path) for path in paths]
    made_of = [[str(path), *file_state(path)] for path in paths]
    made_of.append([RECIPE, num_crops, num_frames, size_px, rate_fps, seed])
    home = cache_root() / "crops" / hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    if not (home / "content.json").exists():
        _make(home, paths, num_crops, num_frames, size_px, rate_fps, seed)
    content = json.loads((home / "content.json").read_text(encoding="utf-8"))
    captions = [texts[number] for number, count in enumerate(content["counts"]) for _ in range(count)]
    return ClipCrops(home / "crops.u8", tuple(content["shape"]), tuple(captions))


def _caption(path: Path) -> str:
    beside = caption_of(path)
    return read_text(beside).strip() if beside else ""


def _make(
    home: Path,
    paths: Sequence[Path],
    num_crops: int,
    num_frames: int,
    size_px: int,
    rate_fps: float | None,
    seed: int,
) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=f".{home.name}.", dir=cache_folder("crops")))
    try:
        counts: list[int] = []
        with open(scratch / "crops.u8", "wb") as file:
            indices = [_looked_through(path) for path in paths]
            total = sum(index.num_frames for index in indices)
            for number, index in enumerate(indices):
                rng = np.random.default_rng([seed, number])
                share = max(1, round(num_crops * index.num_frames / total))
                counts.append(0)
                with progress.bar(f"crops of {Path(index.path).name}", 0, index.num_frames, unit="frame") as bar:
                    for crop in _crops_of(index, share, num_frames, size_px, rate_fps, rng, bar):
                        file.write(crop.tobytes())
                        counts[-1] += 1
        if not sum(counts):
            raise UserError(
                f"data: no crop of {num_frames} frames and {size_px} pixels in {', '.join(map(str, paths))}: "
                "too short, too small, or nothing moves or shows in them"
            )
        shape = [sum(counts), num_frames, size_px, size_px, 3]
        (scratch / "content.json").write_text(json.dumps({"shape": shape, "counts": counts}), encoding="utf-8")
        scratch.chmod(0o755)
        into_place(scratch, home, "content.json")
        log.info("kept %d crops of %d asked for in %s", sum(counts), num_crops, home)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _looked_through(path: Path) -> VideoIndex:
    """What is in the video: a pass over all of it, which is shown."""
    count = itertools.count(1)
    with progress.bar(f"looking through {path.name}", 0, declared_frames(path, "data"), unit="frame") as bar:
        return index_video(path, key="data", each=lambda frame: bar.advance(next(count)))


def _crops_of(
    index: VideoIndex,
    num_crops: int,
    num_frames: int,
    size_px: int,
    rate_fps: float | None,
    rng: np.random.Generator,
    bar: progress.Bar,
) -> Iterator[np.ndarray]:
    """Good crops uint8 (F, size, size, 3) of one video, in its order; every frame is decoded once, and made RGB where a
    crop needs it, by as many threads as torch has."""
    stride = max(1, round(float(index.rate) / rate_fps)) if rate_fps else 1
    span = (num_frames - 1) * stride + 1
    if index.num_frames < span or min(index.height, index.width) < size_px:
        return
    starts = sorted(rng.integers(0, index.num_frames - span + 1, num_crops).tolist())
    sides = (index.height, index.width)
    places = [(start, *(int(rng.integers(0, side - size_px + 1)) for side in sides)) for start in starts]
    wanted = sorted({number for start in starts for number in range(start, start + span, stride)})
    tasks = VideoReader(index).tasks(frozenset(wanted))
    frames = zip(wanted, in_order(tasks, torch.get_num_threads()), strict=True)
    recent: dict[int, np.ndarray] = {}
    for start, top, left in places:
        numbers = range(start, start + span, stride)
        recent = {number: frame for number, frame in recent.items() if number >= start}
        while numbers[-1] not in recent:
            number, recent[number] = next(frames)
            bar.advance(number + 1)
        crop = np.stack([recent[number][top : top + size_px, left : left + size_px] for number in numbers])
        if _is_good(crop):
            yield crop


def _is_good(crop: np.ndarray) -> bool:
    grey = crop.astype(np.float32).mean(axis=-1)
    steps = np.abs(np.diff(grey, axis=0)).mean(axis=(1, 2)) if len(grey) > 1 else np.zeros(1)
    return bool(grey.std() >= LEAST_CONTRAST and steps.max() <= CUT)
