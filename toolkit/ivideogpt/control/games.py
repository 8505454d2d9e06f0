"""Worlds that pages drive: each has an imagined one of its own and, where a simulator is here, the true one beside it.

States of the imagined world share their memory, so that a step back and a fork cost nothing; the simulator is run again
from its start.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import zoo
from toolkit.data.config import EpisodeData
from toolkit.data.episodes.environments import ImageEnv, find, is_known, one_hot
from toolkit.data.episodes.episode import EpisodeSpec, read_episode
from toolkit.data.episodes.npz import npz_files
from toolkit.data.episodes.sets import PUSH_OPTIONS
from toolkit.errors import UserError
from toolkit.ivideogpt.build import load_world
from toolkit.ivideogpt.control.beside import Seen, answer
from toolkit.ivideogpt.control.env import action_range
from toolkit.plain_files import named_path
from toolkit.runs.device import check_device
from toolkit.runs.reading import read_record
from toolkit.runs.seeds import derive
from toolkit.schema import check
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.state import State

SHIPPED = "push_world"  # in the zoo
MOST_STARTS = 2**31  # worlds of a simulator
MOST_FILES = 1000  # of episodes to start from
MOST_WORLDS = 8  # at a time: each keeps the transformer's memory, 75 MB at the paper's size
MOST_SEEN = 600  # frames of a drive that a clip can show
MOST_MEMORIES = 4  # of the transformer that one world keeps: how many renewals a step back reaches over, less one
KEYS = {  # by environment: which action the right and down arrows raise
    "push_sprite": (0, 1),
    "pusht": (0, 1),
    "kuka": (1, 0),
}
NAMES = {  # by environment: what its actions move
    "push_sprite": ("to the right", "down"),
    "pusht": ("to the right", "down"),
    "kuka": ("towards you", "to the right", "up", "turn"),
}


class Gone(UserError):
    """The world that a page means is not open."""


class Game:
    """One imagined world that a page drives, and the true one beside it where ``make_env`` builds a simulator."""

    def __init__(
        self,
        world: WorldModel,
        env_name: str | None,
        make_env: Callable[[], ImageEnv] | None,
        starts: NDArray[np.uint8] | None,
        name: str = "",
    ):
        self.world, self.env_name, self.make_env, self.starts = world, env_name, make_env, starts
        self.name = name or env_name or "a world model"
        self.env = None if make_env is None else make_env()
        # By memory of the transformer, the states that share it; the newest of the newest is where the world is.
        self.memories: deque[list[State]] = deque(maxlen=MOST_MEMORIES)
        self.start, self.t, self.ended = 0, 0, False
        self.taken: list[NDArray[np.float32]] = []
        self.seen: list[Seen] = []  # the first one, and the last MOST_SEEN
        self.goal: NDArray[np.uint8] | None = None

    def another(self) -> Game:
        """A game of the same model and starts."""
        return Game(self.world, self.env_name, self.make_env, self.starts, self.name)

    def fork(self) -> Game:
        """A copy of this game with the same seed; the two are independent from here on.

        Raises UserError where there is no world yet.
        """
        if not self.memories:
            raise UserError("no world yet: /reset comes before /fork")
        twin = self.another()
        twin.start, twin.t, twin.goal = self.start, self.t, self.goal
        twin.memories.extend([*states] for states in self.memories)
        twin.taken, twin.seen = [*self.taken], [*self.seen]
        twin._replay()
        return twin

    def close(self) -> None:
        """The simulator's own end."""
        if self.env is not None:
            self.env.close()

    def info(self) -> dict[str, Any]:
        """What the page needs to draw its controls."""
        spec = self.world.spec
        low, high = action_range(self.world)
        right, down = KEYS.get(self.env_name or "", (0, min(1, spec.action_dim - 1)))
        names = NAMES.get(self.env_name or "", ())
        return {
            "name": self.name,
            "names": [*names, *(f"action {i + 1}" for i in range(len(names), spec.action_dim))],
            "resolution": spec.resolution,
            "low": low.tolist(),
            "high": high.tolist(),
            "discrete": self.world.config["discrete"],
            "right": right,
            "down": down,
            "truth": self.env is not None,
            "max_future": spec.max_future,
            "num_starts": self.num_starts,
        }

    @property
    def num_starts(self) -> int:
        """Starts are 0 .. ``num_starts`` - 1."""
        return MOST_STARTS if self.starts is None else len(self.starts)

    def reset(self, start: int, seed: int) -> dict[str, Any]:
        """Begin at ``start``, a seed of the simulator or a context's number; ``seed`` is of the imagined frames."""
        self.check(start, seed)
        self.start, self.taken = start, []
        context = self._true_context() if self.starts is None else self.starts[start]
        self.memories.clear()
        self.memories.append([self.world.begin(context[None], [seed])])
        self.t = 0
        self.goal = context[0] if self.world.spec.goal_conditioned else None
        self.seen = [Seen(context[-1], context[-1] if self.env else None)]
        return self.shown()

    def shown(self) -> dict[str, Any]:
        """What is to be seen of the world as it is."""
        return {"t": self.t, "ended": self.ended, **answer(self.seen, self.goal)}

    def check(self, start: int, seed: int) -> None:
        """Raises UserError for a start or a seed out of range."""
        for name, value, most in (("start", start, self.num_starts), ("seed", seed, 2**63)):
            if not 0 <= value < most:
                raise UserError(f"{name}={value}: there are 0..{most - 1}")

    def _true_context(self) -> NDArray[np.uint8]:
        """The simulator at its start, at rest for as many frames as the model looks at; a goal comes first."""
        assert self.env is not None
        spec = self.world.spec
        goal = [self._goal()] if spec.goal_conditioned else []
        frame, _ = self.env.reset(seed=self.start)
        still, self.ended = np.zeros(spec.action_dim, np.float32), False
        return np.stack([*goal, frame, *(self.env.step(still)[0] for _ in range(spec.T0 - len(goal) - 1))])

    def _goal(self) -> NDArray[np.uint8]:
        """What is seen after as many steps as one context imagines, in a direction that the start draws."""
        assert self.env is not None
        low, high = action_range(self.world)
        drawn = np.random.default_rng(derive(self.start, "goal")).uniform(low, high).astype(np.float32)
        frame, _ = self.env.reset(seed=self.start)
        for _ in range(self.world.spec.max_future):
            frame, _, terminated, truncated, _ = self.env.step(one_hot(drawn, self.world.config["discrete"]))
            if terminated or truncated:
                break
        return frame

    def step(self, action: Sequence[float]) -> dict[str, Any]:
        """One frame further."""
        if not self.memories:
            raise UserError("no world yet: /reset comes before /step")
        wanted = np.asarray(action, np.float64)
        if not np.isfinite(wanted).all():
            raise UserError("action: holds values that are not finite")
        rows = one_hot(wanted[None], self.world.config["discrete"])
        state, pred = self.world.step(self.memories[-1][-1], rows, on_overflow="recontext")
        truth = self._true_step(rows[0].astype(np.float32))
        if pred.recontextualised:
            self.memories.append([])
        self.memories[-1].append(state)
        self.taken.append(rows[0].astype(np.float32))
        self.t += 1
        facts = {
            "reward": None if pred.reward is None else float(pred.reward[0]),
            "entropy": float(pred.entropy[0]),
            "recontextualised": pred.recontextualised,
        }
        self.seen.append(Seen(pred.frame[0].cpu().numpy(), truth, facts))
        del self.seen[1 : len(self.seen) - MOST_SEEN]
        return self.shown()

    def _true_step(self, row: NDArray[np.float32]) -> NDArray[np.uint8] | None:
        """The simulator's next frame; None where there is none or its episode is over."""
        if self.env is None or self.ended:
            return None
        frame, _, terminated, truncated, _ = self.env.step(row)
        self.ended = bool(terminated or truncated)
        return np.asarray(frame)

    def _replay(self) -> None:
        """Bring the simulator from its start to where the actions taken lead."""
        if self.env is not None:
            self._true_context()
            for row in self.taken:
                self._true_step(row)

    def undo(self) -> dict[str, Any]:
        """One frame back; the same actions then give the same frames again.

        Raises UserError at the start, and where the context was renewed and what came before is not kept any more.
        """
        if sum(map(len, self.memories)) < 2:
            raise UserError("nothing to undo" + (": what came before is not kept any more" if self.t else ""))
        self.memories[-1].pop()
        if not self.memories[-1]:
            self.memories.pop()
        self.taken, self.seen = self.taken[:-1], self.seen[:-1]
        self.t -= 1
        self._replay()
        return self.shown()


