"""The scripts of experiments/: each can be imported, runs nothing by that, and says how it is called."""

import importlib.util
import inspect
import re
import sys

import numpy as np
import pytest
from PIL import Image

from tests.toyroom.harness import REPO

SCRIPTS = sorted(path.relative_to(REPO) for path in REPO.glob("experiments/**/*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_can_be_imported_and_runs_nothing(path, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend((REPO / path).parent)  # as Python does for a script
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", REPO / path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    assert f"python {path}" in module.__doc__ and inspect.isfunction(module.main)
    assert capfd.readouterr().out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_presets_that_a_script_names_are_there(path):
    named = set(re.findall(r"experiment=([a-z0-9_]+)", (REPO / path).read_text()))
    assert named <= {one.stem for one in (REPO / "conf" / "experiment").glob("*.yaml")}


def test_there_are_scripts():
    assert {path.parts[1] for path in SCRIPTS} >= {"ivideogpt", "stacking", "venhancer", "together", "pictures.py"}


@pytest.fixture(scope="module")
def pictures():
    spec = importlib.util.spec_from_file_location("script_pictures", REPO / "experiments" / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gallery_is_what_its_script_writes_and_every_picture_is_small(pictures):
    assert (REPO / "docs" / "gallery.md").read_text() == pictures.gallery()
    shown = [REPO / "experiments" / picture for _, picture, _, _ in pictures.GALLERY]
    assert len(shown) == 5 and all(path.stat().st_size < 200_000 for path in shown)


@pytest.mark.parametrize(("paper", "make"), [("ivideogpt", "arm"), ("venhancer", "street"), ("stacking", "stack")])
def test_a_picture_put_together_is_of_the_pictures_beside_it(pictures, paper, make):
    with Image.open(REPO / "experiments" / paper / "picture.png") as image:
        kept = np.asarray(image.convert("RGB"), float)
    made = np.asarray(getattr(pictures, make)(), float)
    assert kept.shape == made.shape and np.abs(kept - made).mean() < 4  # 128 colours are kept


def test_the_page_of_what_is_not_known_is_what_its_script_writes():
    spec = importlib.util.spec_from_file_location("script_inconclusive", REPO / "experiments" / "inconclusive.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (REPO / "experiments" / "README.md").read_text() == module.page(), "run `python experiments/inconclusive.py`"
