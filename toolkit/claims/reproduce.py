"""``toolkit reproduce PAPER``: run the paper's claims, decide each, publish what came out.

Every (run, seed) has a folder of its own, ``ROOT/PAPER/RUN/seed_N`` (``ROOT/PAPER/quick/RUN/seed_N`` with --quick), so
the same command again skips what is done and resumes what was interrupted; runs of another identity (config, data,
weights, packages) are set aside and made anew. Three levels: quick runs the quick claims at
toy cost on one seed (smoke, no evidence, nothing published), safe adds the safe claims, full adds the open ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from toolkit.claims import history
from toolkit.claims import results as publish
from toolkit.claims.claims import REFERENCE, Claim, Claims
from toolkit.claims.identity import find_changes, identity, read_identities, write_identities
from toolkit.claims.jobs import Job
from toolkit.claims.parse import load_claims
from toolkit.claims.verdict import Metrics, MissingMetric, judge_claim, values_by_seed
from toolkit.commands import paper_named
from toolkit.errors import UserError, did_you_mean
from toolkit.paths import PACKAGE, experiments_dir
from toolkit.runs.signals import EXIT_CODES
from toolkit.show.browse import duration
from toolkit.show.table import Cell, Table
from toolkit.show.terminal import show
from toolkit.spelling import spelled

Launch = Callable[[str, list[str]], int]  # (command, words after it) -> exit code
INCLUDED = {"quick": ("quick",), "safe": ("quick", "safe"), "full": ("quick", "safe", "open")}


def reproduce(
    paper: str,
    claims: Sequence[str] | None = None,
    *,
    level: str = "safe",
    root: str | Path = "runs/reproduce",
    out: str | Path | None = None,
    dry_run: bool = False,
    launch: Launch,
) -> int:
    """Run what the chosen claims need, decide them, write results.json, figures and the README's table.

    ``claims`` names claims of any level; without it ``level`` (quick, safe, full) chooses. Results go to ``out``
    (default: the paper's folder of experiments/; ROOT/PAPER/quick for quick). Returns 0; 1 when a run failed or lacks a
    metric; 128 and the signal's number when interrupted. A claim that does not hold is no failure. Raises UserError.
    """
    source = paper_folder(paper)
    paper = source.name
    spec = load_claims(source / "claims.yaml")
    chosen = choose_claims(spec, claims, level)
    quick = level == "quick"
    home = _home(Path(root), paper, quick)
    jobs = plan(spec, chosen, home, quick)
    print(f"{paper}: {len(chosen)} claims, {len(jobs)} runs, about {duration(minutes_left(jobs) * 60)}", flush=True)
    published = not quick and not source.is_relative_to(PACKAGE)  # an installed package is not written into
    target = Path(out) if out else source if published else home
    earlier = publish.read_results(target)
    then = read_identities(target / "identity.json")
    changed = {} if quick else find_changes(spec, then, earlier["runs"])
    earlier["claims"] = history.carry_over(spec, earlier["claims"], changed)
    if dry_run:
        _print_plan(jobs, earlier["claims"])
        return 0
    if not quick:
        set_aside(spec, home, jobs)
    exit_code, failures = run_all(jobs, launch)
    if exit_code in EXIT_CODES:
        return exit_code
    results = publish.merge(earlier, spec, jobs)
    problems = failures | decide_all(spec, chosen, jobs, failures, results, quick)
    if not quick:
        made = then | {job.spec.name: identity(job.spec).to_json() for job in jobs}
        remade = {name: why for name, why in changed.items() if made[name] is not then[name]}
        history.overtake(spec, results["claims"], [claim.id for claim in chosen], remade)
        write_identities(target / "identity.json", {name: made[name] for name in spec.runs if name in made})
    problems |= publish.draw_figures(chosen, results, target, lambda claim: metrics_by_seed(claim, jobs, quick))
    publish.write(target, paper, spec, results, level)
    show(publish.verdict_table(results, chosen))
    _print_problems(problems, target)
    return 1 if problems else 0


def reproduce_all(*, level: str, root: str | Path, dry_run: bool, launch: Launch) -> int:
    """Every paper in turn; the exit code is the worst of theirs, and an interruption ends it."""
    codes = []
    folders = [paper_folder(path.parent.name) for path in sorted(experiments_dir().glob("*/claims.yaml"))]
    cost = math.fsum(_cost_of(folder, level, Path(root)) for folder in folders)
    print(f"{len(folders)} papers, about {duration(cost * 60)}", flush=True)
    for folder in folders:
        print(f"== {folder.name}", flush=True)
        codes.append(reproduce(folder.name, level=level, root=root, dry_run=dry_run, launch=launch))
        if codes[-1] in EXIT_CODES:
            return codes[-1]
    return max(codes)


def _cost_of(folder: Path, level: str, root: Path) -> float:
    """Minutes of what is not done yet."""
    spec, quick = load_claims(folder / "claims.yaml"), level == "quick"
    return minutes_left(plan(spec, choose_claims(spec, None, level), _home(root, folder.name, quick), quick))


def _home(root: Path, paper: str, quick: bool) -> Path:
    return root / paper / "quick" if quick else root / paper


def paper_folder(paper: str) -> Path:
    """``experiments/PAPER`` of the current folder, else of the installation; one of ours under any of its names.

    Raises UserError naming the papers.
    """
    folders = [root / paper for root in (Path("experiments"), experiments_dir())]
    if not any((folder / "claims.yaml").is_file() for folder in folders):
        folders = [folder.with_name(paper_named(paper).paper) for folder in folders]
    found = [folder for folder in folders if (folder / "claims.yaml").is_file()]
    if not found:
        raise UserError(f"{paper}: has no claims yet, {folders[0]}/claims.yaml")
    return found[0]


def choose_claims(spec: Claims, names: Sequence[str] | None, level: str) -> list[Claim]:
    """The claims by name, or those of the level. Raises UserError for an unknown one and when none is left."""
    if level not in INCLUDED:
        raise UserError(f"level={level}: choose one of {', '.join(INCLUDED)}")
    for name in names or ():
        if name not in spec.claims:
            near = did_you_mean(name, spec.claims)
            raise UserError(f"claim {name}: {near}choose among {', '.join(spec.claims) or '(none)'}")
        if why := spec.claims[name].withdrawn:
            raise UserError(f"claim {name}: is withdrawn ({why})")
    held = [claim for claim in spec.claims.values() if not claim.withdrawn]
    chosen = [claim for claim in held if (claim.id in names if names else claim.level in INCLUDED[level])]
    if not chosen:
        raise UserError(f"no claim of level {level}; the levels here: {_levels(spec)}")
    return chosen


def plan(spec: Claims, chosen: Sequence[Claim], home: Path, quick: bool) -> list[Job]:
    """The jobs in an order in which each one's ``@RUN`` comes before it."""
    jobs = []
    for name in spec.needed_runs(chosen):
        run = spec.runs[name]
        minutes = run.quick_minutes if quick else run.minutes
        for seed in _seeds_for(spec, name, run.seeds[:1] if quick else run.seeds, chosen, quick):
            typed = run.words(seed, quick)
            launched = [_insert_folders(word, home, seed) for word in typed]
            jobs.append(Job(run, seed, _folder(home, name, seed), typed, launched, minutes))
    return jobs


def set_aside(spec: Claims, home: Path, jobs: Sequence[Job]) -> None:
    """Move the folders of runs of another identity out of the way, and note the identity of what is made now.

    What a run was made from counts: where ``@RUN`` is set aside, so are the runs on it.
    """
    aside: set[str] = set()
    for name in dict.fromkeys(job.spec.name for job in jobs):
        folder, run = home / name, spec.runs[name]
        mark = folder / "identity.json"
        said = [f"{other} is made anew" for other in run.references() if other in aside]
        if mark.exists():
            said += identity(run).changes(read_identities(mark))
        elif any(folder.glob("seed_*")):
            said.append("it was made before identities were kept")
        if said and any(folder.glob("seed_*")):
            number = next(n for n in itertools.count(1) if not (home / f"{name}.before-{n}").exists())
            folder.rename(home / f"{name}.before-{number}")
            print(f"{name}: {said[0]}; what was there is kept in {home / name}.before-{number}")
            aside.add(name)
        write_identities(mark, identity(run).to_json())


def run_all(jobs: Sequence[Job], launch: Launch) -> tuple[int, dict[str, str]]:
    """Launch every job (a finished one is skipped by its own folder); ``(exit code, {job: why it failed})``."""
    failures: dict[str, str] = {}
    for index, job in enumerate(jobs):
        line = publish.command_line(job.spec.command, job.overrides)
        left = duration(minutes_left(jobs[index:]) * 60)
        print(f"[{index + 1}/{len(jobs)}, about {left} left] {line}  -> {job.dir}", flush=True)
        lost = [name for name in job.spec.references() if f"{name} seed={job.seed}" in failures]
        if lost:
            failures[_name(job)] = f"{lost[0]} seed={job.seed} failed"
            continue
        exit_code = launch(job.spec.command, [*job.overrides, f"hydra.run.dir={spelled(job.dir)}"])
        if exit_code in EXIT_CODES:
            return exit_code, failures
        info = job.info()
        if exit_code or info.status != "done":
            said = info.record.get("error") or info.problem or info.status
            failures[_name(job)] = f"exit code {exit_code}: {str(said).splitlines()[0]}"
    return (1 if failures else 0), failures


def decide_all(
    spec: Claims,
    chosen: Sequence[Claim],
    jobs: Sequence[Job],
    failures: dict[str, str],
    results: dict[str, Any],
    quick: bool,
) -> dict[str, str]:
    """Put the entries of ``chosen`` into ``results``, each with its history; ``{claim: why it was not run}``."""
    problems = {}
    for claim in chosen:
        entry = decide(spec, claim, jobs, failures, quick)
        entry["git_commits"] = history.commits_of(spec, claim, results["runs"])
        results["claims"][claim.id] = history.follow(results["claims"].get(claim.id, {}), entry)
        if entry["verdict"].startswith("not run"):
            problems[claim.id] = entry["verdict"]
    return problems


def decide(
    spec: Claims, claim: Claim, jobs: Sequence[Job], failures: dict[str, str], quick: bool = False
) -> dict[str, Any]:
    """The entry of ``claim`` in results.json: values per seed, centre, interval, verdict."""
    entry: dict[str, Any] = {
        "statement": claim.statement,
        "source": claim.source,
        "paper": claim.paper,
        "paper_value": claim.paper_value,
        "test": claim.test,
        "statistic": str(claim.statistic),
        "holds": claim.holds,
        "runs": claim.runs(),
        "varies": claim.varies,
        "definition": spec.definition(claim),
    }
    lost = [f"{name}: {why}" for name, why in failures.items() if name.split(" seed=")[0] in claim.runs()]
    try:
        if lost:
            raise MissingMetric(lost[0])
        values = values_by_seed(claim.statistic, metrics_by_seed(claim, jobs, quick))
    except MissingMetric as error:
        return entry | {"verdict": f"not run: {error}"}
    found = judge_claim(claim, list(values.values()), smoke=quick)
    return entry | {
        "values": {str(seed): _finite(value) for seed, value in values.items()},
        "center": _finite(found.center),
        "interval_95": None if found.n < 2 or math.isnan(found.center) else [_finite(found.low), _finite(found.high)],
        "n": found.n,
        "verdict": found.verdict,
    }


def metrics_by_seed(claim: Claim, jobs: Sequence[Job], quick: bool = False) -> Metrics:
    """``{seed: {run: metrics}}`` for the seeds of ``claim``."""
    found: Metrics = {}
    for job in jobs:
        if job.spec.name in claim.runs() and job.seed in claim.seeds_at(quick):
            found.setdefault(job.seed, {})[job.spec.name] = job.info().metrics
    return found


def plan_table(jobs: Sequence[Job]) -> Table:
    """What --dry-run prints: a run's seeds of one state in a row, its minutes, the command of the first."""
    rows: list[list[Cell]] = []
    for (name, state), group in itertools.groupby(jobs, lambda job: (job.spec.name, job.state())):
        first, *others = group
        minutes = None if first.minutes is None else first.minutes * (1 + len(others))
        line = publish.command_line(first.spec.command, first.overrides)
        rows.append([f"{name} seed={_span([job.seed for job in (first, *others)])}", state, minutes, line])
    open_jobs = [job for job in jobs if job.state() != "done"]
    known = minutes_left(jobs)
    unknown = sum(job.minutes is None for job in open_jobs)
    note = f"{len(open_jobs)} of {len(jobs)} runs to do"
    note += f", about {duration(known * 60)}" if known else ""
    note += f" and {unknown} of unknown cost" if unknown else ""
    return Table("Runs", ["run", "state", "minutes", "command"], rows, note)


def _span(seeds: Sequence[int]) -> str:
    """``10-19`` of three and more in a row, else ``0,1``."""
    in_a_row = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]}-{seeds[-1]}" if in_a_row else ",".join(map(str, seeds))


