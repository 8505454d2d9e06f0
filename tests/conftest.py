"""Settings that hold for every test: one thread (tiny networks), and no network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PIP_NO_INDEX", "1")  # data sets come by pip: PIP_NO_INDEX=0 lets slow tests fetch them
os.environ.pop("TOOLKIT_CONF", None)

import pytest


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An empty working folder in which ``toolkit train-toy`` is a command."""
    from tests.toyroom.harness import make_conf

    monkeypatch.setenv("TOOLKIT_CONF", str(make_conf(tmp_path / "conf")))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
