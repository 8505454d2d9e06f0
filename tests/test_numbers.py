"""Every number in the tables of README.md, docs/ and experiments/ names its record, and says what that says.

Above a table of measured numbers stands a comment, which pages do not show:

    <!-- numbers
    @ disco/default_run/seed_*.json metrics
    quality.frechet.ours.nfe_7 | quality.frechet.baseline.nfe_7 | floor.frechet
    -->

``@`` names files of experiments/ and a place in them; ``@b`` others, which keys with ``b:`` are of. Each other line
is a row of the table: a key per number, from the second cell on, in order. ``key / 60`` and ``key / key`` divide,
``=`` is a number that was set, not measured, ``*`` in a key the mean over what lies there. Several files: the mean, and
± the standard deviation. A claim: its centre and interval, ``-CLAIM`` the other way round. Where numbers are not
measurements: ``<!-- numbers: none, WHY -->``. Tables that `toolkit reproduce` writes are held to results.json by
tests/claims/test_evidence.py.
"""

import json
import re
import statistics
from pathlib import Path

import pytest

from toolkit.claims.results import BEGIN, END

REPO = Path(__file__).parent.parent
PAGES = [REPO / "README.md", *sorted(REPO.glob("docs/*.md")), *sorted(REPO.glob("experiments/**/README.md"))]
COMMENT = re.compile(r"<!-- numbers(.*?)-->\n\n?", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?: ± [\d.e-]+| \[-?[\d.]+, -?[\d.]+\])?(?![\w]*\d)")
MEASURED = re.compile(r"(?<![\w.-])\d+\.\d+(?![\w.]*\d)(?!\))|±")
LINK = re.compile(r"\]\([^)]*\)|`[^`]*`")


def cells(row):
    return [LINK.sub("", cell).strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def tables(page):
    """``(comment or None, rows)`` of every table of a page."""
    before, _, rest = page.read_text().partition(BEGIN)
    text = before + rest.partition(END)[2]
    for match in re.finditer(r"^\|.*\n\|[ :|-]+\|\n((?:\|.*\n?)+)", text, re.MULTILINE):
        above = [found for found in COMMENT.finditer(text, 0, match.start()) if found.end() == match.start()]
        yield (above[0][1] if above else None), match[1].splitlines()


def find(record, key):
    """The value under dotted ``key``, of which parts may have dots themselves."""
    if isinstance(record, list):
        head, _, rest = key.partition(".")
        return find(record[int(head)], rest) if rest else record[int(head)]
    if key in record:
        return record[key]
    if key.startswith("*."):
        return statistics.fmean(find(one, key[2:]) for one in record.values())
    for place in (index for index, letter in enumerate(key) if letter == "."):
        if key[:place] in record and isinstance(record[key[:place]], (dict, list)):
            return find(record[key[:place]], key[place + 1 :])
    raise KeyError(key)


def value(record, key):
    if key.startswith("-"):
        claim = find(record, key[1:])
        return {"center": -claim["center"], "interval_95": [-end for end in reversed(claim["interval_95"])]}
    first, slash, second = key.partition(" / ")
    found = find(record, first)
    return found / (float(second) if re.fullmatch(r"[\d.]+", second) else find(record, second)) if slash else found


def check(text, values, where):
    """``text`` is what ``values`` say, rounded as it is written."""
    main, *others = re.findall(r"-?[\d.]+(?:e[-+]?\d+)?", text.replace(",", "") if "[" not in text else text)
    told = values[0] if isinstance(values[0], dict) else None
    expected = told and [*(told[key] for key in ("center", "mean", "gain") if key in told), *told["interval_95"]]
    if expected is None:
        expected = [statistics.fmean(values), *([statistics.stdev(values)] if "±" in text else [])]
    assert len(expected) >= 1 + len(others), where
    for shown, true in zip([main, *others], expected, strict=False):
        mantissa, _, exponent = shown.partition("e")
        step = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
        assert abs(float(shown) - true) <= 0.5000001 * step, f"{where}: {text} is {expected} in the record"


def check_table(comment, rows, name):
    records, rows = {}, iter(rows)
    for line in comment.strip().splitlines():
        if line.startswith("@"):
            alias, pattern, place = [*line[1:].split(" "), ""][:3]
            files = sorted((REPO / "experiments").glob(pattern))
            assert files, f"{name}: no {pattern}"
            found = [json.loads(file.read_text()) for file in files]
            records[alias] = [find(record, place) if place else record for record in found]
            continue
        row = next(rows)
        shown = [number for cell in cells(row)[1:] for number in NUMBER.findall(cell)]
        keys = [] if line == "-" else line.split(" | ")
        assert len(shown) == len(keys), f"{name}: {row}: {shown} for {keys}"
        for text, key in zip(shown, keys, strict=True):
            if key != "=":
                alias, _, inside = key.rpartition(":")
                check(text, [value(record, inside) for record in records[alias]], f"{name}: {row[:60]}: {key}")
    assert next(rows, None) is None, f"{name}: rows without keys"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO).with_suffix("")))
def test_every_measured_number_in_a_table_is_what_its_record_says(page):
    for comment, rows in tables(page):
        measured = any(MEASURED.search(cell) for row in rows for cell in cells(row)[1:])
        if comment is None:
            assert not measured, f"{page}: {rows[0]}: a table of numbers without a `numbers` comment"
        elif comment.startswith(": none, "):
            continue
        else:
            check_table(comment, rows, page)


def test_a_number_that_its_record_does_not_say_is_found():
    comment = "\n@ disco/default_run/seed_*.json metrics\nloss.ours.sigma_1 | =\n"
    check_table(comment, ["| loss | 0.0805 ± 0.00084 at 2 |"], "page")
    for wrong in ("0.0806", "0.0805 ± 0.00094", "0.08 ± 0.1", "0.0805 at 3"):
        with pytest.raises(AssertionError):
            check_table(comment, [f"| loss | {wrong} at 2 |"], "page")


def test_there_are_tables_of_records():
    records = [comment for page in PAGES for comment, _ in tables(page) if comment and not comment.startswith(": none")]
    assert len(records) >= 8
