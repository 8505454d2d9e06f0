"""docs/architecture.md: what it names is there, and adding what it tells about works as told."""

import ast
import importlib
import inspect
import re

import numpy as np
import pytest
import torch

import toolkit
from tests.toyroom.harness import REPO
from toolkit.commands import COMMANDS
from toolkit.data.catalogue import CATALOGUE, Entry
from toolkit.data.sets import Dataset, MemorySplit
from toolkit.schema import Job

TEXT = (REPO / "docs" / "architecture.md").read_text()
ROOMS = {name: command.room for name, command in COMMANDS.items() if command.room.startswith("toolkit.")}


def tree():
    """Paths of the tree on the page, folders with a slash."""
    block = re.search(r"^```text\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)[1]
    for line in block.splitlines():
        leading = re.match(r"\s*((?:\w+(?:\.py|/)(?:\s+|$))+)", line)[1]
        yield from (("toolkit/" if line.startswith(" ") else "") + name for name in leading.split())


def test_the_tree_is_the_tree():
    named = set(tree())
    assert len(named) > 25 and not [name for name in named if not (REPO / name).exists()]
    there = [path for path in (REPO / "toolkit").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert {f"toolkit/{path.name}{'/' * path.is_dir()}" for path in there} <= named


def test_every_file_that_is_named_is_there():
    named = re.findall(r"`((?:toolkit|conf|docs|tests|experiments)/[\w./]*)`", TEXT)
    named = [name for name in named if "PAPER" not in name]
    assert len(named) > 25 and not [name for name in named if not (REPO / name).exists()]


@pytest.mark.parametrize("command", ROOMS)
def test_every_paper_keeps_the_contract_of_a_room(command):
    room, primary = COMMANDS[command].room, COMMANDS[command].primary
    config, job, bench = (importlib.import_module(f"{room}.{door}") for door in ("config", "job", "bench"))
    whole = config.SCHEMAS[None, f"{primary}_schema"]
    assert issubclass(whole, Job) and whole.command == command and toolkit.compose(command).stages()
    assert list(inspect.signature(job.main).parameters) == ["config", "run"]
    assert list(inspect.signature(job.dry_run).parameters) == ["config"]
    assert len(inspect.signature(bench.main).parameters) == 1
    assert (REPO / "conf" / f"{primary}.yaml").exists() and importlib.import_module(f"{room}.measure")


def test_the_toy_room_is_a_paper_like_the_others(toy):
    """Its row, its config, its job and its primary config are all that a command needs to run."""
    folder = REPO / "tests" / "toyroom"
    assert {path.name for path in folder.iterdir()} - {"__pycache__", "harness.py"} == {
        "__init__.py", "config.py", "job.py", "conf",
    }  # fmt: skip
    assert COMMANDS["train-toy"].room == "tests.toyroom" and (folder / "conf" / "train_toy.yaml").exists()
    assert toolkit.run("train-toy", "optim.num_steps=2").status == "done"


def load_stripes(config, seed):
    """Sixty images of stripes, in two classes."""
    images = torch.zeros(60, 1, 8, 8, dtype=torch.uint8)
    images[::2, :, ::2], images[1::2, :, :, ::2] = 255, 255
    split = MemorySplit(images, np.arange(60) % 2)
    return Dataset("stripes", split, split, split, 2, ("lying", "standing"), licence="none", source="generated")


def test_a_loader_and_a_row_make_an_image_data_set(monkeypatch):
    row = Entry("images", "60 x 1x8x8, 2 classes", "none", f"{__name__}:load_stripes")
    monkeypatch.setitem(CATALOGUE, "stripes", row)
    config = toolkit.compose("train-disco", data="stripes")
    images, labels = next(toolkit.data.batches(toolkit.data.load(config.data).train, 4, seed=0))
    assert images.shape == (4, 1, 8, 8) and labels.shape == (4,)
    assert "stripes" in {one.name for one in toolkit.data.rows()}


def test_files_and_functions_are_as_small_as_the_page_says():
    lines, longest = (int(one) for one in re.search(r"never more than (\d+) lines\).*?\((\d+)\)", TEXT).groups())
    for path in sorted((REPO / "toolkit").rglob("*.py")):
        source = path.read_text()
        assert len(source.splitlines()) <= lines, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < longest, f"{path}: {node.name}"
