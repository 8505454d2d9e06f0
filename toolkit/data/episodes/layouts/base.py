"""What the readers of all layouts share: what they hand over, which camera, what an action row is.

A reader is a function ``(root, options) -> Source``. Whatever the layout's own convention, episodes leave it with rows
that depart: row t of action and reward is the move from frame t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data.episodes.episode import Episode
from toolkit.data.images.decoding import flattened, opened
from toolkit.errors import UserError, did_you_mean
from toolkit.plain_files import visible_files


@dataclass(frozen=True)
class Options:
    """What a source does not say, or says in several ways.

    image_key: the camera, where there are several. size_px: crop and resize; None keeps the size. most: stop after so
    many episodes. convention: row t is the move from frame t (departure) or to it (arrival); None: as the layout has
    it. num_actions: an action is a choice between so many; 0: it is numbers, whatever it looks like; None: as the
    source says.
    """

    image_key: str | None = None
    size_px: int | None = None
    most: int | None = None
    convention: str | None = None
    num_actions: int | None = None


class NeedsOption(UserError):
    """An episode cannot be read before the user says more; the others of its source would say the same."""


@dataclass(frozen=True)
class Source:
    """A data set that was opened.

    episodes: (path below the destination without suffix, how to read it). facts: what the manifest says besides.
    """

    episodes: Iterator[tuple[str, Callable[[], Episode]]]
    facts: dict[str, Any] = field(default_factory=dict)


Reader = Callable[[Path, Options], Source]


def files_below(root: Path, *patterns: str, hint: str) -> list[Path]:
    """``root`` itself where it is a file, else those below it of ``patterns``, in letters of any size.

    Hidden files are passed over. Raises UserError where none is found.
    """
    if root.is_file():
        return [root]
    files = visible_files(root)
    found = [path for path in files if any(fnmatch(path.name.lower(), pattern) for pattern in patterns)]
    if not found:
        raise UserError(f"{root}: no {' or '.join(patterns)} in it; {hint}")
    return found


def name_of(root: Path, path: Path) -> str:
    """Of a source file, its path below ``root`` without the suffix."""
    return path.stem if root.is_file() else path.relative_to(root).with_suffix("").as_posix()


def choose_camera(where: str | Path, cameras: Iterable[str], wanted: str | None) -> str:
    """The only camera, or the one that is wanted. Raises NeedsOption that names them."""
    names = sorted(cameras)
    if wanted in names:
        return str(wanted)
    if wanted is not None:
        known = f"choose --image-key among {', '.join(names) or 'none: there are no pictures in it'}"
        raise NeedsOption(f"{where}: no camera '{wanted}'; {did_you_mean(wanted, names)}{known}")
    if not names:
        raise NeedsOption(
            f"{where}: no pictures in it (arrays of frames with 1 or 3 channels); a world model needs them"
        )
    if len(names) > 1:
        raise NeedsOption(f"{where}: has {len(names)} cameras; choose --image-key among {', '.join(names)}")
    return names[0]


def is_pictures(shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether an array holds frames (T, H, W, C) or (T, C, H, W): bytes of 1 or 3 channels, or floats of 3.

    Floats of one channel are distances.
    """
    channels = (1, 3) if dtype == np.uint8 else (3,) if np.issubdtype(dtype, np.floating) else ()
    return len(shape) == 4 and (shape[3] in channels or shape[1] in channels)


def pictures(image: NDArray[Any]) -> NDArray[Any]:
    """Frames with channels last; a single channel stands for three equal ones."""
    if image.ndim == 4 and image.shape[-1] not in (1, 3) and image.shape[1] in (1, 3):
        image = np.moveaxis(image, 1, -1)
    return np.repeat(image, 3, axis=-1) if image.ndim == 4 and image.shape[-1] == 1 else image


def action_rows(where: str | Path, value: Any, num_actions: int | None, start: int = 0) -> NDArray[np.float32]:
    """Actions as rows (T, A): numbers as they are, choices ``start`` .. ``start + num_actions - 1`` as one-hot.

    Rows of zeros, where nothing was chosen, stay. Raises UserError where a choice is none of ``num_actions``,
    NeedsOption where rows look like choices and ``num_actions`` does not say.
    """
    found = np.asarray(value)
    if found.dtype == object or found.dtype.kind not in "biuf":
        raise UserError(f"{where}: action is {found.dtype}, expected an array of numbers")
    if not found.size:
        raise UserError(f"{where}: action has shape {list(found.shape)}: there are no numbers in it")
    rows = found.reshape(len(found), -1)
    if num_actions:
        return _choices(where, rows, num_actions, start)
    if num_actions is None and rows.size:
        _refuse_guess(where, rows)
    return rows.astype(np.float32) if rows.dtype.kind in "bi" else rows


def _choices(where: str | Path, rows: NDArray[Any], num: int, start: int) -> NDArray[np.float32]:
    if rows.shape[1] == 1 and num > 1 and (rows == np.round(rows)).all():
        numbers = rows[:, 0].astype(np.int64) - start
        if numbers.min() < 0 or numbers.max() >= num:
            raise UserError(
                f"{where}: action {rows.min():g}..{rows.max():g}, expected choices {start}..{start + num - 1}"
            )
        return np.eye(num, dtype=np.float32)[numbers]
    if rows.shape[1] != num or not _one_hot(rows):
        raise UserError(
            f"{where}: action rows of {rows.shape[1]} numbers are no choices between {num} (one-hot or 0..); "
            "--num-actions 0 keeps them as quantities"
        )
    return rows.astype(np.float32)


def _one_hot(rows: NDArray[Any]) -> bool:
    return bool(((rows == 0) | (rows == 1)).all() and (rows.sum(1) <= 1).all())


def _refuse_guess(where: str | Path, rows: NDArray[Any]) -> None:
    if rows.dtype.kind in "biu" and rows.shape[1] == 1:
        seen = f"whole numbers {rows.min()}..{rows.max()}"
        raise NeedsOption(
            f"{where}: actions are {seen}; give --num-actions N where they are choices between N, 0 where quantities"
        )
    if rows.shape[1] > 1 and rows.any() and _one_hot(rows):
        raise NeedsOption(
            f"{where}: actions look like choices, one-hot; give --num-actions {rows.shape[1]} if so, 0 if not"
        )


def decode(path: str | Path, data: bytes) -> NDArray[np.uint8]:
    """One picture (H, W, 3) of a file's bytes. Raises UserError naming ``path`` where it is none."""
    with opened(path, content=data) as image:
        return np.asarray(flattened(image).convert("RGB"))


def stack(path: str | Path, frames: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Frames of one size as one array. Raises UserError where they differ or there are none."""
    sizes = {frame.shape for frame in frames}
    if len(sizes) != 1:
        seen = ", ".join(f"{shape[0]}x{shape[1]}" for shape in sorted(sizes)) or "no frames"
        raise UserError(f"{path}: frames of one episode must be of one size, found {seen}")
    return np.stack(frames)


def plain(value: Any) -> Any:
    """Text of an hdf5 attribute, which may be bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def space_facts(space: Mapping[str, Any]) -> dict[str, Any]:
    """Of the manifest: the choices or the bounds of an action space as Minari writes it; empty for others."""
    if space.get("type") == "Discrete" and isinstance(space.get("n"), int):
        return {"discrete": space["n"]}
    low, high = (np.ravel(np.asarray(space.get(name, []), np.float64)) for name in ("low", "high"))
    if space.get("type") == "Box" and low.size and low.shape == high.shape and np.isfinite([low, high]).all():
        return {"action_low": low.tolist(), "action_high": high.tolist()}
    return {}
