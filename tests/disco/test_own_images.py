"""``toolkit train-disco`` on a folder of one's own that changes, breaks or goes away."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.toyroom.harness import record
from toolkit.data.images import folder as folder_module
from toolkit.launch import launch

TINY = ["experiment=disco_smoke", "data=folder", "data.path=pictures", "optim.batch_size=8", "baseline=none"]
TINY += ["optim.num_steps=6", "prior.num_steps=2", "sampling.num_samples=4", "measure.names=[use]"]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """150 grey pictures of 8x8 pixels, read from their files at every step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder_module, "FEW_PIXELS", 0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(150):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def train(*words):
    return launch("train-disco", [*TINY, *words])


def test_a_changed_folder_is_not_trained_on(pictures, capfd):
    assert train("stage=denoiser", "hydra.run.dir=one") == 0
    held = {name: part["items"] for name, part in record("one")["splits"].items()}
    assert sum(held.values()) == 150 and set(held) == {"train", "valid", "test"}
    Image.new("L", (8, 8), 7).save(pictures / "new.png")
    capfd.readouterr()
    assert train("stage=prior", "hydra.run.dir=one") == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("toolkit: error: one: the data are not those that this run began with (")
    (pictures / "new.png").unlink()
    assert train("stage=prior", "hydra.run.dir=one") == 0


def test_classes_that_are_asked_for_and_not_there_are_refused(pictures, capfd):
    assert train("data.class_labels=true", "hydra.run.dir=one") == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("toolkit: error: data.class_labels=true: data.name=folder (")
    assert line.endswith(") has no classes; give data that have, such as a folder for each class, or leave the key out")
    assert not Path("one").exists()


def test_measuring_on_other_images_than_those_learned_from_is_said(pictures, capfd):
    assert train("stage=prior", "hydra.run.dir=one") == 0
    Image.new("L", (8, 8), 7).save(pictures / "new.png")
    assert train("stage=measure", "model=one", "hydra.run.dir=again") == 0
    assert "model=one: was trained on other data than these (" in capfd.readouterr().err


def test_a_model_samples_when_the_images_it_learned_from_are_gone(pictures, capfd):
    assert train("stage=sample", "hydra.run.dir=one") == 0
    words = ["experiment=disco_smoke", "stage=sample", "model=one", "sampling.num_samples=4"]
    assert launch("train-disco", [*words, "hydra.run.dir=with"]) == 0  # the model knows its data
    assert Path("with/samples/real.png").exists()
    shutil.rmtree(pictures)
    capfd.readouterr()
    assert launch("train-disco", [*words, "hydra.run.dir=without"]) == 0
    assert "no real images beside the samples: data.path=pictures: no such folder" in capfd.readouterr().err
    assert not Path("without/samples/real.png").exists()
    first, second = (load_file(f"{folder}/samples/samples.safetensors")["ours"] for folder in ("with", "without"))
    assert torch.equal(first, second)
    assert launch("train-disco", [*words, "sampling.latents=oracle", "hydra.run.dir=oracle"]) == 2
    assert not Path("oracle").exists()
