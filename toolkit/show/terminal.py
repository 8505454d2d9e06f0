"""What commands leave on the terminal: tables, and at the end of a run where things are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.runs.output import check_written, printable
from toolkit.runs.record import Run
from toolkit.show.table import Table


def show(*tables: Table) -> None:
    """Print tables, one below the other. Raises UserError when they cannot be written, unless the reader left."""
    _print(*tables)
    check_written()


def show_json(value: Any) -> None:
    """Print plain values as JSON; a number that JSON does not know is null. Raises UserError as :func:`show` does."""
    print(json.dumps(_finite(value), indent=2))
    check_written()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_end(
    run: Run,
    places: Mapping[str, Path],
    *,
    tables: Sequence[str] = ("headline",),
    first: Sequence[str] = (),
    last: Sequence[str] = (),
) -> None:
    """The tables of a finished run, and a panel that says where it, its report and what else is there lie.

    Args:
        places: name -> file or folder; what does not exist is left out.
        tables: names in the run's folder of tables; a run that measured nothing has none.
        first: lines above the folders in the panel. last: lines below them.
    """
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    files = [run.dir / "tables" / f"{name}.json" for name in tables]
    _print(*(Table.load(file) for file in files if file.exists()))
    found = {"run": run.dir, "report": run.dir / "report.html"}
    found |= {name: path for name, path in places.items() if path.exists()}
    lines = [*first, *(f"{name:<8} {path}" for name, path in found.items()), *last]
    text = Text(printable("\n".join(lines)))  # as it is: a path may hold what looks like rich's markup
    Console().print(Panel(text, title=f"{run.config.command} done", expand=False))


def _print(*tables: Table) -> None:
    from rich.console import Console

    console = Console()
    for table in tables:
        console.print(table.to_rich())


def dry_run_table(rows: Sequence[Sequence[Any]], built_s: float) -> Table:
    """Sizes of networks that were built on the meta device in ``built_s`` seconds: rows of what, how much, a remark."""
    note = f"built on the meta device in {built_s:.1f} s; nothing was run"
    return Table("dry run", ["what", "size", ""], rows, note)
