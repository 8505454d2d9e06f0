"""A paper's claims as data: ``experiments/<paper>/claims.yaml`` and its check.

    title: DisCo-Diff                    # heading of the generated README
    command: train-disco
    runs:                                # shared by the claims, by name
      toy:
        overrides: [experiment=disco_toy]
        seeds: [0, 1, 2]
        varies: training                 # what a seed draws anew: training (unless said), sampling, clips
        each: [[input=a], [input=b], [input=c]]   # words of each seed, where a seed is a clip
        recipe: 2                        # counted up when code changes what the run computes
        keep: ["loss.*"]                 # metrics kept in results.json beside those that claims name
        minutes: 1.5                     # cost of one seed where nothing else runs: the fastest record, about
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
        varies: nothing                  # of the run, unless said; nothing: arithmetic, every seed the same number
        resolution: 0.01                 # how finely the metric is read; widens the interval to both sides
        withdrawn: why                   # no longer claimed: not run, former verdicts stay in its history
        figure: {kind: curves, x: [0.1, 1, 10], metrics: {with z: "loss.with_z.{x}"}, xlabel: σ, ylabel: MSE}

    again:                               # claims decided once more, as CLAIM_again, with runs RUN_again of their own
      seeds: [10, 11, 12]                # fresh ones; how many is fixed before the first is run
      claims: [toy_loss]
      each: [[input=d], [input=e], [input=f]]   # words of each fresh seed, where the runs have words for each

``again`` may be a list of such mappings, where claims have different fresh seeds; runs of two mappings are not shared.

A metric is a key of the run's ``metrics``, or ``RUN:key`` for another run of the same seed; ``{ratio: [a, b]}`` and
``{difference: [a, b]}`` are formed per seed. An override may say ``@RUN``: the folder of that run with the same seed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from toolkit.renamed import first_spelling
from toolkit.show.table import format_number

LEVELS = ("quick", "safe", "open")
VARIES = {"training": "trainings", "sampling": "draws of one model", "clips": "clips", "nothing": "exact"}
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
    varies: str = "training"
    each: list[list[str]] = field(default_factory=list)
    recipe: int = 1
    keep: list[str] = field(default_factory=list)

    def words(self, seed: int, quick: bool = False) -> list[str]:
        """The overrides of one seed as claims.yaml has them, ``seed=`` last."""
        own = self.each[self.seeds.index(seed)] if self.each else []
        return [*self.overrides, *own, *(self.quick_overrides if quick else []), f"seed={seed}"]

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
    varies: str = "training"
    resolution: float = 0.0
    withdrawn: str = ""
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
        computes: list[Any] = [asdict(claim.statistic), claim.seeds, claim.holds]
        computes += [claim.resolution] if claim.resolution else []
        apart = ("minutes", "quick_minutes", "quick_overrides", "varies", "keep")
        later = {"each": [], "recipe": 1}  # keys that came since: unsaid, they mean what was before them
        runs = [{key: v for key, v in run.items() if key not in apart and later.get(key) != v} for run in runs]
        for run in runs:  # a key that was renamed since means the same
            run["overrides"] = first_spelling(run["command"], run["overrides"])
        return hashlib.sha256(json.dumps([computes, runs], sort_keys=True).encode()).hexdigest()[:16]

    def needed_runs(self, claims: Iterable[Claim]) -> list[str]:
        """The runs that ``claims`` read, and those whose folders these name, in the order of the file."""
        needed = {name for claim in claims if not claim.withdrawn for name in claim.runs()}
        for name in reversed(list(self.runs)):  # a run refers only to runs above it
            if name in needed:
                needed.update(self.runs[name].references())
        return [name for name in self.runs if name in needed]
