"""What Hydra calls for each job: opens the run folder, runs the room's job in it, and closes it however that ends."""

from __future__ import annotations

import contextlib
import importlib
import logging
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from toolkit.commands import COMMANDS, Command
from toolkit.configs import typed_config
from toolkit.errors import (
    Interrupted,
    JobError,
    UserError,
    brief,
    is_full_disk,
    is_out_of_memory,
    refusals_named,
    with_kind,
)
from toolkit.runs.files import remove_empty, write_atomic
from toolkit.schema import without_effect

log = logging.getLogger("toolkit")


@dataclass
class Ending:
    """How a launch ended: exit code, folder of the (last) job that began, and the one line said about a failure."""

    exit_code: int = 0
    folder: Path | None = None
    message: str = ""


last = Ending()  # of the job that runs in this process; Hydra returns nothing


def run_job(cfg: Any) -> float | None:
    """Run one job, in this process or in a launcher's worker. Returns its objective, which a sweeper minimises.

    Raises Interrupted in a sweep that was asked to stop, and whatever a launcher's own handler of that signal raises.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from toolkit import sweep
    from toolkit.runs import output, signals

    hydra_config = HydraConfig.get()
    sweeping = hydra_config.mode is not None and hydra_config.mode.name == "MULTIRUN"
    number = int(hydra_config.job.num) if sweeping else 0
    folder = Path(hydra_config.runtime.output_dir)
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    overrides = OmegaConf.to_container(hydra_config.overrides.task)  # as typed: ${...} is left alone
    assert isinstance(overrides, list)
    with output.lossy(), signals.raising():
        exit_code, message, objective = _guarded(cfg, folder, overrides, number)
        last.exit_code, last.folder, last.message = exit_code, folder, " ".join(message.split())
        if exit_code == 2:
            remove_empty([folder] if sweeping else sweep.new_folders)
        if sweeping:
            sweep.note_job(Path(hydra_config.sweep.dir), number, folder, exit_code, message)
        if exit_code in signals.EXIT_CODES:
            if not sweeping:
                output.tell(f"toolkit: interrupted; continue with: toolkit runs resume {shlex.quote(str(folder))}")
            signals.hand_on(exit_code)
            if sweeping:
                raise Interrupted(exit_code)
    return objective


def _guarded(cfg: Any, folder: Path, overrides: list[str], number: int) -> tuple[int, str, float | None]:
    """Run the job; ``(exit code, message, objective)``. Users' mistakes become one line, bugs a traceback."""
    from toolkit.runs import signals
    from toolkit.runs.output import complain

    try:
        with signals.unhidden():
            return 0, "", _in_folder(cfg, folder, overrides, number)
    except Interrupted as stop:
        return stop.exit_code, "interrupted", None
    except UserError as error:
        return complain(error, 2), str(error), None
    except JobError as error:
        return complain(error, 1), str(error), None
    except (Exception, SystemExit) as error:
        if _is_the_machines(error):
            known = _of_the_machine(folder, error)
            return complain(known, 1), str(known), None
        traceback.print_exc()  # a bug
        return 1, with_kind(error, None), None


def _is_the_machines(error: BaseException) -> bool:
    """No bug: the disk is full, or memory is used up."""
    return is_full_disk(error) or is_out_of_memory(error)


def _of_the_machine(folder: Path, error: BaseException) -> JobError:
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # of a copied folder: (from, to, why) each
        _, target, why = error.args[0][0]
        return JobError(f"{folder}: {target} could not be written ({why})")
    if not is_out_of_memory(error):
        return JobError(f"{folder}: {brief(error, None)}")
    said = brief(error)
    return JobError(f"{folder}: out of memory ({said}); smaller batches need less, and toolkit plan says how much")


def _in_folder(cfg: Any, folder: Path, overrides: list[str], number: int) -> float | None:
    from toolkit.runs.distributed import barrier, from_rank_zero, losses_named, rank
    from toolkit.runs.output import tell
    from toolkit.runs.record import Run
    from toolkit.runs.tracking import make_tracker

    config = typed_config(cfg, overrides)
    run = Run(folder, config, is_main=rank() == 0)
    with losses_named():
        there = from_rank_zero(run.find_done)
    if there and "objective" in there:
        tell(f"{folder} is done already; nothing to do")
        return there["objective"]
    with _closed(run), losses_named(), refusals_named():
        run.record = from_rank_zero(lambda: run.open(overrides, {"job_number": number}))
        if run.done() and "objective" in run.record:
            tell(f"{folder} is done already; nothing to do")
            return run.record["objective"]
        with _run_log(run):
            for line in without_effect(config):
                log.warning(line)
            if rank() == 0:
                run.tracker = make_tracker(folder, config)
                _save_hydra_files(cfg, folder)
            run.record["objective"] = job_module(COMMANDS[config.command]).main(config, run)
            barrier()
    if rank() == 0:
        _write_report(folder)
    return run.record["objective"]


# -- how it ends -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _closed(run: Any) -> Iterator[None]:
    """Close the run: done, interrupted, taken back when it was refused, or failed; signals do not disturb that."""
    from toolkit.runs import signals

    try:
        with signals.unhidden():
            yield
    except BaseException as error:
        with signals.ignored():
            kept = run.is_open and _close(run, error)
        if isinstance(error, UserError) and kept and run.has_worked:
            raise JobError(str(error)) from error  # there is work in the folder: not "nothing was started"
        raise
    with signals.ignored():
        run.close("done")


def _close(run: Any, error: BaseException) -> bool:
    """Whether there is anything to keep in the folder."""
    if run.record["status"] == "done":  # what went wrong was only said about it
        run.close("done")
    elif isinstance(error, Interrupted):
        run.close("interrupted")
    elif isinstance(error, UserError) and run.take_back():
        return False
    else:
        if _is_the_machines(error):
            error = _of_the_machine(run.dir, error)
        _close_failed(run, with_kind(error, None))
        if not isinstance(error, (UserError, JobError)) and run.dir.exists():
            with open(run.dir / "run.log", "a", encoding="utf-8") as file:
                file.write(traceback.format_exc())
    return True


def _close_failed(run: Any, message: str) -> None:
    try:
        run.close("failed", message)
        if (run.dir / "run.json").exists():
            _write_report(run.dir)
    except OSError as error:  # the disk that failed the job may be full
        print(f"toolkit: {run.dir}/run.json could not be written ({error})", file=sys.stderr)


def _write_report(folder: Path) -> None:
    """The page of a run that has ended; that it cannot be written changes nothing about the run."""
    from toolkit.show.report import write_report

    try:
        write_report([folder])
    except OSError as error:
        if not is_full_disk(error) and not Path(error.filename or "").is_relative_to(folder):
            raise
        print(f"toolkit: the report could not be written ({error})", file=sys.stderr)


# -- around it -------------------------------------------------------------------------------------------------------


def job_module(command: Command) -> ModuleType:
    """``job.py`` of the command's room."""
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
        file = logging.FileHandler(run.dir / "run.log", encoding="utf-8", errors="backslashreplace")
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

    saved = {
        "config": cfg,
        "hydra": HydraConfig.instance().cfg,
        "overrides": HydraConfig.get().overrides.task,
    }
    for name, content in saved.items():
        write_atomic(folder / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(content))
