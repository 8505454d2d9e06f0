"""Runs are made, claims decided, and results published."""

import pytest

from tests.claims.small import CLAIMS, Runner, results
from toolkit.claims import results as publish
from toolkit.claims.reproduce import reproduce
from toolkit.errors import UserError
from toolkit.show.figures import read_caption


def test_safe_level_runs_decides_and_publishes(paper, capsys):
    runner = Runner()
    assert reproduce("small", root="r", launch=runner) == 0
    assert len(runner.calls) == 6
    command, words = runner.calls[4]
    assert command == "train-disco"
    assert words == [
        *("experiment=disco_toy_st", "init=r/small/base/seed_1", "measure.names=[loss, use]", "seed=1"),
        "hydra.run.dir=r/small/tuned/seed_1",
    ]
    found = results(paper)
    assert found["machines"] == [{"processor": "Some CPU", "cores": 2}]
    assert (found["torch"], found["git_commits"], found["wall_time_s"]) == (["2.13"], ["abc123"], 180.0)
    ratio, between = found["claims"]["ratio"], found["claims"]["between"]
    assert ratio["verdict"] == between["verdict"] == "holds"
    assert ratio["values"] == pytest.approx({"0": 0.1, "1": 0.1, "2": 0.1})
    assert ratio["interval_95"] == pytest.approx([0.1, 0.1])
    assert "wins" not in found["claims"]
    assert "mean over 3 seed(s); band" in read_caption(paper / "figures" / "ratio.png")
    assert (paper / "figures" / "between.png").exists()
    said = capsys.readouterr().out
    assert said.startswith(
        "small: 2 claims, 6 runs, about 10 min 30 s\n[1/6, about 10 min 30 s left] toolkit train-disco "
    )
    assert "[6/6, about 1 min 30 s left]" in said


def test_readme_keeps_what_was_written_by_hand(paper):
    reproduce("small", root="r", launch=Runner())
    text = (paper / "README.md").read_text()
    assert text.startswith("# By hand\n\nbefore\n\n")
    assert text.endswith("\n\nafter *this*\n")
    assert "stale" not in text
    assert "| ratio | Latents \\| lower the loss | Fig. 3 | 0.1 |" in text
    assert "| 0.1 [0.1, 0.1], n=3 trainings | ≤ 0.2 | holds |" in text
    assert "| ≥ -0.05 and ≤ 0.05 | holds |" in text
    assert "| not run yet (--full) |" in text
    assert "![Latents | lower the loss](figures/ratio.png)" in text
    assert "\ntoolkit train-disco experiment=disco_toy_st init=@base 'measure.names=[loss, use]' seed=0\n" in text
    assert "Some CPU, 2 cores, torch 2.13, 3 min 00 s of runs; commit abc123." in text
    reproduce("small", root="r", launch=Runner())
    assert (paper / "README.md").read_text() == text


def test_readme_is_made_or_refused(tmp_path):
    publish.write_readme(tmp_path / "README.md", "Paper", "table")
    assert (tmp_path / "README.md").read_text() == f"# Paper\n\n{publish.BEGIN}\n\ntable\n\n{publish.END}\n"
    (tmp_path / "README.md").write_text(f"x {publish.END}")
    with pytest.raises(UserError, match="needs the line"):
        publish.write_readme(tmp_path / "README.md", "Paper", "table")


def test_quick_is_smoke_and_publishes_nothing(paper, tmp_path):
    before = (paper / "README.md").read_text()
    runner = Runner()
    assert reproduce("small", level="quick", root="r", launch=runner) == 0
    assert [words[-1] for _, words in runner.calls] == [
        "hydra.run.dir=r/small/quick/base/seed_0",
        "hydra.run.dir=r/small/quick/tuned/seed_0",
    ]
    assert "optim.num_steps=2" in runner.calls[1][1]
    found = results(tmp_path / "r" / "small" / "quick")
    assert found["evidence"] is False
    assert found["claims"]["ratio"]["verdict"] == "smoke: holds"
    assert not (paper / "results.json").exists()
    assert (paper / "README.md").read_text() == before


