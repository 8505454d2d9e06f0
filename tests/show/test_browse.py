import fcntl
import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from toolkit.errors import UserError
from toolkit.show import browse
from toolkit.show.browse import compare_runs, find_runs, list_runs, read_run, show_run
from toolkit.show.cli import app
from toolkit.show.table import Spread


def make_run(folder, seed=0, status="done", loss=1.0, **config):
    folder.mkdir(parents=True)
    record = {
        "schema": 1,
        "command": "train-disco",
        "status": status,
        "config": {"seed": seed, "device": "cpu", "network": {"width": 64}, **config},
        "seed": seed,
        "overrides": [f"seed={seed}"],
        "started": "2024-07-01T10:00:00",
        "wall_time_s": 12.34,
        "peak_memory_mib": 300.0,
        "stages": {"denoiser": {"status": "done", "step": 100, "wall_time_s": 10.0}},
        "metrics": {"loss": loss, "accuracy": 1 - loss / 10},
        "versions": {"torch": "2.13"},
        "error": "step 7: loss is NaN\nmore" if status == "failed" else None,
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "runs"
    make_run(root / "train-disco" / "2024-07-01_10-00-00-000001", seed=5)
    for num in (2, 10):
        make_run(root / "train-disco" / "sweeps" / "2024-07-02" / str(num), seed=num, loss=num)
    make_run(root / "train-disco" / "2024-07-03_10-00-00-000001", status="failed")
    make_run(root / "other" / "2024-07-03_10-00-00-000001", status="running")
    broken = root / "train-disco" / "2024-07-04_10-00-00-000001"
    broken.mkdir()
    (broken / "run.json").write_text('{"config": {')
    return root


def test_list_finds_single_runs_and_sweeps_and_survives_damage(root):
    table = list_runs(root)
    status = {row[0]: row[1] for row in table.rows}
    assert list(status) == [
        "other/2024-07-03_10-00-00-000001",
        "train-disco/2024-07-01_10-00-00-000001",
        "train-disco/2024-07-03_10-00-00-000001",
        "train-disco/2024-07-04_10-00-00-000001",
        "train-disco/sweeps/2024-07-02/2",
        "train-disco/sweeps/2024-07-02/10",
    ]
    assert list(status.values())[:2] == ["interrupted (denoiser 100)", "done"]
    assert list(status.values())[2:] == ["failed (denoiser 100)", "damaged", "done", "done"]
    said = [row[4] for row in table.rows]
    assert "damaged" in said[3]
    assert said[2] == "step 7: loss is NaN"
    assert all("\n" not in text for text in said)
    assert table.note == "1 damaged, 3 done, 1 failed, 1 interrupted"
    (root / "empty").mkdir()
    assert "no runs here yet" in list_runs(root / "empty").note
    with pytest.raises(UserError, match="nowhere: no such folder"):
        list_runs(root / "nowhere")
    assert len(find_runs(root, "no-such-command")) == 1  # the damaged one: its command is unknown


def test_a_list_reads_each_record_once_and_asks_for_the_locks_of_running_runs_alone(root, monkeypatch):
    reads, asked = [], []
    read, ask = browse.read_record, browse.is_locked
    monkeypatch.setattr(browse, "read_record", lambda folder: reads.append(folder) or read(folder))
    monkeypatch.setattr(browse, "is_locked", lambda folder: asked.append(folder) or ask(folder))
    table = list_runs(root)
    assert len(reads) == len(set(reads)) == len(table.rows)
    assert {folder.relative_to(root).parts[0] for folder in asked} == {"other"} and len(asked) == 1


def test_a_running_run_is_running_only_while_its_lock_is_held(tmp_path):
    folder = make_run(tmp_path / "a", status="running")
    with open(folder / "run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_run(folder).status == "running"
    assert read_run(folder).status == "interrupted"


def test_show_prints_facts_stages_metrics_config(root):
    folder = root / "train-disco" / "2024-07-01_10-00-00-000001"
    (folder / "figures").mkdir()
    (folder / "figures" / "grid.png").write_bytes(b"x")
    facts, stages, metrics, config, files = show_run(folder)
    assert ["command", "toolkit train-disco seed=5"] in facts.rows
    assert ["wall time", "12.3 s"] in facts.rows
    assert stages.rows == [["denoiser", "done", 100, "10.0 s"]]
    assert ["loss", 1.0] in metrics.rows
    assert ["network.width", "64"] in config.rows
    assert ["figures", "grid.png"] in files.rows
    with pytest.raises(UserError, match="no run\\.json here"):
        show_run(root)


def test_compare_over_seeds_gives_mean_spread_n_and_the_best_run(tmp_path):
    for seed, loss in ((1, 1.0), (2, 2.0), (3, 3.0)):
        make_run(tmp_path / str(seed), seed=seed, loss=loss)
    make_run(tmp_path / "4", seed=4, status="failed")
    (table,) = compare_runs([tmp_path])
    assert table.columns == ["metric", "value", "best run"]
    assert table.rows[0] == ["loss", Spread(2.0, 1.0, 3), "seed=1: 1 (lowest)"]
    assert table.rows[1][2] == "seed=1: 0.9 (highest)"
    assert "not counted" in table.note
    assert "4 (failed)" in table.note


def test_compare_groups_by_config_and_says_what_differs(tmp_path):
    for seed in (1, 2):
        make_run(tmp_path / "a" / str(seed), seed=seed, loss=1.0)
        make_run(tmp_path / "b" / str(seed), seed=seed, loss=3.0, network={"width": 128})
    make_run(tmp_path / "a" / "3", seed=3, loss=4.0, device="cuda")  # where it ran is not what was computed
    metrics, differences = compare_runs([str(tmp_path / "a" / "*"), tmp_path / "b"])
    assert metrics.columns[1:3] == ["network.width=64", "network.width=128"]
    assert [cell.n for cell in metrics.rows[0][1:3]] == [3, 2]
    assert metrics.rows[0][3] == "network.width=64, seed=1: 1 (lowest)"
    assert differences.rows == [["network.width", "64", "128"]]


def test_a_key_that_older_runs_lack_is_shown_as_such_and_names_no_group(tmp_path):
    old, new = {"network": {"width": 64}}, {"network": {"width": 128, "gain": 1.0}, "later": True, "third": 3}
    make_run(tmp_path / "old", **old)
    make_run(tmp_path / "new", **new)
    metrics, differences = compare_runs([tmp_path / "old", tmp_path / "new"])
    assert metrics.columns[1:3] == ["network.width=64", "network.width=128"]
    rows = [["network.width", "64", "128"], ["network.gain", "–", "1"], ["later", "–", "true"], ["third", "–", "3"]]
    assert differences.rows == rows and differences.note.startswith("–: no key of that run; an older version, or")
    make_run(tmp_path / "same", **old, later=True)  # nothing else tells them apart
    metrics, differences = compare_runs([tmp_path / "old", tmp_path / "same"])
    assert metrics.columns[1:3] == ["later=–", "later=true"] and differences.rows == [["later", "–", "true"]]


def test_groups_that_differ_a_lot_get_letters(tmp_path):
    make_run(tmp_path / "a", lr=0.1, steps=5, warmup=1)
    make_run(tmp_path / "b", lr=0.2, steps=6, warmup=2)
    metrics, differences = compare_runs([tmp_path])
    assert metrics.columns[1:3] == ["A", "B"]
    assert [row[0] for row in differences.rows] == ["lr", "steps", "warmup"]


def test_compare_without_finished_runs_is_an_error(tmp_path):
    make_run(tmp_path / "a", status="failed")
    with pytest.raises(UserError, match="no finished run"):
        compare_runs([tmp_path])
    with pytest.raises(UserError, match="no run there"):
        compare_runs([tmp_path / "zz*"])


def test_import_is_light():
    heavy = ("torch", "matplotlib", "numpy", "hydra", "PIL")
    code = f"import sys, toolkit.show.browse; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def as_json(*words):
    """What ``toolkit runs WORDS --json`` prints, read as strictly as other programs do."""
    result = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(result.stdout, parse_constant=refuse)


def test_a_list_for_programs_has_what_the_records_say(root):
    listed = {row.pop("run"): row for row in as_json("list", str(root))}
    assert list(listed) == [str(run.dir) for run in find_runs(root)]
    done = listed[str(root / "train-disco/sweeps/2024-07-02/10")]
    stages = {"denoiser": {"status": "done", "step": 100, "wall_time_s": 10.0}}
    said = {"status": "done", "command": "train-disco", "seed": 10, "overrides": ["seed=10"], "wall_time_s": 12.34}
    said |= {"started": "2024-07-01T10:00:00", "ended": None, "objective": None, "error": None, "stages": stages}
    assert done == said
    failed = listed[str(root / "train-disco/2024-07-03_10-00-00-000001")]
    assert (failed["status"], failed["error"]) == ("failed", "step 7: loss is NaN\nmore")
    damaged = listed[str(root / "train-disco/2024-07-04_10-00-00-000001")]
    assert damaged["status"] == "damaged" and "damaged" in damaged["error"] and damaged["seed"] is None
    assert {row["command"] for row in as_json("list", str(root), "--command", "other")} == {
        None
    }  # a damaged one may be anybody's


def test_a_record_for_programs_has_the_status_of_now(root):
    folder = root / "other/2024-07-03_10-00-00-000001"
    on_disk = json.loads((folder / "run.json").read_text())
    assert on_disk["status"] == "running" and as_json("show", str(folder)) == on_disk | {"status": "interrupted"}


def test_a_comparison_for_programs_has_spreads_and_null_where_there_is_none(root):
    sweep = root / "train-disco/sweeps/2024-07-02"
    [table] = as_json("compare", str(sweep))
    rows = {row[0]: row[1] for row in table["rows"]}
    assert rows["loss"] == {"mean": 6.0, "sd": pytest.approx(32**0.5), "n": 2}
    [table] = as_json("compare", str(sweep / "2"))
    assert {row[0]: row[1] for row in table["rows"]}["loss"] == {"mean": 2.0, "sd": None, "n": 1}
