"""Old names of keys: presets mean what they meant, old words and old run folders are understood."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from tests.composed import composed
from tests.toyroom.harness import REPO, record, run_here
from toolkit import renamed
from toolkit.claims.parse import load_claims
from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.errors import UserError
from toolkit.paths import experiments_dir
from toolkit.renamed import RENAMED, Renamed
from toolkit.resume import check_words, resume
from toolkit.runs.record import Run, read_record

FILES = Path(__file__).parent / "files" / "before"
BEFORE = json.loads((FILES / "configs.json").read_text())  # a preset holds what differs from its command's default
REAL = [name for name in COMMANDS if name != "train-toy"]

SAMPLING = ("num_samples", "num_steps", "batch_size", "sigma_min", "sigma_max", "rho", "temperature")
RENAMES = {  # written out once more, for the table is what is tested
    "train-disco": {"optim.warmup_images": "optim.warmup_steps"},
    "sample-icg": {
        **{key: f"sampling.{key}" for key in SAMPLING},
        "train.num_steps": "optim.num_steps",
        "train.batch_size": "optim.batch_size",
        "train.lr": "optim.lr",
        "train.schedule": "optim.schedule",
        "train.grad_clip": "optim.grad_clip",
        "train.weight_decay": "optim.weight_decay",
        "train.ema_half_life_images": "optim.ema_half_life_images",
        "train.label_drop": "loss.label_drop",
        "train.p_mean": "loss.p_mean",
        "train.p_std": "loss.p_std",
    },
    "grow-llm": {"source": "model"},
    "train-ivideogpt": {"tokenizer_optim": "optim.tokenizer", "transformer_optim": "optim.transformer"},
    "enhance-video": {
        "optim.base": "init",
        "optim.decay": "optim.schedule",
        "optim.ema_half_life_steps": "optim.ema_half_life_images",
        "augment.text_dropout": "augment.text_drop",
    },
}
RENAMED_KEYS = [(command, old, new) for command, table in RENAMES.items() for old, new in table.items()]
SHARED = {  # words that mean the same wherever they stand
    "optim.lr": ("train-disco", "sample-icg", "grow-llm", "enhance-video"),
    "optim.schedule": ("train-disco", "sample-icg", "grow-llm", "enhance-video"),
    "optim.num_steps": ("train-disco", "sample-icg", "enhance-video"),
    "optim.warmup_steps": ("train-disco", "grow-llm", "enhance-video"),
    "optim.ema_half_life_images": ("train-disco", "sample-icg", "enhance-video"),
    "optim.tokenizer.warmup_steps": ("train-ivideogpt",),
    "optim.transformer.schedule": ("train-ivideogpt",),
    "loss.label_drop": ("train-disco", "sample-icg"),
    "sampling.num_steps": ("train-disco", "sample-icg", "enhance-video"),
    "data.name": ("train-disco", "grow-llm", "train-ivideogpt", "enhance-video"),
    "model": tuple(REAL),
    "init": ("train-disco", "train-ivideogpt", "enhance-video"),
}


MENDED = {  # what a preset said that the paper does not, and says otherwise since: EDM's training limits no gradient
    "disco_imagenet64": {"optim.grad_clip": None},
    "disco_imagenet128": {"optim.grad_clip": None},
}
PLAIN = {  # of enhance-video: what its default was is enhance_small, and the default of now asks no diffusion
    "fidelity": "balanced",
    "sampling.guidance_scale": 7.5,
    "sampling.mode": "fast",
    "sampling.num_steps": 50,
}
MENDED |= {"enhance-video": PLAIN, "enhance_default": PLAIN}


def flat(config, prefix=""):
    for key, value in config.items():
        yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]


def nested(keys):
    found = {}
    for key, value in keys.items():
        *groups, name = key.split(".")
        place = found
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    return found


def before(name):
    """The flat config of a preset, or of a command without one, as the code before the renaming composed it."""
    own = dict(BEFORE[name])
    gone = own.pop("-", [])
    base = {} if name in COMMANDS else BEFORE[own["command"]]
    return {key: value for key, value in (base | own).items() if key not in gone}


def translated(keys):
    """The same under the new keys, by ``RENAMES``."""
    table, batch_size, found = RENAMES[keys["command"]], keys.get("optim.batch_size"), {}
    for key, value in keys.items():
        old = next((old for old in table if key == old or key.startswith(f"{old}.")), None)
        if key == "optim.warmup_images":
            value = value / batch_size
        if key == "optim.ema_half_life_steps":
            value = value * batch_size
        if key == "optim.decay":
            value = {"none": "constant", "cosine": "cosine"}[value]
        found[key if old is None else key.replace(old, table[old], 1)] = value
    return found


def of_now(name):
    command = name if name in COMMANDS else BEFORE[name]["command"]
    return composed(command, *([] if name in COMMANDS else [f"experiment={name}"]))


@pytest.mark.parametrize("name", BEFORE)
def test_every_preset_means_what_it_meant(name):
    now, then = dict(flat(dataclasses.asdict(of_now(name)))), translated(before(name)) | MENDED.get(name, {})
    if now["command"] == "sample-icg" and now["sampling.batch_size"] is None:
        now["sampling.batch_size"] = 512  # what None is for small models; pipelines take what fits
    assert {key: now.get(key, "absent") for key in then} == then  # there are more keys since


def test_what_the_default_of_enhance_video_was_has_a_preset():
    now = dict(flat(dataclasses.asdict(compose(COMMANDS["enhance-video"], ["experiment=enhance_small"]))))
    then = translated(before("enhance_default"))
    assert {key: now[key] for key in then} == then and now["keys"] == "network"
    pins = [
        renamed.pinned("enhance-video", words, config)
        for words, config in (([], {}), (["scale=2"], {"keys": "network"}), ([], {"keys": "upscaler"}))
    ]
    assert pins == [["experiment=enhance_small"]] * 2 + [[]]
    assert renamed.pinned("enhance-video", ["experiment=enhance_smoke"], {}) == []
    assert renamed.pinned("enhance-video", ["keys=network"], {"keys": "network"}) == []


@pytest.mark.parametrize("name", BEFORE)
def test_the_config_of_an_older_run_is_read_under_the_keys_of_now(name):
    old = before(name)
    assert dict(flat(renamed.config_now(old["command"], nested(old)))) == translated(old)


@pytest.mark.parametrize("name", ["disco_folder", "icg_smoke", "grow_smoke", "ivideogpt_smoke", "enhance_train_small"])
def test_a_run_folder_of_before_goes_on_with_the_same_preset(name, tmp_path):
    config = of_now(name)
    run = Run(tmp_path, config)
    run.open([f"experiment={name}"])
    run.record["config"] = nested(before(name))
    run.record["stages"] = {"first": {"status": "done", "wall_time_s": 1.0}}
    run.close("interrupted")
    assert read_record(tmp_path)["config"] != record(tmp_path)["config"]
    again = Run(tmp_path, config)
    assert again.open([])["stages"] and again.record["config"] == dataclasses.asdict(config)
    again.close("done")


def test_a_run_of_before_with_another_value_is_another_run(tmp_path):
    config = of_now("enhance_train_small")
    run = Run(tmp_path, config)
    run.open([])
    run.record["config"] = nested(before("enhance_train_small") | {"optim.ema_half_life_steps": 100.0})
    run.close("interrupted")
    with pytest.raises(UserError, match=r"optim.ema_half_life_images is 1200.0 there, 1800.0 here"):
        Run(tmp_path, config).open([])


@pytest.mark.parametrize(("command", "old", "new"), RENAMED_KEYS)
def test_every_old_key_has_its_new_one(command, old, new):
    assert renamed.name_now(command, old) == new == RENAMED[command][old].new
    keys = [key for key, _ in flat(dataclasses.asdict(compose(COMMANDS[command], [])))]
    assert any(key == new or key.startswith(f"{new}.") for key in keys)
    assert not any(key == old or key.startswith(f"{old}.") for key in keys)


@pytest.mark.parametrize(("key", "commands"), SHARED.items(), ids=list(SHARED))
def test_the_shared_words_are_keys_of_every_command_that_has_the_idea(key, commands):
    for command in commands:
        assert key in dict(flat(dataclasses.asdict(compose(COMMANDS[command], [])))), command


def spoken(key):
    """How the page may name a key: itself, or its group."""
    return {f"`{key}`", f"`{key}.*`", f"`{key.partition('.')[0]}.*`"}


@pytest.mark.parametrize(("command", "old", "new"), RENAMED_KEYS)
def test_the_page_lists_every_old_key_beside_its_new_one(command, old, new):
    page = (REPO / "docs" / "architecture.md").read_text().partition("## Shared words")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:4] for line in page.splitlines() if line.startswith("| `")]
    words = [word for word, _, was in rows if command in was and any(one in was for one in spoken(old))]
    assert any(one in word for word in words for one in spoken(new))


# -- words -----------------------------------------------------------------------------------------------------------


def test_an_old_word_works_and_is_said_in_one_line(caplog):
    config = compose(COMMANDS["enhance-video"], ["optim.decay=none", "experiment=enhance_train_small"])
    assert config.optim.schedule == "constant"
    assert [one.message for one in caplog.records] == ["optim.decay is now optim.schedule"]


def test_a_word_in_a_renamed_group_works():
    config = compose(COMMANDS["train-ivideogpt"], ["tokenizer_optim.lr=3e-3", "transformer_optim={num_steps: 7}"])
    assert (config.optim.tokenizer.lr, config.optim.transformer.num_steps) == (3e-3, 7)
    assert compose(COMMANDS["enhance-video"], ["optim={weight_decay: 0.5}"]).optim.weight_decay == 0.5  # not `decay`


@pytest.mark.parametrize(
    ("command", "words", "key", "value"),
    [
        ("train-disco", ["experiment=disco_folder", "optim.warmup_images=1000"], "warmup_steps", 15.625),
        ("train-disco", ["optim.warmup_images=1_000", "optim.batch_size=40"], "warmup_steps", 25),
        ("enhance-video", ["optim.ema_half_life_steps=2.5", "optim.batch_size=6"], "ema_half_life_images", 15),
    ],
)
def test_a_value_whose_unit_changed_follows_the_batch_size(command, words, key, value):
    assert getattr(compose(COMMANDS[command], words).optim, key) == value


BAD = {
    "both names": (["optim.decay=none", "optim.schedule=cosine"], r"optim.decay, optim.schedule: the same key under"),
    "no such value": (["optim.decay=linear"], r"optim.decay=linear: is now optim.schedule, constant or cosine"),
    "no number": (["optim.ema_half_life_steps=${seed}"], r"is now optim.ema_half_life_images, in images \(steps x"),
    "in a group": (["optim={lr: 1.0, decay: none}"], r"optim.decay is now optim.schedule; give these keys one by one"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=list(BAD))
def test_what_cannot_be_translated_names_the_new_key(words, message):
    with pytest.raises(UserError, match=message):
        compose(COMMANDS["enhance-video"], words)


@pytest.fixture
def old_toy(toy, monkeypatch):
    """A toy room whose keys had other names."""
    values = {"narrow_one": "narrow", "wide_one": "wide"}
    table = {
        "optimizer": Renamed("optim"),
        "net": Renamed("network", values=values),
        "optim.rate": Renamed("optim.lr", unit="images_to_steps"),
    }
    monkeypatch.setitem(RENAMED, "train-toy", table)
    return toy


def test_a_command_line_of_before_runs_and_is_recorded_in_new_words(old_toy, capfd):
    assert run_here("optimizer.num_steps=2", "net=wide_one", "hydra.run.dir=one") == 0
    lines = capfd.readouterr().err.splitlines()
    assert lines[:2] == ["toolkit: optimizer.num_steps is now optim.num_steps", "toolkit: net is now network"]
    assert record("one")["overrides"] == ["optim.num_steps=2", "network=wide"]


def test_a_sweep_of_before_runs(old_toy):
    words = ["-m", "net=narrow_one,wide_one", "optim.rate=0.5", "optim.batch_size=32", "optimizer.num_steps=2"]
    assert run_here(*words, "hydra.sweep.dir=sweep") == 0
    found = [record(f"sweep/{job}")["config"] for job in (0, 1)]
    assert [one["network"]["width"] for one in found] == [8, 16] and found[0]["optim"]["lr"] == 0.5 / 32


def test_a_run_of_before_is_resumed_from_its_folder(old_toy):
    run_here("optim.num_steps=4", "hydra.run.dir=one")
    old = record("one") | {"overrides": ["optimizer.num_steps=4"]}
    old["config"]["optimizer"] = old["config"].pop("optim")
    (old_toy / "one/run.json").write_text(json.dumps(old))
    assert resume(Path("one")) == 0
    assert read_record("one")["config"]["optim"]["num_steps"] == 4


def test_a_run_whose_words_count_in_an_older_unit_is_resumed(old_toy):
    assert run_here("optim.rate=0.5", "optim.num_steps=2", "hydra.run.dir=one") == 0
    assert "images_to_steps" in record("one")["overrides"][0] and resume(Path("one")) == 0


@pytest.mark.parametrize("word", ["data=../../mine", "data=folder/mine", "data=${oc.env:HOME}"])
def test_a_folder_brings_no_data_set_but_by_name(word):
    check_words("train-disco", ["data=mnist", "data={size_px: 8}"], Path("run.json"))
    with pytest.raises(UserError, match="not taken from a file"):
        check_words("train-disco", [word], Path("run.json"))


def test_a_preset_of_ones_own_with_an_old_key_is_told_the_new_one(old_toy, capfd):
    (old_toy / "mine/experiment").mkdir(parents=True)
    preset = {"command": "train-toy", "optimizer": {"num_steps": 2}}
    (old_toy / "mine/experiment/my_toy.yaml").write_text("# @package _global_\n" + yaml.safe_dump(preset))
    assert run_here("--config-dir", "mine", "experiment=my_toy") == 2
    assert "optimizer: is now optim" in capfd.readouterr().err


def test_a_resumed_run_keeps_its_warm_up_where_its_words_change_the_batch_size():
    config = {"optim": {"batch_size": 40, "warmup_steps": 25.0}}
    assert renamed.pinned("train-disco", ["optim.batch_size=40"], config) == ["optim.warmup_steps=25.0"]
    assert renamed.pinned("train-disco", ["seed=1"], config) == []
    assert renamed.pinned("train-disco", ["optim.batch_size=40", "optim.warmup_images=1000"], config) == []
    assert renamed.pinned("train-disco", ["optim.batch_size=40"], {"optim": {"batch_size": 40}}) == []  # before the key


# -- claims ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paper", ["disco", "icg", "ivideogpt", "stacking", "venhancer"])
def test_no_result_is_stale_by_a_rename(paper):
    folder = experiments_dir() / paper
    claims, results = load_claims(folder / "claims.yaml"), json.loads((folder / "results.json").read_text())
    for name, entry in results["claims"].items():
        assert claims.claims[name].withdrawn or entry["definition"] == claims.definition(claims.claims[name]), name


def test_old_and_new_words_are_one_definition():
    words = ["sampling.num_steps=5", "optim.lr=1", "loss.label_drop=0.2", "data=ring", "guidance.sigma_min=1"]
    old = ["num_steps=5", "train.lr=1", "train.label_drop=0.2", "data=ring", "guidance.sigma_min=1"]
    assert renamed.first_spelling("sample-icg", words) == old == renamed.first_spelling("sample-icg", old)
