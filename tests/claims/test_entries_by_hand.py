"""What results.json and figures say of a claim: its seeds, the interval, what is left to run, the band of a curve."""

import math
from types import SimpleNamespace

import pytest
import yaml

from tests.claims.small import CLAIMS
from toolkit.claims import results
from toolkit.claims.jobs import Job
from toolkit.claims.parse import parse_claims
from toolkit.claims.reproduce import decide, metrics_by_seed, minutes_left
from toolkit.errors import UserError
from toolkit.show import figures

SPEC = parse_claims(yaml.safe_load(CLAIMS))


def job(run, seed, state="done", **metrics):
    found = SimpleNamespace(metrics={key.replace("_", "."): value for key, value in metrics.items()})
    named = SimpleNamespace(name=run)
    return SimpleNamespace(spec=named, seed=seed, minutes=seed + 1, info=lambda: found, state=lambda: state)


def test_two_seeds_have_an_interval_and_one_has_none():
    T_2 = 12.706204736174694  # Student's 97.5 % quantile with one degree of freedom
    jobs = [job("long", seed, score=8.0 + 2 * seed) for seed in (0, 1)]
    found = decide(SPEC, SPEC.claims["wins"], jobs, {})
    half = T_2 * math.sqrt(2) / math.sqrt(2)
    assert (found["center"], found["n"]) == (9.0, 2) and found["values"] == {"0": 8.0, "1": 10.0}
    assert found["interval_95"] == pytest.approx([9 - half, 9 + half])
    assert decide(SPEC, SPEC.claims["wins"], jobs[:1], {})["interval_95"] is None


def test_a_claim_reads_its_own_runs_and_seeds():
    jobs = [job(run, seed, score=1.0) for run in ("base", "tuned", "long") for seed in (0, 1, 2, 7)]
    assert metrics_by_seed(SPEC.claims["wins"], jobs) == {seed: {"long": {"score": 1.0}} for seed in (0, 1, 2)}


def test_what_is_left_costs_minutes_and_what_is_done_none():
    assert minutes_left([job("base", 0), job("base", 1, "missing"), job("base", 4, "partial")]) == 2 + 5


def test_a_curve_is_the_mean_over_seeds_between_the_lowest_and_the_highest(monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(figures, "curves", lambda path, series, **_: drawn.update(series))
    rows = {0: (1.0, 5.0, 2.0), 1: (3.0, 1.0, 2.0), 2: (2.0, 6.0, 5.0)}
    keys = ("loss.0p5", "loss.1", "loss.10")
    found = {seed: dict(zip(keys, row, strict=True)) for seed, row in rows.items()}
    metrics = {seed: {"tuned": of_seed, "base": of_seed} for seed, of_seed in found.items()}
    results.draw_figure(SPEC.claims["ratio"], metrics, tmp_path / "a.png")
    assert drawn["with z"] == ([0.5, 1, 10], [2.0, 4.0, 3.0], [1.0, 1.0, 2.0], [3.0, 6.0, 5.0])


def test_a_claim_is_decided_once_more_on_seeds_that_no_run_has_had():
    again = "again:\n  seeds: [{}]\n  claims: [wins]\n"
    made = parse_claims(yaml.safe_load(CLAIMS + again.format("10, 11")))
    assert made.claims["wins_again"].statistic.terms == [("long_again", "score")]
    assert made.runs["long_again"].seeds == [10, 11] == made.claims["wins_again"].seeds
    for seeds in ("2, 10", "0"):
        with pytest.raises(UserError, match="has some of them"):
            parse_claims(yaml.safe_load(CLAIMS + again.format(seeds)))


CLIPS = """
  clips: {overrides: [], seeds: [0, 1], varies: clips, each: [[input=a], [input=b]], command: enhance-video}
claims:
  - {id: sharp, level: open, statement: Sharp., source: "", paper: "", test: "",
     statistic: {metric: psnr, run: clips}, holds: {">=": 1}}
"""
TWICE = """
again:
  - {seeds: [10, 11], claims: [wins]}
  - {seeds: [4, 5], each: [[input=c], [input=d]], claims: [sharp]}
"""


def test_claims_are_decided_once_more_on_seeds_of_their_own_and_clips_on_fresh_clips():
    text = CLAIMS.replace("\nclaims:\n", CLIPS, 1) + TWICE
    made = parse_claims(yaml.safe_load(text))
    assert made.claims["wins_again"].seeds == [10, 11] and made.claims["sharp_again"].seeds == [4, 5]
    assert made.runs["clips_again"].words(5) == ["input=d", "seed=5"]
    assert made.runs["clips"].words(1) == ["input=b", "seed=1"]
    assert made.claims["sharp_again"].statement == "Sharp (decided once more, on 2 fresh clips)."
    for old, new, said in (
        ("each: [[input=c], [input=d]], ", "", "'clips' has words for each seed"),
        ("[10, 11], claims", "[10, 11], each: [[input=c], [input=d]], claims", "'long' has no words for each seed"),
        ("[[input=c], [input=d]]", "[[input=c]]", "1 lists of words for 2 seeds"),
        ("[[input=c], [input=d]]", "[[input=c], [input=a]]", "'clips' has had them"),
        ("[wins]", "[wins, sharp_again]", "claim sharp_again"),
        ("[sharp]}", "[sharp]}\n  - {seeds: [20], claims: [wins]}", "'long': claims that share it"),
    ):
        assert old in text
        with pytest.raises(UserError, match=said):
            parse_claims(yaml.safe_load(text.replace(old, new)))


@pytest.mark.parametrize(
    ("overrides", "status", "state"),
    [
        (["lr=1", "seed=0"], "done", "done"),
        (["lr=1", "seed=0", "hydra.run.dir=x"], "done", "done"),
        (["lr=2", "seed=0"], "done", "done with other overrides"),
        (["lr=1", "seed=0"], "running", "partial (running)"),
    ],
)
def test_a_run_counts_only_with_the_settings_that_are_asked_for(monkeypatch, tmp_path, overrides, status, state):
    one = Job(SimpleNamespace(command="train-disco"), 0, tmp_path, [], ["lr=1", "seed=0"], None)
    found = SimpleNamespace(problem=None, status=status, record={"overrides": overrides})
    monkeypatch.setattr(Job, "info", lambda self: found)
    assert one.state() == state
