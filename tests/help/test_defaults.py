"""Defaults as help shows them are those that Hydra composes."""

import dataclasses

import pytest

from tests.composed import composed
from toolkit.commands import COMMANDS
from toolkit.errors import UserError
from toolkit.help import defaults
from toolkit.paths import presets

JOBS = [name for name in COMMANDS if name != "train-toy"]  # which only tests register


def assert_same(command, choices):
    _, ours = defaults.compose(COMMANDS[command], choices)
    theirs = composed(command, *(f"{group}={option}" for group, option in choices.items()))
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert type(ours) is type(theirs)


@pytest.mark.parametrize("preset", presets())
def test_every_preset_is_as_hydra_composes_it(preset):
    assert_same(presets()[preset][0], {"experiment": preset})


@pytest.mark.parametrize("command", JOBS)
def test_a_command_without_a_preset_is_as_hydra_composes_it(command):
    assert_same(command, {})


@pytest.mark.parametrize(
    ("command", "choices"),
    [
        ("train-disco", {"network": "uvit"}),
        ("train-disco", {"network": "ncsnpp", "experiment": "disco_mnist"}),
        ("train-disco", {"data": "mnist8", "experiment": "disco_toy_grid25"}),
        ("sample-icg", {"guidance": "icg_tsg", "data": "digits"}),
        ("sample-icg", {"guidance": "autoguidance", "network": "mlp_narrow"}),
        ("grow-llm", {"data": "text_perl"}),
    ],
)
def test_choices_are_as_hydra_composes_them(command, choices):
    assert_same(command, choices)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"network": "admm"}, "network=admm: did you mean 'adm'"),
        ({"network": "null"}, "network=null: a choice cannot be null; write ~network to leave it out"),
        ({"experiment": "icg_smoke"}, "experiment=icg_smoke: a preset of sample-icg"),
        ({"experiment": "disco_smok"}, "experiment=disco_smok: no such preset; did you mean 'disco_smoke'"),
        ({"optim.lr": "1"}, "optim.lr=: --keys takes words to look for, and the choices data=, network=, experiment="),
    ],
)
def test_a_wrong_choice_is_one_line(choices, message):
    with pytest.raises(UserError) as error:
        defaults.compose(COMMANDS["train-disco"], choices)
    assert str(error.value).startswith(message)


@dataclasses.dataclass
class Inner:
    """A part of a config."""

    a: int = 1
    b: int = 2


@dataclasses.dataclass
class Outer:
    """A config of two parts."""

    kept: Inner | None = dataclasses.field(default_factory=Inner)
    fresh: Inner | None = None


def test_a_preset_may_take_a_part_away_and_set_keys_of_one_that_is_not_there_yet():
    made = Outer()
    defaults._merge(made, {"kept": None, "fresh": {"b": 5}})
    assert made == Outer(None, Inner(1, 5))
