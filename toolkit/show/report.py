"""``toolkit report``: one self-contained HTML page for one or many runs, of one or several papers.

Style, script, curves, images and videos lie inside the file; a content policy forbids the page to load anything. All
text from runs is escaped. Without JavaScript everything can be read; with it curves tell their values, pictures open
large, films play in step, and tables sort.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import UserError
from toolkit.runs.files import write_atomic
from toolkit.show.bands import average
from toolkit.show.browse import (
    ABSENT,
    Group,
    RunInfo,
    compare,
    differing_keys,
    duration,
    facts,
    group_runs,
    resolve_runs,
    show_value,
)
from toolkit.show.charts import NUM_COLORS, Line, Points, chart, read_scalars
from toolkit.show.media import Shelf, gallery, side_by_side
from toolkit.show.merge import HEADLINE, load_table, merged
from toolkit.show.table import Cell, Table

LOG_LINES = 30  # of run.log, for a run that failed
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass
class Part:
    """One paper's part of the page, or what concerns all: ``{name: html}``; empty sections are dropped."""

    title: str
    sections: dict[str, str]

    def links(self) -> str:
        """The part's row of the navigation."""
        title = f"<b>{html.escape(self.title)}</b>" if self.title else ""
        return title + "".join(f'<a href="#{self._anchor(name)}">{html.escape(name)}</a>' for name in self._shown())

    def to_html(self) -> str:
        """The title and the sections."""
        title = f'<h2 class="part">{html.escape(self.title)}</h2>' if self.title and self._shown() else ""
        level = "h3" if self.title else "h2"
        return title + "".join(
            f'<section id="{self._anchor(name)}"><{level}>{html.escape(name)}</{level}>{body}</section>'
            for name, body in self._shown().items()
        )

    def _shown(self) -> dict[str, str]:
        return {name: body for name, body in self.sections.items() if body}

    def _anchor(self, name: str) -> str:
        return html.escape(f"{self.title} {name}".strip().lower().replace(" ", "-"), quote=True)


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
    parts = [one_run(readable[0])] if len(runs) == 1 else many_runs(runs, readable)
    here = Path(__file__)
    title, header = _header(runs, readable)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<style>\n{here.with_name('report.css').read_text(encoding='utf-8')}</style></head>\n<body>"
        f"<header>{header}</header><nav>{''.join(part.links() for part in parts)}</nav>\n"
        f"<main>{''.join(part.to_html() for part in parts)}</main>"
        f"<footer>made by <code>toolkit report</code></footer>"
        f"<script>\n{here.with_name('report.js').read_text(encoding='utf-8')}</script></body></html>\n"
    )


def one_run(run: RunInfo) -> Part:
    """What is there of a single run."""
    config: list[list[Cell]] = [[key, show_value(value)] for key, value in run.config.items()]
    shelf = Shelf()
    sections = {
        "Error": _error(run),
        "Headline": _headline(run),
        "Samples": gallery(run.dir, "samples", shelf),
        "Figures": gallery(run.dir, "figures", shelf),
        "Curves": _curves([Group({}, [run], run.command)]),
        "Tables": "".join(_load_table(path) for path in _tables(run) if path.stem != HEADLINE),
        "Config": Table("", ["key", "value"], config).to_html() if config else "",
        "Environment": Table("", ["fact", "value"], facts(run)).to_html(),
    }
    sections["Figures" if sections["Figures"] else "Samples"] += shelf.note()
    return Part("", sections)


def many_runs(runs: Sequence[RunInfo], readable: Sequence[RunInfo]) -> list[Part]:
    """What concerns all runs, then a part for each command."""
    commands = list(dict.fromkeys(run.command for run in readable))
    of_command = {command: [run for run in readable if run.command == command] for command in commands}
    own_name = {id(run): name for own in of_command.values() for run, name in zip(own, run_names(own), strict=True)}
    names = [own_name[id(run)] for run in readable]
    told = zip(names, readable, strict=True)
    errors = [f"<h3>{html.escape(f'{run.command} {name}')}</h3>{_error(run)}" for name, run in told if _error(run)]
    errors += [f"<pre>{html.escape(run.problem)}</pre>" for run in runs if run.problem]
    shelf = Shelf()
    several = len(commands) > 1
    groups = {command: group_runs([run for run in own if run.status == "done"]) for command, own in of_command.items()}
    parts = [Part(name if several else "", _sections(own, groups[name], shelf)) for name, own in of_command.items()]
    config_of = {id(run): group.name for of_one in groups.values() for group in of_one for run in group.runs}
    overview = {"Runs": _overview(readable, names, config_of) + shelf.note(), "Errors": "".join(errors)}
    if len(parts) == 1:
        return [Part("", overview | parts[0].sections)]
    return [Part("", overview), *parts]


