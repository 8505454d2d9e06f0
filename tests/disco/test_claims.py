"""claims.yaml asks only for metrics that its runs will have."""

import re

import pytest

from toolkit.claims.parse import load_claims
from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.disco.measure.setting import evaluations_key, sigma_key
from toolkit.paths import experiments_dir

CLAIMS = load_claims(experiments_dir() / "disco" / "claims.yaml")


def config_of(run: str, quick: bool):
    spec = CLAIMS.runs[run]
    words = spec.overrides + (spec.quick_overrides if quick else [])
    return compose(COMMANDS[spec.command], [word.replace("@", "runs/") for word in words])


def keys_of(quick: bool) -> list[tuple[str, str]]:
    claims = [claim for claim in CLAIMS.claims.values() if not quick or claim.level == "quick"]
    return sorted({term for claim in claims for term in claim.statistic.terms})


@pytest.mark.parametrize("quick", [False, True])
def test_metrics_of_claims_are_measured_by_their_runs(quick):
    configs = {run: config_of(run, quick) for run in {run for run, _ in keys_of(quick)}}
    for run, key in keys_of(quick):
        measure = configs[run].measure
        assert key.split(".")[0] in measure.names, (run, key)
        for found in re.findall(r"sigma_\w+", key):
            assert found in map(sigma_key, measure.sigmas), (run, key)
        for found in re.findall(r"nfe_\d+", key):
            assert found in map(evaluations_key, measure.evaluations), (run, key)
        if ".baseline" in key or (".ratio" in key and "guidance" not in key):
            assert configs[run].baseline != "none", (run, key)


@pytest.mark.slow
def test_figures_draw_what_is_measured():
    for claim in CLAIMS.claims.values():
        for run, pattern in claim.figure.metrics.values() if claim.figure else ():
            config = config_of(run, False)
            assert pattern.split(".")[0] in config.measure.names, (claim.id, pattern)
            if "sigma_{x}" in pattern:
                assert set(claim.figure.x) <= set(config.measure.sigmas), claim.id
            if "nfe_{x}" in pattern:
                assert set(claim.figure.x) <= set(config.measure.evaluations), claim.id


def test_every_claim_of_evidence_has_three_seeds():
    assert all(len(claim.seeds) >= 3 for claim in CLAIMS.claims.values())
