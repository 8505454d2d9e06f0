"""The uses shown in the room's docstring, run as they stand on tiny pipelines of the same classes."""

import re
import textwrap

import pytest

from tests.icg import tiny
from tests.toyroom.harness import REPO
from toolkit import icg
from toolkit.zoo.edm.mlp import MLPDenoiser

EXAMPLES = re.findall(r"(?:^    .*\n|^\n(?=    ))+", icg.__doc__, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    for kind in ("dit", "stable_diffusion", "ddpm", "sdxl"):
        getattr(tiny, kind)().save_pretrained(folder / kind)
    return folder


@pytest.mark.parametrize("index", range(4))
def test_example(index, folders):
    code = textwrap.dedent(EXAMPLES[index])
    assert len(EXAMPLES) == 4 and len([line for line in code.splitlines() if line.strip()]) <= 10
    kind = ("dit", "stable_diffusion", "ddpm", "sdxl")[index]
    code, replaced = re.subn(r'from_pretrained\("[^"]*"\)', f'from_pretrained("{folders / kind}")', code)
    assert replaced == 1
    names: dict = {}
    exec(code, names)
    assert len(names["images"]) == (2 if kind == "dit" else 1)


DOCS = re.findall(r"^```python\n(.*?)^```", (REPO / "docs" / "icg.md").read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("index", range(4))
def test_example_of_the_docs(index, folders, tmp_path):
    code = DOCS[index].replace("num_inference_steps=50", "num_inference_steps=2")
    assert len(DOCS) == 4 and len([line for line in code.splitlines() if line.strip()]) <= 10
    MLPDenoiser(sample_shape=(1, 4, 4), width=8, depth=1, num_classes=10).save_pretrained(tmp_path / "mine")
    place = str(tmp_path / "mine") if index == 3 else str(folders / ("dit", "stable_diffusion", "ddpm")[index])
    code, replaced = re.subn(r'(from_pretrained|zoo\.load)\("[^"]*"\)', rf'\1("{place}")', code)
    assert replaced == 1
    names: dict = {}
    exec(code, names)
    assert len(names["samples" if index == 3 else "images"]) == (2, 1, 1, 10)[index]
