"""What is published: every verdict follows from its recorded values, none is stale unsaid, none vanished."""

import json
import math

import pytest
import scipy.stats

from toolkit.claims.identity import find_changes, read_identities
from toolkit.claims.parse import load_claims
from toolkit.claims.results import BEGIN, END, readme_block
from toolkit.paths import experiments_dir

PAPERS = ["disco", "icg", "ivideogpt", "stacking", "venhancer"]


def published(paper):
    folder = experiments_dir() / paper
    return load_claims(folder / "claims.yaml"), json.loads((folder / "results.json").read_text())


def recomputed(claim, values):
    """(centre, low, high) with scipy's t, by the rules that the protocol states."""
    if claim.varies == "nothing":
        assert len(set(values)) == 1
        return values[0], values[0], values[0]
    log = claim.statistic.kind == "ratio"
    values = [math.log(value) for value in values] if log else values
    mean, error = sum(values) / len(values), scipy.stats.sem(values)
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, mean, error) if error else (mean, mean)
    center, low, high = (math.exp(v) if log else v for v in (mean, low, high))
    return center, low - claim.resolution, high + claim.resolution


def verdict(low, high, holds):
    inside = [low >= holds.get(">=", -math.inf) and high <= holds.get("<=", math.inf)]
    outside = high < holds.get(">=", -math.inf) or low > holds.get("<=", math.inf)
    return "holds" if inside[0] else "does not hold" if outside else "inconclusive"


@pytest.mark.parametrize("paper", PAPERS)
def test_every_verdict_follows_from_its_recorded_values(paper):
    spec, results = published(paper)
    decided = {name: entry for name, entry in results["claims"].items() if "values" in entry}
    assert decided
    for name, entry in decided.items():
        claim = spec.claims[name]
        assert [int(seed) for seed in entry["values"]] == claim.seeds, name
        center, low, high = recomputed(claim, list(entry["values"].values()))
        assert entry["center"] == pytest.approx(center, rel=1e-9), name
        assert entry["interval_95"] is None or entry["interval_95"] == pytest.approx([low, high], rel=1e-6), name
        assert entry["verdict"] == verdict(low, high, entry["holds"]), name
        assert entry["holds"] == claim.holds and entry["git_commits"], name


@pytest.mark.parametrize("paper", PAPERS)
def test_recorded_values_follow_from_recorded_metrics(paper):
    spec, results = published(paper)
    for name, entry in results["claims"].items():
        for seed, value in entry.get("values", {}).items():
            claim = spec.claims[name]
            found = [
                results["runs"][run]["seeds"][seed].get("metrics", {}).get(key) for run, key in claim.statistic.terms
            ]
            if None not in found and set(made_at(spec, claim, results)) == set(entry["git_commits"]):
                first, second = (*found, None)[:2]
                expected = {"value": first, "ratio": second and first / second, "difference": second and first - second}
                assert value == pytest.approx(expected[claim.statistic.kind]), (name, seed)


def made_at(spec, claim, results):
    return [seed["git_commit"] for run in spec.needed_runs([claim]) for seed in results["runs"][run]["seeds"].values()]


@pytest.mark.parametrize("paper", PAPERS)
def test_no_verdict_is_stale_unsaid(paper):
    spec, results = published(paper)
    then = read_identities(experiments_dir() / paper / "identity.json")
    assert set(then) >= set(results["runs"])
    then = {name: entry | {"versions": {}} for name, entry in then.items()}  # other packages here change no page
    changed = find_changes(spec, then, then)
    for name, entry in results["claims"].items():
        if "values" in entry and set(spec.needed_runs([spec.claims[name]])) & set(changed):
            assert "stale" in entry, f"{name}: {changed}; run `toolkit reproduce {paper}` for it"


def test_verdicts_that_were_replaced_are_told():
    _, results = published("venhancer")
    first = {
        name: results["claims"][name]["history"][0] for name in ("bikes_keys_psnr_lanczos", "true_scale_against_8")
    }
    assert first["bikes_keys_psnr_lanczos"]["verdict"] == "does not hold"
    assert first["bikes_keys_psnr_lanczos"]["center"] == pytest.approx(-0.125, abs=0.001)
    assert first["true_scale_against_8"]["verdict"] == "inconclusive"


@pytest.mark.parametrize("paper", PAPERS)
def test_the_page_says_what_the_record_says(paper):
    spec, results = published(paper)
    text = (experiments_dir() / paper / "README.md").read_text()
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == readme_block(spec, results).strip()


@pytest.mark.parametrize("paper", PAPERS)
def test_a_withdrawn_claim_says_why_and_what_it_was(paper):
    spec, results = published(paper)
    for name, claim in spec.claims.items():
        if claim.withdrawn:
            entry = results["claims"][name]
            assert entry["verdict"] == f"withdrawn: {claim.withdrawn}" and entry["history"][-1]["values"], name
