"""Training curves as inline SVG: complete without JavaScript, with values under the pointer where it runs."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.runs.reading import metrics_line
from toolkit.show.table import format_number

MOST_POINTS = 300  # per line; longer ones keep the extremes of each stretch
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 240, 58, 12, 10, 34
LOG_RATIO = 50  # positive values that span more than this are drawn on a logarithmic axis
NUM_COLORS = 8

Points = list[tuple[float, float]]


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


def chart(title: str, lines: Sequence[tuple[str, int, Points]], xlabel: str = "step") -> str:
    """One figure with ``lines`` of (label, colour index, points). Values that are not finite leave a gap."""
    finite = [(x, y) for _, _, points in lines for x, y in points if math.isfinite(y)]
    if not finite:
        return f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption><p>no finite value</p></figure>'
    xaxis = Axis(*_span([x for x, _ in finite]), LEFT, WIDTH - RIGHT)
    yaxis = _y_axis([y for _, y in finite])
    thinned = [(label, index, thin(points)) for label, index, points in lines]
    marks = [_path(points, index, xaxis, yaxis) for _, index, points in thinned]
    name = html.escape(title) + (' <span class="dim">(log scale)</span>' if yaxis.log else "")
    return (
        f'<figure class="chart" data-chart="{html.escape(_chart_data(thinned, xaxis, yaxis), quote=True)}">'
        f"<figcaption>{name}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title, quote=True)}">'
        f"{_grid(xaxis, yaxis, xlabel)}{''.join(marks)}</svg></figure>"
    )


def thin(points: Points) -> Points:
    """At most ``MOST_POINTS`` points; of each stretch the lowest and the highest stay, so no spike is lost."""
    if len(points) <= MOST_POINTS:
        return points
    stretches = MOST_POINTS // 2
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


def _y_axis(values: Sequence[float]) -> Axis:
    low, high = _span(values)
    if min(values) > 0 and max(values) / min(values) > LOG_RATIO:
        return Axis(min(values) / 1.15, max(values) * 1.15, HEIGHT - BOTTOM, TOP, log=True)
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


def _path(points: Points, index: int, xaxis: Axis, yaxis: Axis) -> str:
    """The line, in pieces between gaps; a piece of one point is a dot."""
    color, dash = index % NUM_COLORS, index // NUM_COLORS % 3
    pieces: list[list[str]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            pieces[-1].append(f"{xaxis(x):.1f} {yaxis(y):.1f}")
        else:
            pieces.append([])
    line = "".join("M" + "L".join(piece) for piece in pieces if len(piece) > 1)
    places = [piece[0].split() for piece in pieces if len(piece) == 1]
    dots = "".join(f'<circle class="dot s{color}" r="3" cx="{x}" cy="{y}"/>' for x, y in places)
    return f'<path class="line s{color} d{dash}" d="{line}"/>{dots}'


def _chart_data(lines: Sequence[tuple[str, int, Points]], xaxis: Axis, yaxis: Axis) -> str:
    """What the script needs for the values under the pointer; no NaN, which JSON in browsers refuses."""
    series = []
    for label, index, points in lines:
        finite = [(x, y) for x, y in points if math.isfinite(y)]
        shown = [[round(xaxis(x), 1), round(yaxis(y), 1), _tick(x), format_number(y)] for x, y in finite]
        series.append({"label": label, "color": index % NUM_COLORS, "points": shown})
    return json.dumps(series, separators=(",", ":"), ensure_ascii=False)
