"""What `--dry-run` says that runs cost: the sums, and that they are near what runs took."""

import json
import statistics

import pytest

import toolkit.claims.reproduce as module
from tests.claims.small import CLAIMS, Runner
from toolkit.claims.parse import load_claims
from toolkit.claims.reproduce import reproduce, reproduce_all
from toolkit.paths import experiments_dir

PAPERS = ["disco", "icg", "ivideogpt", "stacking", "venhancer"]
WITHIN = 1.5
NEVER_ALONE = {  # every recorded seed ran beside other work; the cost is that of runs of the same kind, or an estimate
    "stacking": {"micro", "tiny", "micro_low", "zero", "interleave"}
    | {f"{name}tuned" for name in ("", "micro_", "zero_", "interleave_", "random_", "learn_")},
    "icg": {"digits_300"},
    # push_oracle: 17 to 23 seconds of the processor, 6 to 12 minutes by the clock; short: 3.5 minutes of it, 11 to 14
    "ivideogpt": {"push", "push_oracle", "mbpo", "model_free_twice", "short"},
}


def test_all_papers_are_planned_in_one_call(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert reproduce_all(level="quick", root="r", dry_run=True, launch=pytest.fail) == 0
    said = capsys.readouterr().out
    assert said.startswith("5 papers, about ")
    papers = {line.removeprefix("== ") for line in said.splitlines() if line.startswith("== ")}
    assert papers == set(PAPERS)
    assert "unknown cost" not in said


def test_the_cost_of_all_papers_is_the_sum_of_what_is_not_done(paper, tmp_path, monkeypatch, capsys):
    (tmp_path / "experiments" / "other").mkdir()
    again = "again: {seeds: [7, 8, 9, 10], claims: [ratio]}\n"
    (tmp_path / "experiments" / "other" / "claims.yaml").write_text(CLAIMS + again)
    monkeypatch.setattr(module, "experiments_dir", lambda: tmp_path / "experiments")
    Runner()("train-disco", ["experiment=disco_toy", "seed=0", "hydra.run.dir=r/small/base/seed_0"])
    costs = {"safe": "19 min 00 s", "full": "33 min 00 s"}  # 2 * 3 * (2 + 1.5) - 2, and 4 * (2 + 1.5) more
    for level, cost in costs.items():
        reproduce_all(level=level, root="r", dry_run=True, launch=pytest.fail)
        assert capsys.readouterr().out.startswith(f"2 papers, about {cost}\n")


def test_dry_run_lists_states_and_cost(paper, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    Runner()("train-disco", ["experiment=disco_toy", "seed=0", "hydra.run.dir=r/small/base/seed_0"])
    Runner(fail=[("base", 1)])("train-disco", ["experiment=disco_toy", "seed=1", "hydra.run.dir=r/small/base/seed_1"])
    Runner()("train-disco", ["experiment=old", "seed=2", "hydra.run.dir=r/small/base/seed_2"])
    assert reproduce("small", level="full", root="r", dry_run=True, launch=pytest.fail) == 0
    text = capsys.readouterr().out
    rows = {line.strip().split("  ")[0]: line for line in text.splitlines() if "seed=" in line}
    assert " done " in rows["base seed=0"]
    assert "partial (failed)" in rows["base seed=1"]
    assert "done with other overrides" in rows["base seed=2"]
    assert all(word in rows["tuned seed=0-2"] for word in (" missing ", " 4.5 ", "init=r/small/base/seed_0 "))
    assert "8 of 9 runs to do, about 8 min 30 s and 3 of unknown cost" in text


def took_minutes(paper, spec):
    """Of the seed of a run that took least, for other work only slows; of the mean seed where each is another clip."""
    runs = json.loads((experiments_dir() / paper / "results.json").read_text())["runs"]
    seeds = [
        seed for name in (spec.name, f"{spec.name}_again") for seed in runs.get(name, {}).get("seeds", {}).values()
    ]
    minutes = [seed["wall_time_s"] / 60 for seed in seeds]
    return (statistics.fmean if spec.each else min)(minutes) if minutes else None


@pytest.mark.parametrize("paper", PAPERS)
def test_what_a_run_is_said_to_cost_is_near_what_it_took(paper):
    spec = load_claims(experiments_dir() / paper / "claims.yaml")
    for name in spec.needed_runs(spec.claims.values()):
        said, took = spec.runs[name].minutes, took_minutes(paper, spec.runs[name.removesuffix("_again")])
        assert said is not None, name
        if took is not None:
            assert said <= took * WITHIN, f"{name}: {said} minutes, took {took:.2f}"
            alone = name.removesuffix("_again") not in NEVER_ALONE.get(paper, ())
            assert said >= took / WITHIN or not alone, f"{name}: {said} minutes, took {took:.2f}"
