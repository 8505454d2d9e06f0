"""claims.yaml asks only for metrics that its runs will have."""

import pytest

from toolkit.claims.parse import load_claims
from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.paths import experiments_dir

CLAIMS = load_claims(experiments_dir() / "ivideogpt" / "claims.yaml")


def config_of(run, quick):
    spec = CLAIMS.runs[run]
    words = spec.overrides + (spec.quick_overrides if quick else [])
    return compose(COMMANDS[spec.command], [word.replace("@", "runs/") for word in words])


@pytest.mark.parametrize("quick", [False, True])
def test_metrics_of_claims_are_measured_by_their_runs(quick):
    claims = [claim for claim in CLAIMS.claims.values() if not quick or claim.level == "quick"]
    for claim in claims:
        terms = list(claim.statistic.terms) + (list(claim.figure.metrics.values()) if claim.figure else [])
        for run, key in terms:
            config = config_of(run, quick)
            kind, *rest = key.split(".")
            if kind == "plan":
                assert config.plan.num_episodes and rest[-1] in config.plan.planners, (claim.id, key)
            else:
                assert kind in config.measure.names and "measure" in config.stages(), (claim.id, key)
            if kind == "actions":
                assert config.action_conditioned and config.data.name in ("push_sprite", "kuka")


def test_every_claim_of_evidence_has_three_seeds():
    assert all(len(claim.seeds) >= 3 for claim in CLAIMS.claims.values())


def test_what_counts_was_fixed_by_the_issue():
    holds = {name: CLAIMS.claims[name].holds for name in ("actions_obeyed", "reward_read", "returns_ranked")}
    assert holds == {"actions_obeyed": {">=": 0.9}, "reward_read": {">=": 0.8}, "returns_ranked": {">=": 0.7}}
