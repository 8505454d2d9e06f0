"""``toolkit grow-llm experiment=grow_smoke`` from end to end, its arms, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config

from tests.stacking.models import VOCABULARY, make_tokenizer
from tests.toyroom.harness import record
from toolkit.launch import launch
from toolkit.show.table import Table
from toolkit.stacking.measure.curves import Arm

SMOKE = ["experiment=grow_smoke", "seed=5"]
SHORT = ["budget.growth_tokens=512", "budget.tokens=1536"]


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def grow(*words):
    return launch("grow-llm", [*SMOKE, *words])


def curve(folder, stage):
    return Arm.load(Path(folder) / "curves" / f"{stage}.json")


def weights(folder, name):
    return load_file(Path(folder) / "model" / name / "model.safetensors")


def test_the_smoke_preset_leaves_a_whole_run_folder(capfd):
    assert grow("hydra.run.dir=one") == 0
    out = capfd.readouterr().out
    assert "Speedup of growth" in out and "Arms" in out and "one/report.html" in out
    saved = record("one")
    stages = ["corpus", "base", "grow", "grown", "scratch", "continued", "compare"]
    assert {name: stage["status"] for name, stage in saved["stages"].items()} == dict.fromkeys(stages, "done")
    assert {"speedup.final", "final.gap_to_continued", "growth.spike", "crossing.flops"} <= set(saved["metrics"])
    assert {path.name for path in Path("one/figures").glob("*.png")} >= {
        "loss_flops.png", "loss_flops_non_embedding.png", "loss_flops_matmul.png", "loss_tokens.png", "loss_time.png",
    }  # fmt: skip
    assert len(Table.load(Path("one/tables/arms.json")).rows) == 4

    # algorithm 1, bit for bit
    base, start = weights("one", "base"), weights("one", "start")
    assert torch.equal(base["model.embed_tokens.weight"], start["model.embed_tokens.weight"])
    for layer in range(4):
        key = "mlp.up_proj.weight"
        assert torch.equal(base[f"model.layers.0.{key}"], start[f"model.layers.{layer}.{key}"])

    # all arms end at the same compute, the base's included; the grown one begins where the base ended
    arms = {name: curve("one", name) for name in ("base", "grown", "scratch", "continued")}
    assert arms["grown"].points[0]["flops.total"] == arms["base"].points[-1]["flops.total"]
    ends = [arms[name].points[-1]["flops.total"] for name in ("grown", "scratch", "continued")]
    one_step = 8 * 32 * saved["metrics"]["scratch.flops.total"] / saved["metrics"]["scratch.tokens"]
    assert max(ends) - min(ends) <= 2 * one_step
    assert arms["grown"].points[-1]["valid_loss"] < arms["grown"].points[0]["valid_loss"]

    # a checkpoint that anyone can load, with its tokenizer
    network = AutoModelForCausalLM.from_pretrained("one/model/grown")
    tokenizer = AutoTokenizer.from_pretrained("one/model/grown")
    ids = tokenizer("def of the statement", return_tensors="pt").input_ids
    cached = network.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(cached, network.generate(ids, max_new_tokens=8, do_sample=False, use_cache=False))
    assert network.config.num_hidden_layers == 4 and network.config.bos_token_id == tokenizer.bos_token_id


def test_scratch_at_several_rates_and_a_source_from_another_run():
    rates = "optim.scratch_lrs=[2e-3,4e-3]"
    assert grow(*SHORT, rates, "arms=[scratch]", "hydra.run.dir=one") == 0
    assert {path.stem for path in Path("one/curves").iterdir()} == {"base", "scratch", "scratch-0.004"}
    first, second = curve("one", "scratch"), curve("one", "scratch-0.004")
    assert first.points[0]["valid_loss"] == second.points[0]["valid_loss"]  # the same network at the start
    assert first.points[-1]["valid_loss"] != second.points[-1]["valid_loss"]
    words = ["model=one", "part=base", "arms=[grown]", "compare.runs=[one]", "operator=interleave"]
    assert grow(*SHORT, *words, "hydra.run.dir=two") == 0
    assert "speedup.final" in record("two")["metrics"]
    assert curve("two", "grown").points[0]["flops.total"] == curve("one", "base").points[-1]["flops.total"]
    assert record("two")["tokens"] == record("one")["tokens"]  # the source's tokenizer made these very files
    assert launch("grow-llm", ["stage=compare", "compare.runs=[one,two]", "hydra.run.dir=three"]) == 0
    assert record("three")["metrics"]["speedup.final"] == record("two")["metrics"]["speedup.final"]
    assert (Path("three") / "figures" / "loss_flops.png").exists()


def slow(*words):
    return pytest.param(list(words), marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "words",
    [
        ["operator=zero", "optim.after_growth=tile", "precision=bf16", "optim.micro_batch_size=4"],
        slow("operator=learn", "learn.num_steps=2", "learn.warmup_steps=1", "learn.batch_size=2"),
        slow("operator=random", "direction=width", "factor=2", "optim.mask_steps=1"),
        slow("noise=0.2", "budget.growth_tokens=0", "optim.schedule=cosine"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_operators_and_settings_train(words):
    assert grow(*SHORT, *words, "arms=[grown]", "hydra.run.dir=one") == 0
    losses = [point["valid_loss"] for point in curve("one", "grown").points]
    assert losses[-1] < losses[0]
    network = AutoModelForCausalLM.from_pretrained("one/model/grown")
    assert network.config.num_hidden_layers == (1 if "direction=width" in words else 4)


@pytest.mark.slow
def test_the_masks_are_gone_from_what_is_saved():
    """At the end the masks are open: the saved, plain network is the one that was measured last."""
    words = ["operator=random", "optim.mask_steps=2", "arms=[grown]", "compare.eval_tokens=512"]
    assert grow(*SHORT, *words, "hydra.run.dir=one") == 0
    assert (
        grow(
            "stage=pretrain",
            "model=one",
            "part=grown",
            "budget.tokens=256",
            "compare.eval_tokens=512",
            "hydra.run.dir=on",
        )
        == 0
    )
    last, first = curve("one", "grown").points[-1], curve("on", "pretrain").points[0]
    assert first["valid_loss"] == pytest.approx(last["valid_loss"], abs=1e-6)
    assert first["flops.total"] == last["flops.total"]  # and its cost goes along


@pytest.mark.slow
def test_stages_one_after_the_other_equal_all_at_once():
    assert grow(*SHORT, "hydra.run.dir=whole") == 0
    assert grow(*SHORT, "stage=corpus", "hydra.run.dir=parts") == 0
    assert grow(*SHORT, "hydra.run.dir=parts") == 0
    for path in Path("whole").glob("model/*/model.safetensors"):
        assert path.read_bytes() == (Path("parts") / path.relative_to("whole")).read_bytes()
    assert Path("whole/metrics.jsonl").read_bytes() == Path("parts/metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_larger_budget_trains_on():
    assert grow(*SHORT, "arms=[grown]", "hydra.run.dir=one") == 0
    short, base = curve("one", "grown").points, Path("one/curves/base.json").stat().st_mtime_ns
    longer = [SHORT[0], "budget.tokens=3072", "arms=[grown]", "hydra.run.dir=one"]
    assert grow(*longer) == 0
    assert curve("one", "grown").points[: len(short)] == short
    assert curve("one", "grown").points[-1]["tokens"] > short[-1]["tokens"]
    assert Path("one/curves/base.json").stat().st_mtime_ns == base and "base.loss" in record("one")["metrics"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=text_folder"], "data.path: data.name=text_folder needs the folder"),
        (["data=digits"], "data=digits: a set of images"),
        (["data.name=text_brwn"], "did you mean 'text_brown'"),
        (["arms=[grwon]"], "did you mean 'grown'"),
        (["budget.tokens=2000", "budget.growth_tokens=100000"], "training the base takes all that compute"),
        (["operator=random"], "the masks must be open before training ends"),
        (["operator=interleave", "num_layers=0"], "num_layers=0: must be at least 1"),
        (["network.num_hidden_layers=2", "factor=1.25"], "not a whole number"),
        (["network.hidden_size=18", "network.num_attention_heads=4"], "must be an even multiple"),
        (["network.context=100000"], "network.context=100000 needs more"),
        (["optim.betas=[0.9]"], "must be two numbers"),
        (["optim.after_growth=tile", "operator=direct", "direction=width"], "in depth only"),
        (["optim.sharding=fsdp"], "needs several processes"),
        (["tokenize.tokenizer=nowhere/at-all"], "tokenize.tokenizer=nowhere/at-all: cannot be loaded"),
        (["model=nowhere"], "model=nowhere"),
        (["stage=compare", "compare.runs=[nowhere]"], "compare.runs: nowhere: no run there"),
        (["stage=compare"], "compare.runs: must be given"),
        (["compare.runs=[nowhere]"], "compare.runs: nowhere: no run there"),
    ],
)
def test_bad_requests_are_one_line_before_anything_trains(capfd, words, message):
    assert grow("hydra.run.dir=one", *words) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "toolkit: error" in line]
    assert len(lines) == 1 and message in lines[0]
    assert not Path("one/checkpoints").exists()


@pytest.mark.slow
def test_a_tokenizer_larger_than_the_sources_vocabulary(capfd):
    assert grow(*SHORT, "stage=pretrain", "hydra.run.dir=one") == 0
    assert grow(*SHORT, "stage=pretrain", "tokenize.vocab_size=280", "hydra.run.dir=small") == 0
    words = ["stage=pretrain", "model=small/model/pretrain", "tokenize.tokenizer=one/model/pretrain"]
    assert grow(*words, "hydra.run.dir=two") == 2
    assert "its vocabulary has 280 tokens, the tokenizer has 300" in capfd.readouterr().err
    words = ["stage=pretrain", "model=small/model/pretrain", "network.context=64"]
    assert grow(*words, "hydra.run.dir=two") == 2
    assert "is configured for 32 positions" in capfd.readouterr().err


def test_a_model_that_cannot_be_trained_is_refused_before_its_text_is_tokenised(capfd):
    sizes = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes |= {"head_dim": 4, "intermediate_size": 8, "vocab_size": VOCABULARY, "pad_token_id": 0}
    AutoModelForCausalLM.from_config(Gemma2Config(**sizes)).save_pretrained("source")
    make_tokenizer().save_pretrained("source")
    assert grow(*SHORT, "stage=pretrain", "model=source", "hydra.run.dir=one") == 2
    assert "model=source: gemma2 networks grow here, but do not train here" in capfd.readouterr().err
    assert not Path("cache/tokens").exists()


def test_a_corpus_that_changed_under_a_run_is_refused(capfd):
    text = Path("text.txt")
    text.write_text("The mill by the river. " * 4000)
    words = [*SHORT, "data=text_folder", "data.path=text.txt", "data.max_mb=null", "hydra.run.dir=one"]
    assert grow(*words, "stage=corpus") == 0
    text.write_text("The mill by the bridge. " * 4000)
    assert grow(*words) == 2
    assert "the corpus has changed since this run began" in capfd.readouterr().err


def test_evaluating_what_was_trained():
    assert grow(*SHORT, "arms=[grown]", "hydra.run.dir=one") == 0
    assert grow("stage=evaluate", "model=one", "part=grown", "hydra.run.dir=two") == 0
    metrics = record("two")["metrics"]
    assert metrics["evaluate.loss"] == pytest.approx(curve("one", "grown").final_loss, abs=0.5)


def test_a_plan_costs_nothing(capfd):
    from toolkit.launch import dry_run

    assert dry_run("grow-llm", ["experiment=grow_7b"]) == 0
    out = capfd.readouterr().out
    assert "35.6" in out and "5933109248" in out
    assert dry_run("grow-llm", ["experiment=grow_7b", "stage=corpus"]) == 2


@pytest.mark.parametrize(("preset", "gflop"), [("410m", 2.243), ("1b", 8.186), ("3b", 14.385), ("7b", 35.599)])
def test_presets_at_the_papers_sizes(preset, gflop):
    from toolkit.commands import COMMANDS
    from toolkit.configs import compose
    from toolkit.stacking.pretrain.dry_run import plan_table

    table = plan_table(compose(COMMANDS["grow-llm"], [f"experiment=grow_{preset}"]))
    scratch = next(row for row in table.rows if row[0] == "scratch")
    assert scratch[3] == pytest.approx(gflop, abs=5e-4) and scratch[1] in (24, 32)
    assert json.dumps(table.rows[0])
