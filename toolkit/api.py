"""The public face: run a command's job from Python, read what it left, write a run of one's own.

``toolkit.run``, ``toolkit.compose`` and the rest are found under ``toolkit`` itself; see docs/python.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from toolkit import configs
from toolkit.commands import COMMANDS, Command
from toolkit.errors import Interrupted, JobError, UserError, did_you_mean, with_kind
from toolkit.schema import Job
from toolkit.spelling import spelled, words

if TYPE_CHECKING:
    from toolkit.disco.config import TrainDisco
    from toolkit.icg.config import SampleICG
    from toolkit.ivideogpt.config import TrainIVideoGPT
    from toolkit.runs.record import Run as RunWriter
    from toolkit.show.browse import RunInfo
    from toolkit.stacking.config import GrowLLM
    from toolkit.venhancer.config import EnhanceVideo


class Curve(NamedTuple):
    """A logged scalar: ``values[i]`` was logged at ``steps[i]``; ``plot(*curve)`` draws it."""

    steps: list[int]
    values: list[float]


class Run:
    """A run folder as it stands: every attribute reads the folder anew, so a run that goes on can be watched."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"<toolkit.Run {self.folder} ({self.status})>"

    def _info(self) -> RunInfo:
        from toolkit.show.browse import read_run as read_info

        return read_info(self.folder)

    @property
    def record(self) -> dict[str, Any]:
        """All of ``run.json``."""
        return self._info().record

    @property
    def status(self) -> str:
        """``running``, ``done``, ``failed``, ``interrupted``, or ``damaged``."""
        return self._info().status

    @property
    def command(self) -> str:
        """The command that ran, such as ``train-disco``."""
        return self._info().command

    @property
    def config(self) -> dict[str, Any]:
        """Its config under dotted keys: ``run.config["optim.lr"]``."""
        return self._info().config

    @property
    def metrics(self) -> dict[str, float]:
        """The headline numbers under dotted keys."""
        return self._info().metrics

    @property
    def curves(self) -> dict[str, dict[str, Curve]]:
        """What was logged while it ran, by stage and name: ``run.curves["denoiser"]["loss"]``."""
        from toolkit.show.charts import read_scalars

        found: dict[str, dict[str, Curve]] = {}
        for (stage, name), points in read_scalars(self.folder)[0].items():
            steps, values = [int(step) for step, _ in points], [value for _, value in points]
            found.setdefault(stage, {})[name] = Curve(steps, values)
        return found

    @property
    def samples(self) -> list[Path]:
        """The files in ``samples/``: grids, videos, and the samples themselves as safetensors."""
        return sorted(path for path in (self.folder / "samples").rglob("*") if path.is_file())

    @property
    def models(self) -> list[str]:
        """The parts that ``load`` takes."""
        return sorted(path.parent.name for path in (self.folder / "model").glob("*/config.json"))

    def load(self, part: str | None = None, device: str = "cpu") -> Any:
        """The trained network, in eval mode; ``part`` is one of ``models``. Raises UserError where it is not there.

        Unless ``part`` is given: the world model where there is one, else "denoiser".
        """
        from toolkit import zoo

        return zoo.load(self.folder, part, device)


def run(command: str, /, *overrides: str, folder: str | Path | None = None, **keys: Any) -> Run:
    """Run ``toolkit COMMAND OVERRIDES`` in this process, printing what the command prints, and return its run.

    Args:
        command: such as "train-disco".
        overrides: words as on the command line: "experiment=disco_smoke", "optim.lr=1e-3".
        folder: the run folder; a new one under ``runs/`` unless given. What is done in it is not done again, what was
            interrupted goes on.
        keys: the same keys as Python values; what lies below a key as a mapping: ``seed=1, optim={"lr": 1e-3}``.

    Raises:
        UserError: the command, a key, a value or the data is wrong; nothing was started.
        JobError: the job failed; its folder keeps what it had, and ``read_run`` reads it.
        KeyboardInterrupt, SystemExit: it was stopped (Ctrl-C, SIGTERM) after a checkpoint; the same call goes on.
    """
    from toolkit.launch import launched

    asked = [*_overrides(overrides, keys), *([f"hydra.run.dir={spelled(folder)}"] if folder is not None else [])]
    ending = launched(_known(command).name, asked)
    if ending.exit_code == 0:
        assert ending.folder is not None
        return Run(ending.folder)
    if ending.exit_code == 2:
        raise UserError(ending.message)
    if ending.exit_code == 1:
        raise JobError(ending.message)
    raise KeyboardInterrupt if ending.exit_code == 130 else SystemExit(ending.exit_code)


@overload
def compose(command: Literal["train-disco"], /, *overrides: str, **keys: Any) -> TrainDisco: ...
@overload
def compose(command: Literal["sample-icg"], /, *overrides: str, **keys: Any) -> SampleICG: ...
@overload
def compose(command: Literal["grow-llm"], /, *overrides: str, **keys: Any) -> GrowLLM: ...
@overload
def compose(command: Literal["train-ivideogpt"], /, *overrides: str, **keys: Any) -> TrainIVideoGPT: ...
@overload
def compose(command: Literal["enhance-video"], /, *overrides: str, **keys: Any) -> EnhanceVideo: ...
@overload
def compose(command: str, /, *overrides: str, **keys: Any) -> Any: ...
def compose(command: str, /, *overrides: str, **keys: Any) -> Job:
    """The checked config that ``run`` would work with, as a dataclass; ``overrides`` and ``keys`` as there.

    Raises UserError as the command itself would.
    """
    return configs.compose(_known(command), _overrides(overrides, keys))


def read_run(folder: str | Path) -> Run:
    """The run in ``folder``, of today or of another day. Raises UserError when there is none or it is damaged."""
    found = Run(folder)
    if problem := found._info().problem:
        raise UserError(problem)
    return found


@contextmanager
def open_run(folder: str | Path, config: Job) -> Iterator[RunWriter]:
    """A run folder to write, for a loop of one's own: ``with open_run(...) as run, run.stage("train"): ...``.

    It is locked while the block runs, keeps ``config`` and what is logged, and ends as ``done``, ``failed`` or
    ``interrupted``. Raises UserError when another process holds it, or when it holds a run of another config.
    """
    from toolkit.runs import signals
    from toolkit.runs.record import Run as RunWriter

    writer = RunWriter(folder, config)
    writer.open([])
    try:
        with signals.raising():
            yield writer
    except (Interrupted, KeyboardInterrupt):
        writer.close("interrupted")
        raise
    except Exception as error:
        writer.close("failed", with_kind(error, None))
        raise
    writer.close("done")


def _known(command: str) -> Command:
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS)
        raise UserError(f"{command}: no such command; {hint}choose one of {', '.join(COMMANDS)}")
    return COMMANDS[command]


def _overrides(overrides: tuple[str, ...], keys: dict[str, Any]) -> list[str]:
    for word in overrides:
        if not isinstance(word, str) or word.startswith("-"):
            raise UserError(
                f"{word}: not an override; write 'KEY=VALUE' (flags, as of a sweep, are the command line's)"
            )
    return [*overrides, *words(keys)]
