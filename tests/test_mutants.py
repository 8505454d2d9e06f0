"""The table of broken lines stays true to the code: each old fragment is still once in its file."""

import ast
from pathlib import Path

import pytest

from tests.mutants import read_mutants

ROOT = Path(__file__).parent.parent
MUTANTS = read_mutants()


@pytest.mark.parametrize("file", sorted({one.file for one in MUTANTS}))
def test_each_old_fragment_is_once_in_its_file_and_each_broken_file_still_parses(file):
    whole = (ROOT / file).read_text(encoding="utf-8")
    stands = ast.dump(ast.parse(whole))
    for one in MUTANTS:
        if one.file == file:
            assert whole.count(one.old) == 1, one.old
            broken = ast.dump(ast.parse(whole.replace(one.old, one.new)))
            assert broken != stands, one.old


def test_each_named_test_is_there_and_no_line_is_broken_twice_the_same_way():
    assert len({(one.file, one.old, one.new) for one in MUTANTS}) == len(MUTANTS)
    for one in MUTANTS:
        for name in {name.partition("::")[0] for name in one.tests}:
            assert (ROOT / name).exists(), f"{one.file}: {name}"
