"""One table, four shapes: the terminal (rich), Markdown, HTML and JSON (``tables/NAME.json`` of a run folder)."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.errors import UserError
from toolkit.runs.files import write_atomic
from toolkit.runs.output import printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable


@dataclass(frozen=True)
class Spread:
    """A quantity measured ``n`` times: mean and sample standard deviation (``sd`` is nan when n is 1)."""

    mean: float
    sd: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of ``values`` (sd with n - 1). Raises ValueError when there are none."""
        items = [float(value) for value in values]
        if not items:
            raise ValueError("no values to summarise")
        mean = math.fsum(items) / len(items)
        if len(items) == 1:
            return cls(mean, math.nan, 1)
        variance = math.fsum((item - mean) ** 2 for item in items) / (len(items) - 1)
        return cls(mean, math.sqrt(variance), len(items))

    def __str__(self) -> str:
        sd = "" if math.isnan(self.sd) else f" ± {format_number(self.sd, digits=2)}"
        return f"{format_number(self.mean)}{sd} (n={self.n})"


Cell = str | int | float | bool | Spread | None


@dataclass
class Table:
    """Rows of cells under column names, with an optional title and a note below.

    ``single_line``: on a terminal every row takes one line; the first column is whole, the widest others are cut.
    """

    title: str
    columns: list[str]
    rows: Sequence[Sequence[Any]] = field(default_factory=list)
    note: str = ""
    single_line: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table '{self.title}': a row has {len(row)} cells, {len(self.columns)} are expected")

    def texts(self) -> list[list[str]]:
        """The rows as formatted strings."""
        return [[format_cell(cell) for cell in row] for row in self.rows]

    def to_rich(self) -> RichTable:
        """A rich table; text in cells is shown as it is (no markup)."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=Text(printable(self.title), style="bold") if self.title else None,
            caption=Text(printable(self.note), style="dim") if self.note else None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
        )
        for index, column in enumerate(self.columns):
            justify: Literal["left", "right"] = "right" if self._is_numeric(index) else "left"
            whole = index == 0 or self._is_numeric(index)
            table.add_column(Text(printable(column)), justify=justify, overflow="fold", no_wrap=whole)
        overflow: Literal["ellipsis"] | None = "ellipsis" if self.single_line else None
        for row in self.texts():
            cut = [Text(printable(text), no_wrap=self.single_line, overflow=overflow) for text in row[1:]]
            table.add_row(Text(printable(row[0])), *cut)
        return table

    def to_markdown(self) -> str:
        """A GitHub table, the title as a bold line above and the note below."""
        align = ["---:" if self._is_numeric(index) else "---" for index in range(len(self.columns))]
        lines = [_markdown_row(self.columns), _markdown_row(align, escape=False), *map(_markdown_row, self.texts())]
        parts = [f"**{self.title}**"] if self.title else []
        parts += ["\n".join(lines)]
        parts += [self.note] if self.note else []
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """An HTML table; everything is escaped, cells of numbers carry ``class="num"``."""
        numeric = [self._is_numeric(index) for index in range(len(self.columns))]
        head = _html_row("th", self.columns, numeric)
        body = "\n".join(_html_row("td", row, numeric) for row in self.texts())
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        note = f'<p class="note">{html.escape(self.note)}</p>' if self.note else ""
        return (
            f'<div class="table"><table>{caption}\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody></table></div>{note}'
        )

    def to_json(self) -> str:
        """:meth:`as_plain` as text."""
        return json.dumps(self.as_plain(), indent=1, ensure_ascii=False) + "\n"

    def as_plain(self) -> dict[str, Any]:
        """The table as ``{"title", "columns", "rows", "note"}``; a spread is ``{"mean", "sd", "n"}``."""
        rows = [[_cell_to_json(cell) for cell in row] for row in self.rows]
        return {"title": self.title, "columns": self.columns, "rows": rows, "note": self.note}

    @classmethod
    def from_json(cls, text: str) -> Table:
        """The inverse of :meth:`to_json`. Raises UserError when ``text`` is no such table."""
        try:
            value = json.loads(text)
            rows = [[_cell_from_json(cell) for cell in row] for row in value["rows"]]
            columns = [str(column) for column in value["columns"]]
            return cls(str(value.get("title", "")), columns, rows, str(value.get("note", "")))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise UserError(f"not a table: {error}; expected title, columns, rows and note") from None

    def save(self, path: str | Path) -> Path:
        """Write the JSON form atomically and return the path."""
        return write_atomic(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Table:
        """Read a table written by :meth:`save`. Raises UserError naming the file when it is damaged."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (UserError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: {error}") from None

    def _is_numeric(self, index: int) -> bool:
        cells = [row[index] for row in self.rows if row[index] is not None]
        return bool(cells) and all(isinstance(c, (int, float, Spread)) and not isinstance(c, bool) for c in cells)


def format_number(value: float, digits: int = 4) -> str:
    """``digits`` significant digits; whole numbers whole; powers of ten only beyond 1e7 and below 1e-4."""
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if 10**digits <= abs(value) < 1e7:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def format_cell(cell: Cell) -> str:
    """The text of a cell: numbers by :func:`format_number`, yes/no, a dash for nothing."""
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, (int, float)):
        return format_number(cell)
    return str(cell)


def _markdown_row(cells: list[str], escape: bool = True) -> str:
    if escape:
        cells = [cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>") for cell in cells]
    return "| " + " | ".join(cells) + " |"


def _html_row(tag: str, cells: list[str], numeric: list[bool]) -> str:
    classes = [' class="num"' if number else "" for number in numeric]
    return (
        "<tr>" + "".join(f"<{tag}{c}>{html.escape(t)}</{tag}>" for c, t in zip(classes, cells, strict=True)) + "</tr>"
    )


def _cell_to_json(cell: Cell) -> Any:
    return {"mean": cell.mean, "sd": cell.sd, "n": cell.n} if isinstance(cell, Spread) else cell


def _cell_from_json(cell: Any) -> Cell:
    if isinstance(cell, dict):
        return Spread(float(cell["mean"]), float(cell["sd"]), int(cell["n"]))
    return cell if cell is None or isinstance(cell, (str, int, float)) else str(cell)


def number_in_key(value: float) -> str:
    """A number as a part of a dotted metric key: 0.05 is 0p05."""
    return f"{value:g}".replace(".", "p").replace("-", "m")
