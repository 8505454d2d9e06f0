"""Which overrides a folder may bring along: ``runs resume`` and ``reproduce`` replay what a file says.

Hydra's overrides can name classes to make and functions to call. What a user types is the user's; from a file only a
known key with a plain value is taken, and of Hydra's own keys those in the lists below.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit import renamed
from toolkit.errors import UserError

MOST_CHARACTERS = 20_000  # of one override; Hydra's parser is slow
LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm", "ray")
SWEEPERS = ("basic", "optuna")
SAMPLERS = ("tpe", "random", "cmaes", "grid", "nsgaii", "motpe", "qmc")
# Numbers and names; no commands (setup, python), no expressions (pre_dispatch), no addresses, no other folders.
_LAUNCHER = """n_jobs backend prefer require verbose timeout batch_size timeout_min cpus_per_task gpus_per_node
    tasks_per_node mem_gb nodes name stderr_to_stdout partition qos comment constraint exclude gres cpus_per_gpu
    gpus_per_task mem_per_gpu mem_per_cpu account signal_delay_s max_num_timeout array_parallelism
    ray.init.num_cpus ray.init.num_gpus ray.remote.num_cpus ray.remote.num_gpus"""
_SWEEPER = "max_batch_size n_trials n_jobs direction max_failure_rate study_name sampler.seed sampler.n_startup_trials"
SETTINGS = frozenset(
    [f"hydra.launcher.{name}" for name in _LAUNCHER.split()] + [f"hydra.sweeper.{name}" for name in _SWEEPER.split()]
)
CHOICES = {"hydra/launcher": LAUNCHERS, "hydra/sweeper": SWEEPERS, "hydra/sweeper/sampler": SAMPLERS}
_PARAMS = "hydra.sweeper.params."
_NAME = re.compile(r"[\w*?-]+")  # or a glob of names
_PLAIN = re.compile(r"[\w.,:=+%@/-]*")  # of a launcher's setting: some are written into a batch script
_IN_UNITS = re.compile(
    rf"\$\{{({'|'.join(renamed.UNITS)}):[\d.e+-]+,\$\{{{re.escape(renamed.BATCH_SIZE)}\}}\}}"
)  # ours
_REFERENCE = re.compile(r"\$\{(hydra:|now:)?[\w.%-]+\}")


def check_replayed(command: str, words: list[str], source: Path, keys: set[str], groups: set[str]) -> None:
    """Hold every override of ``words`` against what the file ``source`` may bring along.

    ``keys`` are the settings of ``command``, ``groups`` those that take the name of a config. Raises UserError naming
    the file and the first word that is refused.
    """
    for word in words:
        try:
            _check(command, word, keys, groups)
        except ValueError as error:
            raise UserError(
                f"{source}: {_shown(word)}: {error}, so it is not taken from a file; if it is yours, type the "
                "command again with the same hydra.run.dir or hydra.sweep.dir"
            ) from None


def _shown(word: str) -> str:
    """The first characters of an override, in one line."""
    line = " ".join(word.split())
    return line if len(line) <= 120 else f"{line[:120]}..."


def _check(command: str, word: str, keys: set[str], groups: set[str]) -> None:
    """Raises ValueError saying what is wrong with ``word``."""
    override = _parsed(word)
    key, values = override.key_or_group, list(_leaves(override))
    if override.package is not None:
        raise ValueError("it names a package of the config")
    if any(isinstance(value, str) and not _is_plain_reference(value) for value in values):
        raise ValueError("it calls a resolver")
    if key in CHOICES:
        wrong = [value for value in values if value not in CHOICES[key]]
        if wrong:
            raise ValueError(f"{wrong[0]} is none of {', '.join(CHOICES[key])}")
    elif key in groups and not isinstance(override._value, dict):
        if not all(value is None or (isinstance(value, str) and _NAME.fullmatch(value)) for value in values):
            raise ValueError("it is not the name of a config")
    elif key.startswith(_PARAMS):
        for value in values:
            _check(command, f"{key.removeprefix(_PARAMS)}={value}", keys, groups)
    elif key in SETTINGS:
        if not all(
            value is None or isinstance(value, (bool, int, float)) or _PLAIN.fullmatch(value) for value in values
        ):
            raise ValueError("it is not a plain value")
    elif key == "hydra.sweep.subdir":
        if any(not isinstance(value, (str, int)) or ".." in str(value) or str(value)[:1] in "/~" for value in values):
            raise ValueError("it leads out of the sweep's folder")
    elif (renamed.name_now(command, key) or key) not in keys:
        raise ValueError("it is not a setting of the command")


def _parsed(word: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if len(word) > MOST_CHARACTERS:
        raise ValueError(f"it has more than {MOST_CHARACTERS} characters")
    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, RecursionError, ValueError, AssertionError) as error:
        raise ValueError("it cannot be parsed") from error


def _leaves(override: Any) -> Iterator[Any]:
    """Every plain value in an override, of every value that it sweeps over. Raises ValueError for keys with ``_``."""
    from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, QuotedString, RangeSweep

    waiting = [override._value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if any(str(name).startswith("_") for name in value):
                raise ValueError("it names what is to be made")
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, ChoiceSweep):
            waiting += value.list
        elif isinstance(value, Glob):
            waiting += [*value.include, *value.exclude]
        elif isinstance(value, (RangeSweep, IntervalSweep)):
            waiting += [value.start, value.stop] if isinstance(value, RangeSweep) else [value.start, value.end]
        else:
            yield value.text if isinstance(value, QuotedString) else value


def _is_plain_reference(text: str) -> bool:
    """Whether ``${...}`` in ``text``, if any, refers to other keys, Hydra's own or the time, or counts in units."""
    return "${" not in _REFERENCE.sub("", _IN_UNITS.sub("", text))
