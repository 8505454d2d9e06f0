"""``toolkit report``: one self-contained HTML page for one or many runs.

Style, script, curves, images and videos lie inside the file; a content policy forbids the page to load anything. All
text from runs is escaped.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from toolkit.errors import UserError
from toolkit.runs.files import write_atomic
from toolkit.show.browse import RunInfo, compare, differing_keys, duration, facts, resolve_runs, show_value
from toolkit.show.charts import NUM_COLORS, Points, chart, read_scalars
from toolkit.show.figures import read_caption
from toolkit.show.table import Cell, Table

IMAGES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp"}
VIDEOS = {".mp4": "video/mp4", ".webm": "video/webm"}
MOST_BYTES = 64 * 2**20  # a larger file is named instead of embedded
MOST_TEXT = 20_000  # characters of a text sample
LOG_LINES = 30  # of run.log, for a run that failed
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
HEADLINE = "headline"  # tables/headline.json, where a job writes one, opens the page


def write_report(run_dirs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the page for the runs that folders or patterns name; returns its path.

    ``out`` defaults to report.html inside the run, or in the current folder for many runs. Raises UserError when no
    run is found or none can be read.
    """
    runs = resolve_runs(run_dirs)
    readable = [run for run in runs if not run.problem]
    if not readable:
        raise UserError("; ".join(run.problem for run in runs))
    target = Path(out) if out else (runs[0].dir if len(runs) == 1 else Path()) / "report.html"
    return write_atomic(target, render(runs))


def render(runs: Sequence[RunInfo]) -> str:
    """The page as a string."""
    readable = [run for run in runs if not run.problem]
    sections = one_run(readable[0]) if len(runs) == 1 else many_runs(runs, readable)
    shown = {name: body for name, body in sections.items() if body}
    links = "".join(f'<a href="#{_anchor(name)}">{html.escape(name)}</a>' for name in shown)
    parts = [
        f'<section id="{_anchor(name)}"><h2>{html.escape(name)}</h2>{body}</section>' for name, body in shown.items()
    ]
    here = Path(__file__)
    title, header = _header(runs, readable)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<style>\n{here.with_name('report.css').read_text(encoding='utf-8')}</style></head>\n<body>"
        f"<header>{header}<nav>{links}</nav></header>\n<main>{''.join(parts)}</main>"
        f'<footer>made by <code>toolkit report</code></footer><div id="tip"></div>'
        f"<script>\n{here.with_name('report.js').read_text(encoding='utf-8')}</script></body></html>\n"
    )


def one_run(run: RunInfo) -> dict[str, str]:
    """``{section: html}`` of a single run; empty sections are dropped by :func:`render`."""
    config: list[list[Cell]] = [[key, show_value(value)] for key, value in run.config.items()]
    return {
        "Error": _error(run),
        "Headline": _headline(run),
        "Samples": _gallery(run.dir / "samples", "samples"),
        "Figures": _gallery(run.dir / "figures", "figures"),
        "Curves": _curves([run], [run.command]),
        "Tables": _tables(run),
        "Config": Table("", ["key", "value"], config).to_html() if config else "",
        "Environment": Table("", ["fact", "value"], facts(run)).to_html(),
    }


def many_runs(runs: Sequence[RunInfo], readable: Sequence[RunInfo]) -> dict[str, str]:
    """``{section: html}`` of several runs: the comparison first, then each run's pictures and tables."""
    names = run_names(readable)
    errors = [f"<h3>{html.escape(name)}</h3>{_error(r)}" for name, r in zip(names, readable, strict=True) if _error(r)]
    errors += [f"<pre>{html.escape(run.problem)}</pre>" for run in runs if run.problem]
    finished = any(run.status == "done" for run in readable)
    environments = zip(names, readable, strict=True)
    return {
        "Runs": _overview(readable, names),
        "Errors": "".join(errors),
        "Headline": "".join(table.to_html() for table in compare(runs)) if finished else "",
        "Curves": _curves(readable, names),
        "Samples and tables": "".join(_details(name, _outputs(r)) for name, r in zip(names, readable, strict=True)),
        "Config": _config_differences(readable, names),
        "Environment": "".join(_details(n, Table("", ["fact", "value"], facts(r)).to_html()) for n, r in environments),
    }


def run_names(runs: Sequence[RunInfo]) -> list[str]:
    """Short names: the one or two keys that differ, else the folders."""
    configs = [{"command": run.command, **run.config} for run in runs]
    keys = differing_keys(configs)
    if keys and len(keys) <= 2:
        names = [", ".join(f"{key}={show_value(config.get(key))}" for key in keys) for config in configs]
        if len(set(names)) == len(names):
            return names
    return [str(run.dir) for run in runs]


def _header(runs: Sequence[RunInfo], readable: Sequence[RunInfo]) -> tuple[str, str]:
    commands = ", ".join(dict.fromkeys(run.command for run in readable))
    if len(runs) > 1:
        title = f"{commands}: {len(runs)} runs"
        return title, f"<h1>{html.escape(title)}</h1>"
    run = runs[0]
    started = str(run.record.get("started") or "").replace("T", " ")
    said = " · ".join(filter(None, [str(run.dir), started, duration(run.record.get("wall_time_s"))]))
    badge = f'<span class="badge {html.escape(run.status)}">{html.escape(run.status)}</span>'
    return f"{commands} {run.dir.name}", f"<h1>{html.escape(commands)} {badge}</h1><p>{html.escape(said)}</p>"


