"""``toolkit plan``: four commands without their data, JSON, and what is refused."""

import importlib
import json
import logging

import pytest
import torch
from typer.testing import CliRunner

from toolkit.cli import app
from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.errors import UserError
from toolkit.plan.command import TRAINING, make_plan, shapes_of
from toolkit.plan.devices import parse
from toolkit.plan.pages import tables
from toolkit.plan.trace import trace

SMOKE = {
    "train-disco": ["experiment=disco_smoke"],
    "train-ivideogpt": ["experiment=ivideogpt_smoke"],
    "grow-llm": ["experiment=grow_smoke"],
    "enhance-video": ["experiment=enhance_train_small", "network.block_out_channels=[16,16]", "data.crop_px=16"],
}
STAGES = {
    "train-disco": ["denoiser", "baseline", "prior"],
    "train-ivideogpt": ["tokenizer", "transformer"],
    "grow-llm": ["base", "grown", "scratch", "continued"],
    "enhance-video": ["train"],
}


def shapes(name, *more):
    return shapes_of(COMMANDS[name], compose(COMMANDS[name], [*SMOKE[name], *more]))


def trainable(networks):
    return sum(one.numel() for one in networks.trained.parameters() if one.requires_grad)


@pytest.mark.parametrize("name", TRAINING)
def test_the_stages_that_train_are_found_in_order(name):
    assert [shape.name for shape in shapes(name)] == STAGES[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
def test_every_stage_is_traced_with_the_parameters_of_the_built_network_and_its_loss_runs(name):
    torch.manual_seed(0)
    for shape in shapes(name):
        networks, seen = shape.build(), trace(shape, 1)
        assert seen.trained == trainable(networks) > 0 and seen.flops > 0 and seen.activations > 0, shape.name
        loss = networks.loss(2)
        loss.backward()
        assert torch.isfinite(loss), shape.name


@pytest.fixture(scope="module")
def planned():
    """Two plans of one config."""
    words = [*SMOKE["grow-llm"], "stage=pretrain"]
    config = compose(COMMANDS["grow-llm"], words)
    return [
        make_plan(COMMANDS["grow-llm"], config, shapes("grow-llm", "stage=pretrain"), parse("2xH100")) for _ in range(2)
    ]


def test_parameters_are_those_of_the_built_network(planned):
    networks = shapes("grow-llm", "stage=pretrain")[0].build()
    assert planned[0]["stages"][0]["trained"] == trainable(networks)


def test_sixteen_bits_of_either_kind_are_planned_alike():
    found = []
    for precision in ("bf16", "fp16"):
        words = ["stage=pretrain", f"precision={precision}"]
        config = compose(COMMANDS["grow-llm"], [*SMOKE["grow-llm"], *words])
        plan = make_plan(COMMANDS["grow-llm"], config, shapes("grow-llm", *words), parse("H100"))
        found.append({key: value for key, value in plan["stages"][0].items() if key != "notes"})
    assert found[0] == found[1] and "fp16 is counted as bf16" in plan["stages"][0]["notes"][-1]


def test_json_is_the_same_every_time_and_complete(planned):
    assert json.dumps(planned[0]) == json.dumps(planned[1])
    assert list(planned[0]) == ["command", "devices", "assumptions", "stages", "total"]
    total = planned[0]["total"]
    assert total["device_hours"] == pytest.approx(total["time_s"] * 2 / 3600)
    assert {"memory", "micro_batch_size", "exchanged", "step_s", "disk_bytes"} <= set(planned[0]["stages"][0])


def test_the_tables_name_every_stage(planned):
    words = [cell for table in tables(planned[0]) for row in (table.columns, *table.texts()) for cell in row]
    assert {"pretrain", "micro-batch", "optimiser's moments", "device-hours"} <= set(words)
    assert tables(planned[0])[0].title == "grow-llm on 2 x H100"


@pytest.mark.parametrize("name", ["ivideogpt_oxe64", "disco_imagenet64"])
def test_a_preset_whose_data_is_absent_is_planned(name):
    command = COMMANDS["train-disco" if name.startswith("disco") else "train-ivideogpt"]
    assert shapes_of(command, compose(command, [f"experiment={name}"]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample-icg"], "sample-icg: trains nothing"),
        (["train-disko"], "did you mean 'train-disco'"),
        (["train-disco", "--devices", "H10"], "did you mean 'H100'"),
        (["train-disco", "--devices", "H100", "--measure"], "use it with --devices here"),
        (["train-disco", "data=folder"], "data.size_px: only the files of data.name=folder would tell; set it"),
        (["train-disco", "stage=sample", "model=x"], "no stage of this config trains"),
        (["train-disco", "nope=1"], "nope: no such key"),
        (["train-disco", "--devices", "3xH100"], "must be divisible by 3 devices"),
        (["grow-llm", "optim.sharding=fsdp"], "spreads weights over several devices"),
        (["enhance-video"], "stage=enhance: trains nothing"),
        (
            ["train-ivideogpt", "data=episodes_folder", "data.size_px=null"],
            "data.size_px: frames of data.name=episodes_folder",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(words, said):
    done = CliRunner().invoke(app, ["plan", *words])
    assert isinstance(done.exception, UserError) and said in str(done.exception) and "\n" not in str(done.exception)
    assert logging.root.manager.disable == logging.NOTSET  # what a later job logs is not lost


def test_the_help_page_needs_no_torch():
    """As tests/test_layers.py has it of the whole command line; here of what the page names."""
    done = CliRunner().invoke(app, ["plan", "--help"])
    assert done.exit_code == 0 and "--device-file" in done.output
    assert not hasattr(importlib.import_module("toolkit.cli"), "torch")
