"""Training curves as inline SVG: complete without JavaScript, with values under the pointer where it runs."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.runs.reading import metrics_line
from toolkit.show.table import Spread, format_number

MOST_POINTS = 300  # per line; longer ones keep the extremes of each stretch
MOST_OF_CHART = 6000  # points of all lines together, where the lines have more than LEAST_POINTS
LEAST_POINTS = 40
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 240, 58, 12, 10, 34
LOG_RATIO = 50  # positive values that span more than this are drawn on a logarithmic axis
NUM_COLORS = 8

Points = list[tuple[float, float]]  # (step, value)
Point = tuple[float, float, float, int]  # (step, mean, standard deviation, n)


class Line(NamedTuple):
    """One line of a chart: a run's values, or a mean with its band, and the runs behind it.

    color: which colour and dash, counted from 0; lines of one number in several charts belong together. points: (step,
    value), or (step, mean, standard deviation, n).
    """

    label: str
    color: int
    points: Sequence[tuple[Any, ...]]
    runs: Sequence[Sequence[tuple[Any, ...]]] = ()


@dataclass
class Axis:
    """Maps values to pixels: linear or logarithmic from ``low`` to ``high``, drawn from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the range, about five."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            if last > first:
                return [10.0**power for power in range(first, last + 1, math.ceil((last - first + 1) / 5))]
        rough = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def read_scalars(folder: str | Path) -> tuple[dict[tuple[str, str], Points], int]:
    """``{(stage, key): [(step, value), ...]}`` from metrics.jsonl, and how many damaged lines were passed over."""
    series: dict[tuple[str, str], Points] = {}
    damaged = 0
    for line in _lines(Path(folder) / "metrics.jsonl"):
        entry = metrics_line(line)
        if entry is None:
            damaged += 1
            continue
        stage, step = entry["stage"], float(entry["step"])
        for key, value in entry.items():
            if key not in ("stage", "step"):
                series.setdefault((stage, key), []).append((step, float(value)))
    return series, damaged


