"""What looking at many runs may read and do: each file once, and work in proportion to the runs; nothing is timed."""

import builtins
import io
import json
import sys
from collections import Counter

import pytest

from tests.show.test_browse import make_run
from toolkit.show.browse import list_runs
from toolkit.show.report import write_report
from toolkit.show.table import Table

RUNS_OF_A_LIST, RUNS_OF_A_REPORT = 10_000, 100
CALLS_OF_A_LIST, CALLS_OF_A_REPORT = 1_500_000, 600_000  # Python functions


def make_runs(root, count, alike):
    """Finished runs with a curve and a table: of one config and many seeds, or each of a config of its own."""
    for number in range(count):
        folder = make_run(root / f"{number:06d}", seed=number, **({} if alike else {"width": number}))
        lines = [json.dumps({"stage": "denoiser", "step": step, "loss": 1 / step}) for step in range(1, 100)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        Table("Distances", ["variant", "distance"], [["ours", float(number)]]).save(folder / "tables" / "headline.json")
    return root


def opened_below(root, monkeypatch, action):
    """How often each file below ``root`` is opened by ``action``."""
    opened, real = Counter(), open

    def count(file, *args, **keys):
        if str(file).startswith(str(root)):
            opened[str(file)] += 1
        return real(file, *args, **keys)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "open", count)
        patched.setattr(io, "open", count)  # which pathlib calls
        action()
    return opened


def calls_of(action):
    """How many Python functions ``action`` calls."""
    calls = 0

    def count(frame, event, arg):
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(before)
    return calls


def test_a_list_opens_one_file_of_each_run_and_a_report_three(tmp_path, monkeypatch):
    root = make_runs(tmp_path / "runs", 6, alike=True)
    of_list = opened_below(root, monkeypatch, lambda: list_runs(root))
    of_report = opened_below(root, monkeypatch, lambda: write_report([root], tmp_path / "report.html"))
    names = {"run.json", "metrics.jsonl", "tables/headline.json"}
    assert of_list == {str(run / "run.json"): 1 for run in root.iterdir()}
    assert of_report == {str(run / name): 1 for run in root.iterdir() for name in names}


@pytest.mark.parametrize("alike", [True, False], ids=["seeds of one config", "a config each"])
@pytest.mark.parametrize("what", ["list", "report"])
def test_work_grows_with_the_number_of_runs_and_stays_within_its_bound(what, alike, tmp_path):
    def calls(count):
        root = make_runs(tmp_path / str(count), count, alike)
        if what == "list":
            return calls_of(lambda: list_runs(root))
        return calls_of(lambda: write_report([root], tmp_path / "report.html"))

    few, more, most = calls(8), calls(16), calls(32)
    assert most - more <= 2.01 * (more - few)
    runs, bound = (RUNS_OF_A_LIST, CALLS_OF_A_LIST) if what == "list" else (RUNS_OF_A_REPORT, CALLS_OF_A_REPORT)
    assert few + (most - more) / 16 * (runs - 8) <= bound
