import json
import math
from pathlib import Path

import pytest

from toolkit.claims import results as publish
from toolkit.claims.parse import load_claims
from toolkit.claims.reproduce import reproduce, reproduce_all
from toolkit.claims.verdict import judge, judge_exact
from toolkit.errors import UserError
from toolkit.show.figures import read_caption

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


@pytest.fixture
def paper(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "experiments" / "small"
    folder.mkdir(parents=True)
    (folder / "claims.yaml").write_text(CLAIMS)
    (folder / "README.md").write_text(f"# By hand\n\nbefore\n\n{publish.BEGIN}\nstale\n{publish.END}\n\nafter *this*\n")
    return folder


def results(folder):
    return json.loads((folder / "results.json").read_text(), parse_constant=lambda text: pytest.fail(text))


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


def test_results_of_other_claims_are_kept_until_they_change(paper):
    reproduce("small", root="r", launch=Runner())
    reproduce("small", ["wins"], root="r", launch=Runner())
    found = results(paper)["claims"]
    assert {name: entry["verdict"] for name, entry in found.items()} == {
        "ratio": "holds",
        "between": "holds",
        "wins": "does not hold",
    }
    (paper / "claims.yaml").write_text(CLAIMS.replace("0.2}", "0.3}"))
    reproduce("small", ["wins"], root="r", launch=Runner())
    found = results(paper)["claims"]
    assert list(found) == ["ratio", "between", "wins"]
    assert found["ratio"]["verdict"] == "not run: the claim or its runs changed"
    (line,) = found["ratio"]["history"]
    assert (line["verdict"], line["center"], line["git_commits"]) == ("holds", pytest.approx(0.1), ["abc123"])
    assert "| holds | abc123 | the claim or its runs changed |" in (paper / "README.md").read_text()


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


@pytest.mark.parametrize(
    ("then", "why"),
    [
        ({"recipe": 2}, "base: recipe was 2, is 1"),
        ({"reads": {"mnist/images": "0"}}, "base: mnist/images has other bytes"),
        ({"versions": {"torch": "1.0.0+cpu"}}, "base: torch was 1.0.0+cpu, is "),
        ({"config": {"optim": {"lr": 7.0}}}, "optim.lr was 7.0, is "),
    ],
)
def test_a_verdict_is_stale_when_what_it_depends_on_changed(paper, capsys, then, why):
    reproduce("small", root="r", launch=Runner())
    identities = json.loads((paper / "identity.json").read_text())
    identities["base"] |= then
    (paper / "identity.json").write_text(json.dumps(identities))
    assert reproduce("small", root="r", dry_run=True, launch=pytest.fail) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "ratio: stale, base: " in said and why in said
    assert "tuned: made from base: " in said  # which was trained on it
    reproduce("small", ["wins"], root="r", launch=Runner())
    assert results(paper)["claims"]["ratio"]["stale"].startswith("base: ")
    assert "| stale (base: " in (paper / "README.md").read_text()
    reproduce("small", ["ratio"], root="r", launch=Runner())
    entries = results(paper)["claims"]
    assert "stale" not in entries["ratio"]
    assert "stale" in entries["between"]  # decided from runs that are no longer there
    reproduce("small", root="r", launch=Runner())
    assert "stale" not in results(paper)["claims"]["between"]


def test_runs_of_another_identity_are_set_aside_with_all_that_was_made_from_them(paper, tmp_path):
    reproduce("small", root="r", launch=Runner())
    home = tmp_path / "r" / "small"
    mark = home / "base" / "identity.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"recipe": 2}))
    for _ in range(2):  # the second time all is as it should be
        reproduce("small", root="r", launch=Runner())
        assert {path.name for path in home.iterdir()} == {"base", "base.before-1", "tuned", "tuned.before-1"}


def test_a_verdict_that_is_replaced_stays_as_a_line(paper):
    reproduce("small", ["wins"], root="r", launch=Runner())
    for _ in range(2):
        reproduce("small", ["wins"], root="elsewhere", launch=Runner(scale=3))
    entry = results(paper)["claims"]["wins"]
    (line,) = entry["history"]
    assert (line["center"], line["verdict"], line["why"]) == (6.0, "does not hold", "run again")
    assert (entry["center"], entry["verdict"]) == (18.0, "holds")


def test_a_withdrawn_claim_is_not_run_and_keeps_what_it_said(paper):
    reproduce("small", level="full", root="r", launch=Runner())
    (paper / "claims.yaml").write_text(CLAIMS + "    withdrawn: one clip is no sample\n")
    with pytest.raises(UserError, match=r"claim wins: is withdrawn \(one clip is no sample\)"):
        reproduce("small", ["wins"], root="r", launch=pytest.fail)
    runner = Runner()
    reproduce("small", level="full", root="r", launch=runner)
    assert len(runner.calls) == 6
    entry = results(paper)["claims"]["wins"]
    assert entry["verdict"] == "withdrawn: one clip is no sample"
    assert [line["verdict"] for line in entry["history"]] == ["does not hold"]
    assert "| does not hold | abc123 | withdrawn: one clip is no sample |" in (paper / "README.md").read_text()


def test_results_keep_the_metrics_that_pages_are_made_from(paper):
    (paper / "claims.yaml").write_text(CLAIMS.replace("minutes: 2}", 'minutes: 2, keep: ["sco*"]}'))
    reproduce("small", root="r", launch=Runner())
    seeds = {name: run["seeds"]["1"] for name, run in results(paper)["runs"].items()}
    losses = {f"loss.{x}" for x in ("0p5", "1", "10")}  # of the figure
    assert set(seeds["base"]["metrics"]) == losses | {"accuracy", "score"}
    assert set(seeds["tuned"]["metrics"]) == losses | {"accuracy"}
    assert seeds["base"]["versions"] == {"torch": "2.13"}


def test_all_papers_are_planned_in_one_call(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert reproduce_all(level="quick", root="r", dry_run=True, launch=pytest.fail) == 0
    said = capsys.readouterr().out
    assert said.startswith("5 papers, about ")
    papers = {line.removeprefix("== ") for line in said.splitlines() if line.startswith("== ")}
    assert papers == {"disco", "icg", "ivideogpt", "stacking", "venhancer"}
    assert "unknown cost" not in said


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


def test_arithmetic_is_exact_and_a_coarse_reading_widens_the_interval():
    assert judge_exact([511.0, 511.0], {">=": 511, "<=": 511}).verdict == "holds"
    assert judge_exact([511.0], {">=": 512}).verdict == "does not hold"
    assert judge_exact([511.0, 512.0], {">=": 500}).verdict == "inconclusive (not one number)"
    assert judge("value", [0.09, 0.09, 0.09], {"<=": 0.1}).verdict == "holds"
    assert judge("value", [0.09, 0.09, 0.09], {"<=": 0.1}, resolution=0.025).verdict == "inconclusive"


def test_an_interrupted_call_stops_at_once(paper):
    runner = Runner(stop_at=("base", 1))
    assert reproduce("small", root="r", launch=runner) == 143
    assert len(runner.calls) == 2
    assert not (paper / "results.json").exists()


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
    assert "missing" in rows["tuned seed=0"]
    assert "8 of 9 runs to do, about 8 min 30 s and 3 of unknown cost" in text


@pytest.mark.parametrize(
    ("kind", "values", "holds", "words"),
    [
        ("value", [0.1, 0.11, 0.12], {"<=": 0.2}, "holds"),
        ("value", [0.3, 0.31, 0.32], {"<=": 0.2}, "does not hold"),
        ("value", [0.1, 0.2, 0.3], {"<=": 0.2}, "inconclusive"),
        ("value", [0.1, 0.11], {"<=": 0.2}, "inconclusive (n=2)"),
        ("value", [0.1], {"<=": 0.2}, "inconclusive (n=1)"),
        ("value", [0.1, 0.11, math.inf], {"<=": 0.2}, "inconclusive (a value is not finite)"),
        ("ratio", [0.1, 0.0, 0.1], {"<=": 0.2}, "inconclusive (a ratio is not positive)"),
        ("ratio", [0.9, 1.0, 1.1], {">=": 0.5, "<=": 2}, "holds"),
        ("ratio", [1e-300, 1e300], {"<=": 2}, "inconclusive (n=2)"),
        ("difference", [-0.5, -0.51, -0.52], {">=": -0.1, "<=": 0.1}, "does not hold"),
    ],
)
def test_the_whole_interval_decides(kind, values, holds, words):
    assert judge(kind, values, holds).verdict == words


def test_intervals_against_known_values():
    found = judge("value", [1.0, 2.0, 3.0], {"<=": 9})  # t(0.975, 2) = 4.30265
    assert (found.low, found.high) == pytest.approx((2 - 4.30265 / math.sqrt(3), 2 + 4.30265 / math.sqrt(3)), rel=1e-5)
    ratio = judge("ratio", [math.exp(v) for v in (1.0, 2.0, 3.0)], {"<=": 9})
    assert (ratio.center, ratio.low) == pytest.approx((math.exp(2), math.exp(found.low)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [0, 1, 2], minutes: 2", "seed: [0]", "run 'base': unknown key 'seed'; did you mean 'seeds'"),
        ("minutes: 2}", "minutes: soon}", "run 'base': minutes: expected a number, got 'soon'"),
        ("run: long", "run: lon", "claim 'wins': statistic.run=lon: no such run; did you mean 'long'"),
        ("level: open", "level: opne", "claim 'wins': level=opne: choose one of quick, safe, open"),
        ("metric: score", "metric: {sum: [a, b]}", "claim 'wins': statistic.metric={'sum'"),
        ("metric: score", "metric: {ratio: [a]}", "give a key, {ratio: [a, b]}"),
        ('{">=": 10}', '{">": 10}', "claim 'wins': holds: unknown key '>'"),
        ('{">=": 10}', '{">=": ten}', "expected a number, got 'ten'"),
        ('">=": -0.05, "<=": 0.05', '">=": 1, "<=": 0', "no number is both"),
        ("[experiment=icg_mnist]", "[seed=3]", "seed and hydra.* are set for you"),
        ("init=@base", "init=@long", "@long: only a run above it can be named"),
        ("statement: It wins", "", "claim 3: 'statement' is missing"),
        ("id: wins", "id: ratio", "claim 'ratio' stands there twice"),
        ('without: "base:loss.{x}"', "without: loss", "'loss' lacks {x}"),
        ("kind: bars", "kind: pie", "figure.kind=pie: choose one of curves, bars"),
        ("over: seed", "over: lr", "statistic.over=lr: must be seed"),
        ("minutes: 2}", "varies: luck}", "run 'base': varies=luck: choose one of training, sampling, clips"),
        ("minutes: 2}", "recipe: 0}", "run 'base': recipe=0: give a whole number from 1 up"),
        ("minutes: 2}", "each: [[data=ring]]}", "run 'base': each: 1 lists of words for 3 seeds"),
        ('{">=": 10}', '{">=": 10}\n    varies: luck', "claim 'wins': varies=luck: choose one of"),
        ('{">=": 10}', '{">=": 10}\n    resolution: fine', "claim 'wins': resolution: expected a number"),
        (
            "[experiment=icg_mnist], seeds: [0, 1, 2]",
            "[experiment=icg_mnist], seeds: [0, 0]",
            "give different whole numbers",
        ),
        ("runs:\n", "runs: 3\nx:\n", "the file: unknown key 'x'"),
        ("title: A", "title: [", ""),
        ("title: A small paper", "title: a\ntitle: b", "duplicate key"),
    ],
)
def test_mistakes_in_claims_are_told_in_one_line(tmp_path, old, new, message):
    assert old in CLAIMS
    path = tmp_path / "claims.yaml"
    path.write_text(CLAIMS.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        load_claims(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_papers_and_claims(paper):
    with pytest.raises(UserError, match="claim rato: did you mean 'ratio'"):
        reproduce("small", ["rato"], launch=pytest.fail)
    with pytest.raises(UserError, match="smal: no such paper; "):
        reproduce("smal", launch=pytest.fail)


def test_damaged_results_stop_before_anything_runs(paper):
    (paper / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json: damaged"):
        reproduce("small", launch=pytest.fail)