def test_failing_runs_are_reported_and_the_rest_goes_on(paper, capsys):
    runner = Runner(fail=[("base", 1)])
    assert reproduce("small", level="full", root="r", launch=runner) == 1
    assert len(runner.calls) == 8  # tuned seed 1 needs base seed 1
    found = results(paper)["claims"]
    assert found["ratio"]["verdict"] == "not run: base seed=1: exit code 1: loss is NaN"
    assert found["wins"]["verdict"] == "does not hold"
    assert "tuned seed=1: base seed=1 failed" in capsys.readouterr().out


def test_a_missing_metric_is_named(paper):
    assert reproduce("small", root="r", launch=Runner(drop=["loss.10", "accuracy"])) == 1
    found = results(paper)["claims"]
    assert found["between"]["verdict"] == "not run: tuned seed=0 has no metric 'accuracy'"
    assert found["ratio"]["verdict"] == "holds"
    assert "figure" not in found["ratio"]


def test_results_keep_the_metrics_that_pages_are_made_from(paper):
    (paper / "claims.yaml").write_text(CLAIMS.replace("minutes: 2}", 'minutes: 2, keep: ["sco*"]}'))
    reproduce("small", root="r", launch=Runner())
    seeds = {name: run["seeds"]["1"] for name, run in results(paper)["runs"].items()}
    losses = {f"loss.{x}" for x in ("0p5", "1", "10")}  # of the figure
    assert set(seeds["base"]["metrics"]) == losses | {"accuracy", "score"}
    assert set(seeds["tuned"]["metrics"]) == losses | {"accuracy"}
    assert seeds["base"]["versions"] == {"torch": "2.13"}


def test_a_seed_may_be_a_clip_with_words_of_its_own(paper):
    each = "each: [[data=ring], [data=grid25], [data=digits]], varies: clips}"
    (paper / "claims.yaml").write_text(CLAIMS.replace("minutes: 2}", each))
    runner = Runner()
    reproduce("small", root="r", launch=runner)
    assert [words[1] for _, words in runner.calls[:3]] == ["data=ring", "data=grid25", "data=digits"]


def test_a_claim_is_decided_once_more_on_fresh_seeds_beside_its_first_verdict(paper):
    again = "again: {seeds: [7, 8, 9], claims: [ratio]}\n"
    (paper / "claims.yaml").write_text(CLAIMS + again)
    runner = Runner()
    reproduce("small", ["ratio", "ratio_again"], root="r", launch=runner)
    found = results(paper)["claims"]
    assert list(found["ratio"]["values"]) == ["0", "1", "2"] and list(found["ratio_again"]["values"]) == ["7", "8", "9"]
    assert "init=r/small/base_again/seed_8" in next(
        words for _, words in runner.calls if "tuned_again/seed_8" in words[-1]
    )
    assert found["ratio_again"]["holds"] == found["ratio"]["holds"]
    (paper / "claims.yaml").write_text(CLAIMS + again.replace("7", "2"))
    with pytest.raises(UserError, match=r"again: seeds=.* has some of them"):
        reproduce("small", root="r", launch=pytest.fail)
    (paper / "claims.yaml").write_text(CLAIMS + again.replace("[ratio]", "[ratoi]"))
    with pytest.raises(UserError, match="again: claim ratoi: did you mean 'ratio'"):
        reproduce("small", root="r", launch=pytest.fail)


def test_an_interrupted_call_stops_at_once(paper):
    runner = Runner(stop_at=("base", 1))
    assert reproduce("small", root="r", launch=runner) == 143
    assert len(runner.calls) == 2
    assert not (paper / "results.json").exists()


def test_unknown_papers_and_claims(paper):
    with pytest.raises(UserError, match="claim rato: did you mean 'ratio'"):
        reproduce("small", ["rato"], launch=pytest.fail)
    with pytest.raises(UserError, match="smal: no such paper; "):
        reproduce("smal", launch=pytest.fail)


def test_damaged_results_stop_before_anything_runs(paper):
    (paper / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json: damaged"):
        reproduce("small", launch=pytest.fail)
