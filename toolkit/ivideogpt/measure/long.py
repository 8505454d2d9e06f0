"""Whether a world imagined for long is still the same: its frames, its colours, and where its things are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.data.episodes.environments import find
from toolkit.data.episodes.record import Plan, run_episode
from toolkit.ivideogpt.film import film_strip, save_png
from toolkit.ivideogpt.measure.setting import Setting, images, psnr
from toolkit.ivideogpt.measure.tracking import LEAST_MASS, TRACKED, Color, locate
from toolkit.ivideogpt.rollout import to_bytes
from toolkit.show import figures
from toolkit.show.table import Table

NEAR_PX = 3  # from where the simulator has a thing
SHOWN = (1, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60)  # steps of the picture and of the table
NUM_PICTURES = 6
SEED = 1_000_003  # of the episodes: no one records with it


def measure_long(setting: Setting) -> dict[str, Any]:
    """``measure.num_long_frames`` frames from one context, past the transformer's positions, beside the simulator.

    Worlds that no recording has, driven by the environment's own policy. By step and for all: PSNR against the true
    frame, imagined and copied; ``hue``: distance of the imagined background's colour from the true one, brightness
    apart, in grey levels (``hue.gray``: of a grey background); ``near.{thing}``: share of the frames in which a thing
    is seen, not further than ``NEAR_PX`` pixels from its true place. Needs a simulator and actions.
    """
    env = setting.clips.dataset.env
    if not setting.config.action_conditioned or env is None:
        return {}
    found = _episodes(setting, env)
    if found is None:
        return {}
    true, actions = found
    context, true = true[:, : setting.num_context], true[:, setting.num_context :]
    made = setting.imagine(context, actions, true.shape[1], "long", on_overflow="recontext")[0]
    copied = context[:, -1:].expand_as(true)
    lines = {"psnr.imagined": psnr(made, true), "psnr.copied": psnr(copied, true)}
    gray = true.mean(-3, keepdim=True).expand_as(true)
    lines |= {"hue": hue_distance(made, true), "hue.gray": hue_distance(gray, true)}
    for thing, color in TRACKED.get(env, {}).items():
        lines[f"near.{thing}"] = near(made, true, color)
    steps = [step for step in SHOWN if step <= true.shape[1]]
    means = {name: float(values.mean()) for name, values in lines.items()}
    means |= {
        f"{name}.step_{step}": float(values[:, step - 1].mean()) for name, values in lines.items() for step in steps
    }
    _report(setting, {name: values.mean(0) for name, values in lines.items()}, steps)
    _pictures(setting, made, true, steps)
    return means


def _episodes(setting: Setting, env: str) -> tuple[Tensor, Tensor] | None:
    """Frames float (B, T0 + K, 3, H, W) and the actions (B, K, A) that lead to the last K; None: all ended earlier."""
    num_context, measure = setting.num_context, setting.config.measure
    num_frames = num_context + measure.num_long_frames
    plan = Plan(env, measure.num_long_clips, num_frames, setting.clips.resolution, SEED)
    simulator = setting.clips.dataset.make_env()
    made = [run_episode(simulator, find(env), plan, number) for number in range(plan.num_episodes)]
    simulator.close()
    whole = [one for one in made if len(one) == num_frames]  # an environment may end an episode early
    if not whole:
        return None
    frames, rows = images([one.image for one in whole]), torch.stack([torch.from_numpy(one.action) for one in whole])
    return frames, rows[:, num_context - 1 : -1]


def near(made: Tensor, true: Tensor, color: Color) -> Tensor:
    """Whether frames (B, K, 3, H, W) show a thing where the true ones have it, 0 or 1, (B, K).

    Its usual mass is the largest that the true frames of its row show.
    """
    places, mass = locate(made, color)
    there, usual = locate(true, color)
    seen = mass > LEAST_MASS * usual.amax(1, keepdim=True)
    return (seen & ((places - there).norm(dim=-1) * made.shape[-1] <= NEAR_PX)).float()


def hue_distance(made: Tensor, true: Tensor) -> Tensor:
    """Between the median colours of frames (B, K, 3, H, W) less their brightness, in grey levels (B, K)."""
    hues = []
    for frames in (made, true):
        color = frames.flatten(-2).contiguous().median(-1).values  # torch's median misreads expanded memory
        hues.append(color - color.mean(-1, keepdim=True))
    return 255 * (hues[0] - hues[1]).norm(dim=-1)


def _report(setting: Setting, lines: dict[str, Tensor], steps: list[int]) -> None:
    rows = [
        [name, float(values.mean()), *(float(values[step - 1]) for step in steps)] for name, values in lines.items()
    ]
    columns = ["frames after the context", "all", *(str(step) for step in steps)]
    Table("long roll-outs", columns, rows).save(setting.run.path("tables", "long.json"))
    drawn = {name: lines[f"psnr.{name}"].tolist() for name in ("imagined", "copied")}
    figures.curves(
        setting.run.path("figures", "long.png"),
        {name: (list(range(1, len(values) + 1)), values) for name, values in drawn.items()},
        xlabel="frames after the context",
        ylabel="PSNR, dB",
        caption="Imagined against true frames, past the transformer's positions",
    )


def _pictures(setting: Setting, made: Tensor, true: Tensor, steps: list[int]) -> None:
    """The first worlds, true above imagined, at ``steps``."""
    index = [step - 1 for step in steps]
    rows = {}
    for world in range(min(NUM_PICTURES, len(made))):
        rows[f"world {world}, true"] = to_bytes(true[world : world + 1, index])
        rows[f"world {world}, imagined"] = to_bytes(made[world : world + 1, index])
    save_png(setting.run.path("samples", "long.png"), film_strip(rows, 0, max(1, 64 // setting.clips.resolution)))
