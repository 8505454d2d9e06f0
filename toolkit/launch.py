"""The bridge from Typer to Hydra: runs one command's job through the public ``hydra.main``.

Hydra composes, sweeps and launches; this file turns its config into the command's dataclass, opens the run folder,
and turns every end into an exit code: 0 done, 1 failed, 2 bad usage or config, 130 and 143 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from toolkit import renamed
from toolkit.commands import COMMANDS, Command
from toolkit.configs import check_preset, compose, is_config_error, one_line, register, typed_config
from toolkit.errors import Interrupted, JobError, UserError, did_you_mean
from toolkit.paths import conf_dir
from toolkit.runs.files import remove_empty

log = logging.getLogger("toolkit")


@dataclass
class Ending:
    """How a launch ended: exit code, folder of the (last) job that began, and the one line said about a failure."""

    exit_code: int = 0
    folder: Path | None = None
    message: str = ""


_last = Ending()  # of the job that runs in this process; Hydra returns nothing


def launch(command_name: str, arguments: list[str]) -> int:
    """Run ``toolkit COMMAND ARGUMENTS`` and return its exit code. Prints; does not raise for users' mistakes."""
    return launched(command_name, arguments).exit_code


def launched(command_name: str, arguments: list[str]) -> Ending:
    """:func:`launch`, for who wants to know more than the exit code."""
    global _last
    _last = Ending()
    _last.exit_code = _launch(command_name, arguments)
    return _last


def _launch(command_name: str, arguments: list[str]) -> int:
    from toolkit import sweep
    from toolkit.runs import distributed, signals

    sweep.forget()
    command = COMMANDS[command_name]
    try:
        arguments, notes = renamed.words_now(command_name, arguments)
        for note in notes:
            _say(f"toolkit: {note}")
        check_preset(command, arguments)
        with signals.raising():  # the jobs of a parallel sweep have processes and handlers of their own
            distributed.start()
            _run_hydra(command, arguments)
    except UserError as error:
        sweep.take_back()
        return _complain(error, 2)
    except Interrupted as stop:
        if sweep.directory:
            _say(f"toolkit: interrupted; continue with: toolkit runs resume {shlex.quote(str(sweep.directory))}")
        return stop.exit_code
    except SystemExit as stop:  # Hydra's --help and --version
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        if is_config_error(error):
            sweep.take_back()
            return _complain(UserError(one_line(error, command)), 2)
        if isinstance(error, OSError):  # Hydra could not make the folder
            return _complain(UserError(f"{error.filename}: {error.strerror}; choose another hydra.run.dir"), 2)
        traceback.print_exc()
        _last.message = f"{type(error).__name__}: {error}"
        return 1
    finally:
        distributed.stop()
    return sweep.report() if sweep.directory else _last.exit_code


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
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command.primary)(_job)()


def _is_override(word: str) -> bool:
    return word.startswith("~") or ("=" in word and not word.startswith("-"))


def _check_flags(command: Command, words: list[str]) -> None:
    """Refuse unknown flags in one line; Hydra's own parser would print its whole usage. Raises UserError."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        _, unknown = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    if unknown:
        raise UserError(f"{unknown[0]}: no such flag; see toolkit {command.name} -- --help")


# -- one job ---------------------------------------------------------------------------------------------------------


def _job(cfg: Any) -> float | None:
    """What Hydra calls for each job, in this process or in a launcher's worker. Returns the job's objective."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from toolkit import sweep

    hydra_config = HydraConfig.get()
    sweeping = hydra_config.mode is not None and hydra_config.mode.name == "MULTIRUN"
    number = int(hydra_config.job.num) if sweeping else 0
    folder = Path(hydra_config.runtime.output_dir)
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    overrides = OmegaConf.to_container(hydra_config.overrides.task)  # as typed: ${...} is left alone
    assert isinstance(overrides, list)
    exit_code, message, objective = _guarded(cfg, folder, overrides, number)
    if exit_code == 2:
        remove_empty(folder)
    _last.exit_code, _last.folder, _last.message = exit_code, folder, message
    if sweeping:
        sweep.note_job(Path(hydra_config.sweep.dir), number, folder, exit_code, message)
        if exit_code in (130, 143):
            raise Interrupted(exit_code)
    elif exit_code in (130, 143):
        _say(f"toolkit: interrupted; continue with: toolkit runs resume {shlex.quote(str(folder))}")
    return objective


def _guarded(cfg: Any, folder: Path, overrides: list[str], number: int) -> tuple[int, str, float | None]:
    """Run the job; ``(exit code, message, objective)``. Users' mistakes become one line, bugs a traceback."""
    from toolkit.runs import signals

    try:
        with signals.raising():
            return 0, "", _run_job(cfg, folder, overrides, number)
    except Interrupted as stop:
        return stop.exit_code, "interrupted", None
    except UserError as error:
        return _complain(error, 2), str(error), None
    except JobError as error:
        return _complain(error, 1), str(error), None
    except Exception as error:
        if _is_full_disk(error):
            return _complain(JobError(f"{folder}: {error}"), 1), str(error), None
        traceback.print_exc()  # a bug
        return 1, f"{type(error).__name__}: {error}", None


