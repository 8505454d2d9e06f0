"""Reading ``claims.yaml``: every mistake is told in one line that names file, claim or run, and key."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.claims.claims import LEVELS, REFERENCE, VARIES, Claim, Claims, FigureSpec, RunSpec, Statistic
from toolkit.errors import UserError, brief, did_you_mean
from toolkit.plain_files import read_yaml

FIGURES = ("curves", "bars")
OPTIONAL = ("paper_value", "figure", "varies", "resolution", "withdrawn")  # of a claim
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")


def load_claims(path: str | Path) -> Claims:
    """Read and check claims.yaml. Raises UserError, one line naming file, claim or run, and key."""
    path = Path(path)
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: {brief(error, 300)}") from None
    try:
        return parse_claims(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse_claims(content: Any) -> Claims:
    """The checked form of what claims.yaml holds. Raises UserError."""
    top = _mapping(content, "the file", required=("command", "runs", "claims"), optional=("title", "again"))
    runs: dict[str, RunSpec] = {}
    for name, entry in _mapping(top["runs"], "runs").items():
        runs[name] = _run_spec(str(name), entry, str(top["command"]), runs)
    claims: dict[str, Claim] = {}
    for index, entry in enumerate(_list(top["claims"], "claims")):
        claim = _claim(entry, f"claim {index + 1}", runs)
        if claim.id in claims:
            raise UserError(f"claim '{claim.id}' stands there twice")
        claims[claim.id] = claim
    spec = Claims(str(top.get("title", "")), runs, claims)
    return _again(spec, top["again"]) if "again" in top else spec


def _again(spec: Claims, entry: Any) -> Claims:
    """``spec`` and, for every claim named, ``CLAIM_again`` on fresh seeds, with runs ``RUN_again`` of its own."""
    runs, claims = dict(spec.runs), dict(spec.claims)
    for group in entry if isinstance(entry, list) else [entry]:
        values = _mapping(group, "again", required=("seeds", "claims"), optional=("each",))
        seeds, names = _seeds(values["seeds"], "again"), _list(values["claims"], "again: claims")
        each = _each(values.get("each", []), "again", seeds)
        for name in names:
            if name not in spec.claims or spec.claims[name].withdrawn:
                raise UserError(f"again: claim {name}: {did_you_mean(str(name), spec.claims)}name claims that are held")
        chosen = [replace(spec.claims[name], figure=None) for name in names]
        for name in spec.needed_runs(chosen):
            if f"{name}_again" in runs:
                raise UserError(f"again: run '{name}': claims that share it need the same fresh seeds, one mapping")
            runs[f"{name}_again"] = _fresh_run(spec.runs[name], seeds, each)
        claims |= {f"{claim.id}_again": _fresh_claim(claim, seeds) for claim in chosen}
    return Claims(spec.title, runs, claims)


def _fresh_run(run: RunSpec, seeds: list[int], each: list[list[str]]) -> RunSpec:
    """``RUN_again``: ``run`` on seeds, and with words of each, that it has not had."""
    if set(seeds) & set(run.seeds):
        raise UserError(f"again: seeds={seeds}: run '{run.name}' has some of them")
    if bool(each) != bool(run.each):
        said = "has words for each seed: give each" if run.each else "has no words for each seed: leave each out"
        raise UserError(f"again: run '{run.name}' {said}")
    if old := [words for words in each if words in run.each]:
        raise UserError(f"again: each: {old[0]}: run '{run.name}' has had them; give others")
    words = [REFERENCE.sub(r"@\1_again", word) for word in run.overrides]
    return replace(run, name=f"{run.name}_again", seeds=seeds, overrides=words, each=each)


def _fresh_claim(claim: Claim, seeds: list[int]) -> Claim:
    """``CLAIM_again``."""
    terms = [(f"{run}_again", key) for run, key in claim.statistic.terms]
    counted = "clips" if claim.varies == "clips" else "seeds"
    return replace(
        claim,
        id=f"{claim.id}_again",
        level="open",
        statement=f"{claim.statement.removesuffix('.')} (decided once more, on {len(seeds)} fresh {counted}).",
        test=f"As {claim.id}, on seeds {seeds[0]} to {seeds[-1]}, whose number was fixed before the first was run.",
        statistic=replace(claim.statistic, terms=terms),
        seeds=seeds,
    )


def _seeds(value: Any, where: str) -> list[int]:
    seeds = _list(value, f"{where}: seeds")
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"{where}: seeds={seeds}: give different whole numbers from 0 up")
    return seeds


def _run_spec(name: str, entry: Any, command: str, above: dict[str, RunSpec]) -> RunSpec:
    where = f"run '{name}'"
    optional = ("command", "minutes", "quick_overrides", "quick_minutes", "varies", "each", "recipe", "keep")
    values = _mapping(entry, where, required=("overrides", "seeds"), optional=optional)
    if not NAME.match(name):
        raise UserError(f"{where}: a name has letters, digits, - and _")
    seeds = _seeds(values["seeds"], where)
    overrides = [_override(item, where) for item in _list(values["overrides"], f"{where}: overrides")]
    quick = [_override(item, where) for item in _list(values.get("quick_overrides", []), f"{where}: quick_overrides")]
    minutes = [_cost(values.get(key), f"{where}: {key}") for key in ("minutes", "quick_minutes")]
    spec = RunSpec(name, str(values.get("command", command)), overrides, seeds, minutes[0], quick, minutes[1])
    spec = replace(spec, **_replicates(values, where, seeds))
    for other in spec.references():
        _known_run(other, above, f"{where}: @{other}: only a run above it can be named")
        if missing := sorted(set(seeds) - set(above[other].seeds)):
            raise UserError(f"{where}: @{other}: that run lacks seed {missing[0]}")
    return spec


def _replicates(values: dict[str, Any], where: str, seeds: list[int]) -> dict[str, Any]:
    """What a seed is, and which words are its own."""
    varies, recipe = values.get("varies", "training"), values.get("recipe", 1)
    if varies not in VARIES or varies == "nothing":
        raise UserError(f"{where}: varies={varies}: choose one of {', '.join(VARIES)[: -len(', nothing')]}")
    if type(recipe) is not int or recipe < 1:
        raise UserError(f"{where}: recipe={recipe}: give a whole number from 1 up")
    each = _each(values.get("each", []), where, seeds)
    keep = [str(pattern) for pattern in _list(values.get("keep", []), f"{where}: keep")]
    return {"varies": varies, "each": each, "recipe": recipe, "keep": keep}


def _each(value: Any, where: str, seeds: list[int]) -> list[list[str]]:
    """The words of each seed, or none."""
    groups = _list(value, f"{where}: each")
    each = [[_override(word, where) for word in _list(words, f"{where}: each")] for words in groups]
    if each and len(each) != len(seeds):
        raise UserError(f"{where}: each: {len(each)} lists of words for {len(seeds)} seeds")
    return each


def _claim(entry: Any, where: str, runs: dict[str, RunSpec]) -> Claim:
    required = ("id", "level", "statement", "source", "paper", "test", "statistic", "holds")
    values = _mapping(entry, where, required=required, optional=OPTIONAL)
    where = f"claim '{values['id']}'"
    if not NAME.match(str(values["id"])):
        raise UserError(f"{where}: an id has letters, digits, - and _")
    if values["level"] not in LEVELS:
        raise UserError(f"{where}: level={values['level']}: choose one of {', '.join(LEVELS)}")
    statistic, run = _statistic(values["statistic"], f"{where}: statistic", runs)
    figure = _figure(values["figure"], f"{where}: figure", run, runs) if values.get("figure") else None
    fields: dict[str, Any] = {key: str(values[key]).strip() for key in required if key not in ("statistic", "holds")}
    fields |= {"paper_value": values.get("paper_value"), "seeds": runs[run].seeds}
    fields |= {"varies": str(values.get("varies", runs[run].varies)), "withdrawn": str(values.get("withdrawn", ""))}
    fields["resolution"] = _number(values.get("resolution", 0.0), f"{where}: resolution")
    if fields["varies"] not in VARIES:
        raise UserError(f"{where}: varies={fields['varies']}: choose one of {', '.join(VARIES)}")
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
