"""The uses shown in the room's docstring, run as they stand on tiny pipelines of the same classes."""

import re
import textwrap

import pytest

from tests.icg import tiny
from toolkit import icg

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
