"""The command line of ``toolkit runs``, but for ``resume``. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List, show, compare and resume runs.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def runs_list(
    root: Annotated[Path, typer.Argument(help="Folder with the runs.")] = Path("runs"),
    command: Annotated[str | None, typer.Option(help="Only this command's runs.")] = None,
    as_json: AsJson = False,
) -> None:
    """List runs with status, progress, seed, wall time, and overrides or the error."""
    from toolkit.show.browse import list_runs, listed_runs
    from toolkit.show.terminal import show, show_json

    if as_json:
        show_json(listed_runs(root, command))
    else:
        show(list_runs(root, command))


@app.command("show")
def runs_show(folder: Path, as_json: AsJson = False) -> None:
    """Show one run: config, stages, metrics, files. As JSON, its record: run.json, with the status as it is now."""
    from toolkit.show.browse import show_run, shown_record
    from toolkit.show.terminal import show, show_json

    if as_json:
        show_json(shown_record(folder))
    else:
        show(*show_run(folder))


@app.command("compare")
def runs_compare(
    folders: Annotated[list[Path], typer.Argument(help="Run or sweep folders.")],
    over: Annotated[str, typer.Option(help="Key to average over.")] = "seed",
    as_json: AsJson = False,
) -> None:
    """Compare runs: mean, spread and number of seeds, the best run, and where the configs differ."""
    from toolkit.show.browse import compare_runs
    from toolkit.show.terminal import show, show_json

    tables = compare_runs(folders, over)
    if as_json:
        show_json([table.as_plain() for table in tables])
    else:
        show(*tables)
