"""The generated tables of docs/robustness.md."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "robustness.md"
BEGIN = "<!-- numbers: none, counted by the command above -->\n\n"


def put(name: str, columns: list[str], rows: list[tuple[str, ...]]) -> None:
    """Write the rows into the table that ends with the mark of ``name``; rows that were not tried stay as they were."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"(?<={re.escape(BEGIN)})((?:\|.*\n)+)\n<!-- end of {name} -->", text)
    assert found, f"{PAGE}: no table of {name}"
    lines = {_name(line): line for line in found[1].splitlines()[2:]}
    lines |= {row[0]: f"| {' | '.join(row)} |" for row in rows}
    table = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *lines.values()]
    PAGE.write_text(text[: found.start(1)] + "\n".join(table) + "\n" + text[found.end(1) :], encoding="utf-8")


def _name(line: str) -> str:
    return line.strip("| ").split(" | ")[0]
