"""Sets of episodes by name: made by our simulator, recorded from an environment once, or read from a folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.data import fetching
from toolkit.data.config import EpisodeData
from toolkit.data.episodes.convert import hint
from toolkit.data.episodes.environments import ImageEnv, find, is_known
from toolkit.data.episodes.episode import Episode, EpisodeSet, EpisodeSpec, memory_set
from toolkit.data.episodes.folder import read_folder
from toolkit.data.episodes.npz import npz_files
from toolkit.data.episodes.push_sprite import PushSprite
from toolkit.data.episodes.push_sprite import record as record_push
from toolkit.data.episodes.record import MANIFEST, Plan, check_frames, read_manifest, record
from toolkit.data.hub import given_path
from toolkit.data.splits import hold_out_named, split_folders
from toolkit.errors import UserError, few
from toolkit.runs import progress
from toolkit.runs.machine import check_fits
from toolkit.runs.seeds import derive

log = logging.getLogger(__name__)
SIMULATED_TRAIN = 2000  # episodes, unless data.num_train says otherwise
PUSH_OPTIONS = ("texture", "num_distractors", "random_goal", "agent_shape")  # keys of EpisodeData and of PushSprite
HELD_OUT = ("valid", "test")


@dataclass(frozen=True)
class EpisodeDataset:
    """Episodes for training, for watching it, and for measures that count. ``env`` names their simulator, if any.

    action_bounds: ``low`` and ``high`` float32 [A] of an action row where simulator or manifest state them, else empty.
    discrete: action rows are one-hot over so many choices; None: vectors of numbers.
    """

    name: str
    train: EpisodeSet
    valid: EpisodeSet
    test: EpisodeSet
    licence: str
    source: str
    env: str | None = None
    env_options: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    action_bounds: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    discrete: int | None = None

    def make_env(self) -> ImageEnv:
        """The simulator of the episodes, with frames of their size. Raises UserError where there is none."""
        if self.env is None:
            raise UserError(f"data.name={self.name}: {self.source} came from no simulator that is here")
        return find(self.env).make(self.train.size_px[0], **self.env_options)

    def contents(self) -> dict[str, dict[str, Any]]:
        """How many episodes each split has and a hash of their names and lengths, for the record of a run."""
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: {"items": len(part), "identity": part.identity(self.source)} for name, part in parts.items()}

    @property
    def action_dim(self) -> int:
        """Numbers of an action row; 0 without actions."""
        return self.train.action_dim


def load_push_sprite(config: EpisodeData, seed: int, spec: EpisodeSpec) -> EpisodeDataset:
    """Generated in memory; valid and test are the same for every seed, so that seeds and settings compare."""
    size_px = config.size_px or 32
    num_frames = max(config.num_frames, spec.least_frames)
    sizes = {"train": config.num_train or SIMULATED_TRAIN, "valid": config.num_valid, "test": config.num_valid}
    check_frames("data.num_frames", num_frames, "data.size_px", size_px)
    for key in ("train", "valid"):
        check_fits(f"data.num_{key}", sizes[key], num_frames * 3 * size_px**2)
    options = {name: getattr(config, name) for name in PUSH_OPTIONS}

    def make(split: str) -> EpisodeSet:
        start = derive(seed if split == "train" else 0, "push_sprite", split) % 2**40
        return _push_episodes(PushSprite(size_px, **options), range(start, start + sizes[split]), num_frames)

    sets = {split: make(split) for split in sizes}
    parts = (sets["train"], sets["valid"], sets["test"])
    space = find("push_sprite").make(size_px).action_space
    bounds = {"low": space.low, "high": space.high}
    source = "push-sprite simulator"
    return EpisodeDataset("push_sprite", *parts, "generated", source, "push_sprite", options, action_bounds=bounds)


def _push_episodes(sim: PushSprite, seeds: Sequence[int], num_frames: int) -> EpisodeSet:
    episodes: list[Episode] = []
    for start in range(0, len(seeds), 256):  # of bounded memory
        made = record_push(sim, seeds[start : start + 256], num_frames)
        episodes += [Episode(*rows) for rows in zip(made.frames, made.actions, made.rewards, strict=True)]
    return memory_set(episodes, [f"push_sprite world {seed}" for seed in seeds])


def load_recorded(config: EpisodeData, seed: int, spec: EpisodeSpec) -> EpisodeDataset:
    """Episodes of an environment, from ``data.path`` or recorded into the cache the first time they are asked for."""
    if config.path is not None:
        return load_episode_folder(config, seed, spec)
    size_px = config.size_px or 64
    wanted = (config.num_train or 400) + 2 * config.num_valid
    plan = Plan(config.name, wanted, max(config.num_frames, spec.least_frames), size_px)
    check_frames("data.num_frames", plan.num_frames, "data.size_px", size_px)
    folder = fetching.cache_root() / "episodes" / f"{config.name}_{size_px}px_{plan.num_frames}frames"
    there = len(list(folder.glob("episode_*.npz")))
    if there < wanted:
        fetching.cache_folder("episodes")
        log.info("recording %d episodes of %s into %s", wanted - there, config.name, folder)
        _, problems = record(plan, folder)
        if problems:
            raise UserError(f"{folder}: {len(problems)} episodes could not be recorded, the first: {problems[0]}")
    files = sorted(folder.glob("episode_*.npz"))[:wanted]
    valid, test, train = (
        files[: config.num_valid],
        files[config.num_valid : 2 * config.num_valid],
        files[2 * config.num_valid :],
    )
    sets = {name: read_folder(part, spec)[0] for name, part in (("train", train), ("valid", valid), ("test", test))}
    licence = str((read_manifest(folder) or {}).get("licence"))
    parts = (sets["train"], sets["valid"], sets["test"])
    return EpisodeDataset(config.name, *parts, licence, str(folder), config.name, **_stated(folder, parts[0]))


def load_episode_folder(config: EpisodeData, seed: int, spec: EpisodeSpec) -> EpisodeDataset:
    """``data.path``: npz files, or train/ with val/ and test/ of them; what is missing is held out of training.

    Raises UserError naming the file or folder at fault, unless ``data.skip_bad`` leaves bad files out.
    """
    if config.path is None:
        raise UserError(f"data.path: data.name={config.name} needs the folder of npz episodes, data.path=FOLDER")
    root = given_path(config.path)
    files = _split_files(root, config)
    sets: dict[str, EpisodeSet] = {}
    problems: list[str] = []
    for name, part in files.items():
        sets[name], bad = read_folder(part, spec, config.skip_bad, sets.get("train"))
        problems += bad
    for problem in problems:
        log.warning("left out: %s", problem)
    facts = read_manifest(root) or {}
    return EpisodeDataset(
        config.name,
        sets["train"],
        sets["valid"],
        sets["test"],
        licence="the owner's of the folder",
        source=str(root),
        env=_simulator(root, facts),
        problems=problems,
        **_stated(root, sets["train"]),
    )


def _simulator(root: Path, facts: dict[str, Any]) -> str | None:
    """The manifest's environment where that is here; one of a package that nobody has imported is none, and said."""
    name = facts.get("env")
    if name is None or is_known(name):
        return name
    log.warning("%s: env=%s is no simulator that is here; there is no truth to plan in or compare with", root, name)
    return None


