"""Progress for people: a rich bar with rate, ETA and loss on a terminal, plain lines in a log file or a pipe."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from toolkit.runs.distributed import rank

PLAIN_EVERY_S = 10.0


def console() -> Console:
    """Messages go to stderr; stdout is for results."""
    return Console(stderr=True, quiet=rank() != 0, soft_wrap=True, highlight=False)


def say(message: str) -> None:
    """One line for the user, and for run.log."""
    import logging

    if rank() == 0:
        logging.getLogger("toolkit").info(message)


class Bar:
    """Shows how far a stage is; ``unit`` is what it counts."""

    def __init__(self, stage: str, step: int, total: int, rich_progress: Progress | None, unit: str = "step"):
        self.stage, self.total, self.first, self.step = stage, total, step, step
        self.start = self.shown = time.monotonic()
        self.text, self.unit = "", unit
        self.progress = rich_progress
        self.task = TaskID(0)
        if rich_progress:
            self.task = rich_progress.add_task(stage, total=total, completed=step, text="")

    def log(self, step: int, values: dict[str, float]) -> None:
        """The newest means: all of them in a plain line, the first (the loss) beside the bar, which needs the room."""
        rate = (step - self.first) / max(time.monotonic() - self.start, 1e-9)
        shown = list(values.items())[: 1 if self.progress else None]
        self.text = " ".join(f"{name} {value:.4g}" for name, value in shown) + f"  {rate:.1f} steps/s"

    def advance(self, step: int) -> None:
        """Show that ``step`` steps are done."""
        self.step = step
        if self.progress:
            self.progress.update(self.task, completed=step, text=self.text)
        elif time.monotonic() - self.shown > PLAIN_EVERY_S or step == self.total:
            self.shown = time.monotonic()
            say(f"{self.stage}: {self.unit} {step}/{self.total}{self._left()}  {self.text}")

    def _left(self) -> str:
        """How long the rest takes at the pace so far."""
        done, seconds = self.step - self.first, time.monotonic() - self.start
        if done <= 0 or self.step >= self.total:
            return ""
        left_s = seconds * (self.total - self.step) / done
        return f", {left_s:.0f} s left" if left_s < 100 else f", {left_s / 60:.0f} min left"

    def tell(self, text: str) -> None:
        """Show ``text``, where work within one step takes long."""
        self.text = text
        if self.progress:
            self.progress.update(self.task, text=text)
        elif time.monotonic() - self.shown > PLAIN_EVERY_S:
            self.shown = time.monotonic()
            say(f"{self.stage}: {self.unit} {self.step}/{self.total}{self._left()}  {text}")


@contextlib.contextmanager
def bar(stage: str, step: int, total: int, unit: str = "step") -> Iterator[Bar]:
    """A progress bar for the steps of one stage."""
    if not sys.stderr.isatty() or rank() != 0:
        yield Bar(stage, step, total, None, unit)
        return
    columns = (  # on a narrow terminal only the bar shrinks
        TextColumn("{task.description}", markup=False),  # a file's name may hold what looks like rich's markup
        BarColumn(),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=console(), refresh_per_second=4) as progress:
        yield Bar(stage, step, total, progress, unit)