class Games:
    """At most ``most`` open worlds like those of ``kinds``, each by a word that only its page knows.

    The longest idle gives way. ``lock`` is held by whoever uses a game: the models and the simulators work for one page
    at a time.
    """

    def __init__(self, kinds: Sequence[Game], most: int = MOST_WORLDS):
        self.kinds, self.most, self.lock = kinds, most, threading.Lock()
        self._open: dict[str, tuple[Game, float]] = {}

    def kind(self, number: int) -> Game:
        """What the page's chooser has at ``number``. Raises UserError where there is none."""
        if not 0 <= number < len(self.kinds):
            raise UserError(f"game={number}: there are 0..{len(self.kinds) - 1}")
        return self.kinds[number]

    def game(self, word: str) -> Game:
        """The open world called ``word``. Raises Gone."""
        if word not in self._open:
            raise Gone(
                f"this world is not open any more: {self.most} are at a time, and it was idle the longest, or the "
                "server was started anew; begin anew"
            )
        game, _ = self._open[word]
        self._open[word] = game, time.monotonic()
        return game

    def open(self, game: Game) -> str:
        """A world more, by its word; the one that was idle longest ends where there would be too many."""
        while len(self._open) >= self.most:
            idle = min(self._open, key=lambda word: self._open[word][1])
            self._open.pop(idle)[0].close()
        word = secrets.token_urlsafe(12)
        self._open[word] = game, time.monotonic()
        return word


