"""Episodes: one ``.npz`` per episode, as the iVideoGPT release reads them, checked before anything long begins.

``image`` uint8 (T, H, W, 3); ``action`` float (T, A), row t is taken at frame t and leads to frame t + 1 (a file with
T - 1 rows gets a row of zeros); ``reward`` float [T], row t is the reward of that same move. The last two are optional.
Files in the arrival convention, row t led to frame t, are read with ``EpisodeSpec.convention``.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toolkit.data.episodes.npz import array_shapes, load_arrays
from toolkit.errors import UserError
from toolkit.runs.files import write_atomic

NUMBERS = "iuf"  # kinds of dtypes: integers and floats, not complex numbers, spans of time or yes and no


@dataclass(frozen=True)
class Episode:
    """One episode: ``image`` uint8 (T, H, W, 3), ``action`` float32 (T, A) and ``reward`` float32 [T], or None.

    terminal: bool [T], whether the move of row t ended the task; kept with converted data, nothing here learns it.
    """

    image: NDArray[np.uint8]
    action: NDArray[np.float32] | None = None
    reward: NDArray[np.float32] | None = None
    terminal: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class EpisodeSpec:
    """What a folder's episodes must be. ``size_px``: centre-crop and resize; None: as they are, all of one size.

    convention: "departure", "arrival", or None: departure, unless a whole folder looks like arrival.
    """

    size_px: int | None = None
    least_frames: int = 1
    image_key: str = "image"
    needs_action: bool = False
    needs_reward: bool = False
    convention: str | None = None


@dataclass(frozen=True)
class EpisodeSet:
    """The episodes of one split; those of a large folder are read when they are asked for.

    ``groups``: the data sets of a mixture, each (first episode, one past the last, weight, frame step).
    """

    lengths: list[int]
    read: Callable[[int], Episode]
    sources: list[str]
    size_px: tuple[int, int]
    action_dim: int = 0
    has_reward: bool = False
    groups: tuple[tuple[int, int, float, int], ...] = ()

    def __len__(self) -> int:
        return len(self.lengths)

    def identity(self, root: str) -> str:
        """16 hex digits over the episodes' names (of files: inside the folder ``root``) and lengths."""
        names = [name.removeprefix(root) for name in self.sources]
        return hashlib.sha256(repr(list(zip(names, self.lengths, strict=True))).encode()).hexdigest()[:16]


def memory_set(episodes: list[Episode], sources: list[str]) -> EpisodeSet:
    """Episodes that are in memory already; ``sources`` name them in messages."""
    first = episodes[0]
    return EpisodeSet(
        [len(one) for one in episodes],
        episodes.__getitem__,
        sources,
        (first.image.shape[1], first.image.shape[2]),
        0 if first.action is None else first.action.shape[1],
        first.reward is not None,
    )


# -- one file --------------------------------------------------------------------------------------------------------


def write_episode(path: str | Path, episode: Episode) -> Path:
    """Write ``episode`` as compressed npz, whole or not at all."""
    arrays: dict[str, Any] = {"image": episode.image}
    optional = {name: getattr(episode, name) for name in ("action", "reward", "terminal")}
    arrays |= {name: value for name, value in optional.items() if value is not None}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return write_atomic(path, buffer.getvalue())


def read_episode(path: str | Path, spec: EpisodeSpec) -> Episode:
    """Read and check one file. Raises UserError: one line with the file, what is wrong and what would be right."""
    arrays = _arrays(Path(path), spec.image_key)
    image = as_frames(path, spec.image_key, arrays[spec.image_key])
    if len(image) < spec.least_frames:
        raise UserError(
            f"{path}: {len(image)} frames, a clip needs {spec.least_frames}; leave it out or shorten the clips"
        )
    if spec.size_px is not None:
        image = resize(image, spec.size_px)
    rows = {}
    for name, needed in (("action", spec.needs_action), ("reward", spec.needs_reward)):
        if needed and name not in arrays:
            found = ", ".join(array_shapes(Path(path)))
            raise UserError(f"{path}: no array '{name}' in it (found {found}), which this config needs")
        rows[name] = move_rows(path, name, arrays.get(name), len(image), spec.convention)
    action, reward = rows["action"], rows["reward"]
    if action is not None and (action.ndim != 2 or not action.shape[1]):
        raise UserError(f"{path}: action has shape {list(action.shape)}, expected [T, A]")
    if reward is not None and reward.size != len(image):
        raise UserError(f"{path}: reward has shape {list(reward.shape)}, expected [T], one number per frame")
    return Episode(image, action, None if reward is None else reward.reshape(len(image)))


def _arrays(path: Path, image_key: str) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    shapes = array_shapes(path)
    if image_key not in shapes:
        names = ", ".join(shapes) or "nothing"
        raise UserError(f"{path}: no array '{image_key}' in it (found {names}); name the frames with data.image_key")
    return load_arrays(path, [name for name in (image_key, "action", "reward") if name in shapes])


