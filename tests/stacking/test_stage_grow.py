"""``toolkit grow-llm`` for users of a checkpoint: through the launcher, into a run folder."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.stacking.models import make_model, make_tokenizer
from toolkit.launch import dry_run, launch
from toolkit.show.table import Table
from toolkit.stacking.stage_grow import spelled
from toolkit.zoo.disco.prior import AutoregressivePrior


@pytest.fixture
def grow_llm(tmp_path, monkeypatch):
    """The command in a working folder that has a checkpoint ``source``."""
    monkeypatch.chdir(tmp_path)
    make_model().save_pretrained("source")
    make_tokenizer().save_pretrained("source")
    return lambda *words: launch("grow-llm", list(words))


GROW = ("stage=grow", "model=source", "operator=stack", "factor=4", "out=out", "hydra.run.dir=run")


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
    assert grow_llm("stage=grow", "model=prior", "operator=zero", "factor=2", "hydra.run.dir=run") == 0
    assert json.loads((tmp_path / "run" / "model" / "grown" / "config.json").read_text())["depth"] == 4


def test_what_says_something_about_text_is_refused_for_a_zoo_network(grow_llm, tmp_path, capfd):
    AutoregressivePrior(num_latents=3, codebook_size=4, width=8, depth=2, num_heads=2).save_pretrained("prior")
    (tmp_path / "words.txt").write_text("some words")
    assert grow_llm("stage=grow", "model=prior", "operator=zero", "factor=2", "text=words.txt") == 2
    assert "text=words.txt: prior reads no text" in capfd.readouterr().err
    assert grow_llm("stage=grow", "model=prior", "operator=learn", "factor=2") == 2
    assert "add learn.num_steps=0" in capfd.readouterr().err
    words = ["stage=grow", "model=prior", "operator=learn", "learn.num_steps=0", "factor=2", "measure=false"]
    assert grow_llm(*words, "hydra.run.dir=run") == 0
    assert "function" not in json.loads((tmp_path / "run" / "model" / "grown" / "growth.json").read_text())


def test_advice(grow_llm, tmp_path, capfd):
    assert grow_llm("stage=advise", "params=8e9", "tokens=15e12", "hydra.run.dir=run") == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert round(record["metrics"]["advise.growth_tokens"] / 1e9, 2) == 6.58
    assert grow_llm("stage=advise", "params=1e6", "tokens=3e6") == 2
    assert "times the whole budget" in capfd.readouterr().err


def test_a_network_of_a_run_is_named_by_its_part(grow_llm, tmp_path, capfd):
    for name in ("base", "scratch"):
        make_model().save_pretrained(f"earlier/model/{name}")
    (tmp_path / "earlier" / "run.json").write_text("{}")
    words = ("stage=grow", "model=earlier", "operator=stack", "factor=2", "hydra.run.dir=run")
    assert grow_llm(*words) == 2
    assert "has several networks; part= is one of base, scratch" in capfd.readouterr().err
    assert grow_llm(*words, "part=grown") == 2
    assert "has no network grown" in capfd.readouterr().err
    assert grow_llm(*words, "part=base") == 0
    report = json.loads((tmp_path / "run" / "model" / "grown" / "growth.json").read_text())
    assert report["source"] == "earlier/model/base"


def test_source_layers_in_short():
    assert spelled([0, 1, 2] * 2) == "0-2 0-2"
    assert spelled([0, 0, 1, 1, 2, 3]) == "0 0-1 1-3"
    assert spelled([0, 1, None, None]) == "0-1 new new"
    assert spelled([0, 0] * 20).endswith("0 ...")


def test_dry_run_reads_no_weight(grow_llm, tmp_path, capfd):
    path = tmp_path / "source" / "model.safetensors"
    header_size = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    path.write_bytes(path.read_bytes()[:header_size] + bytes(path.stat().st_size - header_size))
    assert dry_run("grow-llm", ["stage=grow", "model=source", "operator=zero", "factor=2"]) == 0
    shown = capfd.readouterr().out
    assert "silent copy" in shown
    assert str(sum(p.numel() for p in make_model(num_hidden_layers=6).parameters())) in shown


REFUSALS = [
    (["stage=grow", "operator=stack", "factor=2"], "model: must be given"),
    (["stage=grow", "model=source"], "give either factor"),
    (["stage=grow", "model=source", "operator=stack", "factor=1.5"], "not a whole number"),
    (["stage=grow", "model=source", "num_layers=2"], "the source already has 3 layers"),
    (["stage=grow", "model=source", "operator=direct", "direction=width", "factor=1.2"], "not a whole number"),
    (["stage=grow", "model=source", "direction=width", "factor=2"], "operator=stack grows depth"),
    (["stage=grow", "model=source", "operator=pattern", "pattern=4*2"], "pattern=4*2: does not fit"),
    (["stage=grow", "model=source", "operator=list", "layers=[0,1,3]"], "layers: 3 is not there"),
    (["stage=grow", "model=source", "operator=solar", "drop=3"], "drop=3: must be less"),
    (["stage=grow", "model=source", "operator=llama_pro", "insert=2"], "2 groups do not divide"),
    (["stage=grow", "model=nowhere", "factor=2"], "model=nowhere: no such folder"),
    (["stage=grow", "model=nowhere.gguf", "factor=2"], "nowhere.gguf: no such file"),
    (["stage=grow", "model=source", "factor=2", "out=source"], "out=source: exists and is not an empty folder"),
    (["stage=grow", "model=source", "factor=2", "out=source/config.json/x"], "cannot be made (Not a directory)"),
    (["stage=grow", "model=source", "factor=2", "text=nowhere.txt"], "text=nowhere.txt: cannot be read"),
    (["stage=grow", "model=source", "operator=stacc", "factor=2"], "did you mean 'stack'"),
    (["stage=grow", "model=source", "operator=stack", "factr=2"], "factr: no such key; did you mean 'factor'"),
    (["stage=advise", "params=8e9"], "tokens: must be given"),
    (["stage=advise", "params=7e9", "tokens=10"], "tokens=10: must be a number of at least 1000"),
    (["stage=evaluate", "model=source", "evaluation.tasks=[hellaswag]"], "evaluation.tasks=hellaswag"),
    (["stage=evaluate", "model=source", "evaluation.task_data=no"], "evaluation.task_data=no: no such folder"),
]


@pytest.mark.parametrize(("words", "message"), REFUSALS)
def test_bad_requests_are_one_line(grow_llm, tmp_path, capfd, words, message):
    assert grow_llm(*words) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "runs").exists()
