"""``toolkit plan COMMAND``: the stages of a training, what each needs, and their sum, as a table or as JSON."""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.commands import COMMANDS, Command
from toolkit.configs import compose
from toolkit.errors import UserError, did_you_mean
from toolkit.plan import devices
from toolkit.plan.devices import HERE, Cluster
from toolkit.plan.estimate import USABLE, Pace, StagePlan, Tracer, plan_stage
from toolkit.plan.pages import tables
from toolkit.runs.output import check_written, tell
from toolkit.runs.stage_shape import StageShape
from toolkit.schema import Job, without_effect
from toolkit.show.terminal import show

FP16 = "precision=fp16 is counted as bf16: numbers of the same size, products of the same speed"
TRAINING = ("train-disco", "train-ivideogpt", "grow-llm", "enhance-video")


def main(
    name: str, overrides: list[str], *, on: str, file: Path | None = None, as_json: bool = False, measured: bool = False
) -> None:
    """Print the plan of ``toolkit NAME OVERRIDES`` on devices ``on``. Raises UserError for whatever does not fit."""
    command = command_named(name)
    cluster = devices.parse(on, file)
    if measured and cluster.device.name != HERE:
        raise UserError(f"--measure: measures this machine; use it with --devices here, not {on}")
    config = compose(command, overrides)
    for line in without_effect(config):
        tell(f"plan: {line}")
    with _quiet():
        shapes = shapes_of(command, config)
        plan = make_plan(command, config, shapes, cluster, measured)
    if as_json:
        print(json.dumps(plan, indent=2))
        check_written()
    else:
        show(*tables(plan))


def command_named(name: str) -> Command:
    """The command that is planned. Raises UserError for one that trains nothing, or that there is not."""
    if name in COMMANDS and name not in TRAINING:
        raise UserError(f"{name}: trains nothing to plan; choose one of {', '.join(TRAINING)}")
    if name not in COMMANDS:
        raise UserError(f"{name}: no such command; {did_you_mean(name, TRAINING)}choose one of {', '.join(TRAINING)}")
    return COMMANDS[name]


def shapes_of(command: Command, config: Job) -> list[StageShape]:
    """The stages of a config that train. Raises UserError where there are none."""
    shapes = importlib.import_module(f"{command.room}.footprint").stages(config)
    if not shapes:
        raise UserError(f"{command.name}: no stage of this config trains (stages: {', '.join(config.stages())})")
    return [
        replace(one, precision="bf16", notes=(*one.notes, FP16)) if one.precision == "fp16" else one for one in shapes
    ]


def make_plan(
    command: Command, config: Job, shapes: list[StageShape], cluster: Cluster, measured: bool = False
) -> dict[str, Any]:
    """Everything that is printed, in plain numbers: bytes, seconds, FLOPs. Raises UserError as the parts do."""
    tracer = Tracer(fused=cluster.device.name != HERE)
    how, notes = f"assumed: {cluster.device.assumed}", {}
    pace: Pace | None = None
    stages: list[StagePlan] = []
    for shape in shapes:
        tell(f"plan: {shape.name}")
        if measured:
            from toolkit.plan.measured import pace_here

            pace, notes[shape.name] = pace_here(shape, _narrow(command, shape), cluster.device, tracer)
        stages.append(plan_stage(shape, cluster, tracer, config.keep_checkpoints, pace))
    return {
        "command": command.name,
        "devices": cluster.as_dict(),
        "assumptions": {"time": notes or how, "usable_memory": USABLE},
        "stages": [stage.as_dict() for stage in stages],
        "total": {
            "time_s": sum(stage.total_s for stage in stages),
            "device_hours": sum(stage.device_hours for stage in stages),
            "flops": sum(stage.flops_per_step * stage.num_steps * stage.repeats for stage in stages),
            "disk_bytes": sum(stage.disk_bytes for stage in stages),
            "fits": all(stage.fits for stage in stages),
        },
    }


def _narrow(command: Command, shape: StageShape) -> StageShape:
    """The stage of that name, or the first one, of a preset that trains on a laptop."""
    overrides = ["experiment=enhance_train_small"] if command.name == "enhance-video" else []
    found = shapes_of(command, compose(command, overrides))
    return next((one for one in found if one.name == shape.name), found[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Libraries warn of what fake tensors do; nothing of it concerns a plan."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
