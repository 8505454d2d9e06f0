"""Square crops of photographs, film frames and dead leaves, cut once into one file that training reads at random.

Of several places the one with the most detail is taken: most of a photograph is out of focus or sky. Large pictures
are cut at two smaller sizes, at which they are sharp.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from toolkit.data.fetching import cache_folder, cache_root
from toolkit.data.images.decoding import flattened, opened
from toolkit.data.stills.dead_leaves import dead_leaves
from toolkit.data.video.reader import VideoReader, file_state
from toolkit.data.video.scan import index_video
from toolkit.data.video.together import in_order
from toolkit.errors import UserError
from toolkit.runs import progress
from toolkit.runs.files import into_place

log = logging.getLogger(__name__)
RECIPE = 2  # of the crops: raise it with every change here that makes other crops of the same pictures
LONG_SIDES_PX = (2000, 1000)  # to which a larger picture is reduced, once each
PLACES = 3  # that are looked at for a crop
LEFT_OUT_S = 20.0  # of a film, from each of the times that are left out
DRAWN_AT_ONCE = 200
FRAMES_PER_S = 1.0  # of a film, that are cut


@dataclass(frozen=True)
class StillCrops:
    """``file`` holds (num, size, size, 3) uint8."""

    file: Path
    shape: tuple[int, int, int, int]

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, indices: Sequence[int]) -> Tensor:
        """uint8 (B, 3, size, size)."""
        mapped = np.memmap(self.file, dtype=np.uint8, mode="r", shape=self.shape)
        return torch.from_numpy(np.stack([mapped[index] for index in indices])).permute(0, 3, 1, 2)


def still_crops(
    pictures: Sequence[Path],
    films: Sequence[Path],
    left_out_s: Sequence[float],
    num_crops: int,
    size_px: int,
    drawn_share: float = 0.0,
) -> StillCrops:
    """About ``num_crops`` crops, of what is not drawn two thirds of ``pictures`` where there are films too.

    Args:
        pictures: image files. films: videos, one frame of a second. left_out_s: times of each film from which on 20 s
            are left out. size_px: edge of a crop. drawn_share: of the crops, dead leaves.

    Raises UserError: a file that is no picture or video, or nothing that is large enough for a crop.
    """
    made_of = [[str(path), *file_state(path)] for path in [*pictures, *films]]
    text = json.dumps([*made_of, len(films), [*left_out_s], RECIPE, num_crops, size_px, drawn_share])
    home = cache_root() / "stills" / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not (home / "content.json").exists():
        drawn = round(drawn_share * num_crops)
        seen = num_crops - drawn
        of_films = (seen // 3 if pictures else seen) if films else 0
        sources = [*_of_pictures(pictures, seen - of_films), *_of_films(films, left_out_s, of_films)]
        sources += _drawn(drawn, size_px)
        _make(home, sources, size_px)
    content = json.loads((home / "content.json").read_text(encoding="utf-8"))
    return StillCrops(home / "crops.u8", tuple(content["shape"]))


def open_rgb(path: Path, long_side_px: int | None = None) -> Image.Image:
    """A picture as RGB, on white where it is transparent, its longer side reduced to ``long_side_px`` at most.

    Raises UserError for what is no picture, and for one that is too large.
    """
    with opened(path) as found:
        image = flattened(found).convert("RGB")
    if long_side_px and max(image.size) > long_side_px:
        share = long_side_px / max(image.size)
        image = image.resize([round(side * share) for side in image.size], Image.Resampling.LANCZOS)  # type: ignore[arg-type]
    return image


@dataclass(frozen=True)
class _Source:
    """Pictures that share ``num_crops`` evenly: ``frames`` gives (how many there are still, a picture)."""

    name: str
    num_crops: float
    frames: Iterator[np.ndarray]
    num_frames: int


def _of_pictures(paths: Sequence[Path], num_crops: int) -> Iterator[_Source]:
    """Each picture at each of its sizes, with a share of the crops in proportion to its area's root."""
    sizes = []
    for path in paths:
        longest = max(open_rgb(path).size)
        sides = [side for side in LONG_SIDES_PX if longest > side] or [longest]
        sizes += [(path, side) for side in sides]
    total = sum(side for _, side in sizes)
    for path, side in sizes:
        frames = (np.asarray(open_rgb(one, most)) for one, most in [(path, side)])
        yield _Source(path.name, num_crops * side / total, frames, 1)


def _of_films(paths: Sequence[Path], left_out_s: Sequence[float], num_crops: int) -> Iterator[_Source]:
    for path in paths:
        index = index_video(path, key="data")
        rate = float(index.rate)
        wanted = [
            number
            for number in range(0, index.num_frames, max(1, round(rate / FRAMES_PER_S)))
            if not any(start <= number / rate < start + LEFT_OUT_S for start in left_out_s)
        ]
        yield _Source(path.name, num_crops / len(paths), _frames(VideoReader(index), set(wanted)), len(wanted))


def _drawn(num_crops: int, size_px: int) -> Iterator[_Source]:
    """Dead leaves, some hundred a source: what is done shows."""
    for start in range(0, num_crops, DRAWN_AT_ONCE):
        numbers = range(start, min(start + DRAWN_AT_ONCE, num_crops))
        frames = (dead_leaves(np.random.default_rng([1, number]), size_px) for number in numbers)
        yield _Source("dead leaves", len(numbers), frames, len(numbers))


def _frames(reader: VideoReader, wanted: set[int]) -> Iterator[np.ndarray]:
    """Those frames, every second one at half its size."""
    for count, frame in enumerate(in_order(reader.tasks(wanted), torch.get_num_threads())):
        if count % 2:
            image = Image.fromarray(frame)
            frame = np.asarray(image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS))
        yield frame


def _make(home: Path, sources: Sequence[_Source], size_px: int) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=f".{home.name}.", dir=cache_folder("stills")))
    rng, count = np.random.default_rng(0), 0
    try:
        with open(scratch / "crops.u8", "wb") as file, progress.bar("crops", 0, len(sources), "file") as bar:
            for number, source in enumerate(sources):
                owed = 0.0
                for pixels in source.frames:
                    owed += source.num_crops / source.num_frames
                    while owed >= 1 and min(pixels.shape[:2]) >= size_px:
                        file.write(_busiest(pixels, size_px, rng).tobytes())
                        owed, count = owed - 1, count + 1
                bar.advance(number + 1)
        if not count:
            raise UserError(f"data: no picture of {size_px} pixels or more in {len(sources)} files")
        shape = [count, size_px, size_px, 3]
        (scratch / "content.json").write_text(json.dumps({"shape": shape}), encoding="utf-8")
        scratch.chmod(0o755)
        into_place(scratch, home, "content.json")
        log.info("kept %d crops in %s", count, home)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _busiest(pixels: np.ndarray, size_px: int, rng: np.random.Generator) -> np.ndarray:
    """Of ``PLACES`` crops uint8 (size, size, 3) the one whose neighbouring pixels differ most."""
    found = []
    for _ in range(PLACES):
        top, left = (int(rng.integers(0, side - size_px + 1)) for side in pixels.shape[:2])
        crop = pixels[top : top + size_px, left : left + size_px]
        grey = crop.astype(np.float32).mean(axis=-1)
        found.append((float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()), crop))
    return max(found, key=lambda one: one[0])[1]
