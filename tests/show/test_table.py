import math

import pytest
from rich.console import Console

from toolkit.errors import UserError
from toolkit.show.table import Spread, Table, format_number, number_in_key

TABLE = Table(
    "Loss at [b]σ=1[/b]",
    ["variant", "loss", "used"],
    [["ours | a", Spread(0.123456, 0.00123, 3), True], ["<script>x</script>", 12345.678, None]],
    "lower is better & so on",
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (123456.7, "123457"),
        (295_899_267, "295899267"),
        (1.5e9, "1.5e+09"),
        (0.00001234, "1.234e-05"),
        (0.0, "0"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers_have_four_significant_digits(value, text):
    assert format_number(value) == text


def test_spread_is_the_sample_standard_deviation():
    spread = Spread.of([1.0, 2.0, 3.0])
    assert (spread.mean, spread.sd, spread.n) == (2.0, 1.0, 3)
    assert str(spread) == "2 ± 1 (n=3)"
    assert str(Spread.of([0.5])) == "0.5 (n=1)"
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_markdown_escapes_pipes_and_aligns_numbers():
    lines = TABLE.to_markdown().splitlines()
    assert lines[2] == "| variant | loss | used |"
    assert lines[3] == "| --- | ---: | --- |"
    assert lines[4] == "| ours \\| a | 0.1235 ± 0.0012 (n=3) | yes |"
    assert lines[-1] == "lower is better & so on"


def test_html_escapes_everything():
    text = TABLE.to_html()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert '<td class="num">12346</td>' in text
    assert "lower is better &amp; so on" in text


def test_terminal_shows_text_without_markup():
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(TABLE.to_rich())
    text = console.export_text()
    assert "[b]σ=1[/b]" in text
    assert "0.1235 ± 0.0012 (n=3)" in text


def test_single_line_rows_are_cut_in_the_last_column_only():
    table = Table("", ["run", "status", "overrides"], [["train-disco/a" * 4, "done", "a=1 " * 50]], single_line=True)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table.to_rich())
    (row,) = [line for line in console.export_text().splitlines() if "train-disco" in line]
    assert "train-disco/a" * 4 in row
    assert "done" in row
    assert row.rstrip().endswith("…")


def test_json_round_trip(tmp_path):
    assert Table.load(TABLE.save(tmp_path / "tables" / "loss.json")) == TABLE


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"columns": ["a"], "rows": [[1, 2]]}', '{"columns": 3, "rows": []}'])
def test_damaged_json_is_named(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"broken\.json: not a table"):
        Table.load(path)


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0p05"), (1.0, "1"), (10, "10"), (1.5, "1p5"), (-0.5, "m0p5"), (1e-5, "1em05")]
)
def test_a_number_in_a_key_has_no_dots(value, text):
    assert number_in_key(value) == text
