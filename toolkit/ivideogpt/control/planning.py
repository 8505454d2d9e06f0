"""Model-predictive control: plans are made in the world model and carried out in the true simulator.

The cross-entropy method (and plain random shooting) over action sequences, scored by the imagined reward or by the
squared error of imagined frames to a goal image. All candidates start from one look at the context, whose memory is
forked. ``oracle`` plans in the simulator itself and bounds what planning could reach; ``random`` acts at random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.data.episodes.environments import ImageEnv, one_hot
from toolkit.ivideogpt.clips import Clips
from toolkit.ivideogpt.config import Plan, TrainIVideoGPT
from toolkit.ivideogpt.control.adapt import ModelLearner
from toolkit.ivideogpt.control.env import action_range
from toolkit.ivideogpt.control.mbpo import Agent, Settings, learn
from toolkit.ivideogpt.measure import write_headline
from toolkit.ivideogpt.rollout import sampling_of
from toolkit.runs import progress
from toolkit.runs.record import Run
from toolkit.runs.seeds import derive
from toolkit.show.table import Cell, Table
from toolkit.zoo.world.model import WorldModel

Actions = NDArray[np.float32]  # (M, K, A)
COVERED = 0.75  # share of the squared distance to a goal image that must be covered for success
Score = Callable[[Actions], NDArray[np.float64]]  # of candidates: higher is better


@dataclass(frozen=True)
class Episode:
    """How one episode of control ended.

    ``progress``: the last reward less the first; for goal images the share of the distance that was covered.
    """

    success: bool
    progress: float


@dataclass
class Task:
    """An environment to control, and the range of its actions; ``discrete``: they are one-hot over so many choices."""

    env: ImageEnv
    low: Actions
    high: Actions
    num_context: int
    discrete: int | None = None

    def rows(self, actions: NDArray[Any]) -> Actions:
        """The action rows that are carried out for ``actions`` (..., A) in [-1, 1]."""
        middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        return one_hot((middle + half * actions).astype(np.float32), self.discrete)


def plan(world: WorldModel, clips: Clips, config: TrainIVideoGPT, run: Run) -> None:
    """Run every planner over the same ``plan.num_episodes`` starts; metrics ``plan.success.*`` and ``plan.progress.*``.

    Raises UserError when the data comes from no simulator that is here.
    """
    settings, env = config.plan, clips.dataset.make_env()
    task = Task(env, *action_range(world), config.context_length, world.config["discrete"])
    rows: list[list[Cell]] = []
    for name in settings.planners:
        progress.say(f"plan: {name}, {settings.num_episodes} episodes")
        agent = _learner(world, clips, config, name, run)
        ends = [control(world, task, config, name, index, agent) for index in range(settings.num_episodes)]
        found = {"success": np.mean([end.success for end in ends]), "progress": np.mean([end.progress for end in ends])}
        run.add_metrics("plan", {f"{key}.{name}": value for key, value in found.items()})
        rows.append([name, float(found["success"]), float(found["progress"])])
    env.close()
    title = f"control by {settings.objective}, {settings.num_episodes} episodes of {settings.num_steps} steps"
    Table(title, ["planner", "solved", "progress"], rows).save(run.path("tables", "plan.json"))
    write_headline(run)


def _learner(world: WorldModel, clips: Clips, config: TrainIVideoGPT, planner: str, run: Run) -> Agent | None:
    """The agent that ``mbpo`` learns in reality and imagination, or ``sac`` in reality alone.

    Where the world model goes on learning, a copy does: the other planners keep theirs. It is kept in ``model_mbpo/``.
    """
    if planner not in ("mbpo", "sac"):
        return None
    keys, how, env = config.plan, sampling_of(config), clips.dataset.make_env()
    sizes = Settings(keys.num_rounds, keys.num_steps, horizon=keys.horizon, seed=config.seed, sampling=how)
    if planner == "sac" or not keys.tokenizer_updates + keys.transformer_updates:
        return learn(world, env, sizes, imagine=planner == "mbpo")[0]
    model = ModelLearner(world, config)
    agent, _ = learn(model.world, env, sizes, adapt=model.learn)
    model.save(run.path("model_mbpo"))
    return agent


def control(
    world: WorldModel, task: Task, config: TrainIVideoGPT, planner: str, index: int, agent: Agent | None = None
) -> Episode:
    """One episode: look, plan, carry out the first actions, look again; or act as ``agent`` has learned to."""
    settings = config.plan
    rng = np.random.default_rng(derive(config.seed, "plan", planner, index))
    start = derive(0, "plan", "start", index) % 2**30
    frame, info = task.env.reset(seed=start)
    goal = goal_image(task, start, settings) if settings.objective == "goal_image" else None
    if goal is not None:
        frame, info = task.env.reset(seed=start)
    first, seen = frame, [frame] * task.num_context
    taken: list[Any] = []
    rewards: list[float] = []
    success = ended = False
    while len(taken) < settings.num_steps and not ended:
        if agent is None:
            score = _scorer(world, task, config, planner, start, taken, seen, goal)
            sequence = search(score, task, settings, rng, planner)
        else:
            sequence = task.rows(agent.act(seen[-1][None], explore=False))
        for action in sequence[: min(settings.replan_every, settings.num_steps - len(taken))]:
            frame, reward, ended, _, info = task.env.step(action)
            seen, rewards = [*seen[1:], frame], [*rewards, float(reward)]
            taken.append(action)
            success = success or bool(info.get("is_success", False))
            if ended:
                break
    if goal is None:
        return Episode(success, rewards[-1] - rewards[0])
    covered = 1 - _distance(frame, goal) / max(_distance(first, goal), 1e-9)
    return Episode(covered >= COVERED, covered)


def goal_image(task: Task, start: int, settings: Plan) -> NDArray[np.uint8]:
    """What is seen after ``horizon`` steps in a hidden random direction: a goal that can be reached."""
    rng = np.random.default_rng(derive(start, "goal"))
    direction = one_hot(rng.uniform(task.low, task.high).astype(np.float32), task.discrete)
    task.env.reset(seed=start)
    for _ in range(settings.horizon):
        frame, _, ended, _, _ = task.env.step(direction)
        if ended:
            break
    return frame


def _distance(frame: NDArray[np.uint8], goal: NDArray[np.uint8]) -> float:
    """Mean squared error of frames in [0, 1]."""
    return float(np.square((frame.astype(np.float64) - goal) / 255).mean())


def search(score: Score | None, task: Task, settings: Plan, rng: np.random.Generator, planner: str) -> Actions:
    """The best action sequence found, (K, A). ``shooting`` draws all candidates at once, ``cem`` refines them."""
    shape = (settings.num_candidates, settings.horizon, len(task.low))
    if score is None:
        return task.rows(rng.uniform(-1, 1, shape[1:]))
    mean, std = np.zeros(shape[1:]), np.full(shape[1:], settings.action_std)
    iterations = settings.num_iterations if planner != "shooting" else 1
    num = settings.num_candidates * (1 if planner != "shooting" else settings.num_iterations)  # as many calls in all
    best, best_score = mean, -np.inf
    for _ in range(iterations):
        # 0.6^2 + 0.8^2 = 1; the part that all steps share keeps a direction, and so explores further
        noise = 0.6 * rng.normal(size=(num, *shape[1:])) + 0.8 * rng.normal(size=(num, 1, shape[2]))
        candidates = np.clip(mean + std * noise, -1, 1)
        scores = score(task.rows(candidates))
        order = np.argsort(-scores)[: settings.num_elites]
        if scores[order[0]] > best_score:
            best, best_score = candidates[order[0]], scores[order[0]]
        mean, std = candidates[order].mean(0), candidates[order].std(0) + 0.05
    return task.rows(best)


def _scorer(
    world: WorldModel,
    task: Task,
    config: TrainIVideoGPT,
    planner: str,
    start: int,
    taken: list[Any],
    seen: list[Any],
    goal: NDArray[np.uint8] | None,
) -> Score | None:
    if planner == "random":
        return None
    if planner == "oracle":
        return lambda candidates: _true_scores(task, start, taken, candidates, goal)
    shown = seen if goal is None or not world.spec.goal_conditioned else [goal, *seen[1:]]
    context = np.stack(shown)[None]
    state = world.begin(context, derive(config.seed, "plan", start, len(taken)) % 2**31, frames=config.plan.horizon)

    def score(candidates: Actions) -> NDArray[np.float64]:
        preds = world.rollout(state.fork(len(candidates)), candidates, sampling_of(config))
        if goal is None:
            assert preds.rewards is not None
            return preds.rewards.sum(1).double().cpu().numpy()
        gap = (preds.frames.double() - torch.from_numpy(goal).to(preds.frames.device)) / 255
        return -gap.square().mean((1, 2, 3, 4)).cpu().numpy()

    return score


def _true_scores(
    task: Task, start: int, taken: list[Any], candidates: Actions, goal: NDArray[np.uint8] | None
) -> NDArray[np.float64]:
    """Of candidates in the simulator itself, each from a replay of the episode so far."""
    found = []
    for sequence in candidates:
        task.env.reset(seed=start)
        for action in taken:
            task.env.step(action)
        steps = [task.env.step(action)[:2] for action in sequence]
        values = [reward if goal is None else -_distance(frame, goal) for frame, reward in steps]
        found.append(sum(values))
    task.env.reset(seed=start)
    for action in taken:
        task.env.step(action)
    return np.array(found, np.float64)