def chart(title: str, lines: Sequence[Line], xlabel: str = "step") -> str:
    """One figure. Values that are not finite leave a gap; a line of means has a band of one deviation on both sides."""
    ends = [end for line in lines for point in line.points for end in _ends(point)]
    ends += [point for line in lines for run in line.runs for point in run if math.isfinite(point[1])]
    if not ends:
        return f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption><p>no finite value</p></figure>'
    xaxis = Axis(*_span([x for x, _ in ends]), LEFT, WIDTH - RIGHT)
    yaxis = _y_axis([y for _, y in ends], [p[1] for line in lines for p in line.points if math.isfinite(p[1])])
    most = max(LEAST_POINTS, min(MOST_POINTS, MOST_OF_CHART // sum(1 + len(line.runs) for line in lines)))
    thinned = [Line(*line[:2], thin(line.points, most), [thin(run, most) for run in line.runs]) for line in lines]
    marks = [_marks(line, xaxis, yaxis) for line in thinned]
    name = html.escape(title) + (' <span class="dim">(log scale)</span>' if yaxis.log else "")
    return (
        f'<figure class="chart" data-chart="{html.escape(_chart_data(thinned, xaxis, yaxis), quote=True)}">'
        f"<figcaption>{name}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title, quote=True)}">'
        f"{_grid(xaxis, yaxis, xlabel)}{''.join(marks)}</svg></figure>"
    )


def thin(points: Sequence[tuple[Any, ...]], most: int = MOST_POINTS) -> Sequence[tuple[Any, ...]]:
    """At most ``most`` points; of each stretch the lowest and the highest stay, so no spike is lost."""
    if len(points) <= most:
        return points
    stretches = most // 2
    kept = []
    for index in range(stretches):
        part = points[index * len(points) // stretches : (index + 1) * len(points) // stretches]
        # A stretch with a value that is not finite keeps it: the gap must show.
        chosen = {min(range(len(part)), key=lambda i: part[i][1]), max(range(len(part)), key=lambda i: part[i][1])}
        chosen |= {i for i in range(len(part)) if not math.isfinite(part[i][1])}
        kept += [part[i] for i in sorted(chosen)]
    return kept


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        with open(path, encoding="utf-8", errors="replace") as file:
            yield from (line for line in file if line.strip())


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = abs(low) * 0.05 or 1.0
    return (low - pad, high + pad) if low == high else (low, high)


def _ends(point: tuple[Any, ...]) -> Points:
    """What of a point the axes must hold: its value, or both ends of its band."""
    x, y, deviation = *point[:2], point[2] if len(point) > 2 and math.isfinite(point[2]) else 0.0
    return [(x, end) for end in (y - deviation, y + deviation) if math.isfinite(end)]


def _y_axis(values: Sequence[float], lines: Sequence[float]) -> Axis:
    """For ``values`` of which ``lines`` decide on the scale; a logarithmic one leaves out what is not positive."""
    low, high = _span(values)
    if lines and min(lines) > 0 and max(lines) / min(lines) > LOG_RATIO:
        floor = min(lines) / LOG_RATIO
        positive = [value for value in values if value > floor]  # a band may reach down to 0
        return Axis(min(positive) / 1.15, max(values) * 1.15, HEIGHT - BOTTOM, TOP, log=True)
    pad = (high - low) * 0.05
    return Axis(low - pad, high + pad, HEIGHT - BOTTOM, TOP)


def _grid(xaxis: Axis, yaxis: Axis, xlabel: str) -> str:
    parts = []
    for value in yaxis.ticks():
        y = yaxis(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>')
    for value in xaxis.ticks():
        x = xaxis(value)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_tick(value)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{yaxis.start}" y2="{yaxis.start}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{html.escape(xlabel)}</text>')
    return "".join(parts)


def _tick(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 and value % 100 == 0 else format_number(value, digits=3)


def _marks(line: Line, xaxis: Axis, yaxis: Axis) -> str:
    """The band, the single runs and the line itself, which are shown and hidden together."""
    single = "".join(_path(run, line.color, xaxis, yaxis, "one ") for run in line.runs)
    parts = f"{_band(line, xaxis, yaxis)}{single}{_path(line.points, line.color, xaxis, yaxis)}"
    return f'<g data-line="{line.color}">{parts}</g>'


def _pieces(points: Sequence[tuple[Any, ...]], values: int) -> list[list[tuple[Any, ...]]]:
    """``points`` between gaps: where one of the numbers 1 .. ``values`` is not finite."""
    pieces: list[list[tuple[Any, ...]]] = [[]]
    for point in points:
        if all(math.isfinite(value) for value in point[1 : values + 1]):
            pieces[-1].append(point)
        else:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _band(line: Line, xaxis: Axis, yaxis: Axis) -> str:
    """One standard deviation around the mean, where more than one run counts; cut at a logarithmic axis' end."""
    if not line.points or len(line.points[0]) < 3:
        return ""
    outlines = []
    for piece in _pieces(line.points, 2):
        above = [(x, mean + deviation) for x, mean, deviation, _ in piece]
        below = [(x, mean - deviation) for x, mean, deviation, _ in reversed(piece)]
        places = [f"{xaxis(x):.1f} {yaxis(max(y, yaxis.low)):.1f}" for x, y in above + below]
        outlines.append("M" + "L".join(places) + "Z")
    return f'<path class="band s{line.color % NUM_COLORS}" d="{"".join(outlines)}"/>' if outlines else ""


def _path(points: Sequence[tuple[Any, ...]], index: int, xaxis: Axis, yaxis: Axis, kind: str = "") -> str:
    """The line, in pieces between gaps; a piece of one point is a dot."""
    color, dash = index % NUM_COLORS, index // NUM_COLORS % 3
    pieces = [[f"{xaxis(p[0]):.1f} {yaxis(max(p[1], yaxis.low)):.1f}" for p in part] for part in _pieces(points, 1)]
    line = "".join("M" + "L".join(piece) for piece in pieces if len(piece) > 1)
    places = [piece[0].split() for piece in pieces if len(piece) == 1]
    dots = "".join(f'<circle class="{kind}dot s{color}" r="3" cx="{x}" cy="{y}"/>' for x, y in places)
    return f'<path class="{kind}line s{color} d{dash}" d="{line}"/>{dots}'


def _chart_data(lines: Sequence[Line], xaxis: Axis, yaxis: Axis) -> str:
    """What the script needs for the values under the pointer; no NaN, which JSON in browsers refuses."""
    series = []
    for line in lines:
        finite = [point for point in line.points if math.isfinite(point[1])]
        shown = [[round(xaxis(p[0]), 1), round(yaxis(p[1]), 1), _tick(p[0]), _value(p)] for p in finite]
        series.append({"label": line.label, "line": line.color, "color": line.color % NUM_COLORS, "points": shown})
    return json.dumps(series, separators=(",", ":"), ensure_ascii=False)


def _value(point: tuple[Any, ...]) -> str:
    return format_number(point[1]) if len(point) == 2 else str(Spread(*point[1:]))
