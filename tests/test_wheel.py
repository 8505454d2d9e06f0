"""What the wheel holds: the code, the configs and the claims, and nothing of the checkout's rest."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_holds_code_configs_and_claims(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(REPO)]
    subprocess.run(command, check=True, env={**os.environ, "PIP_NO_INDEX": "0"})  # for what builds it
    [wheel] = tmp_path.glob("five_papers_toolkit-*-py3-none-any.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in files if not name.split("/")[0].endswith(".dist-info")}
    assert {name.split("/")[0] for name in inside} == {"toolkit"}
    code = {f"toolkit/{path.relative_to(REPO / 'toolkit')}" for path in (REPO / "toolkit").rglob("*.py")}
    configs = {f"toolkit/conf/{path.relative_to(REPO / 'conf')}" for path in (REPO / "conf").rglob("*.yaml")}
    claims = {f"toolkit/experiments/{path.parent.name}/claims.yaml" for path in REPO.glob("experiments/*/claims.yaml")}
    assert claims and code | configs | claims <= inside
    weights = (path for path in REPO.glob("toolkit/*/weights/**/*") if path.is_file())
    shipped = {str(path.relative_to(REPO)) for path in weights}  # with their model cards
    assert "toolkit/ivideogpt/weights/push_world/run.json" in shipped and shipped <= inside
    assert not [name for name in inside - shipped if name.endswith((".png", ".md", ".pyc"))]
    [metadata] = [name for name in files if name.endswith(".dist-info/METADATA")]
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    assert "Requires-Python: <3.14,>=3.11" in text and "Requires-Dist: hydra-core<1.4,>=1.3.8" in text
    assert "toolkit/py.typed" in inside and any(name.endswith("licenses/LICENSE") for name in files)
