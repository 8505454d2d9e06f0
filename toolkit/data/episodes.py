"""Episodes: one ``.npz`` per episode, as the iVideoGPT release reads them, checked before anything long begins.

``image`` uint8 [T, H, W, 3]; ``action`` float [T, A], row t is taken at frame t and leads to frame t + 1 (a file with
T - 1 rows gets a row of zeros); ``reward`` float [T], row t is the reward of that same move. The last two are optional.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toolkit.runs.files import write_atomic
from toolkit.schema import UserError

IN_MEMORY_BYTES = 4 * 2**30
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError, NotImplementedError)


@dataclass(frozen=True)
class Episode:
    """One episode: ``image`` uint8 [T, H, W, 3], ``action`` float32 [T, A] and ``reward`` float32 [T], or None."""

    image: NDArray[np.uint8]
    action: NDArray[np.float32] | None = None
    reward: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class EpisodeSpec:
    """What a folder's episodes must be. ``size_px``: centre-crop and resize; None: as they are, all of one size."""

    size_px: int | None = None
    least_frames: int = 1
    image_key: str = "image"
    needs_action: bool = False
    needs_reward: bool = False


@dataclass(frozen=True)
class EpisodeSet:
    """The episodes of one split; those of a large folder are read when they are asked for."""

    lengths: list[int]
    read: Callable[[int], Episode]
    sources: list[str]
    size_px: tuple[int, int]
    action_dim: int = 0
    has_reward: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lengths)

    def subset(self, indices: Sequence[int]) -> EpisodeSet:
        """The episodes ``indices``, in that order."""
        chosen = list(indices)
        lengths, sources = [self.lengths[i] for i in chosen], [self.sources[i] for i in chosen]
        return EpisodeSet(
            lengths, lambda i: self.read(chosen[i]), sources, self.size_px, self.action_dim, self.has_reward, self.facts
        )


def memory_set(episodes: list[Episode], sources: list[str], **facts: Any) -> EpisodeSet:
    """Episodes that are in memory already; ``sources`` name them in messages."""
    first = episodes[0]
    return EpisodeSet(
        [len(one) for one in episodes],
        episodes.__getitem__,
        sources,
        (first.image.shape[1], first.image.shape[2]),
        0 if first.action is None else first.action.shape[1],
        first.reward is not None,
        facts,
    )


# -- one file --------------------------------------------------------------------------------------------------------


def write_episode(path: str | Path, episode: Episode) -> Path:
    """Write ``episode`` as compressed npz, whole or not at all."""
    arrays: dict[str, Any] = {"image": episode.image}
    arrays |= {
        name: value for name, value in (("action", episode.action), ("reward", episode.reward)) if value is not None
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return write_atomic(path, buffer.getvalue())


def read_episode(path: str | Path, spec: EpisodeSpec) -> Episode:
    """Read and check one file. Raises UserError: one line with the file, what is wrong and what would be right."""
    arrays = _arrays(Path(path), spec.image_key)
    image = _frames(path, spec.image_key, arrays[spec.image_key])
    if len(image) < spec.least_frames:
        raise UserError(
            f"{path}: {len(image)} frames, a clip needs {spec.least_frames}; leave it out or shorten the clips"
        )
    if spec.size_px is not None:
        image = resize(image, spec.size_px)
    action = _rows(path, "action", arrays.get("action"), len(image), spec.needs_action)
    reward = _rows(path, "reward", arrays.get("reward"), len(image), spec.needs_reward)
    if action is not None and action.ndim != 2:
        raise UserError(f"{path}: action has shape {list(action.shape)}, expected [T, A]")
    return Episode(image, action, None if reward is None else reward.reshape(len(image)))


def _arrays(path: Path, image_key: str) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            if image_key not in file.files:
                names = ", ".join(file.files) or "nothing"
                raise UserError(
                    f"{path}: no array '{image_key}' in it (found {names}); name the frames with data.image_key"
                )
            return {name: file[name] for name in (image_key, "action", "reward") if name in file.files}
    except UNREADABLE as error:
        if isinstance(error, UserError):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path}: truncated or no npz file of plain arrays ({why}); record or convert it anew"
        ) from None
    except TypeError:  # np.load gives a bare array for a .npy file under another name
        raise UserError(f"{path}: a single array, not an npz file with '{image_key}'") from None


