"""conf/: every preset composes for its command, says what it is, and holds no launcher."""

import copy
import dataclasses
import functools
import json
import math
import re
import subprocess
import sys

import pytest

from tests.composed import composed
from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.data.catalogue import CATALOGUE
from toolkit.errors import UserError
from toolkit.icg.config import METHODS
from toolkit.paths import conf_dir, presets
from toolkit.schema import check, fields_of

REAL = [name for name in COMMANDS if name != "train-toy"]  # which only tests register
PRESETS = [(command, name) for command in REAL for name in presets(command)]

KINDS = {
    "train-disco": ("points", "images"),
    "sample-icg": ("points", "images"),
    "grow-llm": ("text",),
    "train-ivideogpt": ("episodes",),
    "enhance-video": ("clips",),
}
NETWORKS = [path.stem for path in sorted((conf_dir() / "network").glob("*.yaml"))]
OPTIONS = [
    *[(command, "data", name) for command in REAL for name, one in CATALOGUE.items() if one.kind in KINDS[command]],
    *[(command, "network", name) for command in ("train-disco", "sample-icg") for name in NETWORKS],
    *[("sample-icg", "guidance", name) for name in METHODS],
]


def test_every_command_has_a_primary_config_and_a_smoke_preset():
    for command in REAL:
        assert (conf_dir() / f"{COMMANDS[command].primary}.yaml").exists()
        assert any(name.endswith("_smoke") for name in presets(command))


@pytest.mark.parametrize(("command", "name"), PRESETS)
def test_every_preset_composes_and_its_config_is_plain(command, name):
    config = composed(command, f"experiment={name}")
    assert config.command == command and config.stages()
    assert json.loads(json.dumps(dataclasses.asdict(config))) == dataclasses.asdict(config)


@pytest.mark.parametrize(("command", "name"), PRESETS)
def test_every_preset_says_what_it_is_and_leaves_launchers_alone(command, name):
    text = (conf_dir() / "experiment" / f"{name}.yaml").read_text()
    owner, about = presets()[name]
    assert owner == command and text.startswith("# @package _global_\n")
    assert 10 < len(about) < 120 and re.fullmatch(r"[a-z0-9]+_[a-z0-9_]+", name)
    assert "hydra" not in text


@pytest.mark.parametrize(("command", "group", "name"), OPTIONS)
def test_every_group_option_composes(command, group, name):
    try:
        compose(COMMANDS[command], [f"{group}={name}"])
    except UserError as error:  # such as data.path, which only the user can give
        assert "must be given" in str(error) or "works on pipelines, model=FOLDER" in str(error)


def test_every_data_set_is_named_the_same_way():
    names = ("mnist", "ring", "text_brown", "kuka", "bbb")
    for command, name in zip(REAL, names, strict=True):
        assert compose(COMMANDS[command], [f"data={name}"]).data.name == name
    assert compose(COMMANDS["train-disco"], ["data=imagenet64", "data.path=."]).data.flip
    assert not compose(COMMANDS["train-disco"], ["data=mnist"]).data.flip


def test_a_data_set_of_another_kind_is_refused_as_such():
    for word in ("data=kuka", "data.name=kuka"):
        with pytest.raises(UserError, match=f"{word}: a set of episodes; train-disco reads points, images: ring, gr"):
            compose(COMMANDS["train-disco"], [word])
    compose(COMMANDS["train-ivideogpt"], ["data=kuka"])  # in one process with the refusals
    with pytest.raises(UserError, match="data=kuka: a set of episodes; enhance-video reads clips: bikes, "):
        compose(COMMANDS["enhance-video"], ["data=kuka"])


def test_a_wrong_data_set_is_told_the_right_ones():
    with pytest.raises(
        UserError, match=r"data=kuk: did you mean 'kuka'. train-ivideogpt reads episodes: push_sprite, "
    ):
        compose(COMMANDS["train-ivideogpt"], ["data=kuk"])
    with pytest.raises(UserError, match=r"data.name=text_brwn: did you mean 'text_brown'. grow-llm reads text: "):
        compose(COMMANDS["grow-llm"], ["data.name=text_brwn"])


def test_no_group_is_called_model():
    assert not (conf_dir() / "model").exists()  # model= is a plain key that takes a path


def test_the_default_config_composes_and_a_preset_comes_last():
    lines = (conf_dir() / "train_disco.yaml").read_text().splitlines()
    defaults = [line.strip() for line in lines if line.startswith("  - ")]
    assert defaults[0] == "- train_disco_schema" and defaults[-2] == "- _self_"
    assert defaults[-1].startswith("- experiment:")
    assert compose(COMMANDS["train-disco"], []).seed == 0


def test_compose_refuses_as_the_command_does():
    with pytest.raises(UserError, match=r"optim\.lr=-1\.0: must be greater than 0"):
        compose(COMMANDS["train-disco"], ["optim.lr=-1"])
    with pytest.raises(UserError, match="did you mean 'disco_smoke'"):
        compose(COMMANDS["train-disco"], ["experiment=disco_smok"])


@pytest.mark.parametrize("command", REAL)
def test_every_number_is_finite_and_no_name_is_empty(command):
    config = compose(COMMANDS[command], [])
    words = {"prompt", "prompts", "negative_prompt"}  # of a model, which may be told nothing
    for key, item, value in fields_of(config):
        annotation = str(item.type)
        bad = [math.nan, math.inf, -math.inf] if "float" in annotation else []
        bad += ["", " "] if "str" in annotation and item.name not in words else []
        for one in bad:
            changed = copy.deepcopy(config)
            parent = functools.reduce(getattr, key.split(".")[:-1], changed)
            setattr(parent, item.name, [one] if isinstance(value, list) else one)
            with pytest.raises(UserError, match=f"^{re.escape(key)}="):
                check(changed)


def test_a_seed_that_no_record_holds_is_refused():
    with pytest.raises(UserError, match="seed=9223372036854775808: must be at most 9223372036854775807"):
        compose(COMMANDS["train-disco"], [f"seed={2**63}"])


def test_a_depth_with_which_two_to_its_power_fills_the_memory_is_refused():
    with pytest.raises(UserError, match=r"tokenizer_loss\.gan_depth=1000000000000000: must be at most 10"):
        compose(COMMANDS["train-ivideogpt"], ["tokenizer_loss.gan_depth=1000000000000000"])


def test_a_config_is_composed_and_checked_without_torch():
    code = (
        "import sys\nfrom toolkit.commands import COMMANDS\nfrom toolkit.configs import compose\n"
        "compose(COMMANDS['train-disco'], ['experiment=disco_smoke'])\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hydra_s_store_holds_the_command_in_hand_alone():
    from hydra.core.config_store import ConfigStore

    for command, others in (("grow-llm", {"mnist.yaml", "push_sprite.yaml"}), ("train-ivideogpt", {"mnist.yaml"})):
        compose(COMMANDS[command], [])
        store = ConfigStore.instance().repo
        assert [name for name in store if name.endswith("_schema.yaml")] == [f"{COMMANDS[command].primary}_schema.yaml"]
        assert store["data"] and not others & set(store["data"])
        assert "basic.yaml" in store["hydra"]["launcher"], "Hydra's own stay"


def test_a_missing_conf_folder_is_named(monkeypatch):
    monkeypatch.setenv("TOOLKIT_CONF", "/nowhere")
    with pytest.raises(UserError, match="TOOLKIT_CONF=/nowhere: no such folder"):
        conf_dir()
