"""A study of Optuna in a folder, one run of a command for each trial.

``FOLDER/study.log`` is Optuna's journal of all trials, ``FOLDER/0007/`` the run of trial 7. The same command with the
same folder goes on: a trial whose process is gone continues from its checkpoint, and new ones are added until as many
have ended as were asked for. Several processes, on hosts that see the folder, may search in it at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.commands import COMMANDS
from toolkit.errors import UserError, did_you_mean
from toolkit.installation import install_hint
from toolkit.launch import launched
from toolkit.runs.distributed import world_size
from toolkit.runs.output import tell
from toolkit.runs.reading import read_record
from toolkit.runs.seeds import derive
from toolkit.runs.signals import EXIT_CODES
from toolkit.search.space import Space, parse
from toolkit.spelling import spelled


def search(command: str, words: list[str], folder: Path, num_trials: int, seed: int) -> int:
    """Run trials of ``toolkit COMMAND WORDS`` until ``num_trials`` have ended; returns the exit code.

    The objective of a run, which its ``run.json`` says, is minimised by the tree-structured Parzen estimator (Bergstra
    et al. 2011). Raises UserError where Optuna is not installed, the words are no search, another search has this
    folder, a run has no objective, or trials are refused for what is not searched.
    """
    if command not in COMMANDS:
        raise UserError(f"{command}: no such command; {did_you_mean(command, COMMANDS)}one of {', '.join(COMMANDS)}")
    if world_size() > 1:
        raise UserError("search: each trial is one process; start several searches with one --folder instead")
    optuna = _optuna()
    space = parse(words)
    study = _open(optuna, folder, command, space)
    refused: list[tuple[str, set[Any]]] = []  # in which words, with which settings
    while (number := _next(optuna, study, space, folder, num_trials, seed)) is not None:
        with _held(folder / f"{number:04d}.lock") as is_ours:
            if not is_ours:
                continue
            code, message = _run(optuna, study, number, command, space, folder)
        if code in EXIT_CODES:
            tell(f"toolkit: search interrupted; the same command goes on in {folder}")
            return code
        if code == 2:
            chosen = set(study.trials[number].params.items())
            if any(said == message and not chosen & settings for said, settings in refused):
                raise UserError(f"search: trials with no setting in common are refused alike: {message}")
            refused.append((message, chosen))
    return _report(optuna, study, folder)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError(f"search: needs Optuna; {install_hint('search')}") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _open(optuna: Any, folder: Path, command: str, space: Space) -> Any:
    """The study of ``folder``. Raises UserError where it is another one's."""
    from optuna.storages.journal import JournalFileBackend

    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.log")))
    study = optuna.create_study(storage=storage, study_name=command, load_if_exists=True)
    searched = {key: optuna.distributions.distribution_to_json(one) for key, one in space.distributions.items()}
    asked = {"fixed": space.fixed, "searched": searched}
    begun = study.user_attrs.get("asked")
    if begun is None and len(optuna.get_all_study_names(storage)) == 1:
        study.set_user_attr("asked", asked)
    elif begun != asked:
        raise UserError(f"{folder}: holds another search (other words, or another command); choose another --folder")
    return study


def _next(optuna: Any, study: Any, space: Space, folder: Path, num_trials: int, seed: int) -> int | None:
    """The number of the trial to run: one that nobody works on any more, or a new one; None where there are enough."""
    with _held(folder / "next.lock", waits=True):  # no other process sees a trial whose settings are being chosen
        for number in [trial.number for trial in study.trials if not trial.state.is_finished()]:
            with _held(folder / f"{number:04d}.lock") as is_free:
                if not is_free:
                    continue
                if study.trials[number].distributions == space.distributions:
                    return number
                # Killed while its settings were chosen; nor may a journal of somebody else name what is run.
                study.tell(number, state=optuna.trial.TrialState.FAIL)
        if len(study.trials) >= num_trials:
            return None
        study.sampler = optuna.samplers.TPESampler(seed=derive(seed, "search", len(study.trials)) % 2**32)
        return study.ask(space.distributions).number  # type: ignore[no-any-return]


@contextlib.contextmanager
def _held(lock: Path, waits: bool = False) -> Iterator[bool]:
    """Whether this process alone has a lock, which goes with the process."""
    with open(lock, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except OSError:
            yield False
            return
        yield True


def _run(optuna: Any, study: Any, number: int, command: str, space: Space, folder: Path) -> tuple[int, str]:
    """Run a trial, or go on with it, and note how it ended: ``(exit code, message)``. Raises as :func:`search`."""
    place = folder / f"{number:04d}"
    chosen = [f"{key}={value}" for key, value in study.trials[number].params.items()]
    tell(f"toolkit: trial {number}: {' '.join(chosen)}")
    end = launched(command, [*space.fixed, *chosen, f"hydra.run.dir={spelled(place)}"])
    if end.exit_code in EXIT_CODES:
        return end.exit_code, end.message
    objective = (read_record(place) or {}).get("objective") if end.exit_code == 0 else None
    if objective is None:
        study.tell(number, state=optuna.trial.TrialState.FAIL)
    else:
        study.tell(number, objective)
    if end.exit_code == 0 and objective is None:
        raise UserError(f"{place}: the run has no objective to search by; ask for the measure that gives one")
    return end.exit_code, end.message


def _report(optuna: Any, study: Any, folder: Path) -> int:
    """Print the best trial; 1 where none has ended well."""
    done = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    print(f"{len(done)} of {len(study.trials)} trials done in {folder}")
    if not done:
        return 1
    best = min(done, key=lambda trial: trial.value)
    chosen = " ".join(f"{key}={value}" for key, value in best.params.items())
    print(f"best: {best.value:.6g} with {chosen} ({folder / f'{best.number:04d}'})")
    return 0
