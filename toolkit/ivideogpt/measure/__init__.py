"""All measures of a run, in the order of the config, and the headline table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from toolkit.ivideogpt.clips import Clips
from toolkit.ivideogpt.config import TrainIVideoGPT
from toolkit.ivideogpt.measure.actions import measure_actions, measure_reward
from toolkit.ivideogpt.measure.long import measure_long
from toolkit.ivideogpt.measure.prediction import measure_goal, measure_prediction
from toolkit.ivideogpt.measure.setting import Setting
from toolkit.ivideogpt.measure.tokenizer import measure_decoupling, measure_tokenizer
from toolkit.runs import progress
from toolkit.runs.record import Run
from toolkit.show.table import Cell, Table
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.tokens import TokenLayout

RELEASE_CLIPS = {"bair": (1, 16), "oxe": (2, 16), "robonet": (2, 12), "goal": (2, 17)}  # context frames, frames


def measure_tokens(setting: Setting) -> dict[str, Any]:
    """The arithmetic of section 3.1 for the release's clips (256 and 16 tokens a frame) and for this run's own.

    ``length``: tokens of a clip, slots included; ``reduction``: how many times fewer than with a context's tokens for
    every frame. Exact.
    """
    release = {name: TokenLayout(num_context, 256, 16, 8192, 8192) for name, (num_context, _) in RELEASE_CLIPS.items()}
    layouts = {name: (release[name], frames) for name, (_, frames) in RELEASE_CLIPS.items()}
    layouts["own"] = (setting.world.tokenizer.layout, setting.config.num_frames)
    found: dict[str, Any] = {}
    for name, (layout, num_frames) in layouts.items():
        length = layout.length(num_frames - layout.context_length)
        full = (layout.tokens_per_context + 1) * num_frames - 1
        found[name] = {"length": length, "reduction": full / length}
    return found


MEASURES: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "tokens": measure_tokens,
    "tokenizer": measure_tokenizer,
    "decoupling": measure_decoupling,
    "prediction": measure_prediction,
    "actions": measure_actions,
    "reward": measure_reward,
    "goal": measure_goal,
    "long": measure_long,
}
NEEDS = {
    "actions": "action_conditioned=true, and a simulator of things whose colours are known",
    "reward": "reward_head=true",
    "goal": "goal_conditioned=true",
    "long": "action_conditioned=true, and a simulator whose episodes last for measure.num_long_frames",
}
HEADLINE = {
    "tokenizer.psnr.future": "future frames through the tokenizer, PSNR dB",
    "tokenizer.psnr.copy": "... the context frame copied",
    "prediction.psnr.predicted": "predicted frames, PSNR dB",
    "prediction.psnr.copy_last": "... the last frame copied",
    "prediction.psnr.other_actions": "... imagined with another clip's actions",
    "actions.r.x.agent": "imagined against true displacement, correlation in x",
    "actions.r.y.agent": "... in y",
    "actions.sign.agent": "... moves in the right direction",
    "actions.r.x.block": "displacement of the pushed object, correlation in x",
    "actions.r.y.block": "... in y",
    "reward.r2": "reward read from true frames, R²",
    "reward.rank": "imagined returns, rank correlation",
    "goal.mse.ratio": "end of imagination to its goal, over another goal",
    "long.psnr.imagined": "long roll-outs, PSNR dB",
    "long.psnr.copied": "... the context frame copied",
    "long.hue": "... error of the background's hue, grey levels",
    "long.near.agent": "... frames with the moving object in its place",
    "long.near.block": "... frames with the pushed object in its place",
    "plan.success.cem": "episodes solved by planning in the model (CEM)",
    "plan.success.random": "... by random actions",
}


def measure(world: WorldModel, clips: Clips, config: TrainIVideoGPT, run: Run) -> None:
    """Take every measure of ``measure.names`` into the record's metrics; those of planning stay."""
    setting = Setting(world, clips, config, run)
    planned = {key: value for key, value in run.record["metrics"].items() if key.startswith("plan.")}
    run.record["metrics"] = planned
    for name in config.measure.names:
        progress.say(f"measure: {name}")
        found = MEASURES[name](setting)
        if not found:
            progress.say(f"measure: {name}: left out, it needs {NEEDS[name]}")
        run.add_metrics(name, found)
    write_headline(run)


def write_headline(run: Run) -> None:
    """``tables/headline.json`` of what was measured."""
    metrics = run.record["metrics"]
    rows: list[list[Cell]] = [[text, metrics[key]] for key, text in HEADLINE.items() if key in metrics]
    if rows:
        Table("iVideoGPT", ["on held-out clips", "value"], rows).save(run.path("tables", "headline.json"))
