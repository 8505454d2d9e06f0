"""The catalogue: light to import, complete, and loading that says what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from toolkit import zoo
from toolkit.errors import UserError
from toolkit.zoo import counting
from toolkit.zoo.edm.unet import SongUNet

TINY = {"image_size": 8, "in_channels": 1, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}


@pytest.fixture
def saved(tmp_path):
    SongUNet(**TINY).save_pretrained(tmp_path / "net")
    return tmp_path / "net"


def test_importing_the_catalogue_loads_no_torch():
    code = "import sys, toolkit.zoo; toolkit.zoo.list_layouts(); print({'torch', 'diffusers'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"


def test_every_network_is_listed_with_its_size():
    rows = {row["name"]: row for row in zoo.list_networks()}
    assert rows.keys() == zoo.NAMED.keys()
    assert all(row["parameters"] > 0 and row["gflops"] > 0 and row["paper"] for row in rows.values())
    assert rows["edm_adm_imagenet64"]["parameters"] == 295_899_267
    assert 200 < rows["edm_adm_imagenet64"]["gflops"] < 215  # 104 billion multiply-adds
    published = {row["name"]: row["parameters"] for row in zoo.list_published()}
    assert published.keys() == zoo.PUBLISHED.keys() and min(published.values()) > 10**8
    assert counting.counts().keys() == rows.keys() | published.keys()


LONG = ("disco_imagenet64_grouped", "disco_imagenet128", "venhancer", "venhancer_base")  # seconds each


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in zoo.NAMED])
def test_parameters_and_operations_are_as_they_are_noted(name):
    assert counting.count_named(name) == counting.counts()[name]


@pytest.mark.parametrize("name", LONG)
def test_parameters_are_as_they_are_noted(name):
    assert zoo.count_parameters(zoo.build_on_meta(name)) == counting.counts()[name]["parameters"]


@pytest.mark.parametrize("name", ["ivideogpt_bair_64_act_cond", "ivideogpt_oxe_64_goal_cond"])
def test_parameters_of_published_models_are_as_they_are_noted(name):
    assert counting.count_published(name) == counting.counts()[name]


def test_flops_are_those_of_the_layers():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 5))
    assert zoo.count_flops(network, {"input": torch.zeros(1, 3, 4, 4)}) == 2 * (16 * 8 * 3 * 9 + 8 * 16 * 5)


def test_show_a_named_network_and_a_folder(saved):
    named = zoo.show_network("edm_ddpmpp_cifar10")
    assert named["parameters"] == sum(named["parts"].values()) == 55_732_739
    assert named["config"]["channel_mult"] == (2, 2, 2)
    transformer = zoo.show_network("ivideogpt_transformer_small")
    assert transformer["config"]["hidden_size"] == 768 and transformer["parts"] == {"llm": 138_434_304}
    folder = zoo.show_network(str(saved))
    assert folder["class"] == "SongUNet" and folder["config"]["image_size"] == 8
    with pytest.raises(UserError, match="did you mean 'edm_ddpmpp_cifar10'"):
        zoo.show_network("edm_ddpmpp_cifar")


def test_load_from_run_folder_by_part(tmp_path):
    run = tmp_path / "run"
    for seed, part in enumerate(["denoiser", "baseline"]):
        torch.manual_seed(seed)
        SongUNet(**TINY).save_pretrained(run / "model" / part)
    default, other = zoo.load(run), zoo.load(run, part="baseline")
    assert not torch.equal(default.map_in.weight, other.map_in.weight)
    assert torch.equal(default.map_in.weight, zoo.load(run / "model" / "denoiser").map_in.weight)
    other.save_pretrained(tmp_path / "again")
    assert str(tmp_path) not in (tmp_path / "again/config.json").read_text()
    with pytest.raises(UserError, match=r"no network 'prior' there \(found: baseline, denoiser\)"):
        zoo.load(run, part="prior")


def test_load_says_what_is_wrong(saved, tmp_path):
    weights_file = saved / "diffusion_pytorch_model.safetensors"
    weights, config = load_file(weights_file), json.loads((saved / "config.json").read_text())

    with pytest.raises(UserError, match="not found"):
        zoo.load(tmp_path / "nothing" / "here")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"no network 'denoiser' there \(found: none\)"):
        zoo.load(tmp_path / "bare")
    with pytest.raises(UserError, match=r"model\.safetensors: is a file; give a run, or the folder"):
        zoo.load(weights_file)
    with pytest.raises(
        UserError, match="is one network by itself; give a run, or a folder in which it is called prior"
    ):
        zoo.load(saved, part="prior")

    save_file({**weights, "map_in.bias": weights["map_in.bias"] * torch.nan}, weights_file)
    with pytest.raises(UserError, match=r"map_in\.bias in the weights is not finite"):
        zoo.load(saved)
    save_file({**weights, "map_in.bias": weights["map_in.bias"].to(torch.int8)}, weights_file)
    with pytest.raises(UserError, match=r"map_in\.bias is I8; quantised weights are not read"):
        zoo.load(saved)
    save_file({name: one for name, one in weights.items() if name != "map_in.bias"}, weights_file)
    with pytest.raises(UserError, match=r"missing keys in the weights: map_in.bias"):
        zoo.load(saved)
    save_file({**weights, "more": torch.zeros(1)}, weights_file)
    with pytest.raises(UserError, match="unexpected keys in the weights: more"):
        zoo.load(saved)
    save_file({**weights, "map_in.bias": torch.zeros(3)}, weights_file)
    with pytest.raises(UserError, match="cannot be loaded") as error:
        zoo.load(saved)
    assert "\n" not in str(error.value)
    weights_file.write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="damaged, not a whole safetensors file"):
        zoo.load(saved)
    weights_file.unlink()
    with pytest.raises(UserError, match=r"no \*.safetensors file"):
        zoo.load(saved)
    (saved / "config.json").write_text(json.dumps(config | {"_class_name": "SonUNet"}))
    with pytest.raises(UserError, match="unknown network class 'SonUNet': did you mean 'SongUNet'"):
        zoo.load(saved)
    (saved / "config.json").write_text("[1")
    with pytest.raises(UserError, match=r"config\.json: damaged, or no JSON"):
        zoo.load(saved)


def test_a_pickle_is_never_read(saved):
    weights_file = saved / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights_file), saved / "diffusion_pytorch_model.bin")
    weights_file.unlink()
    with pytest.raises(UserError, match=r"no \*.safetensors file"):
        zoo.load(saved)


def test_offline_hub_id_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no/such-network: no such folder, and not to be had from the hub"):
        zoo.load("no/such-network")


def test_import_knows_its_layouts(tmp_path):
    assert zoo.list_layouts()[0]["layout"] == "edm"
    with pytest.raises(UserError, match="layout edn: did you mean 'edm'"):
        zoo.import_weights("edn", tmp_path, tmp_path / "dest")
