"""Python values as words of a command line: Hydra reads from each what was meant."""

import random
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from toolkit.spelling import spelled, words


def as_hydra_reads(text):
    value = OverridesParser.create().parse_override(f"key={text}").value()
    return getattr(value, "text", value)


@pytest.mark.parametrize("value", [0, -3, 1e-3, 1e-30, 2.5, True, False, None, [1, 2.5], [], "digits", "runs/a/seed_1"])
def test_values_keep_their_type(value):
    read = as_hydra_reads(spelled(value))
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    "text", ["", "1", "1e-3", "null", "True", "nan", "inf", "1_0", "a b", "it's/[x]", "r/{a},b", "=", "C:\\x\\"]
)
def test_text_stays_text(text):
    read = as_hydra_reads(spelled(text))
    assert read == text and isinstance(read, str)


def test_any_text_stays_text():
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choice("ab1 '\\\"={}[](),:%#é/.\n~!+-_") for _ in range(rng.randint(0, 8)))
        assert as_hydra_reads(spelled(text)) == text, repr(text)


def test_words_that_need_no_quotes_have_none():
    assert spelled("runs/reproduce/disco/seed_1") == "runs/reproduce/disco/seed_1"
    assert spelled(Path("a b")) == "'a b'" and spelled((1, "x y")) == "[1,'x y']"
    assert spelled(np.float32(0.5)) == "0.5" and spelled(np.int64(3)) == "3"


def test_mappings_stand_for_the_keys_below():
    keys = {"seed": 1, "optim": {"lr": 1e-3, "ema": {"half_life": 2}}, "data.path": None}
    assert words(keys) == ["seed=1", "optim.lr=0.001", "optim.ema.half_life=2", "data.path=null"]
