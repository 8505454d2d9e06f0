"""docs/python.md and the notebook: their code uses the public face and nothing else, and runs as it stands."""

import ast
import json
import re

import pytest
import torch

import toolkit
from tests.disco import tiny
from tests.toyroom.harness import REPO
from toolkit.commands import COMMANDS
from toolkit.disco.artefact import Parts
from toolkit.disco.build import build_denoiser, build_prior

PAGE, NOTEBOOK = REPO / "docs" / "python.md", REPO / "docs" / "notebooks" / "five_papers.ipynb"


def blocks(path):
    """The pieces of code, in order."""
    text = path.read_text()
    if path.suffix == ".md":
        return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return ["".join(cell["source"]) for cell in cells]


@pytest.mark.parametrize("path", [PAGE, NOTEBOOK], ids=lambda path: path.name)
def test_the_code_uses_nothing_but_public_names(path):
    used = set()
    for node in ast.walk(ast.parse("\n".join(blocks(path)))):
        if isinstance(node, ast.Import):
            assert not [one.name for one in node.names if one.name.startswith("toolkit.")]
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] != "toolkit", ast.unparse(node)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "toolkit":
            used.add(node.attr)
    assert used <= set(dir(toolkit)), used - set(dir(toolkit))
    called = set(re.findall(r'toolkit\.run\(\s*"([\w-]+)"', "\n".join(blocks(path))))
    assert called >= set(COMMANDS) - {"train-toy"} - ({"enhance-video"} if path == PAGE else set())


def test_the_page_names_every_public_name():
    text = PAGE.read_text()
    assert [name for name in dir(toolkit) if not re.search(rf"\b{name}\b", text)] == []


def test_the_notebook_holds_no_outputs():
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)


@pytest.mark.parametrize("num_classes", [0, 4])
def test_a_trained_model_is_drawn_from_as_the_page_says(num_classes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, images = tiny.config(tiny.mlp()), tiny.images(num_classes=num_classes)
    parts = Parts(build_denoiser(config, images).eval(), prior=build_prior(config, images).eval())
    monkeypatch.setattr(toolkit, "load_parts", lambda folder: parts, raising=False)
    wanted = [code for code in blocks(PAGE) if "draw_samples" in code]
    assert len(wanted) == 3 and "load_parts" in wanted[0]
    names = {"toolkit": toolkit, "torch": torch}
    for code in wanted:
        exec(code, names)
        assert names["images"].shape == (16, 1, 8, 8)
    assert (names["labels"] is None) == (num_classes == 0)


def test_the_pages_own_network_is_guided():
    [code] = [code for code in blocks(PAGE) if "class Own" in code]
    names = {"toolkit": toolkit, "torch": torch, "labels": torch.arange(10)}
    exec(code, names)
    assert names["points"].shape == (10, 64) and torch.isfinite(names["points"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("path", [PAGE, NOTEBOOK], ids=lambda path: path.name)
def test_the_code_runs_in_order(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict = {}
    for number, code in enumerate(blocks(path)):
        exec(compile(code, f"{path.name}, block {number}", "exec"), names)
    assert names["frames"].shape == {PAGE: (5, 48, 64, 3), NOTEBOOK: (5, 64, 64, 3)}[path]
