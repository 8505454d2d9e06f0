"""The names under which the models of sample-icg are kept."""

from dataclasses import replace

import pytest

from tests.copies import with_a_comment
from toolkit import data
from toolkit.data.config import Data
from toolkit.icg.config import Optim, SampleICG, Sampling
from toolkit.icg.sources import small
from toolkit.zoo.config import MLPConfig

CONFIG = SampleICG(data=Data(name="ring"), network=MLPConfig(width=16), optim=Optim(num_steps=10), num_workers=2)


@pytest.fixture(scope="module")
def ring():
    return data.load(Data(name="ring"))


def name_of(config, dataset, module=small, label_drop=0.1, num_steps=None):
    return module.folder_of(module.small_config(config, dataset, label_drop, num_steps)).name


def test_a_comment_in_the_source_makes_no_other_models(ring, tmp_path, monkeypatch):
    assert name_of(CONFIG, ring, with_a_comment(small, tmp_path, monkeypatch)) == name_of(CONFIG, ring)


def test_what_changes_the_weights_changes_the_name(ring, monkeypatch):
    others = [
        name_of(replace(CONFIG, network=MLPConfig(width=32)), ring),
        name_of(replace(CONFIG, seed=1), ring),
        name_of(replace(CONFIG, optim=Optim(num_steps=10, lr=3e-3)), ring),
        name_of(CONFIG, ring, label_drop=0.0),
        name_of(CONFIG, ring, num_steps=5),
        name_of(CONFIG, replace(ring, train=ring.valid)),
    ]
    monkeypatch.setattr(small, "RECIPE", 0)
    others.append(name_of(CONFIG, ring))
    monkeypatch.undo()
    assert len({name_of(CONFIG, ring), *others}) == 1 + len(others)


def test_what_is_sampled_and_how_fast_it_trains_do_not(ring):
    assert name_of(replace(CONFIG, sampling=Sampling(num_samples=7, num_steps=3), num_workers=0), ring) == name_of(
        CONFIG, ring
    )
