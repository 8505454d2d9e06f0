"""A paper's claims as data: ``experiments/<paper>/claims.yaml`` and its check.

    title: DisCo-Diff                    # heading of the generated README
    command: train-disco
    runs:                                # shared by the claims, by name
      toy:
        overrides: [experiment=disco_toy]
        seeds: [0, 1, 2]
        minutes: 1.5                     # expected cost of one seed
        quick_overrides: [steps=100]     # added by --quick, which runs the first seed only
        quick_minutes: 0.1
        command: train-disco             # where it differs from the one above
    claims:
      - id: toy_loss
        level: safe                      # quick, safe or open: the first level that runs it
        statement: Latents lower the loss at large noise
        source: Fig. 3
        paper: what the paper measured
        paper_value: 0.1
        test: how it is tested here
        statistic: {metric: {ratio: [loss.with_z, loss.null]}, run: toy}
        holds: {"<=": 0.2}
        figure: {kind: curves, x: [0.1, 1, 10], metrics: {with z: "loss.with_z.{x}"}, xlabel: σ, ylabel: MSE}

A metric is a key of the run's ``metrics``, or ``RUN:key`` for another run of the same seed; ``{ratio: [a, b]}`` and
``{difference: [a, b]}`` are formed per seed. An override may say ``@RUN``: the folder of that run with the same seed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import UserError, did_you_mean
from toolkit.renamed import first_spelling
from toolkit.show.table import format_number

LEVELS = ("quick", "safe", "open")
FIGURES = ("curves", "bars")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
REFERENCE = re.compile(r"(?<=[=,\[])@([A-Za-z0-9][A-Za-z0-9_-]*)")


@dataclass(frozen=True)
class RunSpec:
    """A run that claims measure: one command and its overrides, repeated over seeds."""

    name: str
    command: str
    overrides: list[str]
    seeds: list[int]
    minutes: float | None = None
    quick_overrides: list[str] = field(default_factory=list)
    quick_minutes: float | None = None

    def references(self) -> list[str]:
        """The runs whose folders the overrides name with ``@RUN``."""
        return [name for override in self.overrides + self.quick_overrides for name in REFERENCE.findall(override)]


@dataclass(frozen=True)
class Statistic:
    """A number per seed: ``kind`` value, ratio or difference of one or two (run, key) pairs."""

    kind: str
    terms: list[tuple[str, str]]

    def __str__(self) -> str:
        sign = {"value": "", "ratio": " / ", "difference": " − "}[self.kind]
        several = len({run for run, _ in self.terms}) > 1
        return sign.join(f"{run}:{key}" if several else key for run, key in self.terms)


@dataclass(frozen=True)
class FigureSpec:
    """Curves over ``x`` or bars; ``metrics`` maps a label to (run, key), the key with ``{x}`` for curves."""

    kind: str
    metrics: dict[str, tuple[str, str]]
    x: list[float]
    labels: dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """One statement of the paper and what would count as holding."""

    id: str
    level: str
    statement: str
    source: str
    paper: str
    paper_value: float | str | None
    test: str
    statistic: Statistic
    seeds: list[int]
    holds: dict[str, float]
    figure: FigureSpec | None = None

    def seeds_at(self, quick: bool) -> list[int]:
        """The seeds that count: the first one in quick runs."""
        return self.seeds[:1] if quick else self.seeds

    def runs(self) -> list[str]:
        """The names of the runs that the claim reads."""
        named = [run for run, _ in self.statistic.terms]
        named += [run for run, _ in self.figure.metrics.values()] if self.figure else []
        return list(dict.fromkeys(named))

    def threshold(self) -> str:
        """The threshold as text, ``≤ 0.2``."""
        signs = {"<=": "≤", ">=": "≥"}
        return " and ".join(f"{signs[sign]} {format_number(limit)}" for sign, limit in self.holds.items())


@dataclass(frozen=True)
class Claims:
    """A checked claims.yaml."""

    title: str
    runs: dict[str, RunSpec]
    claims: dict[str, Claim]

    def definition(self, claim: Claim) -> str:
        """16 hex digits over all that the result of ``claim`` depends on: an older result is recognised."""
        runs = [asdict(self.runs[name]) for name in self.needed_runs([claim])]
        computes = [asdict(claim.statistic), claim.seeds, claim.holds]
        costs = ("minutes", "quick_minutes", "quick_overrides")
        runs = [{key: value for key, value in run.items() if key not in costs} for run in runs]
        for run in runs:  # a key that was renamed since means the same
            run["overrides"] = first_spelling(run["command"], run["overrides"])
        return hashlib.sha256(json.dumps([computes, runs], sort_keys=True).encode()).hexdigest()[:16]

    def needed_runs(self, claims: Iterable[Claim]) -> list[str]:
        """The runs that ``claims`` read, and those whose folders these name, in the order of the file."""
        needed = {name for claim in claims for name in claim.runs()}
        for name in reversed(list(self.runs)):  # a run refers only to runs above it
            if name in needed:
                needed.update(self.runs[name].references())
        return [name for name in self.runs if name in needed]


def load_claims(path: str | Path) -> Claims:
    """Read and check claims.yaml. Raises UserError, one line naming file, claim or run, and key."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = Path(path)
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    try:
        return parse_claims(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse_claims(content: Any) -> Claims:
    """The checked form of what claims.yaml holds. Raises UserError."""
    top = _mapping(content, "the file", required=("command", "runs", "claims"), optional=("title",))
    runs: dict[str, RunSpec] = {}
    for name, entry in _mapping(top["runs"], "runs").items():
        runs[name] = _run_spec(str(name), entry, str(top["command"]), runs)
    claims: dict[str, Claim] = {}
    for index, entry in enumerate(_list(top["claims"], "claims")):
        claim = _claim(entry, f"claim {index + 1}", runs)
        if claim.id in claims:
            raise UserError(f"claim '{claim.id}' stands there twice")
        claims[claim.id] = claim
    return Claims(str(top.get("title", "")), runs, claims)


def _run_spec(name: str, entry: Any, command: str, above: dict[str, RunSpec]) -> RunSpec:
    where = f"run '{name}'"
    optional = ("command", "minutes", "quick_overrides", "quick_minutes")
    values = _mapping(entry, where, required=("overrides", "seeds"), optional=optional)
    if not NAME.match(name):
        raise UserError(f"{where}: a name has letters, digits, - and _")
    seeds = _list(values["seeds"], f"{where}: seeds")
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"{where}: seeds={seeds}: give different whole numbers from 0 up")
    overrides = [_override(item, where) for item in _list(values["overrides"], f"{where}: overrides")]
    quick = [_override(item, where) for item in _list(values.get("quick_overrides", []), f"{where}: quick_overrides")]
    minutes = [_cost(values.get(key), f"{where}: {key}") for key in ("minutes", "quick_minutes")]
    spec = RunSpec(name, str(values.get("command", command)), overrides, seeds, minutes[0], quick, minutes[1])
    for other in spec.references():
        _known_run(other, above, f"{where}: @{other}: only a run above it can be named")
        if missing := sorted(set(seeds) - set(above[other].seeds)):
            raise UserError(f"{where}: @{other}: that run lacks seed {missing[0]}")
    return spec