def make_game(source: str | Path | None, episodes: str | Path | None = None, device: str = "cpu") -> Game:
    """The game of a run, a folder of weights or a hub id; None: the small model that comes with the toolkit.

    ``episodes``: a folder of npz episodes to start from; without it the simulator of the run's data is used.
    Raises UserError where the model takes no actions or there is nothing to start from.
    """
    model = SHIPPED if source is None else source
    check_device(device, f"--device={device}")
    world = load_world(model, "play").to(device)
    if not world.spec.action_dim:
        raise UserError(f"{model}: an action-free model; nothing can be driven in it")
    env_name, options = _simulator(zoo.local(model))
    name = f"{env_name or 'a world model'}: {'the small model that comes along' if source is None else source}"
    if episodes is not None:
        return Game(world, env_name, None, _starts(Path(episodes), world), name)
    if env_name is None or not is_known(env_name):
        raise UserError(
            f"{model}: its data came from no simulator that is here; give --episodes FOLDER of npz files to start from"
        )
    recorded, size_px = find(env_name), world.spec.resolution
    return Game(world, env_name, lambda: recorded.make(size_px, **options), None, name)


def _simulator(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Name and options of the environment that a run's data came from."""
    data = (read_record(folder) or {}).get("data", {})
    options = data.get("env_options") or {}
    _check_options(f"{folder / 'run.json'}: data.env_options", data.get("env"), options)
    return data.get("env"), options


def _check_options(where: str, env: Any, options: Any) -> None:
    """Only push_sprite takes options: keys of EpisodeData, of their types and in their ranges. Raises UserError."""
    known = {name: getattr(EpisodeData(), name) for name in PUSH_OPTIONS} if env == "push_sprite" else {}
    if not isinstance(options, dict) or not options.keys() <= known.keys():
        raise UserError(f"{where}={options}: expected {', '.join(known) or 'none'}")
    for name, value in options.items():
        if not isinstance(value, (int, float) if isinstance(known[name], float) else type(known[name])):
            raise UserError(f"{where}: {name}={value}: expected a value such as {known[name]}")
    try:
        check(EpisodeData(**options))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _starts(folder: Path, world: WorldModel) -> NDArray[np.uint8]:
    files, _ = npz_files(named_path(folder))
    if not files:
        raise UserError(f"{folder}: no npz episodes in it")
    spec = EpisodeSpec(size_px=world.spec.resolution, least_frames=world.spec.T0)
    return np.stack([_context(read_episode(path, spec).image, world) for path in files[:MOST_FILES]])


def _context(image: NDArray[np.uint8], world: WorldModel) -> NDArray[np.uint8]:
    """The first frames of an episode; of a goal-conditioned model its last one first."""
    if not world.spec.goal_conditioned:
        return image[: world.spec.T0].copy()
    return np.concatenate([image[-1:], image[: world.spec.T0 - 1]])
