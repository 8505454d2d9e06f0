"""Growth that is killed, stopped or out of disk leaves no half of a checkpoint, and the next attempt succeeds."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.stacking.models import make_model
from tests.toyroom.harness import finish, start
from toolkit.launch import launch
from toolkit.stacking.config import Growth
from toolkit.stacking.grow_folder import grow_checkpoint

GROW = ("stage=grow", "model=source", "operator=stack", "factor=8", "out=out", "hydra.run.dir=run", "measure=false")
PARTIAL = Path(".out.partial")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """26 MB, so that writing 200 MB takes long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("saved")
    make_model(hidden_size=512, head_dim=128, intermediate_size=2048).save_pretrained(folder)
    return folder


@pytest.fixture
def source(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, "source")


def wait_for_bytes(process):
    """Until a shard has begun."""
    while process.is_alive():
        if any(path.stat().st_size for path in PARTIAL.glob("*.safetensors")):
            return
        time.sleep(0.001)
    raise AssertionError(Path("output.txt").read_text())


def test_killed_while_writing_then_repeated(source):
    process = start(*GROW, command="grow-llm")
    wait_for_bytes(process)
    os.kill(process.pid, signal.SIGKILL)
    assert finish(process) == [-signal.SIGKILL]
    assert not Path("out").exists()
    assert launch("grow-llm", list(GROW)) == 0
    assert not PARTIAL.exists()
    grow_checkpoint("source", "undisturbed", Growth(operator="stack", factor=8), measure=False)
    assert Path("out/model.safetensors").read_bytes() == Path("undisturbed/model.safetensors").read_bytes()


def test_sigterm_clears_up(source):
    process = start(*GROW, command="grow-llm")
    wait_for_bytes(process)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == [143]
    assert not Path("out").exists()
    assert not PARTIAL.exists()
    assert json.loads(Path("run/run.json").read_text())["status"] == "interrupted"


def test_disk_full_in_the_middle_of_a_shard(source):
    assert finish(start(*GROW, command="grow-llm", file_limit=50_000_000)) == [1]
    said = [line for line in Path("output.txt").read_text().splitlines() if line.startswith("toolkit: ")]
    assert said == ["toolkit: error: out=out: writing failed, nothing was kept: File too large"]
    assert not Path("out").exists()
    assert not PARTIAL.exists()


def test_two_processes_do_not_share_a_folder(source):
    first = start(*GROW, command="grow-llm")
    wait_for_bytes(first)
    os.kill(first.pid, signal.SIGSTOP)
    other = [word.replace("=run", "=run2") for word in GROW]
    assert finish(start(*other, command="grow-llm")) == [2]
    assert "out=out: another process is writing it" in Path("output.txt").read_text()
    os.kill(first.pid, signal.SIGCONT)
    assert finish(first) == [0]
    assert Path("out/config.json").exists()
