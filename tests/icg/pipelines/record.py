"""``python -m tests.icg.pipelines.record``: compare every pipeline, write the record and the table of docs/icg.md."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers

from tests.icg.pipelines import films, pictures, unets  # noqa: F401 (they fill CASES)
from tests.icg.pipelines.compare import bank, compare
from tests.icg.pipelines.parts import CASES

ROOT = Path(__file__).resolve().parents[3]
RECORD, PAGE = ROOT / "experiments" / "icg" / "pipelines.json", ROOT / "docs" / "icg.md"
BEGIN, END = "<!-- pipelines: written by python -m tests.icg.pipelines.record -->", "<!-- end of pipelines -->"


def outcome(name: str) -> dict[str, str]:
    """What is recorded of one pipeline: icg, tsg, bank, where they apply."""
    found = {kind: one.said for kind, one in compare(name).items()}
    text = bank(name)
    return found if text is None else found | {"bank": text}


def page(record: dict[str, Any]) -> str:
    """The lines between the marks of docs/icg.md."""
    rows = record["pipelines"]
    lines = [
        f"Of diffusers {record['diffusers']}, {len(rows)} pipelines at toy size:", "",
        "| | tried | exact | refused |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    for kind, label in (("icg", "ICG"), ("tsg", "TSG"), ("bank", "`random_token_bank`")):
        said = [row[kind] for row in rows.values() if kind in row]
        good = sum(one in ("exact", "made") for one in said)
        lines.append(f"| {label} | {len(said)} | {good} | {len(said) - good} |")
    whole = [name.removesuffix("Pipeline") for name, row in rows.items() if set(row.values()) <= {"exact", "made"}]
    lines += ["", "Exact in all that applies: " + ", ".join(sorted(whole)) + ".", ""]
    refused = Counter((name, line) for name, row in rows.items() for line in row.values() if line[0:5] not in SAID)
    lines += ["| refused | with the line |", "|---|---|"]
    lines += [f"| {name.removesuffix('Pipeline')} | {line} |" for name, line in refused]
    return "\n".join(lines)


SAID = ("exact", "made")


def with_page(text: str, record: dict[str, Any]) -> str:
    """docs/icg.md with the table of this record."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{page(record)}\n\n{END}{after}"


def main() -> None:
    """Try everything, then write."""
    record = {"diffusers": diffusers.__version__, "pipelines": {name: outcome(name) for name in CASES}}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    PAGE.write_text(with_page(PAGE.read_text(), record))


if __name__ == "__main__":
    main()
