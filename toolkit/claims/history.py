"""What became of verdicts: none is replaced or withdrawn without a line of what it was, at which commits, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from toolkit.claims.claims import Claim, Claims

KEPT = ("verdict", "center", "interval_95", "n", "values", "definition", "git_commits")


def is_decided(entry: dict[str, Any]) -> bool:
    """Whether ``entry`` of results.json holds a verdict."""
    return "values" in entry


def line(entry: dict[str, Any], why: str) -> dict[str, Any]:
    """The verdict of ``entry`` as a line of history."""
    return {key: entry[key] for key in KEPT if key in entry} | {"why": why}


def follow(earlier: dict[str, Any], entry: dict[str, Any], why: str = "") -> dict[str, Any]:
    """``entry`` with the history of ``earlier``, and with what that said where ``entry`` says something else."""
    lines = list(earlier.get("history", []))
    if is_decided(earlier) and any(earlier.get(key) != entry.get(key) for key in ("verdict", "values", "definition")):
        lines.append(line(earlier, why or earlier.get("stale") or _reason(earlier, entry)))
    return entry | ({"history": lines} if lines else {})


def _reason(earlier: dict[str, Any], entry: dict[str, Any]) -> str:
    return "run again" if earlier.get("definition") == entry.get("definition") else "the claim or its runs changed"


def carry_over(spec: Claims, earlier: dict[str, Any], changed: dict[str, str]) -> dict[str, Any]:
    """The entries of an earlier results.json as they stand now.

    ``changed`` tells of runs that are no longer what they were: what was decided from them is stale. A claim that was
    redefined or withdrawn keeps its history alone.
    """
    found = {}
    for name, claim in spec.claims.items():
        entry = earlier.get(name, {})
        if claim.withdrawn:
            entry = follow(entry, withdrawn(claim), f"withdrawn: {claim.withdrawn}")
        elif entry and entry.get("definition") != spec.definition(claim):
            entry = follow(entry, {"verdict": "not run: the claim or its runs changed"})
        elif is_decided(entry):
            reasons = [f"{run}: {changed[run]}" for run in spec.needed_runs([claim]) if run in changed]
            stale = entry.get("overtaken") or "; ".join(reasons)
            entry = {key: value for key, value in entry.items() if key != "stale"} | ({"stale": stale} if stale else {})
        if entry:
            found[name] = entry
    return found


def withdrawn(claim: Claim) -> dict[str, Any]:
    """The entry of a claim that is no longer made."""
    return {"statement": claim.statement, "verdict": f"withdrawn: {claim.withdrawn}"}


def overtake(spec: Claims, claims: dict[str, Any], decided: Iterable[str], remade: dict[str, str]) -> None:
    """Mark what was decided from runs that were made anew since, as something else, and was not decided with them."""
    for name, entry in claims.items():
        if name in decided or not is_decided(entry):
            continue
        reasons = [f"{run}: {remade[run]}" for run in spec.needed_runs([spec.claims[name]]) if run in remade]
        if reasons:
            entry["overtaken"] = entry["stale"] = "; ".join(reasons)


def commits_of(spec: Claims, claim: Claim, runs: dict[str, Any]) -> list[str]:
    """The commits that the runs of ``claim`` were made at."""
    seeds = [seed for name in spec.needed_runs([claim]) for seed in runs.get(name, {}).get("seeds", {}).values()]
    commits = [[seed["git_commit"], *seed.get("continued_at", [])] for seed in seeds]
    return list(dict.fromkeys(str(commit) for those in commits for commit in those))
