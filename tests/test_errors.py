"""What is said of errors: in one line, and never nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import toolkit
from toolkit.errors import JobError, UserError, brief, with_kind


def test_an_error_without_words_is_named_by_its_kind():
    assert brief(EOFError()) == with_kind(EOFError()) == "EOFError"
    assert brief(ValueError(" \n ")) == "ValueError"


def test_what_an_error_says_is_one_line_of_at_most_so_many_letters():
    assert brief(ValueError("a\n  b\tc")) == "a b c"
    assert brief(ValueError("x" * 200)) == "x" * 160
    assert brief(ValueError("x" * 200), None) == "x" * 200
    assert with_kind(KeyError("name")) == "KeyError: 'name'"
    assert with_kind(ValueError("x" * 200), 3) == "ValueError: xxx"


@pytest.mark.parametrize("kind", [UserError, JobError])
def test_our_own_errors_are_said_without_their_kind(kind):
    assert with_kind(kind("data.path: no such folder")) == "data.path: no such folder"


def test_nobody_flattens_errors_by_hand():
    """So that an exception without words is never shown as nothing."""
    by_hand = re.compile(r"""join\(str\((?:error|e|exc|problem)\)\.split\(\)\)""")
    sources = Path(toolkit.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if by_hand.search(path.read_text(encoding="utf-8"))] == []
