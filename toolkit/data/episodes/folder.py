"""A folder of npz episodes: all of it is checked before training begins, and kept in memory as far as it fits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data.episodes.episode import Episode, EpisodeSet, EpisodeSpec, read_episode
from toolkit.data.episodes.npz import array_shapes
from toolkit.errors import UserError, refuse_files

IN_MEMORY_BYTES = 4 * 2**30  # of frames; what exceeds it is read again when a clip asks for it
READ_WHOLLY_BYTES = 16 * 2**30  # of files; in larger folders only the headers of the arrays are checked
CONVENTION_FILES = 16  # that are looked at for the convention of a folder


@dataclass(frozen=True)
class Found:
    """One good file: its episode where that is kept in memory, and what all files must have in common."""

    path: Path
    episode: Episode | None
    length: int
    size_px: tuple[int, int]
    action_dim: int | None  # None: no actions
    has_reward: bool

    @property
    def kind(self) -> tuple[Any, ...]:
        """What all files must have in common."""
        return self.size_px, self.action_dim or 0, self.has_reward


def read_folder(
    files: Sequence[Path], spec: EpisodeSpec, skip_bad: bool = False, like: EpisodeSet | None = None
) -> tuple[EpisodeSet, list[str]]:
    """The episodes of ``files`` and one line for each that was left out.

    They must be of one kind: that of ``like``, or of most of them. Without ``skip_bad`` UserError names the bad files;
    so does a folder in which none is left.
    """
    look = _look_wholly if sum(path.stat().st_size for path in files) <= READ_WHOLLY_BYTES else _look_at_headers
    found: list[Found] = []
    bad: dict[Path, str] = {}
    room = IN_MEMORY_BYTES
    for path in files:
        try:
            one = look(path, spec, room)
        except UserError as error:
            bad[path] = str(error)
            continue
        room -= 0 if one.episode is None else one.episode.image.nbytes
        found.append(one)
    found = _of_one_kind(found, like, bad)
    problems = [bad[path] for path in files if path in bad]
    if not skip_bad:
        refuse_files(problems, len(files))
    if not found:
        raise UserError(f"{problems[0]}; none of {len(files)} files is left" if problems else "no episodes")
    episodes = _as_set(found, spec)
    if spec.convention is None:
        _refuse_arrivals(episodes)
    return episodes, problems


def _of_one_kind(found: list[Found], like: EpisodeSet | None, bad: dict[Path, str]) -> list[Found]:
    """Those of ``found`` that are of the kind of ``like``, or of most of them; ``bad`` gets a line for the others."""
    if not found:
        return []
    counts = Counter(one.kind for one in found)
    most = next(one for one in found if counts[one.kind] == max(counts.values()))
    other = (
        most if like is None else Found(Path(like.sources[0]), None, 0, like.size_px, like.action_dim, like.has_reward)
    )
    kept = []
    for one in found:
        try:
            _same_kind(one, other)
            kept.append(one)
        except UserError as error:
            bad[one.path] = str(error)
    return kept


def _refuse_arrivals(episodes: EpisodeSet) -> None:
    """Actions that start with a row of zeros in every file, and rewards too, are those that led to their frames."""
    for index in range(min(len(episodes), CONVENTION_FILES)):
        episode = episodes.read(index)
        rows = [part for part in (episode.action, episode.reward) if part is not None]
        if episode.action is None or not episode.action[1:].any() or any(part[0].any() for part in rows):
            return
    raise UserError(
        f"{episodes.sources[0]}: the first actions of all files are zeros, as where row t led to frame t; "
        "set data.convention=arrival, or departure where row t is taken at frame t"
    )


def _as_set(found: list[Found], spec: EpisodeSpec) -> EpisodeSet:
    def read(index: int) -> Episode:
        return found[index].episode or read_episode(found[index].path, spec)

    first = found[0]
    lengths, sources = [one.length for one in found], [str(one.path) for one in found]
    return EpisodeSet(lengths, read, sources, first.size_px, first.action_dim or 0, first.has_reward)


def _look_wholly(path: Path, spec: EpisodeSpec, room: int) -> Found:
    episode = read_episode(path, spec)
    return Found(
        path,
        episode if episode.image.nbytes <= room else None,
        len(episode),
        (episode.image.shape[1], episode.image.shape[2]),
        None if episode.action is None else episode.action.shape[1],
        episode.reward is not None,
    )


def _look_at_headers(path: Path, spec: EpisodeSpec, room: int) -> Found:
    """Shapes alone; what else may be wrong is said when a clip reads the file."""
    shapes = array_shapes(path)
    image, action = shapes.get(spec.image_key), shapes.get("action")
    if image is None or len(image) != 4 or image[-1] != 3:
        raise UserError(f"{path}: no frames [T, H, W, 3] under '{spec.image_key}'; name them with data.image_key")
    if image[0] < spec.least_frames:
        raise UserError(f"{path}: {image[0]} frames, a clip needs {spec.least_frames}")
    if (spec.needs_action and action is None) or (action is not None and (len(action) != 2 or not action[1])):
        raise UserError(f"{path}: no array 'action' of shape [T, A] in it")
    if spec.needs_reward and "reward" not in shapes:
        raise UserError(f"{path}: no array 'reward' in it, which this config needs")
    if math.prod(shapes.get("reward", (image[0],))) not in (image[0] - 1, image[0]):
        raise UserError(f"{path}: reward has shape {list(shapes['reward'])}, expected [T], one number per frame")
    size = (spec.size_px, spec.size_px) if spec.size_px else (image[1], image[2])
    return Found(path, None, image[0], size, action[1] if action else None, "reward" in shapes)


def _same_kind(one: Found, other: Found) -> None:
    if one.size_px != other.size_px:
        sizes = [f"{height}x{width}" for height, width in (one.size_px, other.size_px)]
        raise UserError(
            f"{one.path}: frames are {sizes[0]}, those of {other.path} {sizes[1]}; set data.size_px to resize all"
        )
    for name, mine, others in (
        ("action", bool(one.action_dim), bool(other.action_dim)),
        ("reward", one.has_reward, other.has_reward),
    ):
        if mine != others:
            raise UserError(f"{one.path}: {'' if mine else 'no '}{name} in it, unlike {other.path}")
    if one.kind != other.kind:
        raise UserError(
            f"{one.path}: actions of {one.action_dim} numbers, those of {other.path} have {other.action_dim}"
        )
