"""Run folders, sweeps and checkpoints that were damaged or made by somebody else, before all that reads them."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from tests.fuzz.harness import Fuzz, damaged_bytes, damaged_value, files_below
from tests.toyroom.harness import in_toy_folder, run_here
from toolkit.errors import JobError, UserError
from toolkit.resume import resume
from toolkit.show.browse import compare_runs, list_runs, show_run
from toolkit.show.report import write_report

NUM = 300  # records, and lines of metrics
NUM_RESUMED = 60  # each may run to its end


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    with in_toy_folder(folder):
        assert run_here("optim.num_steps=4", "log_every_steps=1", "hydra.run.dir=one") == 0
        assert run_here("-m", "seed=1,2", "optim.num_steps=1", "hydra.sweep.dir=sweep") == 0
    return folder


@pytest.fixture
def folder(made, toy):
    for name in ("one", "sweep"):
        shutil.copytree(made / name, toy / name)
    return toy


def show_all():
    """Every reader of a run folder, and what it shows as a terminal would show it."""
    from rich.console import Console

    with open(os.devnull, "w") as nowhere:
        for table in [*show_run("one"), list_runs("."), *compare_runs(["one", "sweep"])]:
            Console(file=nowhere, width=80).print(table.to_rich())
    write_report(["one"], "page.html")
    write_report(["one", "sweep"], "page.html")


def read_all():
    """As :func:`show_all`; one reader that refuses does not keep the others from being tried."""
    refused = None
    for act in (show_all, lambda: list_runs("."), lambda: write_report(["one", "sweep"], "page.html")):
        try:
            act()
        except (UserError, JobError) as error:
            refused = error
    if refused:
        raise refused


def test_records(folder):
    fuzz = Fuzz("run.json before show, compare and report")
    path = folder / "one/run.json"
    whole = path.read_bytes()
    before = files_below(folder) | {folder / "page.html"}
    for number in range(NUM):
        if number % 3:
            content = json.dumps(damaged_value(json.loads(whole), fuzz.random)).encode()
        else:
            content = damaged_bytes(whole, fuzz.random)
        path.write_bytes(content)
        fuzz.attempt(content[:300], read_all)
    assert files_below(folder) <= before
    fuzz.check(least=NUM)


def test_metrics(folder):
    fuzz = Fuzz("metrics.jsonl and tables before show and report")
    metrics, table = folder / "one/metrics.jsonl", folder / "one/tables/headline.json"
    table.parent.mkdir()
    whole = metrics.read_text().splitlines()
    headline = {
        "title": "t",
        "columns": ["a", "b"],
        "rows": [["x", 1.5], ["y", {"mean": 1, "sd": 2, "n": 3}]],
        "note": "",
    }
    for number in range(NUM // 2):
        lines = [json.dumps(damaged_value(json.loads(line), fuzz.random)) for line in whole]
        metrics.write_bytes(
            "\n".join(lines).encode() if number % 3 else damaged_bytes("\n".join(whole).encode(), fuzz.random)
        )
        table.write_text(json.dumps(damaged_value(headline, fuzz.random)))
        fuzz.attempt((metrics.read_bytes()[:200], table.read_text()[:200]), read_all)
    assert not fuzz.findings, "\n\n".join(fuzz.findings)


def resumed(name):
    """``toolkit runs resume``: exit code 2 has said its line, anything but 0 and 2 is a finding."""
    code = resume(Path(name))
    if code == 2:
        raise UserError("said on the terminal")
    assert code == 0, f"exit code {code}"


def test_resumed_runs(folder, capfd):
    fuzz = Fuzz("runs resume of damaged run folders")
    shutil.copytree("one", "whole")
    for number in range(NUM_RESUMED):
        shutil.rmtree("one")
        shutil.copytree("whole", "one")
        files = sorted(path for path in Path("one").rglob("*") if path.is_file() and path.name != "run.lock")
        path = fuzz.random.choice([*files, *[path for path in files if path.suffix in (".json", ".yaml", ".pt")] * 2])
        content = path.read_bytes()
        if path.name == "run.json" and number % 4:
            record = json.loads(content) | {"status": "interrupted", "stages": {}}
            path.write_text(json.dumps(damaged_value(record, fuzz.random)))
        else:
            path.write_bytes(damaged_bytes(content, fuzz.random))
            if path.name != "run.json":
                record = json.loads(Path("one/run.json").read_text())
                Path("one/run.json").write_text(json.dumps(record | {"status": "interrupted", "stages": {}}))
        fuzz.attempt((path, path.read_bytes()[:300]), lambda: resumed("one"))
    assert {path.name for path in folder.iterdir()} == {"one", "whole", "sweep"}
    assert "Traceback" not in capfd.readouterr().err
    fuzz.check(least=NUM_RESUMED)


def test_resumed_sweeps(folder, capfd):
    fuzz = Fuzz("runs resume of damaged sweeps")
    path = folder / "sweep/multirun.yaml"
    whole = path.read_bytes()
    saved = yaml.safe_load(whole)
    for number in range(NUM_RESUMED):
        damage = number % 3
        path.write_bytes(
            yaml.safe_dump(damaged_value(saved, fuzz.random)).encode() if damage else damaged_bytes(whole, fuzz.random)
        )
        fuzz.attempt(path.read_bytes()[:300], lambda: resumed("sweep"))
    assert {path.name for path in folder.iterdir()} == {"one", "sweep"}
    assert "Traceback" not in capfd.readouterr().err
    fuzz.check(least=NUM_RESUMED)
