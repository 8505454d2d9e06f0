"""The table of broken lines stays true to the code: each old fragment is still once in its file."""

import ast
import functools
import json
import subprocess
from pathlib import Path

import pytest

from tests import mutants, random_breaks
from tests.mutants import Mutant, read_mutants

ROOT = Path(__file__).parent.parent
MUTANTS = read_mutants()


@pytest.mark.parametrize("file", sorted({one.file for one in MUTANTS}))
def test_each_old_fragment_is_once_in_its_file_and_each_broken_file_still_parses(file):
    whole = (ROOT / file).read_text(encoding="utf-8")
    pieces, parsed = _pieces(whole), functools.cache(lambda text: ast.dump(ast.parse(text)))
    for one in MUTANTS:
        if one.file == file:
            assert whole.count(one.old) == 1, one.old
            held = next((piece for piece in pieces if one.old in piece), whole)  # parsing a piece is ten times faster
            assert parsed(held.replace(one.old, one.new)) != parsed(held), one.old


def _pieces(whole):
    """The source of each statement at the top of a file."""
    lines = whole.splitlines(keepends=True)
    body = ast.parse(whole).body
    starts = [min(one.lineno for one in (node, *getattr(node, "decorator_list", ()))) - 1 for node in body]
    return ["".join(lines[start:end]) for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]


def test_each_named_test_is_there_and_no_line_is_broken_twice_the_same_way():
    assert len({(one.file, one.old, one.new) for one in MUTANTS}) == len(MUTANTS)
    for one in MUTANTS:
        for name in {name.partition("::")[0] for name in one.tests}:
            assert (ROOT / name).exists(), f"{one.file}: {name}"


def test_the_table_counts_what_was_said_of_the_bytes_of_now_apart_from_what_was_said_before(tmp_path, monkeypatch):
    made = [Mutant("toy", "tests/mutants.py", ("tests/mutants.py",), str(n), "", "why", "no way") for n in range(4)]
    monkeypatch.setattr(mutants, "read_mutants", lambda since=None: made)
    monkeypatch.setattr(mutants, "commit", lambda: "abc")
    said = [(made[0].key, "noticed"), (made[1].key, "survived"), ("other bytes", "noticed")]
    rows = [
        {"key": key, "file": one.file, "old": one.old, "new": one.new, "outcome": outcome}
        for one, (key, outcome) in zip(made, said, strict=False)
    ]
    (tmp_path / "results").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = mutants.table(tmp_path / "results")
    assert "| toy | 4 | 1 | 0 | 1 | 1 | 0 | 1 |" in found and "`1` -> `` (why): no way" in found


def test_what_survived_before_is_tried_first_and_what_was_noticed_last():
    lines = [Mutant("toy", "file", (), str(n), "", "why") for n in range(3)]
    said = [("noticed", lines[0]), ("survived", lines[2])]
    known = {word: {"file": one.file, "old": one.old, "new": one.new, "outcome": word} for word, one in said}
    found = mutants.most_wanted([("", one) for one in lines], known)
    assert [one.old for _, one in found] == ["2", "1", "0"]


def test_since_a_commit_are_lines_it_does_not_have_then_lines_whose_file_or_tests_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "TABLES", tmp_path)
    table = tmp_path / "toy.toml"
    groups = {"a.py": "tests/one/test.py", "b.py": "tests/one", "c.py": "tests/two.py::test", "d.py": "tests/three.py"}
    line = '[[group]]\nfile = "{}"\ntests = ["{}"]\nlines = [["x", "y", "why"]]\n'
    lines = [line.format(*pair) for pair in groups.items()]
    (tmp_path / "tests" / "one").mkdir(parents=True)
    for name in ("a.py", "b.py", "c.py", "d.py", "tests/one/test.py", "tests/two.py", "tests/three.py"):
        (tmp_path / name).write_text("x")
    table.write_text("".join(lines))
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*name, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    assert read_mutants(since="HEAD") == []
    table.write_text("".join(lines) + lines[3].replace('"x"', '"new"'))
    (tmp_path / "room.toml").write_text(lines[3].replace("d.py", "e.py"))
    for changed in ("c.py", "tests/one/test.py"):
        (tmp_path / changed).write_text("other")
    assert [(one.file, one.old) for one in read_mutants(since="HEAD")] == [
        ("e.py", "x"),
        ("d.py", "new"),
        *((file, "x") for file in ("a.py", "b.py", "c.py")),
    ]


def test_random_breaks_are_a_function_of_the_seed_and_each_is_once_in_its_file_and_python(monkeypatch):
    some = sorted({one.file: one for one in MUTANTS}.items())[::40]
    monkeypatch.setattr(mutants, "read_mutants", lambda only: [one for _, one in some])
    found = mutants.random_mutants(8, 3)
    assert found == mutants.random_mutants(8, 3) != mutants.random_mutants(8, 4)
    assert len({one.what for one in found}) == 8 and len({one.file for one in found}) == 8
    for one in found:
        whole = (ROOT / one.file).read_text(encoding="utf-8")
        assert whole.count(one.old) == 1 and one.tests
        assert ast.dump(ast.parse(whole.replace(one.old, one.new))) != ast.dump(ast.parse(whole))


def test_random_breaks_leave_docstrings_messages_and_top_levels_alone():
    text = (
        'A = 1 + 1\n\n\ndef f(x):\n    """1 + 1"""\n    if x < 1:\n        raise ValueError(1 + 1)\n    return x - 1\n'
    )
    assert list(random_breaks._breaks(text)) == [
        ("    if x < 1:", "    if x <= 1:"),
        ("    return x - 1", "    return x + 1"),
    ]
