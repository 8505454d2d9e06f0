"""The script's own parts: limits, order, the exit code, the record, and that its rows are what the toolkit knows."""

import json
import sys
import time

import pytest
import torch

from tests.device import placement, table
from tests.device.rows import BENCHES, PARITY, SMOKE, Row, rows
from toolkit.commands import COMMANDS

SAY = "print('first'); print('last word'); print('----')"


def row(name, code, limit_s=60.0, **keys):
    return Row(name, "test", [sys.executable, "-c", code], limit_s, **keys)


def test_a_row_that_fails_or_hangs_stops_no_other(tmp_path):
    asked = [row("hangs", "import time; time.sleep(60)", 1.0), row("fails", f"{SAY}; exit(3)"), row("passes", SAY)]
    start = time.monotonic()
    hangs, fails, passes = table.run(asked, 60.0, jobs=3, folder=tmp_path)
    assert time.monotonic() - start < 30
    assert (hangs.passed, fails.passed, passes.passed) == (False, False, True)
    assert hangs.said.startswith("stopped after 1 s") and fails.said == "exit code 3: last word"
    assert passes.said == "done" and "1 of 3 rows passed" in table.page([hangs, fails, passes], "")


def test_what_a_row_started_ends_with_it(tmp_path):
    """A child that outlives its parent would hold the card."""
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(2); pathlib.Path({str(mark)!r}).touch()"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    table.run([row("parent", code, 1.0)], 60.0, jobs=1, folder=tmp_path)
    time.sleep(2)
    assert not mark.exists()


def test_after_the_whole_limit_nothing_begins(tmp_path):
    first, second = table.run([row("first", "import time; time.sleep(60)"), row("second", SAY)], 1.0, 1, tmp_path)
    assert not first.passed and first.seconds < 10
    assert not second.passed and second.said == "not run: the time was spent"


def test_timings_run_alone_and_show_the_ratio(tmp_path):
    out = tmp_path / "bench.json"
    found = {"results": {"peer": {"parameters": 3, "train_ratio_to_ours": 1.204, "sample_ratio_to_ours": 0.9}}}
    code = f"import pathlib; pathlib.Path({str(out)!r}).write_text({json.dumps(found)!r})"
    timing = row("timing", code, alone=True, out=out, peer="peer")
    (result,) = table.run([timing], 60.0, 1, tmp_path)
    assert result.passed and result.said == "train 1.20, sample 0.90"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_rows_are_all_presets_parity_compile_ddp_and_timings(device, tmp_path):
    found = rows(device, tmp_path)
    assert len({one.name for one in found}) == len(found)
    assert {one.group for one in found} == {"smoke", "parity", "compile", "ddp", "timings"}
    smoke = [one for one in found if one.group == "smoke"]
    assert len(smoke) == 10 and {one.command[3] for one in smoke} == set(SMOKE.values())
    assert all(f"device={device}" in one.command for one in found if one.group != "parity")
    assert all(one.environment["TOOLKIT_TEST_DEVICE"] == device for one in found if one.group == "parity")
    assert all((table.ROOT / file).exists() for file in PARITY)
    folders = [word for one in found for word in one.command if word.startswith("hydra.run.dir=")]
    assert len(set(folders)) == len(folders), "a run that is done would not be done again"


def test_a_benchmarks_words_are_its_own_and_given_once(tmp_path):
    from importlib import import_module

    from toolkit.bench import parse_options

    rooms = {command.paper: command.room for command in COMMANDS.values()}
    for one in rows("cpu", tmp_path):
        if one.group == "timings":
            name, words = one.command[4], one.command[5:]
            kind = import_module(f"{rooms[name]}.bench").Options
            assert parse_options(kind, words).num_rounds == 1 and name in BENCHES
            assert len({word.split("=")[0] for word in words}) == len(words)


def test_the_record_says_what_computed_it_and_a_rehearsal_is_none_of_a_gpu(tmp_path):
    (result,) = table.run([row("passes", SAY)], 60.0, 1, tmp_path)
    found = table.record([result], "cpu", "a processor")
    assert found["kind"].startswith("rehearsal") and found["device"] == "a processor"
    assert found["rows"][0]["name"] == "passes" and json.dumps(found)
    assert table.record([result], "cuda", "a card")["kind"] == "GPU"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so():
    with pytest.raises(SystemExit, match="no CUDA device here"):
        table.main([])


def test_an_unknown_row_is_refused():
    with pytest.raises(SystemExit, match="no such row"):
        table.main(["--device", "cpu", "--only", "nothing"])


@pytest.mark.parametrize(
    ("precision", "device", "allowed"),
    [("fp32", "cpu", 1e-4), ("fp32", "cuda", 1e-3), ("tf32", "cuda", 2e-2), ("bf16", "cpu", 2e-1)],
)
def test_tolerances(monkeypatch, precision, device, allowed):
    monkeypatch.setattr(placement, "PRECISION", precision)
    monkeypatch.setattr(placement, "DEVICE", torch.device(device))
    assert placement.tolerance(1e-4) == pytest.approx(allowed)