def _run_job(cfg: Any, folder: Path, overrides: list[str], number: int) -> float | None:
    from toolkit.runs.distributed import barrier, from_rank_zero, rank
    from toolkit.runs.record import Run
    from toolkit.runs.tracking import make_tracker

    config = typed_config(cfg)
    run = Run(folder, config, is_main=rank() == 0)
    run.record = from_rank_zero(lambda: run.open(overrides, {"job_number": number}))
    with _run_log(run):
        if run.done():
            log.info("%s is done already; nothing to do", folder)
            run.close("done")
            return run.record.get("objective")
        try:
            if rank() == 0:
                run.tracker = make_tracker(folder, config)
                _save_hydra_files(cfg, folder)
            run.record["objective"] = _job_module(COMMANDS[config.command]).main(config, run)
            barrier()
        except Interrupted:
            run.close("interrupted")
            raise
        except UserError as error:
            if not run.take_back():
                _close_failed(run, str(error))
            raise
        except JobError as error:
            _close_failed(run, str(error))
            raise
        except Exception as error:
            _close_failed(run, f"{type(error).__name__}: {error}")
            if not _is_full_disk(error):
                (run.dir / "run.log").open("a").write(traceback.format_exc())
            raise
        run.close("done")
        _write_report(run)
        return run.record["objective"]


def _is_full_disk(error: Exception) -> bool:
    """Also where a library turns the OSError into one of its own, as safetensors does."""
    return any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def _close_failed(run: Any, message: str) -> None:
    try:
        run.close("failed", message)
        _write_report(run)
    except OSError as error:  # the disk that failed the job may be full
        print(f"toolkit: {run.dir}/run.json could not be written ({error})", file=sys.stderr)


def _write_report(run: Any) -> None:
    from toolkit.show.report import write_report

    if run.is_main:
        write_report([run.dir])


def _job_module(command: Command) -> ModuleType:
    return importlib.import_module(f"{command.room}.job")


@contextlib.contextmanager
def _run_log(run: Any) -> Iterator[None]:
    """Send log lines to the terminal and to run.log, on rank 0 only; Hydra's own handlers pause."""
    from toolkit.runs.distributed import rank

    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    handlers: list[logging.Handler] = []
    if rank() == 0:
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setFormatter(logging.Formatter("%(message)s"))
        file = logging.FileHandler(run.dir / "run.log")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers = [terminal, file]
    root.setLevel(logging.INFO if rank() == 0 else logging.ERROR)
    root.handlers[:] = handlers
    try:
        yield
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        for handler in handlers:
            if isinstance(handler, logging.FileHandler):
                handler.close()


def _save_hydra_files(cfg: Any, folder: Path) -> None:
    """``.hydra/`` as Hydra users know it; written here because Hydra would write it before the folder is checked."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    (folder / ".hydra").mkdir(exist_ok=True)
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    OmegaConf.save(HydraConfig.instance().cfg, folder / ".hydra" / "hydra.yaml")
    OmegaConf.save(HydraConfig.get().overrides.task, folder / ".hydra" / "overrides.yaml")


def dry_run(command_name: str, overrides: list[str]) -> int:
    """Build the job's networks on the meta device, print parameters, FLOPs and memory, run nothing."""
    command = COMMANDS[command_name]
    try:
        _job_module(command).dry_run(compose(command, overrides))
    except UserError as error:
        return _complain(error, 2)
    return 0


def run_bench(paper: str, options: list[str]) -> int:
    """Run a paper's benchmark. Raises UserError for an unknown one or a wrong option."""
    rooms = {command.bench: command.room for command in COMMANDS.values()}
    if paper not in rooms:
        raise UserError(f"bench {paper}: {did_you_mean(paper, rooms)}choose one of {', '.join(rooms)}")
    return importlib.import_module(f"{rooms[paper]}.bench").main(options)


def run_play(source: Path | None, episodes: Path | None, port: int, device: str) -> int:
    """Serve the page that drives a world model. Raises UserError where there is none."""
    return importlib.import_module("toolkit.ivideogpt.control.play").main(source, episodes, port, device)


def environment_report() -> str:
    """Version, Python, packages and devices, for bug reports."""
    from toolkit.runs.record import package_versions

    lines = [f"{name} {version}" for name, version in package_versions().items()]
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return "\n".join([*lines, f"cuda {', '.join(gpus) or 'none'}", f"threads {torch.get_num_threads()}"])


# -- small things ----------------------------------------------------------------------------------------------------


def _complain(error: Exception, exit_code: int) -> int:
    _last.message = " ".join(str(error).split())
    _say(f"toolkit: error: {_last.message}")
    return exit_code


def _say(line: str) -> None:
    from toolkit.runs.distributed import rank

    if rank() == 0:
        print(line, file=sys.stderr)


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
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]


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
