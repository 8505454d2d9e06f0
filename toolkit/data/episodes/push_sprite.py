"""Push-sprite: a disc that actions move, a block that it pushes, a goal mark; NumPy, many worlds in one call.

A world is a pure function of its seed and its actions, so the frames of other actions are known without a second
recording. Background, distractors and positions differ from world to world: what a model predicts must come from its
context frames. Lengths are in units of the picture's edge, x to the right, y downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

AGENT_RADIUS = 0.14
BLOCK_HALF = 0.13
GOAL_RADIUS, GOAL_WIDTH = 0.15, 0.08
SPEED = 0.11  # an action of 1 moves the disc this far
SUCCESS_DISTANCE = 0.1  # of block and goal
AGENT_COLOR = np.array([0.95, 0.15, 0.15], np.float32)
BLOCK_COLOR = np.array([0.15, 0.35, 1.0], np.float32)
GOAL_COLOR = np.array([0.1, 0.8, 0.3], np.float32)
NUM_SUBSTEPS = 3  # of one action: the disc moves less than its radius between two tests of contact


@dataclass
class World:
    """Positions of N worlds, each float32 (N, 2), and their still pictures float32 (N, S, S, 3)."""

    agent: Array
    block: Array
    goal: Array
    still: Array


class PushSprite:
    """N independent worlds.

    Args:
        size_px: edge of the frames.
        texture: contrast within the background, 0 (plain) to 1; its colour differs from world to world.
        num_distractors: still grey shapes in the background.
        random_goal: the goal is somewhere else in every world, not in the middle.
        agent_shape: what moves is drawn as a disc, square or diamond (it pushes as a disc).
    """

    action_dim = 2

    def __init__(
        self,
        size_px: int = 32,
        texture: float = 0.0,
        num_distractors: int = 1,
        random_goal: bool = False,
        agent_shape: str = "disc",
    ):
        self.size_px, self.texture, self.num_distractors, self.random_goal = (
            size_px,
            texture,
            num_distractors,
            random_goal,
        )
        self.draw_agent = {"disc": self._disc, "square": self._square, "diamond": self._diamond}[agent_shape]
        centers = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
        self.grid = np.stack(np.meshgrid(centers, centers, indexing="xy"), -1)  # (S, S, 2) of (x, y)
        self.world: World

    def reset(self, seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Start one world per seed; frames uint8 (N, S, S, 3)."""
        drawn = [self._draw(np.random.default_rng([seed, 20240715])) for seed in seeds]
        self.world = World(*(np.stack(parts).astype(np.float32) for parts in zip(*drawn, strict=True)))
        return self.render()

    def step(self, actions: Array) -> tuple[NDArray[np.uint8], Array]:
        """Move every world by its action, float (N, 2) in [-1, 1]; frames and rewards float32 [N].

        The reward is minus the distance between block and goal.
        """
        move = np.clip(np.asarray(actions, np.float32), -1, 1) * (SPEED / NUM_SUBSTEPS)
        for _ in range(NUM_SUBSTEPS):
            self._substep(move)
        return self.render(), -self.distance()

    def distance(self) -> Array:
        """Between block and goal, [N]."""
        return np.linalg.norm(self.world.block - self.world.goal, axis=-1)

    def positions(self) -> Array:
        """Of disc and block, float32 (N, 2, 2): (sprite, xy)."""
        return np.stack([self.world.agent, self.world.block], 1)

    def place(self, agent: Array, block: Array) -> NDArray[np.uint8]:
        """Move disc and block, each (N, 2), where they are wanted; frames."""
        self.world.agent, self.world.block = np.asarray(agent, np.float32), np.asarray(block, np.float32)
        return self.render()

    # -- physics ---------------------------------------------------------------------------------------------------

    def _substep(self, move: Array) -> None:
        """The disc moves, pushes the block out of its way, and is held back where the block cannot yield."""
        world = self.world
        world.agent = np.clip(world.agent + move, AGENT_RADIUS, 1 - AGENT_RADIUS)
        pushed = world.block + self._overlap()
        world.block = np.clip(pushed, BLOCK_HALF, 1 - BLOCK_HALF)
        world.agent = np.clip(world.agent - self._overlap(), AGENT_RADIUS, 1 - AGENT_RADIUS)

    def _overlap(self) -> Array:
        """Shortest move of the block, (N, 2), that ends its overlap with the disc; 0 where they do not touch."""
        offset = self.world.block - self.world.agent  # from disc to block
        nearest = offset - np.clip(offset, -BLOCK_HALF, BLOCK_HALF)  # from the disc's centre to the square
        distance = np.linalg.norm(nearest, axis=-1, keepdims=True)
        outside = nearest / np.maximum(distance, 1e-9) * np.maximum(AGENT_RADIUS - distance, 0)
        along = np.argmax(np.abs(offset), axis=-1)  # the centre lies in the square: leave by the nearest side
        inside = np.zeros_like(offset)
        rows = np.arange(len(offset))
        sign = np.where(offset[rows, along] >= 0, 1, -1)
        inside[rows, along] = sign * (BLOCK_HALF + AGENT_RADIUS - np.abs(offset[rows, along]))
        return np.where(distance > 0, outside, inside).astype(np.float32)

    # -- pictures --------------------------------------------------------------------------------------------------

    def render(self) -> NDArray[np.uint8]:
        """Frames uint8 (N, S, S, 3) of the worlds as they are."""
        picture = self._paint(self.world.still, self._square(self.world.block, BLOCK_HALF), BLOCK_COLOR)
        picture = self._paint(picture, self.draw_agent(self.world.agent, AGENT_RADIUS), AGENT_COLOR)
        return (picture * 255 + 0.5).astype(np.uint8)

    def _paint(self, picture: Array, distance: Array, color: Array) -> Array:
        """Cover the inside of a shape; ``distance`` (N, S, S) from its edge is negative inside."""
        cover = np.clip(0.5 - distance * self.size_px, 0, 1)[..., None]
        return picture + cover * (color - picture)

    def _disc(self, center: Array, radius: float) -> Array:
        return np.linalg.norm(self.grid - center[:, None, None], axis=-1) - radius

    def _diamond(self, center: Array, radius: float) -> Array:
        return (np.abs(self.grid - center[:, None, None]).sum(-1) - 1.2 * radius) / np.sqrt(2)

    def _square(self, center: Array, half: float) -> Array:
        return np.abs(self.grid - center[:, None, None]).max(-1) - half

    def _draw(self, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
        """Positions of disc, block and goal, and the still picture, of one world."""
        margin = 0.5 - max(AGENT_RADIUS, BLOCK_HALF)
        block = 0.5 + rng.uniform(-margin, margin, 2) * 0.8  # rarely at a wall, where it could not be pushed away
        agent = block
        while np.abs(agent - block).max() < AGENT_RADIUS + BLOCK_HALF:
            agent = 0.5 + rng.uniform(-margin, margin, 2)
        goal = 0.5 + rng.uniform(-margin, margin, 2) * (0.8 if self.random_goal else 0)
        still = self._background(rng)
        for _ in range(self.num_distractors):
            center = rng.uniform(0.1, 0.9, (1, 2)).astype(np.float32)
            shape = self._disc if rng.random() < 0.5 else self._square
            gray = np.float32(rng.choice([0.15, 0.85])) * np.ones(3, np.float32)
            still = self._paint(still, shape(center, rng.uniform(0.05, 0.09))[0], gray)
        ring = np.abs(self._disc(np.asarray(goal, np.float32)[None], GOAL_RADIUS)[0]) - GOAL_WIDTH / 2
        return agent, block, goal, self._paint(still, ring, GOAL_COLOR)

    def _background(self, rng: np.random.Generator) -> Array:
        """A pale colour of this world's own; ``texture`` lets it vary smoothly (3x3 colours, linearly interpolated)."""
        plain = 0.5 + rng.uniform(-0.3, 0.3) + rng.uniform(-0.08, 0.08, 3)
        colors = np.clip(plain + self.texture * rng.uniform(-0.3, 0.3, (3, 3, 1)), 0.1, 0.9)
        places = self.grid[0, :, 0] * 2
        low = np.minimum(places.astype(int), 1)
        part = (places - low)[:, None, None]
        rows = colors[low] * (1 - part) + colors[low + 1] * part  # (S, 3, 3)
        columns = rows[:, low] * (1 - part[:, 0]) + rows[:, low + 1] * part[:, 0]
        return columns.astype(np.float32)


def next_actions(agent: Array, block: Array, previous: Array, rngs: Sequence[np.random.Generator]) -> Array:
    """Actions (N, 2) for recording: half of the time towards the block and through it, else a smooth wander.

    ``agent`` and ``block`` are positions (N, 2), y downwards; row i draws from ``rngs[i]`` alone.
    """
    ahead = block - agent
    towards = ahead / np.maximum(np.abs(ahead).max(-1, keepdims=True), 1e-6)
    chase = np.array([rng.random() < 0.5 for rng in rngs])[:, None]
    noise = np.stack([rng.uniform(-0.9, 0.9, 2) for rng in rngs])
    chosen = np.where(chase, towards + 0.7 * noise, 0.7 * previous + noise)
    return np.clip(chosen, -1, 1).astype(np.float32)


@dataclass(frozen=True)
class Recording:
    """Frames uint8 (N, T, S, S, 3); actions float32 (N, T, 2) and rewards (N, T), row t of the move from t to t + 1
    (the last one leads out of the recording); positions float32 (N, T, 2, 2) (sprite, xy).
    """

    frames: NDArray[np.uint8]
    actions: Array
    rewards: Array
    positions: Array


def record(sim: PushSprite, seeds: Sequence[int], num_frames: int) -> Recording:
    """One episode per seed under :func:`next_actions`, each a pure function of its seed."""
    rngs = [np.random.default_rng([seed, 1]) for seed in seeds]
    frames, positions = [sim.reset(seeds)], [sim.positions()]
    actions: list[Array] = []
    rewards: list[Array] = []
    action = np.zeros((len(seeds), 2), np.float32)
    for _ in range(num_frames):
        action = next_actions(sim.world.agent, sim.world.block, action, rngs)
        frame, reward = sim.step(action)
        actions.append(action)
        rewards.append(reward)
        frames.append(frame)
        positions.append(sim.positions())
    return Recording(np.stack(frames[:-1], 1), np.stack(actions, 1), np.stack(rewards, 1), np.stack(positions[:-1], 1))


def replay(sim: PushSprite, seeds: Sequence[int], actions: Array) -> Recording:
    """The episodes of ``seeds`` under other ``actions`` (N, T, 2): what would have been seen."""
    frames, positions, rewards = [sim.reset(seeds)], [sim.positions()], []
    for step in range(actions.shape[1]):
        frame, reward = sim.step(actions[:, step])
        frames.append(frame)
        positions.append(sim.positions())
        rewards.append(reward)
    return Recording(np.stack(frames[:-1], 1), actions, np.stack(rewards, 1), np.stack(positions[:-1], 1))