def _stated(folder: Path, train: EpisodeSet) -> dict[str, Any]:
    """What the manifest says about actions. Raises UserError where that does not fit the episodes."""
    facts = read_manifest(folder) or {}
    if not train.action_dim:
        return {}
    bounds: dict[str, NDArray[np.float32]] = {}
    for name in ("low", "high"):
        if f"action_{name}" in facts:
            bounds[name] = _bound(f"{folder / MANIFEST}: action_{name}", facts[f"action_{name}"], train.action_dim)
    discrete = facts.get("discrete")
    if discrete is not None and discrete != train.action_dim:
        raise UserError(f"{folder / MANIFEST}: discrete={discrete}: the episodes' actions have {train.action_dim}")
    return {"action_bounds": bounds, "discrete": discrete}


def _bound(where: str, value: Any, action_dim: int) -> NDArray[np.float32]:
    try:
        row = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        row = np.zeros(0, np.float32)
    if row.shape != (action_dim,) or not np.isfinite(row).all():
        raise UserError(f"{where}: expected {action_dim} finite numbers, as many as the episodes' actions have")
    return row


def _split_files(root: Path, config: EpisodeData) -> dict[str, list[Path]]:
    """Files of train, valid and test; where a part has no folder, files of train, chosen by their names."""
    if not root.is_dir():
        raise UserError(f"data.path={config.path}: no such folder")
    places = split_folders(sorted(place for place in root.iterdir() if place.is_dir()))
    below = npz_files(root)
    found = {name: npz_files(place) for name, place in places.items()} if places else {"train": below}
    if "train" not in found:
        raise UserError(f"data.path={config.path}: has a held-out folder but no train/")
    train, others = found["train"]
    if not train:
        seen = f" (but {few([path.name for path in others], 3)})" if others else ""
        raise UserError(f"data.path={config.path}: no .npz files in it{seen}; {hint(root)}")
    chosen: dict[str, list[Path]] = {}
    _say_passed_over(root, *below, [*places.values()])
    for name in HELD_OUT:
        if name in places:
            chosen[name] = found[name][0]
        else:
            train, chosen[name] = _held_out(root, train, name, config)
        if not chosen[name]:
            raise _too_few(config)
        chosen[name] = chosen[name][: config.num_valid]
    return {"train": train[: config.num_train], **chosen}


def _say_passed_over(root: Path, episodes: Sequence[Path], others: Sequence[Path], places: Sequence[Path]) -> None:
    """One line for files that are no episodes by their names, or lie beside the folders of the splits."""
    beside = [path for path in episodes if places and not any(place in path.parents for place in places)]
    names = [str(path.relative_to(root)) for path in [*others, *beside] if path.name != MANIFEST]
    if names:
        progress.say(f"data.path={root}: passed over, no .npz of a split: {few(names, 5)}")


def _held_out(root: Path, files: list[Path], name: str, config: EpisodeData) -> tuple[list[Path], list[Path]]:
    try:
        names = [path.relative_to(root).as_posix() for path in files]
        kept, held = hold_out_named(names, None, config.valid_fraction, name)
    except UserError:
        raise _too_few(config) from None
    return [files[i] for i in kept], [files[i] for i in held]


def _too_few(config: EpisodeData) -> UserError:
    return UserError(f"data.path={config.path}: too few episodes for train, valid and test; add some, or folders")
