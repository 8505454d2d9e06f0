"""What cannot be printed ends no run, and a command that only prints says so in one line."""

import os
import subprocess
import sys

import pytest

from tests.toyroom.harness import record, run_here
from toolkit.runs.output import Lossy, lossy, printable

FULL = "/dev/full"


def toolkit(*words, stdout=subprocess.PIPE, env=None):
    command = [sys.executable, "-m", "toolkit.cli", *words]
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}, timeout=120
    )


@pytest.mark.skipif(not os.path.exists(FULL), reason="no /dev/full here")
def test_a_run_whose_output_is_lost_is_done(toy, monkeypatch):
    with open(FULL, "w") as nowhere, monkeypatch.context() as during:
        during.setattr(sys, "stdout", nowhere)
        during.setattr(sys, "stderr", nowhere)
        assert run_here("optim.num_steps=2", "hydra.run.dir=one") == 0
    assert record("one")["status"] == "done" and (toy / "one/report.html").exists()


def test_a_run_is_done_with_its_last_stage_whatever_its_summary_does(toy, monkeypatch, capfd):
    from tests.toyroom import job

    def stops(config, run):
        for name in config.stages():
            with run.stage(name):
                pass
        raise SystemExit(1)  # as rich does at a broken pipe

    monkeypatch.setattr(job, "main", stops)
    assert run_here("hydra.run.dir=one") == 1
    assert record("one")["status"] == "done" and "SystemExit" in capfd.readouterr().err


@pytest.mark.skipif(not os.path.exists(FULL), reason="no /dev/full here")
@pytest.mark.parametrize(
    "words",
    [("data", "list"), ("train-disco", "experiment=disco_smoke", "--dry-run"), ("train-disco", "--cfg", "job")],
)
def test_a_command_that_only_prints_says_that_it_could_not(words):
    with open(FULL, "w") as nowhere:
        done = toolkit(*words, stdout=nowhere)
    assert done.returncode == 2
    assert done.stderr == (
        "toolkit: error: standard output: No space left on device; what was asked for could not be printed\n"
    )


def test_a_reader_that_leaves_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = toolkit("data", "list", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_dashes_gets_their_names(toy):
    assert run_here("optim.num_steps=2", "hydra.run.dir=one") == 0
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = toolkit("runs", "show", "one", env=ascii_only)
    assert done.returncode == 0 and "train" in done.stdout and done.stdout.isascii()


def test_a_stream_that_is_closed_takes_what_is_printed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with lossy():
        sys.stdout.write("as Hydra does")
    assert sys.stdout is None


def test_streams_are_given_back_and_the_reason_is_kept():
    class Broken:
        def write(self, text):
            raise OSError(5, "Input/output error")

        def flush(self):
            raise OSError(5, "Input/output error")

        def fileno(self):
            raise ValueError("none")

    before, sys.stdout = sys.stdout, Broken()
    broken = sys.stdout
    try:
        with lossy():
            print("lost")
            assert isinstance(sys.stdout, Lossy) and sys.stdout.error.errno == 5
        assert sys.stdout is broken
    finally:
        sys.stdout = before


def test_names_of_files_do_not_steer_a_terminal():
    assert printable("a\x1b[2Jb\x9bc\td\n") == "a\\x1b[2Jb\\x9bc\td\n"