def _claim(entry: Any, where: str, runs: dict[str, RunSpec]) -> Claim:
    required = ("id", "level", "statement", "source", "paper", "test", "statistic", "holds")
    values = _mapping(entry, where, required=required, optional=("paper_value", "figure"))
    where = f"claim '{values['id']}'"
    if not NAME.match(str(values["id"])):
        raise UserError(f"{where}: an id has letters, digits, - and _")
    if values["level"] not in LEVELS:
        raise UserError(f"{where}: level={values['level']}: choose one of {', '.join(LEVELS)}")
    statistic, run = _statistic(values["statistic"], f"{where}: statistic", runs)
    figure = _figure(values["figure"], f"{where}: figure", run, runs) if values.get("figure") else None
    fields: dict[str, Any] = {key: str(values[key]).strip() for key in required if key not in ("statistic", "holds")}
    fields |= {"paper_value": values.get("paper_value"), "seeds": runs[run].seeds}
    return Claim(**fields, statistic=statistic, holds=_holds(values["holds"], f"{where}: holds"), figure=figure)


def _statistic(entry: Any, where: str, runs: dict[str, RunSpec]) -> tuple[Statistic, str]:
    values = _mapping(entry, where, required=("metric", "run"), optional=("over",))
    run = str(values["run"])
    _known_run(run, runs, f"{where}.run={run}: no such run")
    if values.get("over", "seed") != "seed":
        raise UserError(f"{where}.over={values['over']}: must be seed")
    metric = values["metric"]
    if isinstance(metric, str):
        return Statistic("value", [_term(metric, where, run, runs)]), run
    good = isinstance(metric, dict) and len(metric) == 1 and next(iter(metric)) in ("ratio", "difference")
    pair = next(iter(metric.values())) if good else None
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(key, str) for key in pair):
        raise UserError(f"{where}.metric={metric}: give a key, {{ratio: [a, b]}} or {{difference: [a, b]}}")
    return Statistic(next(iter(metric)), [_term(key, where, run, runs) for key in pair]), run


