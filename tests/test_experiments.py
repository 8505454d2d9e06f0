"""The scripts of experiments/: each can be imported, runs nothing by that, and says how it is called."""

import importlib.util
import inspect

import pytest

from tests.toyroom.harness import REPO

SCRIPTS = sorted(path.relative_to(REPO) for path in REPO.glob("experiments/**/*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_can_be_imported_and_runs_nothing(path, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", REPO / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert f"python {path}" in module.__doc__ and inspect.isfunction(module.main)
    assert capfd.readouterr().out == "" and not list(tmp_path.iterdir())


def test_there_are_scripts():
    assert {path.parts[1] for path in SCRIPTS} == {"ivideogpt", "stacking", "venhancer"}
