"""A run folder: who may write it, what it was asked to do, how far it came.

``run.json`` is the record, ``metrics.jsonl`` the deterministic scalars (no times: a resumed run writes the same
bytes), everything else lies in folders named in :class:`Run`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from toolkit.errors import JobError, UserError
from toolkit.paths import at_home, share
from toolkit.runs.files import write_atomic, write_json
from toolkit.runs.machine import git_commit, machine, package_versions, peak_memory_mib
from toolkit.runs.reading import metrics_line, read_record
from toolkit.runs.tracking import Tracker
from toolkit.schema import Job, fields_of

log = logging.getLogger("toolkit")


class Run:
    """One run folder, held by one process (flock: a killed process leaves no stale lock).

    Other ranks of a distributed job get a run with ``is_main=False``: it reads, and writes nothing.
    """

    def __init__(self, folder: str | Path, config: Job, *, is_main: bool = True):
        self.dir = Path(folder)
        self.config = config
        self.is_main = is_main
        self.record: dict[str, Any] = {}
        self.tracker: Tracker | None = None
        self._lock: Any = None
        self.has_worked = False  # in this process: a step or a stage is behind it
        self._is_new = False
        self._clock = time.perf_counter()

    # -- opening and closing ---------------------------------------------------------------------------------------

    def open(self, overrides: list[str], extra: dict[str, Any] | None = None) -> dict[str, Any]:
        """Lock the folder, then start a record or pick up the one that is there; returns the record.

        Only the main process opens; the others are given its record. Raises UserError when another process holds the
        folder, when it cannot be written, or when it holds a run of another config.
        """
        self._take_lock()
        try:
            previous = read_record(self.dir)
            self._is_new = previous is None
            self.record = self._continue(previous) if previous else self._new()
            self.record.update(status="running", error=None, overrides=overrides, **(extra or {}))
            self.save()
        except (UserError, JobError):
            self._release_lock()
            raise
        return self.record

    @property
    def is_open(self) -> bool:
        """Whether this process holds the folder and its record."""
        return self._lock is not None and bool(self.record)

    def find_done(self) -> dict[str, Any] | None:
        """The record, where the folder holds a run of this config that is done. Nothing is locked or written.

        Raises UserError when it holds a run of another config.
        """
        there = read_record(self.dir)
        if there is None or any(compare_configs(self.dir, there["config"], self.config)) or there["status"] != "done":
            return None
        return there if all(_done(there["stages"], name) for name in self.config.stages()) else None

    def _take_lock(self) -> None:
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            lock = open(self.dir / "run.lock", "w", encoding="utf-8")  # noqa: SIM115 - held until close()
        except OSError as error:
            raise UserError(f"{self.dir}: cannot be written ({error.strerror}); choose another hydra.run.dir") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise UserError(f"{self.dir}: another process is running this run; wait for it or stop it") from None
        self._lock = lock

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _new(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "command": self.config.command,
            "status": "running",
            "config": dataclasses.asdict(self.config),
            "config_hash": config_hash(self.config),
            "seed": self.config.seed,
            "overrides": [],
            "git_commit": git_commit(),
            "versions": package_versions(),
            "machine": machine(),
            "device": None,
            "started": datetime.now().isoformat(timespec="seconds"),
            "ended": None,
            "wall_time_s": 0.0,
            "peak_memory_mib": 0.0,
            "stages": {},
            "metrics": {},
            "error": None,
        }

    def _continue(self, previous: dict[str, Any]) -> dict[str, Any]:
        grown, rewritten = compare_configs(self.dir, previous["config"], self.config)
        for key, stages in grown.items():
            self._reopen(previous, key, stages)
        for name in {name for stages in rewritten.values() for name in stages} & set(previous["stages"]):
            previous["stages"][name]["status"] = "running"
        previous["config"] = dataclasses.asdict(self.config)
        previous["config_hash"] = config_hash(self.config)
        commit = git_commit()
        if commit != [previous.get("git_commit"), *previous.get("continued_at", [])][-1]:
            previous.setdefault("continued_at", []).append(commit)
        return previous

    def _reopen(self, record: dict[str, Any], key: str, stages: list[str]) -> None:
        """A larger ``key``: ``stages`` train on from their checkpoints, what may be built on them starts anew.

        A stage ``NAME-variant`` counts as ``NAME``. What came before all of them stays as it is.
        """
        ran = list(record["stages"])
        reopened = [name for name in ran if name.split("-")[0] in stages]
        before = ran[: ran.index(reopened[0])] if reopened else ran
        for name in ran:
            if name in reopened:
                record["stages"][name]["status"] = "running"
            elif name not in before:
                del record["stages"][name]
                shutil.rmtree(self.dir / "checkpoints" / name, ignore_errors=True)
        kept = tuple(f"{name}." for name in before)
        record["metrics"] = {name: value for name, value in record["metrics"].items() if name.startswith(kept)}
        record.setdefault("extended", []).append(key)

    def close(self, status: str, error: str | None = None) -> None:
        """Write the final status (``done``, ``failed`` or ``interrupted``) and let go of the folder.

        Nothing is written where the folder is no longer there.
        """
        if self.is_open:
            self.record.update(status=status, error=error, ended=datetime.now().isoformat(timespec="seconds"))
            if self.tracker:
                self.tracker.close()
            try:
                if self._is_there():
                    share(self.dir)
                    self.save()
            finally:
                self._release_lock()

    def check_there(self) -> None:
        """Raises JobError when the folder was removed, moved or replaced under the run: no half of it is made anew."""
        if self._lock is not None and not self._is_there():
            raise JobError(f"{self.dir}: the run folder was removed or moved while its run was writing; stopped")

    def _is_there(self) -> bool:
        """Whether the lock that we hold is still the one in the folder."""
        try:
            return os.path.samestat(os.stat(self.dir / "run.lock"), os.fstat(self._lock.fileno()))
        except OSError:
            return False

    def take_back(self) -> bool:
        """Undo open() for a job that was refused before it did anything; False when there is something to keep."""
        finished = any(self.stage_done(name) for name in self.record["stages"])
        if not self.is_open or not self._is_new or finished or (self.dir / "checkpoints").exists():
            return False
        for name in ("run.json", "run.log", "run.lock"):
            (self.dir / name).unlink(missing_ok=True)
        shutil.rmtree(self.dir / ".hydra", ignore_errors=True)
        self._release_lock()
        return True

    def save(self) -> None:
        """Write run.json with the wall time and peak memory so far."""
        self.check_there()
        now = time.perf_counter()
        self.record["wall_time_s"] = round(self.record["wall_time_s"] + now - self._clock, 3)
        self._clock = now
        self.record["peak_memory_mib"] = max(self.record["peak_memory_mib"], peak_memory_mib())
        write_json(self.dir / "run.json", self.record)

    # -- what the job writes ---------------------------------------------------------------------------------------

    def path(self, *parts: str) -> Path:
        """A path in the run folder whose parent exists."""
        path = self.dir.joinpath(*parts)
        if self.is_main:
            self.check_there()
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def log(self, stage: str, step: int, **scalars: float) -> None:
        """Append one line of deterministic scalars to metrics.jsonl."""
        if self.is_main:
            self.check_there()
            values = {name: float(value) for name, value in scalars.items()}
            with open(self.dir / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
            if self.tracker:
                self.tracker.log(stage, step, values)

    def rewind_metrics(self, stage: str, step: int) -> None:
        """Drop torn lines, and the stage's lines after ``step``: a run resumes from the checkpoint written there."""
        path = self.dir / "metrics.jsonl"
        if not self.is_main or not path.exists():
            return
        lines = path.read_text(errors="replace", encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _keeps(line, stage, step)]
        if kept != lines:
            write_atomic(path, "".join(kept))

    def keep_splits(self, contents: dict[str, dict[str, Any]], of_folder: bool) -> None:
        """Note what the splits hold when the run begins (``contents`` of a data set); later they must hold the same.

        of_folder: whether they were held out of a folder of the user's own. Raises UserError where they have changed:
        held-out items might have been trained on.
        """
        if "splits" not in self.record and self.record["stages"] and of_folder:
            log.warning(
                "%s: began when files were held out otherwise; some that are held out now may have been trained on",
                self.dir,
            )
        begun = self.record.setdefault("splits", contents)
        changed = [name for name in contents if contents[name] != begun.get(name)]
        if changed:
            told = [f"{name} {begun.get(name, {}).get('items')} -> {contents[name]['items']} items" for name in changed]
            raise UserError(
                f"{self.dir}: the data are not those that this run began with ({', '.join(told)}); bring them back as "
                "they were, or begin another run (hydra.run.dir=FOLDER)"
            )

    def stage_done(self, name: str) -> bool:
        """Whether the stage finished in this run folder."""
        return _done(self.record.get("stages", {}), name)

    def done(self) -> bool:
        """Whether every stage that the config asks for has finished."""
        return all(self.stage_done(name) for name in self.config.stages())

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Run a stage: marks it running, then done with its wall time. Yields its entry in the record.

        The run is done with its last stage: what is said about it afterwards does not count.
        """
        entry = self.record.setdefault("stages", {}).setdefault(name, {})
        entry.setdefault("wall_time_s", 0.0)
        entry["status"] = "running"
        if self.is_main:
            self.save()
        before = time.perf_counter()
        try:
            yield entry
            entry["status"] = "done"
            self.has_worked = True
        finally:
            entry["wall_time_s"] = round(entry["wall_time_s"] + time.perf_counter() - before, 3)
        if self.done():
            self.record["status"] = "done"
        if self.is_main:
            self.save()

    def add_metrics(self, prefix: str, values: dict[str, Any]) -> None:
        """Put headline numbers into the record under dotted keys; nested dictionaries are flattened."""
        for key, value in values.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            if isinstance(value, dict):
                self.add_metrics(name, value)
            else:
                self.record["metrics"][name] = float(value)


def _done(stages: dict[str, Any], name: str) -> bool:
    return stages.get(name, {}).get("status") == "done"


def computing_config(config: Job) -> dict[str, Any]:
    """The flat config without the keys that do not change what is computed."""
    return {key: value for key, item, value in fields_of(config) if item.metadata.get("computes", True)}


def config_hash(config: Job) -> str:
    """16 hex digits over everything that changes what is computed."""
    return hashlib.sha256(json.dumps(computing_config(config), sort_keys=True).encode()).hexdigest()[:16]


def compare_configs(
    folder: Path, previous: dict[str, Any], config: Job
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """``{key: stages}`` for keys that grew (more steps), and for those that only say how results are written.

    Raises UserError when anything else that computes differs.
    """
    grown: dict[str, list[str]] = {}
    rewritten: dict[str, list[str]] = {}
    for key, metadata, before, value in differing_keys(previous, config):
        extends, rewrites = metadata.get("extends"), metadata.get("rewrites")
        if extends and type(before) in (int, float) and value > before:
            grown[key] = extends.split(",")
        elif rewrites:
            rewritten[key] = rewrites.split(",")
        else:
            raise UserError(
                f"{folder}: holds a run of another config: {key} is {before} there, {value} here; "
                "give the values it was started with, or another hydra.run.dir"
            )
    return grown, rewritten


def differing_keys(previous: dict[str, Any], config: Job) -> Iterator[tuple[str, Mapping[str, Any], Any, Any]]:
    """``(key, its field's metadata, value before, value now)`` of every key that computes and differs.

    A key that the nested config ``previous`` does not have is "absent" there, and left out where it has its default.
    """
    absent = object()
    for key, item, value in fields_of(config):
        before: Any = previous
        for part in key.split("."):
            before = at_home(before.get(part, absent)) if isinstance(before, dict) else absent
        added_since = before is absent and value == _default(item)
        if before != value and not added_since and item.metadata.get("computes", True):
            yield key, item.metadata, "absent" if before is absent else before, value


def _keeps(line: str, stage: str, step: int) -> bool:
    entry = metrics_line(line)
    return entry is not None and (entry["stage"] != stage or entry["step"] <= step)


def _default(item: dataclasses.Field) -> Any:
    """A field's default: a key that the run's version did not have yet computes what it did."""
    make = item.default_factory
    return item.default if make is dataclasses.MISSING else make()
