"""All benchmarks in one table, and two records compared. No test looks at a real duration."""

import dataclasses
import importlib
import json

import pytest

from toolkit.bench import all as bench_all
from toolkit.bench import parse_options
from toolkit.bench.all import BENCHMARKS, Benchmark, Goal
from toolkit.errors import UserError

CHECKOUTS = ("edm", "official", "litgpt", "nanochat")  # contenders that are there only where a checkout is named


@pytest.fixture
def quick(monkeypatch):
    """Two benchmarks in the place of all: one that works and is timed once, and one whose words are wrong."""
    small = ("network=dit", "size_px=8", "depth=1", "batch_size=1", "num_steps=2")
    goals = (Goal("dit", "none", 0.0), Goal("dit", "cfg", 1000.0, ours="tsg"), Goal("dit", "official"))
    works, fails = Benchmark("works", "icg", small, goals), Benchmark("fails", "icg", ("sise_px=8",), goals)
    monkeypatch.setattr(bench_all, "BENCHMARKS", (fails, works))


@pytest.mark.slow
def test_what_fails_is_a_row_and_the_rest_is_timed(quick, tmp_path, capsys):
    """Exit code 1 for the failure; a goal that is missed is told, and a contender that is not there has no row."""
    out = tmp_path / "all.json"
    assert bench_all.main(["num_rounds=2", f"out={out}"]) == 1
    printed = capsys.readouterr()
    assert "fails: toolkit: error: sise_px=8" in printed.err and "works: done" in printed.err
    record = json.loads(out.read_text())
    assert "did you mean 'size_px'" in record["benchmarks"]["fails"]["problem"]
    works = record["benchmarks"]["works"]
    assert [(row["ours"], row["peer"], row["holds"]) for row in works["rows"]] == [
        ("ours", "none", True),
        ("tsg", "cfg", False),
    ]
    assert len(works["rounds"]["tsg"]["dit"]) == 2 and works["problem"] == ""
    assert {"commit", "machine", "versions", "options"} <= set(record)
    statuses = [row[-1] for row in bench_all.all_table(record).rows]
    assert statuses == ["failed", "holds", "does not hold"]


def test_what_fails_says_why(quick, capsys):
    assert bench_all.main(["only=fails"]) == 1
    printed = capsys.readouterr()
    assert "did you mean 'size_px'" in printed.err and "failed" in printed.out


def test_one_that_takes_too_long_is_stopped_and_said(quick, tmp_path):
    out = tmp_path / "all.json"
    assert bench_all.main(["only=works", "timeout_s=0.05", f"out={out}"]) == 1
    assert json.loads(out.read_text())["benchmarks"]["works"]["problem"] == "took more than 0.05 s"


def test_a_ratio_is_of_the_rounds_in_pairs():
    rounds = {"ours": {"train": [10.0, 1.0, 4.0]}, "peer": {"train": [5.0, 1.0, 1.0]}}
    row = bench_all._row(Goal("train", "peer", 1.9), rounds)
    assert (row["ratio"], row["low"], row["high"], row["holds"]) == (2.0, 1.5, 3.0, True)
    assert bench_all._row(Goal("train", "peer", 2.1), rounds)["holds"] is False
    assert bench_all._row(Goal("sample", "peer"), rounds) is None


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda one: one.name)
def test_words_and_goals_are_of_the_benchmark_that_they_name(benchmark):
    room = importlib.import_module(f"toolkit.{benchmark.paper}.bench")
    options = parse_options(room.Options, [word.format(tmp=".") for word in benchmark.words])
    assert set(benchmark.takes) <= {item.name for item in dataclasses.fields(room.Options)}
    makers = _makers(room, options)
    for goal in benchmark.goals:
        assert goal.ours in makers and (goal.peer in makers or goal.peer in CHECKOUTS), goal


def _makers(room, options):
    if options.__class__.__module__.endswith("stacking.bench"):
        return (room.bench_growth if options.measure == "growth" else room.bench_training).contenders(options)
    if getattr(options, "what", "") == "classic":
        return importlib.import_module("toolkit.venhancer.bench.classic").makers(options.clip, options.clip_frames)
    return room.contenders(options)


def record(path, ratio, spread, **changes):
    ends = {"low": ratio - spread, "high": ratio + spread}
    rows = [{"task": "train", "ours": "ours", "peer": "bare", "ratio": ratio, **ends}]
    machine, versions = {"processor": "Z80"}, {"torch": "2"} | changes
    path.write_text(json.dumps({"machine": machine, "versions": versions, "benchmarks": {"disco": {"rows": rows}}}))
    return str(path)


@pytest.mark.parametrize(
    ("after", "code", "said"), [(0.9, 1, "slower"), (0.97, 0, "as before"), (1.1, 0, "faster"), (1.03, 0, "as before")]
)
def test_slower_is_what_lies_beyond_the_spread_of_both(tmp_path, capsys, after, code, said):
    words = [record(tmp_path / "a.json", 1.0, 0.02), record(tmp_path / "b.json", after, 0.02, torch="3")]
    assert bench_all.compare(words) == code
    printed = " ".join(capsys.readouterr().out.split())
    assert said in printed and "torch 2 -> 3" in printed


def test_records_that_are_none_are_named(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    good = record(tmp_path / "good.json", 1.0, 0.1)
    for words, message in [
        ([good], "takes two records"),
        ([good, str(tmp_path / "a.json")], "a.json: no record of toolkit bench all"),
        ([str(tmp_path / "none.json"), good], "none.json: No such file"),
    ]:
        with pytest.raises(UserError, match=message):
            bench_all.compare(words)


def test_a_benchmark_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="only=disko: no such benchmark; did you mean 'disco'"):
        bench_all.main(["only=disko"])


def test_a_goal_that_is_missed_does_not_hold_and_one_that_is_none_says_nothing():
    row = {"ours": "a", "peer": "b", "task": "t", "ours_per_s": 2.0, "peer_per_s": 1.0, "ratio": 2.0, "least": 1.5}
    rows = [row | {"holds": holds} for holds in (True, False, None)]
    told = {"options": {"num_rounds": 2, "clock": "wall", "threads": None}, "commit": "c"}
    told |= {"machine": {"processor": "p", "cores": 2}}
    found = bench_all.all_table(told | {"benchmarks": {"x": {"rows": rows, "problem": "", "time_s": 1.0}}})
    assert [one[-1] for one in found.rows] == ["holds", "does not hold", "–"]
