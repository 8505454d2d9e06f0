"""The benchmark harness: what it counts, ratios round by round, options by type. No test looks at a real duration."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import pytest

from toolkit import bench
from toolkit.bench import BenchOptions, Contender, _child_memory, _peak_memory, parse_options, summary, time_rounds
from toolkit.errors import JobError, UserError
from toolkit.schema import number


@dataclass
class Options(BenchOptions):
    scale: float = number(1.5, above=0)
    size: int = number(4, least=1)


def test_options_take_the_types_of_their_fields():
    options = parse_options(Options, ["scale=2.5", "size=3", "threads=1", "out=x.json"])
    assert (options.scale, options.size, options.threads, options.out) == (2.5, 3, 1, "x.json")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("scale=x", "scale=x: must be a number"),
        ("size=2.5", "size=2.5: must be a whole number"),
        ("size=0", "size=0: must be at least 1"),
        ("sise=1", "did you mean 'size'"),
        ("size", "options are num_rounds="),
    ],
)
def test_bad_options_are_named(word, message):
    with pytest.raises(UserError, match=message):
        parse_options(Options, [word])


def test_only_names_a_contender():
    with pytest.raises(UserError, match=r"only=natve: did you mean 'native'\? contenders are ours, native"):
        bench.run_bench("icg", BenchOptions(only="natve"), {"ours": None, "native": None}, "images")


def test_ratios_are_medians_over_paired_rounds(monkeypatch):
    """On a clock of our own: theirs takes twice as long in every round, though the machine slows down."""
    now = 0.0
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)
    slowdown = 1.0

    def work(seconds, items):
        def action():
            nonlocal now, slowdown
            now += seconds * slowdown
            slowdown *= 1.0 if items == 10 else 2.0  # after each round of both
            return items

        return action

    ours, theirs = Contender({"train": work(1.0, 10)}, 5), Contender({"train": work(2.0, 10.0)}, 6)
    slow = Contender({"train": work(1.0, 20), "only": work(1.0, 30)})
    contenders = {"ours": ours, "theirs": theirs, "slow": slow}
    rounds = time_rounds(contenders, 3)
    assert [len(found) for tasks in rounds.values() for found in tasks.values()] == [3, 3, 3, 3]
    results = summary(contenders, rounds, "images")
    assert results["theirs"]["train_ratio_to_ours"] == pytest.approx(2.0)
    assert results["ours"]["train_ratio_to_ours"] == 1.0
    assert results["ours"]["parameters"] == 5
    assert "only_ratio_to_ours" not in results["slow"]
    assert set(results["ours"]) == {"parameters", "train_images_per_s", "train_ratio_to_ours"}


def test_peak_memory_sees_a_large_tensor():
    """In a process of its own, as the harness does it: this one may have freed memory to fill first."""
    code = """
import torch
from toolkit.bench import Contender, _peak_memory
print(_peak_memory(lambda: Contender({"hold": lambda: float(torch.ones(16, 2**20).sum())}), "cpu"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 60 < float(done.stdout) < 100


def test_a_task_that_fails_under_the_watch_ends_the_watch():
    def fail():
        raise RuntimeError("no memory")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no memory"):
        _peak_memory(lambda: Contender({"fail": fail}), "cpu")
    assert threading.active_count() == before


def test_a_contender_whose_memory_is_not_to_be_had_is_named():
    """Here because the benchmark has no option ``scale``."""
    with pytest.raises(JobError, match=r"bench icg: peak memory of ours was not measured: .*scale=1\.5"):
        _child_memory("icg", Options(), "ours")


def test_the_cpu_clock_counts_work_and_not_waiting():
    """Ours sleeps as long as theirs computes: on the processor's clock it is far faster."""

    def sleep():
        time.sleep(0.05)
        return 1

    def spin():
        end = time.perf_counter() + 0.05
        while time.perf_counter() < end:
            pass
        return 1

    contenders = {"ours": Contender({"it": sleep}), "spin": Contender({"it": spin})}
    rounds = time_rounds(contenders, 1, bench.CLOCKS["cpu"])
    assert rounds["ours"]["it"][0] > 3 * rounds["spin"]["it"][0]


def test_the_cpu_clock_wants_one_thread(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    with pytest.raises(UserError, match="add threads=1 device=cpu"):
        bench.prepare(Options(clock="cpu"))