def _sections(runs: Sequence[RunInfo], groups: Sequence[Group], shelf: Shelf) -> dict[str, str]:
    """The comparison of one command's runs, of which ``groups`` has the finished ones by config."""
    names = run_names(runs)
    tables, problems = merged(groups)
    headline = "".join(table.to_html() for table in tables.pop(HEADLINE, []))
    metrics = (
        "".join(table.to_html() for table in compare([run for group in groups for run in group.runs])) if groups else ""
    )
    damaged = "".join(f'<p class="note">{html.escape(problem)}</p>' for problem in problems)
    environments = zip(names, runs, strict=True)
    # The first run of every config, then the second ones, ...: a page that cannot hold all shows each config.
    rank = {id(run): number for group in groups for number, run in enumerate(group.runs)}
    in_turn = sorted(zip(names, runs, strict=True), key=lambda item: rank.get(id(item[1]), len(runs)))
    return {
        "Headline": headline + (_details("all metrics", metrics, opened=False) if headline else metrics),
        "Curves": _curves(_lines(groups, runs, names)),
        "Samples": side_by_side([(name, run.dir) for name, run in in_turn], shelf),
        "Tables": "".join(table.to_html() for kinds in tables.values() for table in kinds) + damaged,
        "Config": _config_differences(runs, names),
        "Environment": "".join(
            _details(name, Table("", ["fact", "value"], facts(run)).to_html(), opened=False)
            for name, run in environments
        ),
    }


def _lines(groups: Sequence[Group], runs: Sequence[RunInfo], names: Sequence[str]) -> list[Group]:
    """What has a line in every chart: each config's finished runs as one, each other run by itself."""
    name_of = {id(run): name for name, run in zip(names, runs, strict=True)}
    lines = []
    for group in groups:
        only = name_of[id(group.runs[0])] if len(group.runs) == 1 else f"{len(group.runs)} runs"
        lines.append(Group(group.config, group.runs, only if len(groups) == 1 else group.name))
    others = [run for run in runs if run.status != "done"]
    return lines + [Group({}, [run], f"{name_of[id(run)]} ({run.status})") for run in others]


def run_names(runs: Sequence[RunInfo]) -> list[str]:
    """Short names: the one or two keys that differ, else the folders from where they part."""
    configs = [{"command": run.command, **run.config} for run in runs]
    keys = differing_keys(configs)
    if keys and len(keys) <= 2:
        names = [", ".join(f"{key}={show_value(config.get(key, ABSENT))}" for key in keys) for config in configs]
        if len(set(names)) == len(names):
            return names
    if len(runs) < 2:
        return [str(run.dir) for run in runs]
    above = Path(os.path.commonpath([run.dir.absolute() for run in runs])).parent
    return [str(run.dir.absolute().relative_to(above)) for run in runs]


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


def _overview(runs: Sequence[RunInfo], names: Sequence[str], config_of: Mapping[int, str]) -> str:
    """Where every run is; the group it belongs to where there are several of its command."""
    several = len({name for name in config_of.values() if name != "value"}) > 1
    rows: list[list[Cell]] = []
    for run, name in zip(runs, names, strict=True):
        time = duration(run.record.get("wall_time_s"))
        config = [config_of.get(id(run))] if several else []
        rows.append([name, run.command, *config, run.status, run.record.get("seed"), time, str(run.dir)])
    columns = ["run", "command", *(["config"] if several else []), "status", "seed", "wall time", "folder"]
    return Table("", columns, rows).to_html()


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


def _curves(groups: Sequence[Group]) -> str:
    """One chart per stage and scalar, one line per group: its run, or the mean of its runs with a band."""
    charts: dict[str, dict[str, list[Line]]] = {}
    notes = []
    for index, group in enumerate(groups):
        series: dict[tuple[str, str], list[Points]] = {}
        for run in group.runs:
            found, damaged = read_scalars(run.dir)
            if damaged:
                notes.append(f"{run.dir}: {damaged} damaged line(s) of metrics.jsonl left out")
            for place, points in found.items():
                series.setdefault(place, []).append(points)
        for (stage, key), of_runs in series.items():
            several = len(of_runs) > 1
            line = Line(group.name if len(groups) > 1 else key, index, of_runs[0])
            line = Line(group.name, index, average(of_runs), of_runs) if several else line
            charts.setdefault(stage, {}).setdefault(key, []).append(line)
    body = "".join(
        f'<h4>{html.escape(stage)}</h4><div class="charts">'
        + "".join(chart(key, lines) for key, lines in keys.items())
        + "</div>"
        for stage, keys in charts.items()
    )
    banded = any(len(group.runs) > 1 for group in groups)
    legend = _legend([group.name for group in groups], banded) if body and (len(groups) > 1 or banded) else ""
    return legend + body + "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)


def _legend(names: Sequence[str], banded: bool) -> str:
    """Switches for the lines of all charts below, and what a band is."""
    items = []
    for index, name in enumerate(names):
        style = f"line s{index % NUM_COLORS} d{index // NUM_COLORS % 3}"
        line = f'<svg viewBox="0 0 26 10" aria-hidden="true"><path class="{style}" d="M0 5L26 5"/></svg>'
        items.append(
            f'<button type="button" data-line="{index}" aria-pressed="true">{line}{html.escape(name)}</button>'
        )
    said = '<p class="note">line and band: mean ± sample standard deviation over the seeds of a config</p>'
    said += '<label class="scripted"><input type="checkbox" class="single">every run</label>'
    return f'<div class="legend">{"".join(items)}</div>' + (f'<div class="about">{said}</div>' if banded else "")


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


def _tables(run: RunInfo) -> list[Path]:
    return sorted((run.dir / "tables").glob("*.json"))


def _load_table(path: Path) -> str:
    try:
        return load_table(path).to_html()
    except UserError as error:
        return f'<p class="note">{html.escape(str(error))}</p>'


def _details(summary: str, body: str, opened: bool = True) -> str:
    if not body:
        return ""
    return f"<details{' open' if opened else ''}><summary>{html.escape(summary)}</summary>{body}</details>"
