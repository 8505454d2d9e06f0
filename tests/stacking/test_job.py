"""``toolkit grow-llm`` for users of a checkpoint: through the launcher, into a run folder."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.stacking.models import make_model, make_tokenizer
from tests.toyroom.harness import REPO
from toolkit.commands import COMMANDS, Command
from toolkit.launch import launch
from toolkit.runs.table import Table
from toolkit.zoo.prior import AutoregressivePrior


@pytest.fixture
def grow_llm(tmp_path, monkeypatch):
    """The command in an empty working folder that has a checkpoint ``source``."""
    conf = tmp_path / "conf"
    conf.mkdir()
    shutil.copy(REPO / "conf" / "job.yaml", conf)
    (conf / "grow_llm.yaml").write_text("defaults:\n  - grow_llm_schema\n  - job\n  - _self_\n")
    monkeypatch.setenv("TOOLKIT_CONF", str(conf))
    monkeypatch.setitem(COMMANDS, "grow-llm", Command("grow-llm", "toolkit.stacking", "Grow a language model."))
    monkeypatch.chdir(tmp_path)
    make_model().save_pretrained("source")
    make_tokenizer().save_pretrained("source")
    return lambda *words: launch("grow-llm", list(words))


GROW = ("stage=grow", "source=source", "operator=stack", "factor=4", "out=out", "hydra.run.dir=run")


def test_growing_a_checkpoint(grow_llm, tmp_path, capfd):
    assert grow_llm(*GROW) == 0
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for key, tensor in make_model().state_dict().items():
        assert torch.equal(state[key], tensor)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "done"
    assert record["metrics"]["grow.connection_rate"] == pytest.approx(8 / 11)
    layers = Table.load(tmp_path / "run" / "tables" / "layers.json")
    assert [row[1] for row in layers.rows] == [0, 1, 2] * 4
    assert "not preserved" in capfd.readouterr().out
    assert (tmp_path / "run" / "report.html").exists()
    assert grow_llm(*GROW) == 0  # done already
    assert grow_llm(*GROW[:-1], "hydra.run.dir=other") == 2  # somebody else's folder


def test_an_attempt_that_died_after_the_last_write_is_taken_up(grow_llm, tmp_path):
    assert grow_llm(*GROW) == 0
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    record["stages"]["grow"]["status"] = record["status"] = "running"
    path.write_text(json.dumps(record))
    written = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert grow_llm(*GROW) == 0
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == written


def test_growing_a_zoo_network(grow_llm, tmp_path):
    AutoregressivePrior(num_latents=3, codebook_size=4, width=8, depth=2, num_heads=2).save_pretrained("prior")
    assert grow_llm("stage=grow", "source=prior", "operator=zero", "factor=2", "hydra.run.dir=run") == 0
    assert json.loads((tmp_path / "run" / "model" / "grown" / "config.json").read_text())["depth"] == 4


def test_advice(grow_llm, tmp_path, capfd):
    assert grow_llm("stage=advise", "params=8e9", "tokens=15e12", "hydra.run.dir=run") == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert round(record["metrics"]["advise.growth_tokens"] / 1e9, 2) == 6.58
    assert grow_llm("stage=advise", "params=1e6", "tokens=3e6") == 2
    assert "times the whole budget" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stage=grow", "operator=stack", "factor=2"], "source: must be given"),
        (["stage=grow", "source=source"], "give either factor"),
        (["stage=grow", "source=source", "operator=stack", "factor=1.5"], "not a whole number"),
        (["stage=grow", "source=nowhere", "factor=2"], "source=nowhere: no such folder"),
        (["stage=grow", "source=source", "factor=2", "text=nowhere.txt"], "text=nowhere.txt: cannot be read"),
        (["stage=advise", "params=8e9"], "tokens: must be given"),
        (["stage=grow", "source=source", "operator=stacc", "factor=2"], "did you mean 'stack'"),
    ],
)
def test_bad_requests_are_one_line(grow_llm, tmp_path, capfd, words, message):
    assert grow_llm(*words) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "runs").exists()
