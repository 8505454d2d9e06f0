"""``--keys``: every key with its default, range and sentence, found by words."""

import io
from dataclasses import dataclass, field

import pytest
from rich.console import Console

from toolkit.commands import COMMANDS
from toolkit.configs import schemas
from toolkit.errors import UserError
from toolkit.help import keys
from toolkit.help.pages import print_keys
from toolkit.schema import Job, choice, fields_of, number

JOBS = [command for name, command in COMMANDS.items() if name != "train-toy"]  # which only tests register


@dataclass
class Parent:
    """Something else first. Its own sentence: not a key.

    width: of a layer. depth, heads: how many (see E.T. 1982); ``depth`` says it for the layers. name: text, not: a key.
    """

    width: int = 1
    depth: int = 2
    heads: int = 3
    name: str = ""


@dataclass
class Child(Parent):
    """A child.

    width: of the child's layers; None is not said.
    rate: with a paragraph of its own,
        on two lines. Then a second sentence.
    """

    rate: float | None = None
    items: list[int] = field(default_factory=list)


def test_docstrings_say_what_keys_mean():
    assert keys.meanings(Child) == {
        "width": "of the child's layers; None is not said.",
        "depth": "how many (see E.T. 1982); ``depth`` says it for the layers.",
        "heads": "how many (see E.T. 1982); ``depth`` says it for the layers.",
        "name": "text, not: a key.",
        "rate": "with a paragraph of its own, on two lines. Then a second sentence.",
    }
    assert keys.summary(Parent) == "Something else first"
    assert keys.first_sentence(keys.meanings(Child)["rate"]) == "with a paragraph of its own, on two lines"
    assert keys.plain("``data.path`` or None") == "data.path or null"


@dataclass
class Typed:
    share: float = number(0.5, above=0, below=1)
    count: int | None = number(None, least=1, most=8)
    solver: str = choice("heun", "heun", "ddim")
    layers: list[int] = number([1, 2], least=1)
    names: list[str] | None = None
    flag: bool = False


def test_types_and_ranges_in_words():
    import typing

    hints = typing.get_type_hints(Typed)
    assert {key: keys.kind_of(hints[key], item.metadata) for key, item, _ in fields_of(Typed())} == {
        "share": "number > 0, < 1",
        "count": "whole number ≥ 1, ≤ 8, or null",
        "solver": "one of heun, ddim",
        "layers": "list of whole numbers ≥ 1",
        "names": "list of texts, or null",
        "flag": "true or false",
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-3, "0.001"), (0.1 + 0.2, "0.30000000000000004"), ([1, 2.0], "[1,2]"), (None, "null"), (True, "true")],
)
def test_defaults_are_shown_as_one_would_type_them(value, text):
    assert keys.shown(value, ",") == text


@pytest.mark.parametrize("command", JOBS, ids=lambda command: command.name)
def test_every_key_is_listed_once(command):
    found = [key.name for key in keys.keys_of(command)]
    assert len(found) == len(set(found))
    for (group, _), schema in schemas(command).items():
        for key, _, value in fields_of(schema(), f"{group}." if group else ""):
            nested = group is None and (value == "???" or any(name.startswith(f"{key}.") for name in found))
            assert nested or key in found, key


def test_a_key_of_another_choice_says_which():
    found = {key.name: key for key in keys.keys_of(COMMANDS["train-disco"])}
    assert found["network.layer_norm"].needs == "network=mlp or mlp_32 or mlp_narrow"
    assert found["network.width"].needs == "" and found["network.width"].default == 16
    assert found["network"].kind.startswith("one of adm, ") and found["network"].default == "adm_tiny"
    assert "icg_smoke" not in found["experiment"].kind and "disco_smoke" in found["experiment"].kind


def test_words_search_names_and_sentences_and_choices_compose():
    disco = COMMANDS["train-disco"]
    assert [key.name for key in keys.find(disco, ["OPTIM", "lr"])] == ["optim.lr", "optim.encoder_lr"]
    assert "seed" in [key.name for key in keys.find(disco, ["reproduc"])]  # only its sentence says so
    (lr,) = keys.find(disco, ["optim.lr=", "experiment=disco_toy"])
    assert lr.default == 2e-3


@pytest.mark.parametrize(
    ("word", "hint"), [("wramup", "did you mean 'warmup'"), ("optim.lrr", "did you mean 'optim.lr'"), ("zzz", "no key")]
)
def test_a_word_that_no_key_says_is_one_line(word, hint):
    with pytest.raises(UserError, match=hint) as error:
        keys.find(COMMANDS["train-disco"], [word])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("width", [60, 80, 130, 200])
def test_the_list_fits_the_terminal(width):
    page = io.StringIO()
    print_keys(COMMANDS["train-disco"], [], Console(file=page, width=width, force_terminal=True, color_system=None))
    lines = page.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < 5 * len(keys.keys_of(COMMANDS["train-disco"]))  # no column is squeezed to a letter
    for key in keys.keys_of(COMMANDS["train-disco"]):
        assert any(line.startswith(key.name[: width // 3]) for line in lines)


def test_a_pipe_gets_one_line_a_key(capsys):
    print_keys(COMMANDS["train-disco"], ["optim."], Console(file=io.StringIO()))
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {len(row) for row in rows} == {4}
    assert ["optim.betas", "[0.9,0.999]", "list of numbers ≥ 0, < 1"] in [row[:3] for row in rows]


@pytest.mark.parametrize("command", JOBS, ids=lambda command: command.name)
def test_every_key_has_a_sentence_in_its_dataclass(command):
    assert not [key.name for key in keys.keys_of(command) if len(key.meaning.split()) < 2]


def test_a_renamed_key_leads_to_its_new_name(capsys):
    print_keys(COMMANDS["train-ivideogpt"], ["tokenizer_optim", "lr"], Console(file=io.StringIO()))
    printed = capsys.readouterr()
    assert printed.out.startswith("optim.tokenizer.lr\t") and len(printed.out.splitlines()) == 1
    assert printed.err == "toolkit: tokenizer_optim is now optim.tokenizer\n"


def test_shared_keys_come_last_under_a_heading_of_their_own():
    found = keys.keys_of(COMMANDS["grow-llm"])
    shared = [key.name for key in found if key.group == keys.summary(Job)]
    assert shared == [key.name for key in found[-len(shared) :]] and "seed" in shared and "stage" not in shared
