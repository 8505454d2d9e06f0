"""Progress for people: a rich bar with rate, ETA and loss on a terminal, plain lines in a log file or a pipe."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from rich.color import Color
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.style import Style
from rich.table import Column
from rich.text import Text

from toolkit.runs.distributed import rank

PLAIN_EVERY_S = 10.0
STILL_EVERY_S = 1.0
STILL_LINES, STILL_COLUMNS = 16, 64  # at most


def console() -> Console:
    """Messages go to stderr; stdout is for results."""
    return Console(stderr=True, quiet=rank() != 0, soft_wrap=True, highlight=False)


def say(message: str) -> None:
    """One line for the user, and for run.log."""
    import logging

    if rank() == 0:
        logging.getLogger("toolkit").info(message)


class _BarAndStill(Progress):
    """A bar with a picture below it, where there is one."""

    still: Text | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn, from top to bottom."""
        yield from super().get_renderables()
        if self.still is not None:
            yield self.still


class Bar:
    """Shows how far a stage is; ``unit`` is what it counts."""

    def __init__(self, stage: str, step: int, total: int, rich_progress: Progress | None, unit: str = "step"):
        self.stage, self.total, self.first, self.step = stage, total, step, step
        self.start = self.shown = time.monotonic()
        self.text, self.unit = "", unit
        self.progress = rich_progress
        self.next_still = self.start if isinstance(rich_progress, _BarAndStill) else float("inf")
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

    def show(self, pixels: Any) -> None:
        """Draw RGB ``pixels`` (height, width, 3), uint8 or uint16, small below the bar; at most once a second."""
        if time.monotonic() < self.next_still:
            return
        self.next_still = time.monotonic() + STILL_EVERY_S
        assert isinstance(self.progress, _BarAndStill)
        room = self.progress.console.size
        self.progress.still = half_blocks(pixels, min(STILL_LINES, room.height - 4), min(STILL_COLUMNS, room.width - 1))

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


def half_blocks(pixels: Any, lines: int, columns: int) -> Text:
    """RGB (height, width, 3) within so much of a terminal: two pixels a character, one above the other."""
    height, width = pixels.shape[:2]
    share = max(height / (2 * max(lines, 1)), width / max(columns, 1))
    rows = [min(int((row + 0.5) * share), height - 1) for row in range(2 * max(1, int(height / share) // 2))]
    places = [min(int((column + 0.5) * share), width - 1) for column in range(max(1, int(width / share)))]
    deep = 257 if pixels.dtype.itemsize > 1 else 1
    small = [[Color.from_rgb(*(int(one) // deep for one in pixels[y, x])) for x in places] for y in rows]
    picture = Text(no_wrap=True, end="")
    for above, below in zip(small[::2], small[1::2], strict=True):
        for top, bottom in zip(above, below, strict=True):
            picture.append("\u2580", Style(color=top, bgcolor=bottom))
        picture.append("\n")
    return picture


@contextlib.contextmanager
def bar(stage: str, step: int, total: int, unit: str = "step", stills: bool = False) -> Iterator[Bar]:
    """A progress bar for the steps of one stage; with ``stills`` a terminal of many colours has room for pictures."""
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
    screen = console()
    draws = stills and screen.color_system in ("256", "truecolor") and not screen.is_dumb_terminal
    kind = _BarAndStill if draws else Progress
    with kind(*columns, console=screen, refresh_per_second=4) as progress:
        yield Bar(stage, step, total, progress, unit)
        if isinstance(progress, _BarAndStill):
            progress.still = None  # what stays on the screen is the bar