def _frames(path: str | Path, key: str, image: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 frames from integers in 0..255 (the BAIR sample is int64) or floats in 0..1."""
    if image.ndim != 4 or image.shape[-1] != 3 or image.size == 0:
        raise UserError(f"{path}: {key} has shape {list(image.shape)}, expected frames [T, H, W, 3]")
    if image.dtype == np.uint8:
        return image
    most = 1.0 if np.issubdtype(image.dtype, np.floating) else 255
    if not np.issubdtype(image.dtype, np.number) or not np.isfinite(image).all():
        raise UserError(f"{path}: {key} has values that are not finite numbers")
    if image.min() < 0 or image.max() > most:
        low, high = image.min(), image.max()
        raise UserError(
            f"{path}: {key} is {image.dtype} in {low:g}..{high:g}, expected whole numbers 0..255 or floats 0..1"
        )
    return (image * 255 + 0.5).astype(np.uint8) if most == 1.0 else image.astype(np.uint8)


def _rows(
    path: str | Path, key: str, value: NDArray[Any] | None, num_frames: int, needed: bool
) -> NDArray[np.float32] | None:
    if value is None:
        if needed:
            raise UserError(f"{path}: no array '{key}' in it, which this config needs")
        return None
    if not np.issubdtype(value.dtype, np.number) or not np.isfinite(value).all():
        where = _first_bad(value) if np.issubdtype(value.dtype, np.number) else f"is {value.dtype}"
        raise UserError(f"{path}: {key} {where}, expected finite numbers")
    if value.ndim == 0 or len(value) not in (num_frames - 1, num_frames):
        raise UserError(f"{path}: {key} has shape {list(value.shape)}, expected {num_frames} rows, one per frame")
    if len(value) == num_frames - 1:
        value = np.concatenate([value, np.zeros_like(value[:1])]) if len(value) else np.zeros((1, *value.shape[1:]))
    return np.ascontiguousarray(value, np.float32)


def _first_bad(value: NDArray[Any]) -> str:
    place = np.argwhere(~np.isfinite(value))[0].tolist()
    return f"is {value[tuple(place)]} at {place}"


def resize(image: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Frames [T, H, W, 3] cropped to their central square and resized (area filter) to [T, size, size, 3]."""
    height, width = image.shape[1:3]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = image[:, top : top + edge, left : left + edge]
    if edge == size_px:
        return np.ascontiguousarray(square)
    method = Image.Resampling.BOX if edge % size_px == 0 else Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(one).resize((size_px, size_px), method)) for one in square])


# -- a folder --------------------------------------------------------------------------------------------------------


def read_folder(files: Sequence[Path], spec: EpisodeSpec, skip_bad: bool = False) -> tuple[EpisodeSet, list[str]]:
    """Every file of a split, read to its end once, and one line for each that was left out.

    What exceeds IN_MEMORY_BYTES is read again when a clip asks for it. Without ``skip_bad`` the first bad file raises
    UserError; so does a folder in which none is left.
    """
    kept: list[tuple[Path, Episode | None, int]] = []
    problems: list[str] = []
    first: Episode | None = None
    used = 0
    for path in files:
        try:
            episode = read_episode(path, spec)
            _same_kind(path, episode, first, files[0])
        except UserError as error:
            if not skip_bad:
                raise UserError(f"{error} (data.skip_bad=true leaves such files out)") from None
            problems.append(str(error))
            continue
        first = first or episode
        used += episode.image.nbytes
        kept.append((path, episode if used <= IN_MEMORY_BYTES else None, len(episode)))
    if first is None:
        raise UserError(problems[0] if problems else "no episodes")
    return _folder_set(kept, spec, first), problems


def _folder_set(kept: list[tuple[Path, Episode | None, int]], spec: EpisodeSpec, first: Episode) -> EpisodeSet:
    def read(index: int) -> Episode:
        path, episode, _ = kept[index]
        return episode or read_episode(path, spec)

    return EpisodeSet(
        [length for _, _, length in kept],
        read,
        [str(path) for path, _, _ in kept],
        (first.image.shape[1], first.image.shape[2]),
        0 if first.action is None else first.action.shape[1],
        first.reward is not None,
    )


def _same_kind(path: Path, episode: Episode, first: Episode | None, first_path: Path) -> None:
    if first is None:
        return
    if episode.image.shape[1:] != first.image.shape[1:]:
        sizes = [f"{one.image.shape[1]}x{one.image.shape[2]}" for one in (episode, first)]
        raise UserError(
            f"{path}: frames are {sizes[0]}, those of {first_path} {sizes[1]}; set data.size_px to resize all"
        )
    for name in ("action", "reward"):
        mine, other = getattr(episode, name), getattr(first, name)
        if (mine is None) != (other is None):
            raise UserError(f"{path}: {'no ' if mine is None else ''}{name} in it, unlike {first_path}")
        if mine is not None and mine.shape[1:] != other.shape[1:]:
            raise UserError(f"{path}: actions of {mine.shape[1]} numbers, those of {first_path} have {other.shape[1]}")
