"""All measures of a run, in the order of the config, and the headline table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from toolkit.ivideogpt.clips import Clips
from toolkit.ivideogpt.config import TrainIVideoGPT
from toolkit.ivideogpt.measures_actions import measure_actions, measure_reward
from toolkit.ivideogpt.measures_prediction import measure_goal, measure_prediction
from toolkit.ivideogpt.measures_setting import Setting
from toolkit.ivideogpt.measures_tokenizer import measure_decoupling, measure_tokenizer
from toolkit.runs import progress
from toolkit.runs.record import Run
from toolkit.runs.table import Cell, Table
from toolkit.zoo.world_model import WorldModel

MEASURES: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "tokenizer": measure_tokenizer,
    "decoupling": measure_decoupling,
    "prediction": measure_prediction,
    "actions": measure_actions,
    "reward": measure_reward,
    "goal": measure_goal,
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
    "actions.r.x.block": "displacement of what is pushed, correlation in x",
    "actions.r.y.block": "... in y",
    "reward.r2": "reward read from true frames, R²",
    "reward.rank": "imagined returns, rank correlation",
    "goal.mse.ratio": "end of imagination to its goal, over another goal",
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
        run.add_metrics(name, MEASURES[name](setting))
    write_headline(run)


def write_headline(run: Run) -> None:
    """``tables/headline.json`` of what was measured."""
    metrics = run.record["metrics"]
    rows: list[list[Cell]] = [[text, metrics[key]] for key, text in HEADLINE.items() if key in metrics]
    if rows:
        Table("iVideoGPT", ["on held-out clips", "value"], rows).save(run.path("tables", "headline.json"))
