"""The bridge from Typer to Hydra: runs one command's job through the public ``hydra.main``.

Hydra composes, sweeps and launches; each job is in one_job.py. Every end is an exit code: 0 done, 1 failed, 2 bad
usage or config, 128 and its number for a signal (130 Ctrl-C, 143 kill). What cannot be printed changes none of them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from toolkit import one_job, renamed
from toolkit.commands import COMMANDS, Command, paper_named
from toolkit.configs import check_preset, compose, is_config_error, one_line, register, words_at_home
from toolkit.errors import Interrupted, UserError, brief, with_kind
from toolkit.one_job import Ending
from toolkit.paths import conf_dir
from toolkit.runs import distributed, output, signals, threads
from toolkit.runs.output import complain, tell
from toolkit.schema import without_effect

LAUNCHERS = ("submitit.", "joblib.", "ray.")  # whose own errors are about jobs, not about configs


def launch(command_name: str, arguments: list[str]) -> int:
    """Run ``toolkit COMMAND ARGUMENTS`` and return its exit code. Prints; does not raise for users' mistakes."""
    return launched(command_name, arguments).exit_code


def launched(command_name: str, arguments: list[str]) -> Ending:
    """:func:`launch`, for who wants to know more than the exit code."""
    one_job.last = Ending()
    with output.lossy(), signals.raising():  # the jobs of a parallel sweep have processes and handlers of their own
        try:
            threads.before_torch()
            one_job.last.exit_code = _launch(command_name, arguments)
        except Interrupted as stop:  # before or after what _launch does
            tell("toolkit: interrupted")
            one_job.last.exit_code = stop.exit_code
    return one_job.last


def _launch(command_name: str, arguments: list[str]) -> int:
    from toolkit import sweep

    sweep.forget()
    command = COMMANDS[command_name]
    try:
        arguments, notes = renamed.words_now(command_name, words_at_home(arguments))
        for note in notes:
            tell(f"toolkit: {note}")
        check_preset(command, arguments)
        distributed.start()
        if note := distributed.repeated_by_srun():
            tell(f"toolkit: {note}")
        with signals.unhidden():
            _run_hydra(command, arguments)
        if one_job.last.folder is None and not sweep.directory:
            output.check_written()  # --cfg, --info: what was asked for is what is printed
    except UserError as error:
        sweep.take_back()
        return _refused(error, 2)
    except Interrupted as stop:
        if sweep.directory:
            tell(f"toolkit: interrupted; continue with: toolkit runs resume {shlex.quote(str(sweep.directory))}")
        elif one_job.last.folder is None:
            tell("toolkit: interrupted before the run began")
        return stop.exit_code
    except SystemExit as stop:  # Hydra's --help and --version
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        if sweep.directory and type(error).__module__.startswith(LAUNCHERS):  # a job that was stopped or lost
            _refused(error, 1)
            return sweep.report(lost=True)
        if refused_by_plugin(error):
            sweep.take_back()
            return _refused(
                UserError(f"hydra.launcher, hydra.sweeper: {brief(error)}; see toolkit {command.name} --cfg hydra"), 2
            )
        if is_config_error(error):
            sweep.take_back()
            return _refused(UserError(one_line(error, command)), 2)
        if isinstance(error, OSError) and error.filename:  # Hydra could not make the folder
            return _refused(UserError(f"{error.filename}: {error.strerror}; choose another hydra.run.dir"), 2)
        traceback.print_exc()
        one_job.last.message = with_kind(error, None)
        return 1
    finally:
        distributed.stop()
    return sweep.report() if sweep.directory else one_job.last.exit_code


def refused_by_plugin(error: Exception) -> bool:
    """Whether a launcher or sweeper of Hydra's refuses one of its own values (what jobs raise never comes so far)."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, (ValueError, TypeError)) and any(name.startswith("hydra_plugins.") for name in modules)


def _refused(error: Exception, exit_code: int) -> int:
    one_job.last.message = brief(error, None)
    return complain(error, exit_code)


def _run_hydra(command: Command, arguments: list[str]) -> None:
    import hydra

    from toolkit.runs.distributed import from_rank_zero

    register(command)
    words = sorted(arguments, key=_is_override)  # Hydra 1.3 refuses a flag between overrides: flags first
    _check_flags(command, words)
    stamp = from_rank_zero(lambda: datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))  # one folder for all ranks
    with (
        _arguments([f"toolkit {command.name}", *words]),
        _environment(HYDRA_FULL_ERROR="1", TOOLKIT_STAMP=stamp),
        _root_logger(),
    ):
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command.primary)(one_job.run_job)()


def _is_override(word: str) -> bool:
    return word.startswith("~") or ("=" in word and not word.startswith("-"))


def _check_flags(command: Command, words: list[str]) -> None:
    """Refuse what Hydra's own parser would answer with its whole usage, or take for another thing. Raises UserError."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        known, unknown = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    if unknown:
        raise UserError(f"{unknown[0]}: no such flag; see toolkit {command.name} -- --help")
    if known.multirun and (known.cfg or known.info):
        raise UserError(
            f"{'--cfg' if known.cfg else '--info'}: describes one job; leave out -m, and give each key one value"
        )
    for word in words:
        if word.rstrip("'\"") in ("hydra.run.dir=", "hydra.sweep.dir="):  # Hydra takes it for the working folder
            raise UserError(f"{word}: names no folder; leave it out for a new one below runs/")


def dry_run(command_name: str, overrides: list[str]) -> int:
    """Build the job's networks on the meta device, print parameters, FLOPs and memory, run nothing."""
    command = COMMANDS[command_name]
    try:
        config = compose(command, overrides)
        for line in without_effect(config):
            tell(f"toolkit: {line}")
        one_job.job_module(command).dry_run(config)
        output.check_written()
    except UserError as error:
        return complain(error, 2)
    return 0


def run_bench(paper: str, options: list[str]) -> int:
    """Run a paper's benchmark, all of them, or compare two records. Raises UserError for a wrong name or option."""
    if paper in ("all", "compare"):
        from toolkit.bench import all as bench_all

        return bench_all.main(options) if paper == "all" else bench_all.compare(options)
    return importlib.import_module(f"{paper_named(paper).room}.bench").main(options)


def run_play(sources: list[Path], episodes: Path | None, port: int, device: str) -> int:
    """Serve the page that drives world models. Raises UserError where there is none."""
    return importlib.import_module("toolkit.ivideogpt.control.play").main(sources, episodes, port, device)


def environment_report() -> str:
    """Version, Python, packages and devices, for bug reports."""
    from toolkit.runs.machine import package_versions

    lines = [f"{name} {version}" for name, version in package_versions().items()]
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return "\n".join([*lines, f"cuda {', '.join(gpus) or 'none'}", f"threads {torch.get_num_threads()}"])


# -- small things ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = os.environ.copy()
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        for name, value in before.items():  # accelerate empties it for a moment, in which a signal may end the job
            os.environ.setdefault(name, value)


@contextlib.contextmanager
def _root_logger() -> Iterator[None]:
    """Hydra reconfigures the root logger; give it back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