def as_frames(path: str | Path, key: str, image: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 frames from integers in 0..255 (the BAIR sample is int64) or floats in 0..1. Raises UserError."""
    if image.ndim != 4 or image.shape[-1] != 3 or image.size == 0:
        raise UserError(f"{path}: {key} has shape {list(image.shape)}, expected frames [T, H, W, 3]")
    if image.dtype.kind in "iu" and (image.min(), image.max()) == (0, 1):
        raise UserError(f"{path}: {key} is {image.dtype} in 0..1, nearly black; expected 0..255, or floats in 0..1")
    if image.dtype == np.uint8:
        return image
    most = 1.0 if np.issubdtype(image.dtype, np.floating) else 255
    if image.dtype.kind not in NUMBERS or not np.isfinite(image).all():
        raise UserError(f"{path}: {key} ({image.dtype}) has values that are not finite numbers")
    if image.min() < 0 or image.max() > most:
        low, high = image.min(), image.max()
        raise UserError(
            f"{path}: {key} is {image.dtype} in {low:g}..{high:g}, expected whole numbers 0..255 or floats 0..1"
        )
    return (image * 255 + 0.5).astype(np.uint8) if most == 1.0 else image.astype(np.uint8)


def move_rows(
    path: str | Path,
    key: str,
    value: NDArray[Any] | None,
    num_frames: int,
    convention: str | None = None,
    begins: bool = True,
) -> NDArray[np.float32] | None:
    """Rows of moves, float32 (num_frames, ...), row t that of the move from frame t, the last zeros where it has none.

    begins: the first frame is an episode's first, to which nothing led. Raises UserError on other numbers of rows, on
    values that are not finite or that float32 cannot hold, and on rows that are not of the ``convention``.
    """
    if value is None:
        return None
    check_numbers(path, key, value)
    if value.ndim == 0 or len(value) not in (num_frames - 1, num_frames):
        raise UserError(f"{path}: {key} has shape {list(value.shape)}, expected {num_frames} rows, one per frame")
    if convention == "arrival":
        value = _departures(path, key, value, num_frames, begins)
    if len(value) == num_frames - 1:
        value = np.concatenate([value, np.zeros_like(value[:1])]) if len(value) else np.zeros((1, *value.shape[1:]))
    beyond = np.abs(value.astype(np.float64)) > np.finfo(np.float32).max
    if beyond.any():
        place = np.argwhere(beyond)[0].tolist()
        raise UserError(f"{path}: {key} is {value[tuple(place)]:g} at {place}, expected numbers that float32 holds")
    return np.ascontiguousarray(value, np.float32)


def move_flags(
    path: str | Path,
    key: str,
    value: NDArray[Any] | None,
    num_frames: int,
    convention: str | None = None,
    begins: bool = True,
) -> NDArray[np.bool_] | None:
    """Rows of moves that are yes or no, (num_frames,), or numbers: yes above 0. The rest as ``move_rows``."""
    value = value.astype(np.float64) if value is not None and value.dtype == bool else value
    rows = move_rows(path, key, value, num_frames, convention, begins)
    return None if rows is None else rows > 0


def check_numbers(path: str | Path, key: str, value: NDArray[Any]) -> None:
    """Raises UserError where ``value`` is no array of finite numbers."""
    is_numbers = value.dtype.kind in NUMBERS
    if not is_numbers or not np.isfinite(value).all():
        where = _first_bad(value) if is_numbers else f"is {value.dtype}"
        raise UserError(f"{path}: {key} {where}, expected finite numbers")


def _departures(path: str | Path, key: str, value: NDArray[Any], num_frames: int, begins: bool) -> NDArray[Any]:
    """Rows [T, ...] that led to their frames as rows [T - 1, ...] that leave them; nothing led to the first frame."""
    if len(value) != num_frames:
        raise UserError(
            f"{path}: {key} has {len(value)} rows for {num_frames} frames, data.convention=arrival (--convention "
            "arrival where files are converted) needs one each"
        )
    if begins and value[0].any():
        raise UserError(
            f"{path}: the first {key} is not zero, so it led somewhere; data.convention=departure (--convention "
            "departure where files are converted) reads it"
        )
    return value[1:]


def as_bytes(what: str, frames: Any) -> NDArray[np.uint8]:
    """uint8 of whole numbers 0..255, shape kept. Raises UserError that begins with ``what`` on anything else."""
    found = np.asarray(frames)
    if not np.issubdtype(found.dtype, np.integer):
        raise UserError(f"{what}: frames are {found.dtype}, expected uint8 0..255 (frames in 0..1: times 255, rounded)")
    if found.size and (found.min() < 0 or found.max() > 255):
        raise UserError(f"{what}: frames are {found.dtype} in {found.min()}..{found.max()}, expected 0..255")
    return found.astype(np.uint8, copy=False)


def _first_bad(value: NDArray[Any]) -> str:
    place = np.argwhere(~np.isfinite(value))[0].tolist()
    return f"is {value[tuple(place)]} at {place}"


def resize(image: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3) cropped to their central square and resized (area filter) to (T, size, size, 3)."""
    height, width = image.shape[1:3]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = image[:, top : top + edge, left : left + edge]
    if edge == size_px:
        return np.ascontiguousarray(square)
    method = Image.Resampling.BOX if edge % size_px == 0 else Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(one).resize((size_px, size_px), method)) for one in square])
