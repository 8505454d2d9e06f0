"""What ``toolkit reproduce`` leaves behind: results.json, figures, and the generated block of the paper's README."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.claims.claims import VARIES, Claim, Claims
from toolkit.claims.verdict import Metrics, MissingMetric, lookup
from toolkit.errors import UserError
from toolkit.plain_files import read_object
from toolkit.runs.files import write_atomic, write_json
from toolkit.show.browse import duration
from toolkit.show.table import Cell, Spread, Table, format_number, number_in_key

if TYPE_CHECKING:
    from toolkit.claims.jobs import Job

BEGIN = "<!-- results: begin (written by `toolkit reproduce`; edits between the two marks are lost) -->"
END = "<!-- results: end -->"
NOT_RUN = {"quick": "not run yet", "safe": "not run yet", "open": "not run yet (--full)"}


def read_results(folder: Path) -> dict[str, Any]:
    """results.json of an earlier call, or an empty one. Raises UserError when it is damaged."""
    path = folder / "results.json"
    if not path.exists():
        return {"claims": {}, "runs": {}}
    try:
        results = read_object(path)
        return {"claims": dict(results["claims"]), "runs": dict(results["runs"])}
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path}: damaged; move it away, the runs themselves are kept") from None


def merge(results: dict[str, Any], spec: Claims, jobs: Sequence[Job]) -> dict[str, Any]:
    """Earlier results, and where every run of ``jobs`` was made."""
    runs = {name: entry for name, entry in results["runs"].items() if name in spec.runs}
    for name in dict.fromkeys(job.spec.name for job in jobs):
        mine = [job for job in jobs if job.spec.name == name]
        seeds = {str(job.seed): _provenance(job, metrics_kept(spec, name)) for job in mine if not job.info().problem}
        runs[name] = {"command": command_line(mine[0].spec.command, mine[0].typed), "seeds": seeds}
    return {"claims": dict(results["claims"]), "runs": runs}


def metrics_kept(spec: Claims, run: str) -> list[str]:
    """Patterns of the metrics of ``run`` that claims, their figures and its own ``keep`` name."""
    patterns = list(spec.runs[run].keep)
    for claim in spec.claims.values():
        drawn = claim.figure.metrics.values() if claim.figure else ()
        terms = [*claim.statistic.terms, *((name, key.replace("{x}", "*")) for name, key in drawn)]
        patterns += [key for name, key in terms if name == run]
    return list(dict.fromkeys(patterns))


def draw_figures(
    chosen: Sequence[Claim], results: dict[str, Any], folder: Path, metrics: Callable[[Claim], Metrics]
) -> dict[str, str]:
    """Draw the figures that claims ask for and note them in ``results``; ``{figure: why it was not drawn}``."""
    problems = {}
    for claim in chosen:
        entry = results["claims"][claim.id]
        if claim.figure is None or entry["verdict"].startswith("not run"):
            continue
        try:
            draw_figure(claim, metrics(claim), folder / "figures" / f"{claim.id}.png")
            entry["figure"] = f"figures/{claim.id}.png"
        except MissingMetric as error:
            problems[f"figure of {claim.id}"] = f"not drawn: {error}"
    return problems


def draw_figure(claim: Claim, metrics: Metrics, path: Path) -> Path:
    """Mean over seeds with the band (curves) of all seeds or the standard deviation (bars). Raises MissingMetric."""
    from toolkit.show import figures

    assert claim.figure
    spec = claim.figure
    caption = f"{claim.statement} (mean over {len(metrics)} seed(s)"

    def over_seeds(run: str, key: str) -> list[float]:
        return [lookup(metrics, seed, run, key) for seed in metrics]

    if spec.kind == "bars":
        spreads = {label: Spread.of(over_seeds(*term)) for label, term in spec.metrics.items()}
        return figures.bars(path, spreads, **spec.labels, caption=f"{caption}; whiskers: one standard deviation)")
    series = {}
    for label, (run, pattern) in spec.metrics.items():
        columns = [over_seeds(run, pattern.replace("{x}", number_in_key(x))) for x in spec.x]
        means = [math.fsum(column) / len(column) for column in columns]
        series[label] = (spec.x, means, [min(column) for column in columns], [max(column) for column in columns])
    return figures.curves(path, series, **spec.labels, caption=f"{caption}; band: lowest to highest seed)")


def write(folder: Path, paper: str, spec: Claims, results: dict[str, Any], level: str) -> None:
    """Write results.json, and README.md unless these are smoke results."""
    ordered = {name: results["claims"][name] for name in spec.claims if name in results["claims"]}
    made = [entry for run in results["runs"].values() for entry in run["seeds"].values()]
    summary = {
        "paper": paper,
        "level": level,
        "evidence": level != "quick",
        "machines": _distinct(entry["machine"] for entry in made),
        "torch": _distinct(entry["torch"] for entry in made),
        "git_commits": _distinct(commit for entry in ordered.values() for commit in entry.get("git_commits", [])),
        "wall_time_s": round(math.fsum(entry["wall_time_s"] or 0 for entry in made), 1),
        "claims": ordered,
        "runs": {name: results["runs"][name] for name in spec.runs if name in results["runs"]},
    }
    write_json(folder / "results.json", summary)
    if level != "quick":
        write_readme(folder / "README.md", spec.title or paper, readme_block(spec, summary))


def write_readme(path: Path, title: str, block: str) -> None:
    """Put ``block`` between the two marks, leaving all else as it is; without marks it goes to the end.

    Raises UserError when only one mark is there or they are out of order.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else f"# {title}\n"
    marked = f"{BEGIN}\n\n{block.strip()}\n\n{END}"
    if BEGIN not in text and END not in text:
        write_atomic(path, f"{text.rstrip()}\n\n{marked}\n")
        return
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{path}: needs the line '{BEGIN}' and below it '{END}'")
    write_atomic(path, before + marked + after)


