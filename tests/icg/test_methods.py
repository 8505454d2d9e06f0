"""One table of guidance methods: a new method is its guider and its row, and nothing else asks for methods by name."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from tests.icg.sources.test_sources import make_model, open_model, request
from toolkit.icg import methods
from toolkit.icg.columns import columns, label_of
from toolkit.icg.guiders.time_step_guidance import TimeStepGuidance

ROOM = Path(methods.__file__).parent


@dataclasses.dataclass
class Doubled(methods.Guidance):
    """Classifier-free guidance that goes twice as far as it is asked to."""

    label: ClassVar[str] = "doubled"
    on_condition: ClassVar[bool] = True
    needs_null: ClassVar[bool] = True
    method: str = "doubled"
    scale: Any = 3.0

    def make(self, scale, seed):
        return TimeStepGuidance(tsg_scale=1.0, guidance_scale=2 * scale, seed=seed)


def test_a_new_method_is_one_row(tmp_path, monkeypatch):
    monkeypatch.setitem(methods.METHODS, "doubled", Doubled)
    source = open_model(make_model(tmp_path), guidance=methods.NoGuidance(), compare=["none", "doubled"])
    chosen = {one.method: one for one in source.config.methods()}
    assert list(chosen) == ["none", "doubled"] and label_of("doubled") == "doubled"
    found = columns(source.config, {"given": source}, measured=False)
    assert [(one.key, one.label) for one in found] == [("none", "none"), ("doubled.w_3", "doubled 3")]
    images, calls = source.draw(chosen["doubled"], 3.0, request())
    far, _ = source.draw(methods.CFG(), 6.0, request())
    torch.testing.assert_close(images, far)
    assert calls == 5 * chosen["doubled"].calls_per_step


@pytest.mark.parametrize("path", sorted(ROOM.rglob("*.py")), ids=lambda path: path.stem)
def test_no_other_file_asks_for_a_method_by_its_name(path):
    if path.name in ("methods.py", "bench.py"):  # the table; the contenders of the benchmark have names of their own
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            words = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)}
            named = any(isinstance(one, ast.Attribute) and one.attr == "method" for one in ast.walk(node))
            assert not (named and words & set(methods.METHODS)), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize(
    ("method", "calls"),
    [("none", 1), ("cfg", 2), ("icg", 2), ("tsg", 2), ("icg_tsg", 3), ("cfg_tsg", 3), ("pag", 2), ("autoguidance", 2)],
)
def test_network_calls_of_a_step(method, calls):
    assert methods.METHODS[method]().calls_per_step == calls


def test_more_draws_are_more_calls():
    assert methods.ICG(num_draws=4).calls_per_step == 5 and methods.ICGAndTSG(num_draws=4).calls_per_step == 6


def test_the_table_is_read_without_torch():
    code = "import sys, toolkit.icg.methods, toolkit.icg.config; assert not {'torch', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_shuffling_takes_one_seed_a_batch_and_all_other_conditions_one_a_sample():
    seeds = {
        one: methods.ICG(condition=one).make(2.0, [3, 4, 5]).config["seed"] for one in ("class", "shuffle", "auto")
    }
    assert seeds == {"class": [3, 4, 5], "shuffle": 3, "auto": [3, 4, 5]}
    assert methods.ICG(condition="shuffle").make(2.0, 7).config["seed"] == 7
