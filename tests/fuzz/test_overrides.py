"""Overrides that nobody meant: composed, checked and refused in one line."""

import pytest

from tests.fuzz.harness import Fuzz
from toolkit.commands import COMMANDS
from toolkit.configs import compose, known_keys

NUM = 100  # a composition takes a tenth of a second
KEYS = [
    "", ".", "..", "x", "seed.x", "hydra.x", "+", "++", "~", "a b", "é", "seed@x", "@", "[0]", "${x}", "_target_", "/",
    "a/b",
]  # fmt: skip
WORDS = [
    "", "{a:1}", "{a:{b:2}}", "[1,2]", "[", "]", "{", "}", "'", '"', "null", "true", "nan", "inf", "-inf", "1e400",
    "-1", "0", "10000000000000000000000", "${seed}", "${nope}", "${", "${oc.env:NOPE}", "${oc.decode:[}", "???", "a=b",
    "a,b",
    "choice(1,2)", "range(1,3)", "glob(*)", "int(x)", "[{}]", "{_target_: os.system}", "x" * 3000, "[" * 200, "'${'",
    "\n", "{seed: 1, seed: 2}", "{1: 2}", "{null: 1}", "1:2", "0x10", "1_000", " ", "<none>", "!!python/name:os.system",
    "1", "2", "0.5", "x", "cpu", "false", "[1]", "\\",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_overrides(command):
    if not COMMANDS[command].room.startswith("toolkit."):
        return
    fuzz = Fuzz(f"overrides of {command}")
    dice, keys = fuzz.random, sorted(known_keys(COMMANDS[command]))
    for _ in range(NUM):
        words = []
        for _ in range(dice.choice([1, 1, 2])):
            key = dice.choice(KEYS) if dice.random() < 0.15 else dice.choice(keys)
            key = key + dice.choice(["", "", "", "", ".x", ".0", "."])
            equals = "=" if dice.random() < 0.95 else ""
            words.append(f"{dice.choice(['', '', '', '+', '++', '~'])}{key}{equals}{dice.choice(WORDS)}")
        fuzz.attempt(words, lambda words=words: compose(COMMANDS[command], words))
    fuzz.check(least=NUM)
