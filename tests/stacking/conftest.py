"""Checkpoints to be damaged: a folder of one file, and one of several shards."""

import shutil

import pytest

from tests.stacking.models import make_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_model().save_pretrained(folder / "one")
    make_model().save_pretrained(folder / "many", max_shard_size="20KB")
    return folder


@pytest.fixture
def one(saved, tmp_path):
    return shutil.copytree(saved / "one", tmp_path / "source")


@pytest.fixture
def many(saved, tmp_path):
    return shutil.copytree(saved / "many", tmp_path / "source")
