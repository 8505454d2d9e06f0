"""The tables that runs wrote, put together: the same rows, with mean and spread over the runs of a config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import UserError
from toolkit.show.browse import Group, RunInfo
from toolkit.show.table import Cell, Spread, Table

HEADLINE = "headline"  # tables/headline.json, where a job writes one, comes first
NOTE = "mean ± sample standard deviation over n runs; a number without ± is the same in all"
Key = tuple[str, int]  # of a row: its first cell, and how often that stood above it


def load_table(path: Path) -> Table:
    """The table, named by its file where it has no title. Raises UserError where it is damaged."""
    table = Table.load(path)
    table.title = table.title or path.stem.replace("_", " ")
    return table


def merged(groups: Sequence[Group]) -> tuple[dict[str, list[Table]], list[str]]:
    """``{file name: tables}``, the headline first, and a line for each file that could not be read.

    Runs of one group share a row; of several groups each has its own, below one another. Tables of one file name with
    other columns stay apart.
    """
    runs = [run for group in groups for run in group.runs]
    stems = dict.fromkeys(path.stem for run in runs for path in sorted((run.dir / "tables").glob("*.json")))
    found: dict[str, list[Table]] = {}
    problems: list[str] = []
    for stem in sorted(stems, key=lambda stem: stem != HEADLINE):
        kinds: dict[tuple[str, ...], list[list[Table]]] = {}
        for number, group in enumerate(groups):
            for table in _tables(group.runs, stem, problems):
                kinds.setdefault(tuple(table.columns), [[] for _ in groups])[number].append(table)
        found[stem] = [_merge(tables, [group.name for group in groups]) for tables in kinds.values()]
    return found, problems


def _tables(runs: Sequence[RunInfo], stem: str, problems: list[str]) -> list[Table]:
    tables = []
    for run in runs:
        path = run.dir / "tables" / f"{stem}.json"
        if path.exists():
            try:
                tables.append(load_table(path))
            except UserError as error:
                problems.append(str(error))
    return [table for table in tables if table.columns]


def _merge(groups: Sequence[Sequence[Table]], names: Sequence[str]) -> Table:
    """One table of those of all groups, which have equal columns."""
    tables = [table for group in groups for table in group]
    cells: dict[Key, list[list[Sequence[Any]]]] = {}  # by row, by group: that row of each run
    for number, group in enumerate(groups):
        for table in group:
            for key, row in _keyed(table):
                cells.setdefault(key, [[] for _ in groups])[number].append(row)
    several = len(groups) > 1
    rows: list[list[Cell]] = []
    for (first, _), found in cells.items():
        for name, of_runs in zip(names, found, strict=True):
            if of_runs:
                _, *by_column = zip(*of_runs, strict=True)
                rows.append([first, *([name] if several else []), *map(_over_runs, by_column)])
    columns = tables[0].columns
    notes = [*dict.fromkeys(table.note for table in tables if table.note), *([NOTE] if len(tables) > 1 else [])]
    return Table(
        tables[0].title, [columns[0], *(["run"] if several else []), *columns[1:]], rows, "; ".join(notes[-2:])
    )


def _keyed(table: Table) -> list[tuple[Key, Sequence[Any]]]:
    seen: dict[str, int] = {}
    keyed = []
    for row, (first, *_) in zip(table.rows, table.texts(), strict=True):
        seen[first] = seen.get(first, -1) + 1
        keyed.append(((first, seen[first]), row))
    return keyed


def _over_runs(cells: Sequence[Any]) -> Cell:
    """The cell itself where all runs agree, the spread of numbers (of spreads: of their means), a word elsewhere."""
    if all(cell == cells[0] for cell in cells):
        return cells[0]
    numbers = [cell.mean if isinstance(cell, Spread) else cell for cell in cells]
    numbers = [cell for cell in numbers if isinstance(cell, (int, float)) and not isinstance(cell, bool)]
    if numbers:
        return Spread.of(numbers)
    return "differs"
