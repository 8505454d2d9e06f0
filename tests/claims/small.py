"""A small paper: its claims.yaml, and what stands where the command line's launcher stands."""

import json
from pathlib import Path

import pytest

CLAIMS = """
title: A small paper
command: train-disco
runs:
  base: {overrides: [experiment=disco_toy], seeds: [0, 1, 2], minutes: 2}
  tuned:
    overrides: [experiment=disco_toy_st, init=@base, "measure.names=[loss, use]"]
    seeds: [0, 1, 2]
    minutes: 1.5
    quick_overrides: [optim.num_steps=2]
    quick_minutes: 0.1
  long: {overrides: [experiment=icg_mnist], seeds: [0, 1, 2], command: sample-icg}
claims:
  - id: ratio
    level: quick
    statement: Latents | lower the loss
    source: Fig. 3
    paper: about a tenth
    paper_value: 0.1
    test: held-out loss at sigma 1
    statistic: {metric: {ratio: ["tuned:loss.1", "base:loss.1"]}, run: tuned, over: seed}
    holds: {"<=": 0.2}
    figure:
      kind: curves
      x: [0.5, 1, 10]
      metrics: {with z: "loss.{x}", without: "base:loss.{x}"}
      xlabel: σ
      ylabel: MSE
      logx: true
  - id: between
    level: safe
    statement: The accuracy stays
    source: Table 2
    paper: unchanged
    test: difference of accuracies
    statistic: {metric: {difference: [accuracy, "base:accuracy"]}, run: tuned}
    holds: {">=": -0.05, "<=": 0.05}
    figure: {kind: bars, metrics: {tuned: accuracy, base: "base:accuracy"}, ylabel: accuracy}
  - id: wins
    level: open
    statement: It wins
    source: Table 3
    paper: yes
    test: the metric itself
    statistic: {metric: score, run: long}
    holds: {">=": 10}
"""


class Runner:
    """Stands where the command line's launcher stands: writes the record that a run would leave."""

    def __init__(self, fail=(), stop_at=None, drop=(), scale=1.0):
        self.calls, self.fail, self.stop_at, self.drop, self.scale = [], fail, stop_at, drop, scale

    def __call__(self, command, words):
        self.calls.append((command, words))
        settings = dict(word.split("=", 1) for word in words)
        folder, seed = settings["hydra.run.dir"], int(settings["seed"])
        name = folder.split("/")[-2].removesuffix("_again")
        if self.stop_at == (name, seed):
            return 143
        failed = (name, seed) in self.fail
        scale = {"base": 1.0, "tuned": 0.1, "long": 1.0}[name] * (1 + 0.05 * seed)
        metrics = {f"loss.{name}": scale * x for name, x in (("0p5", 0.5), ("1", 1), ("10", 10))} | {
            "accuracy": 0.9 + 0.01 * seed,
            "score": self.scale * (5.0 + seed),
        }
        record = {
            "command": command,
            "status": "failed" if failed else "done",
            "config": {"seed": seed},
            "seed": seed,
            "overrides": words[:-1],
            "metrics": {key: value for key, value in metrics.items() if key not in self.drop},
            "error": "loss is NaN\nat step 3" if failed else None,
            "git_commit": "abc123",
            "machine": {"platform": "somewhere", "processor": "Some CPU", "cores": 2},
            "versions": {"torch": "2.13"},
            "wall_time_s": 30.0,
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "run.json").write_text(json.dumps(record))
        return 1 if failed else 0


def results(folder):
    return json.loads((folder / "results.json").read_text(), parse_constant=lambda text: pytest.fail(text))
