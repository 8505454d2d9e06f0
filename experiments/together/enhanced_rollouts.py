"""Is an imagined clip, enhanced, nearer to the simulator's large picture than the same clip enlarged bicubically?

    python experiments/together/enhanced_rollouts.py OUT.json FOLDER

The world model that comes with the toolkit imagines push-sprite at 32x32 from one frame and drawn actions;
``toolkit enhance-video`` enlarges its frames four times, by the shipped regression network. The simulator draws the
same world and actions at 128x128. As an upper bound the same is done with the simulator's own small frames. Settled
before the first run: 16 roll-outs of 10 frames, worlds 5000 to 5015, PSNR over all imagined frames, a paired interval.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import toolkit
from toolkit.data.episodes.environments import PushSpriteEnv
from toolkit.metrics.stats import difference, summary
from toolkit.runs.files import write_json

NUM_ROLLOUTS, NUM_FRAMES, SCALE, FIRST_WORLD = 16, 10, 4, 5000
HOW = ("experiment=enhance_default", f"scale={SCALE}", "frame_factor=1", "baselines=[bicubic]", "side_by_side_s=0")


def drive(world: int, size_px: int) -> np.ndarray:
    """The simulator's frames (T + 1, S, S, 3) of a world under its drawn actions."""
    env = PushSpriteEnv(size_px)
    return np.stack([env.reset(seed=world)[0], *(env.step(action)[0] for action in actions(world))])


def actions(world: int) -> np.ndarray:
    """(T, 2): two directions, each held for half of the time."""
    drawn = np.random.default_rng([world, 1]).uniform(-1, 1, (2, 2)).astype(np.float32)
    return drawn.repeat(NUM_FRAMES // 2, 0)


def imagined(model: Any, world: int) -> np.ndarray:
    """The model's frames (T + 1, 32, 32, 3), the first one given."""
    first = drive(world, model.spec.resolution)[:1]
    frames = model.rollout(model.begin(first[None], [world]), actions(world)[None]).frames[0]
    return np.concatenate([first, frames.cpu().numpy()])


def save(folder: Path, frames: np.ndarray) -> Path:
    """Frames as numbered pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:03d}.png")
    return folder


def enhance(frames: np.ndarray, reference: Path, folder: Path) -> dict[str, float]:
    """PSNR of the enhanced and of the bicubically enlarged frames against the pictures in ``reference``."""
    if not (folder / "run" / "run.json").exists():
        save(folder / "input", frames)
    keys = {"input": str(folder / "input"), "reference": str(reference), "input_fps": "8"}
    run = toolkit.run("enhance-video", *HOW, folder=folder / "run", **keys)
    return {name: run.metrics[f"{name}.psnr"] for name in ("ours", "bicubic")}


def main(out: str, work: str) -> None:
    model, started, folder = toolkit.load("push_world"), time.process_time(), Path(work).resolve()
    found: dict[str, dict[str, list[float]]] = {kind: {"ours": [], "bicubic": []} for kind in ("imagined", "simulated")}
    for world in range(FIRST_WORLD, FIRST_WORLD + NUM_ROLLOUTS):
        large = save(folder / str(world) / "reference", drive(world, SCALE * model.spec.resolution)[1:])
        clips = {"imagined": imagined(model, world)[1:], "simulated": drive(world, model.spec.resolution)[1:]}
        for kind, frames in clips.items():
            for name, value in enhance(frames, large, folder / str(world) / kind).items():
                found[kind][name].append(value)
    record: dict[str, Any] = {
        "command": "python experiments/together/enhanced_rollouts.py OUT.json FOLDER",
        "settings": {"how": list(HOW), "worlds": [FIRST_WORLD, FIRST_WORLD + NUM_ROLLOUTS - 1], "frames": NUM_FRAMES},
        "cpu_s": time.process_time() - started,
        **toolkit_facts(),
        "psnr": found,
    }
    for kind, psnr in found.items():
        gain = difference(psnr["ours"], psnr["bicubic"])
        record[kind] = {name: summary(values).mean for name, values in psnr.items()}
        record[kind] |= {"gain": gain.mean, "interval_95": [gain.low, gain.high], "n": gain.n}
    write_json(Path(out), record)


def toolkit_facts() -> dict[str, Any]:
    """Commit, versions and machine."""
    from toolkit.runs.machine import git_commit, machine, package_versions

    return {"git_commit": git_commit(), "versions": package_versions(), "machine": machine()}


if __name__ == "__main__":
    main(*sys.argv[1:])
