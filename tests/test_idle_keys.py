"""Keys that were typed and change nothing in the config that they make are said, by what is known of them by hand."""

import pytest

from toolkit import configs
from toolkit.commands import COMMANDS
from toolkit.launch import dry_run, launch
from toolkit.schema import fields_of, without_effect

CONFIGS = {name: configs.primary_schema(command) for name, command in COMMANDS.items()}
SOLVED = "model=exact is trained already, so without effect: "


@pytest.mark.parametrize(
    "command, keys, words, lines",
    [
        (
            "sample-icg",
            {"model": "exact"},
            "optim.num_steps=9 +loss.p_std=2 network=adm exact.std=1",
            [f"{SOLVED}optim.num_steps, loss.p_std, network"],
        ),
        ("sample-icg", {}, "exact.std=1 optim.lr=1", ["exact.* is of model=exact, so without effect: exact.std"]),
        (
            "train-disco",
            {"model": "m", "init": "x"},
            "init=x optim.lr=1 ~network stage=sample optimal=1",
            ["model=m is trained already, so without effect: init, optim.lr, network"],
        ),
        ("train-disco", {"init": "x"}, "network@net=adm", ["init=x gives the network, so without effect: network"]),
        ("train-disco", {}, "network=adm optim.lr=1", []),
        (
            "train-ivideogpt",
            {"model": "m"},
            "tokenizer.patch_size=2 optim.tokenizer.lr=1",
            ["model=m is trained already, so without effect: tokenizer.patch_size, optim.tokenizer.lr"],
        ),
        (
            "grow-llm",
            {"stage": "grow"},
            "model=m factor=2 optim.lr=1 data.max_mb=1",
            ["stage=grow does not read it, so without effect: optim.lr, data.max_mb"],
        ),
        ("grow-llm", {"stage": "grow", "operator": "learn"}, "factor=2 data.max_mb=1", []),
        (
            "grow-llm",
            {"stage": "evaluate"},
            "model=m factor=2 evaluation.limit=3",
            ["stage=evaluate does not read it, so without effect: factor"],
        ),
        ("grow-llm", {}, "factor=2 out=x", ["stage=all does not read it, so without effect: out"]),
        (
            "enhance-video",
            {"input": "a.mp4"},
            "input=a.mp4 optim.lr=1 demo.start_s=1",
            [
                "stage=enhance trains nothing, so without effect: optim.lr",
                "input=a.mp4 is given, so without effect: demo.start_s",
            ],
        ),
        (
            "enhance-video",
            {"stage": "train", "input": "a.mp4"},
            "input=a.mp4 upscaler.channels=8 network.asymmetric=false",
            [
                "stage=train enhances nothing, so without effect: input",
                "stage=train does not read it, so without effect: upscaler.channels",
            ],
        ),
        (
            "enhance-video",
            {"backend": "classic"},
            "backend=classic keys=lanczos between=blend",
            ["backend=classic uses no network, so without effect: keys, between"],
        ),
    ],
)
def test_typed_keys_without_effect_are_said(command, keys, words, lines):
    config = CONFIGS[command]()
    vars(config).update(keys, asked=tuple(words.split()))
    assert without_effect(config) == lines


def test_where_mbpo_trains_as_it_plans_the_optimiser_has_an_effect():
    config = CONFIGS["train-ivideogpt"]()
    config.model, config.plan.num_episodes, config.plan.planners = "m", 1, ["cem", "mbpo"]
    config.asked = ("optim.tokenizer.lr=1", "tokenizer_loss.gan=true")
    assert without_effect(config) == []


def test_every_idle_key_is_a_key():
    """Whatever the stage, with a model and without."""
    for command, config in CONFIGS.items():
        known = configs.known_keys(COMMANDS[command])
        stages = next((item.metadata["options"] for _, item, _ in fields_of(config()) if item.name == "stage"), (None,))
        for stage in stages:
            for keys in ({}, {"model": "m", "init": "m", "input": "m", "backend": "bicubic"}):
                made = config()
                vars(made).update({key: value for key, value in keys.items() if hasattr(made, key)} | {"stage": stage})
                assert {key for keys in made.idle().values() for key in keys} <= known


def test_what_a_preset_sets_was_not_typed():
    assert (
        without_effect(configs.compose(COMMANDS["sample-icg"], ["experiment=icg_mnist", "model=exact", "~data"])) == []
    )


def test_a_dry_run_and_a_run_say_them(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    words = ["model=exact", "optim.num_steps=9", "sampling.num_samples=2", "sampling.num_steps=2", "compare=[]"]
    assert dry_run("sample-icg", words) == 0
    assert f"toolkit: {SOLVED}optim.num_steps" in capfd.readouterr().err
    assert launch("sample-icg", [*words, "measure.enabled=false", "hydra.run.dir=one"]) == 0
    assert f"{SOLVED}optim.num_steps" in capfd.readouterr().err
    assert f"{SOLVED}optim.num_steps" in (tmp_path / "one/run.log").read_text()