def _term(text: str, where: str, run: str, runs: dict[str, RunSpec]) -> tuple[str, str]:
    """``key`` or ``RUN:key`` -> (run, key); the other run must have every seed of ``run``."""
    other, colon, key = text.partition(":")
    if not colon:
        return run, text
    _known_run(other, runs, f"{where}: '{text}': no such run")
    if missing := sorted(set(runs[run].seeds) - set(runs[other].seeds)):
        raise UserError(f"{where}: '{text}': run '{other}' lacks seed {missing[0]} of run '{run}'")
    return other, key


def _figure(entry: Any, where: str, run: str, runs: dict[str, RunSpec]) -> FigureSpec:
    optional = ("x", "xlabel", "logx", "logy", "title")
    values = _mapping(entry, where, required=("kind", "metrics", "ylabel"), optional=optional)
    if values["kind"] not in FIGURES:
        raise UserError(f"{where}.kind={values['kind']}: choose one of {', '.join(FIGURES)}")
    if (values["kind"] == "curves") != ("x" in values):
        raise UserError(f"{where}: curves need x, bars have none")
    patterns = _mapping(values["metrics"], f"{where}.metrics")
    metrics = {str(label): _term(str(pattern), where, run, runs) for label, pattern in patterns.items()}
    if values["kind"] == "curves" and (flat := [key for _, key in metrics.values() if "{x}" not in key]):
        raise UserError(f"{where}.metrics: '{flat[0]}' lacks {{x}}")
    places = [_number(x, f"{where}.x") for x in _list(values.get("x", []), f"{where}.x")]
    if values["kind"] == "bars" and "logx" in values:
        raise UserError(f"{where}: bars have no logx")
    labels = {key: value for key, value in values.items() if key not in ("kind", "metrics", "x")}
    return FigureSpec(values["kind"], metrics, places, {"xlabel": "", **labels})


def _holds(entry: Any, where: str) -> dict[str, float]:
    values = _mapping(entry, where, optional=("<=", ">="))
    if not values:
        raise UserError(f'{where}: give {{"<=": number}}, {{">=": number}} or both')
    limits = {str(sign): _number(limit, f'{where}."{sign}"') for sign, limit in values.items()}
    if limits.get(">=", -math.inf) > limits.get("<=", math.inf):
        raise UserError(f"{where}: no number is both >= {limits['>=']} and <= {limits['<=']}")
    return limits


def _mapping(value: Any, where: str, required: Sequence[str] = (), optional: Sequence[str] = ()) -> dict[str, Any]:
    """``value`` as a mapping with exactly the allowed keys (any, when none are named)."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a mapping, got {value!r}")
    allowed = (*required, *optional)
    for key in value if allowed else ():
        if key not in allowed:
            raise UserError(
                f"{where}: unknown key '{key}'; {did_you_mean(str(key), allowed)}keys: {', '.join(allowed)}"
            )
    if missing := [key for key in required if value.get(key) is None]:
        raise UserError(f"{where}: '{missing[0]}' is missing")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{where}: expected a list, got {value!r}")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where}: expected a number, got {value!r}")
    return value


def _cost(value: Any, where: str) -> float | None:
    return None if value is None else _number(value, where)


def _override(value: Any, where: str) -> str:
    if not isinstance(value, str) or value.split("=")[0] == "seed" or value.startswith("hydra."):
        raise UserError(f"{where}: override {value!r}: expected key=value text; seed and hydra.* are set for you")
    return value


def _known_run(name: str, runs: dict[str, RunSpec], message: str) -> None:
    if name not in runs:
        raise UserError(f"{message}; {did_you_mean(name, runs)}runs: {', '.join(runs) or 'none'}")