def _headline(run: RunInfo) -> str:
    path = run.dir / "tables" / f"{HEADLINE}.json"
    body = _load_table(path) if path.exists() else ""
    metrics: list[list[Cell]] = [[key, value] for key, value in run.metrics.items()]
    if not metrics:
        return body
    table = Table("", ["metric", "value"], metrics).to_html()
    return body + _details(f"all {len(metrics)} metrics", table, opened=not body and len(metrics) <= 24)


def _overview(runs: Sequence[RunInfo], names: Sequence[str]) -> str:
    rows: list[list[Cell]] = []
    for run, name in zip(runs, names, strict=True):
        rows.append([name, run.status, run.record.get("seed"), duration(run.record.get("wall_time_s")), str(run.dir)])
    return Table("", ["run", "status", "seed", "wall time", "folder"], rows).to_html()


def _error(run: RunInfo) -> str:
    error = run.record.get("error")
    if not error and run.status != "failed":
        return ""
    body = f"<pre>{html.escape(str(error or 'no error was recorded'))}</pre>"
    log = run.dir / "run.log"
    if log.exists():
        tail = "\n".join(log.read_text(errors="replace", encoding="utf-8").splitlines()[-LOG_LINES:])
        body += _details("end of run.log", f"<pre>{html.escape(tail)}</pre>", opened=False)
    return body


def _curves(runs: Sequence[RunInfo], names: Sequence[str]) -> str:
    """One chart per stage and scalar, one line per run."""
    charts: dict[str, dict[str, list[tuple[str, int, Points]]]] = {}
    notes = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        series, damaged = read_scalars(run.dir)
        if damaged:
            notes.append(f"{name}: {damaged} damaged line(s) of metrics.jsonl left out")
        for (stage, key), points in series.items():
            label = name if len(runs) > 1 else key
            charts.setdefault(stage, {}).setdefault(key, []).append((label, index, points))
    body = "".join(
        f'<h3>{html.escape(stage)}</h3><div class="charts">'
        + "".join(chart(key, lines) for key, lines in keys.items())
        + "</div>"
        for stage, keys in charts.items()
    )
    legend = _legend(names) if body and len(runs) > 1 else ""
    return legend + body + "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)


def _legend(names: Sequence[str]) -> str:
    items = []
    for index, name in enumerate(names):
        style = f"line s{index % NUM_COLORS} d{index // NUM_COLORS % 3}"
        line = f'<svg viewBox="0 0 26 10" aria-hidden="true"><path class="{style}" d="M0 5L26 5"/></svg>'
        items.append(f"<span>{line}{html.escape(name)}</span>")
    return f'<div class="legend">{"".join(items)}</div>'


def _config_differences(runs: Sequence[RunInfo], names: Sequence[str]) -> str:
    """All keys, those that differ first and marked."""
    configs = [run.config for run in runs]
    differing = differing_keys(configs)
    keys = differing + [key for config in configs for key in config if key not in differing]
    rows: list[list[Cell]] = []
    for key in dict.fromkeys(keys):
        rows.append([key, *(show_value(config[key]) if key in config else None for config in configs)])
    different = (
        Table("", ["key", *names], rows[: len(differing)]).to_html().replace("<tr><td", '<tr class="differs"><td')
    )
    same = Table("", ["key", "value"], [row[:2] for row in rows[len(differing) :]]).to_html()
    shared = _details(f"{len(rows) - len(differing)} keys that all runs share", same, opened=False)
    return (different if differing else "") + (shared if len(rows) > len(differing) else "")


def _outputs(run: RunInfo) -> str:
    return _gallery(run.dir / "samples", "samples") + _gallery(run.dir / "figures", "figures") + _tables(run, all=True)


def _tables(run: RunInfo, all: bool = False) -> str:
    paths = sorted((run.dir / "tables").glob("*.json"))
    return "".join(_load_table(path) for path in paths if all or path.stem != HEADLINE)


def _load_table(path: Path) -> str:
    try:
        table = Table.load(path)
    except UserError as error:
        return f'<p class="note">{html.escape(str(error))}</p>'
    table.title = table.title or path.stem.replace("_", " ")
    return table.to_html()


def _gallery(folder: Path, kind: str) -> str:
    """Every image, video and text below ``folder`` with its caption; a link to a file elsewhere is not followed."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    paths = [path for path in paths if path.resolve().is_relative_to(folder.resolve())]
    items = "".join(_medium(path, folder) for path in paths)
    return f'<div class="media {kind}">{items}</div>' if items else ""


def _medium(path: Path, folder: Path) -> str:
    suffix = path.suffix.lower()
    name = str(path.relative_to(folder).with_suffix("")).replace("_", " ")
    caption = html.escape((read_caption(path) if suffix == ".png" else "") or name, quote=True)
    if suffix == ".txt":
        text = path.read_text(errors="replace", encoding="utf-8")[:MOST_TEXT]
        return f"<figure><pre>{html.escape(text)}</pre><figcaption>{caption}</figcaption></figure>"
    if suffix not in IMAGES and suffix not in VIDEOS:
        return ""
    if path.stat().st_size > MOST_BYTES:
        size = path.stat().st_size / 2**20
        return f'<p class="note">{html.escape(str(path))}: {size:.0f} MiB, too large to embed</p>'
    source = f"data:{(IMAGES | VIDEOS)[suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
    if suffix in VIDEOS:
        medium = (
            f'<video controls loop muted playsinline preload="metadata" src="{source}" aria-label="{caption}"></video>'
        )
    else:
        medium = f'<img src="{source}" alt="{caption}">'
    return f"<figure>{medium}<figcaption>{caption}</figcaption></figure>"


def _details(summary: str, body: str, opened: bool = True) -> str:
    if not body:
        return ""
    return f"<details{' open' if opened else ''}><summary>{html.escape(summary)}</summary>{body}</details>"


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
