"""The commands around training, as typed in a shell."""

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.ivideogpt import tiny
from toolkit.cli import main
from toolkit.data.episodes.episode import Episode, EpisodeSpec, read_episode, write_episode


@pytest.fixture
def toolkit(tmp_path, monkeypatch, capsys):
    """``toolkit WORDS`` in an empty folder, in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["toolkit", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        return (stop.value.code or 0, *capsys.readouterr())

    return run


def test_episodes_are_recorded_and_recorded_on(toolkit):
    words = ["data", "record", "push_sprite", "out", "--num-frames", "4", "--size-px", "16"]
    assert toolkit(*words, "--num-episodes", "1")[:2] == (0, "1 episodes in out\n")
    assert toolkit(*words, "--num-episodes", "2")[:2] == (0, "2 episodes in out\n")
    assert len(read_episode("out/episode_000001.npz", EpisodeSpec())) == 4
    code, _, said = toolkit("data", "record", "push_sprit", "out")
    assert (
        code == 2
        and said.startswith("toolkit: error: push_sprit: did you mean 'push_sprite'?")
        and said.count("\n") == 1
    )


def test_what_cannot_be_converted_is_one_line(toolkit):
    Path("in/train").mkdir(parents=True)
    code, _, said = toolkit("data", "convert", "bair", "in", "out")
    assert code == 2 and "no *.tfrecords" in said and said.count("\n") == 1


def test_what_failed_while_the_rest_was_kept_is_said_and_fails(toolkit, monkeypatch):
    monkeypatch.setattr(
        "toolkit.data.episodes.record.record", lambda plan, folder: (2, ["episode 1: RuntimeError: broke"])
    )
    code, out, said = toolkit("data", "record", "push_sprite", "out")
    assert (
        code == 1 and out == "2 episodes in out\n" and "1 could not be had, the first: episode 1: RuntimeError" in said
    )


def test_a_plan_without_a_simulator_is_refused_before_anything_is_trained(toolkit):
    toolkit("data", "record", "push_sprite", "out", "--num-frames", "8", "--size-px", "16", "--num-episodes", "8")
    Path("out/episodes.json").unlink()
    words = [
        "experiment=ivideogpt_smoke",
        "data=episodes_folder",
        "data.path=out",
        "data.size_px=16",
        "hydra.run.dir=run",
    ]
    code, _, said = toolkit("train-ivideogpt", *words, "plan.num_episodes=1")
    assert code == 2 and "toolkit: error: data.name=episodes_folder: out came from no simulator that is here" in said
    assert not Path("run").exists()


@pytest.mark.slow
def test_play_serves_its_page_until_it_is_interrupted(tmp_path):
    tiny.world().save_pretrained(tmp_path / "world")
    write_episode(tmp_path / "starts" / "a.npz", Episode(tiny.starts(1)[0]))
    command = [sys.executable, "-m", "toolkit.cli", "play", "world", "--episodes", "starts", "--port", "0"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the tests run in the background
    )
    try:
        line = process.stdout.readline()
        url = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert b"An imagined world" in answer.read()
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