def minutes_left(jobs: Sequence[Job]) -> float:
    """What the jobs that are not done cost where nothing else runs."""
    return math.fsum(job.minutes or 0 for job in jobs if job.state() != "done")


def _seeds_for(spec: Claims, name: str, seeds: list[int], chosen: Sequence[Claim], quick: bool) -> list[int]:
    """All seeds of a run; with --quick those that a claim's first seed or a later run's ``@RUN`` asks for."""
    if not quick:
        return seeds
    asked = {claim.seeds[0] for claim in chosen if name in claim.runs()}
    users = [run for run in spec.needed_runs(chosen) if name in spec.runs[run].references()]
    asked |= {seed for user in users for seed in _seeds_for(spec, user, spec.runs[user].seeds[:1], chosen, quick)}
    return sorted(asked)


def _finite(value: float) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return value if math.isfinite(value) else None


def _folder(home: Path, name: str, seed: int) -> Path:
    return home / name / f"seed_{seed}"


def _insert_folders(word: str, home: Path, seed: int) -> str:
    """``@RUN`` -> the folder of that run."""
    return REFERENCE.sub(lambda match: spelled(_folder(home, match[1], seed)), word)


def _name(job: Job) -> str:
    return f"{job.spec.name} seed={job.seed}"


def _levels(spec: Claims) -> str:
    return ", ".join(dict.fromkeys(claim.level for claim in spec.claims.values())) or "(none)"


def _print_plan(jobs: Sequence[Job], claims: dict[str, Any]) -> None:
    show(plan_table(jobs))
    for name, entry in claims.items():
        if "stale" in entry:
            print(f"{name}: stale, {entry['stale']}")


def _print_problems(problems: dict[str, str], target: Path) -> None:
    for name, why in problems.items():
        print(f"{name}: {why}")
    print(f"results: {target / 'results.json'}")
