"""Killed before, during or after growth and resumed, a testbed run equals one that nobody touched, bit for bit."""

import json
import time
from pathlib import Path

import pytest

from tests.toyroom.harness import finish, record, start, start_ranks
from toolkit.launch import launch

WORDS = [
    "experiment=grow_smoke",
    "seed=5",
    "budget.growth_tokens=1536",
    "budget.tokens=4096",
    "arms=[grown,continued]",
    "compare.eval_tokens=256",
    "checkpoint_every_steps=1",
    "log_every_steps=3",
]
MOMENTS = {
    "before growth": "checkpoints/base/step-*.pt",
    "during growth": "model/*start*",
    "after growth": "checkpoints/grown/step-*.pt",
    "in the control": "checkpoints/continued/step-*.pt",
}


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def outcome(folder):
    """What must not depend on interruptions: weights, logs, curves without their times, final metrics."""
    root = Path(folder)
    found = {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob("model/*/model.safetensors"))}
    found["metrics.jsonl"] = (root / "metrics.jsonl").read_bytes()
    for path in sorted(root.glob("curves/*.json")):
        points = json.loads(path.read_text())["points"]
        found[path.name] = [{key: value for key, value in point.items() if key != "time_s"} for point in points]
    return found | record(folder)["metrics"]


def kill_when(pattern, *processes):
    """kill -9 as soon as a file matches."""
    while not list(Path("one").glob(pattern)) and all(process.is_alive() for process in processes):
        time.sleep(0.002)
    for process in processes:
        process.kill()
    return finish(*processes)


def compare_after(*moments):
    assert launch("grow-llm", [*WORDS, "hydra.run.dir=whole"]) == 0
    env = {"TOOLKIT_CACHE": str(Path("cache").absolute())}
    for moment in moments:
        codes = kill_when(MOMENTS[moment], start(*WORDS, "hydra.run.dir=one", command="grow-llm", env=env))
        assert codes == [-9] and record("one")["status"] == "running"
    assert launch("grow-llm", [*WORDS, "hydra.run.dir=one"]) == 0
    whole, one = outcome("whole"), outcome("one")
    assert [name for name in whole.keys() | one.keys() if whole.get(name) != one.get(name)] == []


@pytest.mark.slow
def test_killed_after_growth():
    compare_after("after growth")


@pytest.mark.slow
def test_killed_at_every_moment_of_one_run():
    compare_after(*MOMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_killed_and_resumed(monkeypatch, sharding):
    words = [*WORDS, "arms=[grown]", f"optim.sharding={sharding}", "device=cpu"]
    assert finish(*start_ranks(2, *words, "hydra.run.dir=whole", command="grow-llm")) == [0, 0]
    codes = kill_when(MOMENTS["after growth"], *start_ranks(2, *words, "hydra.run.dir=one", command="grow-llm"))
    assert -9 in codes
    assert finish(*start_ranks(2, *words, "hydra.run.dir=one", command="grow-llm")) == [0, 0]
    assert outcome("whole") == outcome("one")


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_processes_compute_what_one_does(sharding):
    words = [*WORDS, "arms=[grown]", "device=cpu"]
    assert launch("grow-llm", [*words, "hydra.run.dir=alone"]) == 0
    ranks = start_ranks(2, *words, f"optim.sharding={sharding}", "hydra.run.dir=two", command="grow-llm")
    assert finish(*ranks) == [0, 0]
    alone, two = record("alone")["metrics"], record("two")["metrics"]
    assert two["grown.loss"] == pytest.approx(alone["grown.loss"], abs=1e-4)
    assert two["base.loss"] == pytest.approx(alone["base.loss"], abs=1e-4)