def readme_block(spec: Claims, results: dict[str, Any]) -> str:
    """The generated Markdown: claims, figures, commands, machine."""
    parts = [claims_table(spec, results).to_markdown()]
    if (former := history_table(spec, results)).rows:
        parts.append("Verdicts that were replaced or withdrawn:\n\n" + former.to_markdown().strip())
    for name, entry in results["claims"].items():
        if "figure" in entry:
            parts.append(f"![{spec.claims[name].statement}]({entry['figure']})")
    lines = []
    for name, run in results["runs"].items():
        spent = duration(math.fsum(entry["wall_time_s"] or 0 for entry in run["seeds"].values()))
        lines += [f"# {name}: seed {', '.join(run['seeds'])}; {spent} in all", run["command"]]
    if any("@" in line for line in lines[1::2]):
        lines.insert(0, "# @RUN stands for the folder of that run with the same seed")
    parts.append("Runs:\n\n```sh\n" + "\n".join(lines) + "\n```")
    machines = "; ".join(f"{machine.get('processor')}, {machine.get('cores')} cores" for machine in results["machines"])
    commits = ", ".join(str(commit) for commit in results["git_commits"])
    spent = duration(results["wall_time_s"])
    torch = ", ".join(map(str, results["torch"]))
    parts.append(f"Made on {machines or 'an unknown machine'}, torch {torch}, {spent} of runs; commit {commits}.")
    return "\n\n".join(part.strip() for part in parts)


def claims_table(spec: Claims, results: dict[str, Any], chosen: Sequence[Claim] | None = None) -> Table:
    """Claim, statement, source, paper's number, ours with interval and n, threshold, verdict."""
    rows: list[list[Cell]] = []
    for claim in spec.claims.values() if chosen is None else chosen:
        entry = results["claims"].get(claim.id, {})
        theirs = claim.paper if claim.paper_value is None else claim.paper_value
        if claim.withdrawn:
            continue
        verdict = _verdict(entry, claim.level)
        rows.append([claim.id, claim.statement, claim.source, _text(theirs), _ours(entry), claim.threshold(), verdict])
    columns = ["claim", "statement", "source", "paper", "ours [95 % CI]", "holds when", "verdict"]
    note = "t intervals over what n counts, of ratios in log space; a claim is decided by its whole interval."
    return Table("", columns, rows, note)


def history_table(spec: Claims, results: dict[str, Any]) -> Table:
    """Every verdict that was replaced or withdrawn: what it said, made at which commits, and why it is over."""
    rows: list[list[Cell]] = []
    for name, entry in results["claims"].items():
        for former in entry.get("history", []):
            commits = ", ".join(commit[:7] for commit in former.get("git_commits", [])) or "not recorded"
            rows.append([name, spec.claims[name].statement, _ours(former), former["verdict"], commits, former["why"]])
    return Table("", ["claim", "statement", "it was", "verdict", "runs at commit", "why it is over"], rows, "")


def verdict_table(results: dict[str, Any], chosen: Sequence[Claim]) -> Table:
    """What fits a terminal: claim, ours with interval, threshold, verdict."""
    rows: list[list[Cell]] = []
    for claim in chosen:
        entry = results["claims"].get(claim.id, {})
        rows.append([claim.id, _ours(entry), claim.threshold(), _verdict(entry, claim.level)])
    return Table("", ["claim", "ours [95 % CI]", "holds when", "verdict"], rows, "intervals over seeds")


def command_line(command: str, words: Sequence[str]) -> str:
    """What one would type."""
    return shlex.join(["toolkit", command, *words])


def _ours(entry: dict[str, Any]) -> str:
    if entry.get("center") is None:
        return "–"
    if entry.get("varies") == "nothing":
        return f"{format_number(entry['center'], 3)}, exact"
    interval = entry.get("interval_95")
    low, high = ("∞" if bound is None else format_number(bound, 3) for bound in interval or (None, None))
    spread = f" [{low}, {high}]" if interval else ""
    of = f" {VARIES[entry['varies']]}" if "varies" in entry else ""
    return f"{format_number(entry['center'], 3)}{spread}, n={entry['n']}{of}"


def _verdict(entry: dict[str, Any], level: str) -> str:
    if "stale" in entry:
        return f"stale ({entry['stale']}); was: {entry['verdict']}"
    return str(entry.get("verdict", NOT_RUN[level]))


def _text(value: Any) -> str:
    return format_number(value) if isinstance(value, (int, float)) else str(value)


def _provenance(job: Job, patterns: Sequence[str]) -> dict[str, Any]:
    """Which code, machine and time a run took, and those of its metrics that pages are made from."""
    record = job.info().record
    kept = {key: value for key, value in job.info().metrics.items() if any(fnmatchcase(key, p) for p in patterns)}
    machine = record.get("machine") or {}
    return {
        "status": job.info().status,
        "config_hash": record.get("config_hash"),
        "git_commit": record.get("git_commit"),
        "continued_at": record.get("continued_at", []),
        "device": record.get("device"),
        "machine": {key: machine[key] for key in ("processor", "cores") if key in machine},
        "torch": (record.get("versions") or {}).get("torch"),
        "versions": record.get("versions"),
        "num_threads": record.get("num_threads"),
        "wall_time_s": record.get("wall_time_s"),
        "metrics": {key: value if math.isfinite(value) else None for key, value in sorted(kept.items())},
    }


def _distinct(values: Any) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value and value not in found:
            found.append(value)
    return found
