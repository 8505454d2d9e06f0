"""What is told to a user who lacks something, for each way of installing; and that the names of it agree."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import toolkit
from toolkit.installation import DISTRIBUTION, install_hint

REPO = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]


def test_in_a_checkout_the_hint_installs_the_checkout(monkeypatch, tmp_path):
    monkeypatch.chdir(REPO)
    assert install_hint("rl") == "pip install -e '.[rl]'"
    monkeypatch.chdir(tmp_path)
    assert install_hint("rl") == f"pip install -e '{REPO}[rl]'"  # as true in another folder


def test_in_a_wheel_the_hint_names_the_distribution(tmp_path):
    """The package as a wheel lays it: without the project file beside it."""
    (tmp_path / "toolkit").mkdir()
    for path in (REPO / "toolkit").glob("*.py"):
        shutil.copy(path, tmp_path / "toolkit")
    code = "from toolkit.installation import install_hint; print(install_hint('rl'))"
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip() == f"pip install '{PROJECT['name']}[rl]'"


def test_the_project_carries_the_name_and_takes_the_version_from_the_code():
    settings = tomllib.loads((REPO / "pyproject.toml").read_text())
    assert PROJECT["name"] == DISTRIBUTION and PROJECT["scripts"] == {"toolkit": "toolkit.cli:main"}
    source = (REPO / settings["tool"]["hatch"]["version"]["path"]).read_text()
    assert re.search(r'^__version__ = "(.*)"', source, flags=re.MULTILINE)[1] == toolkit.__version__


def test_every_extra_that_a_message_names_is_one():
    found = {}
    for path in sorted((REPO / "toolkit").rglob("*.py")):
        found |= dict.fromkeys(re.findall(r"install_hint\(['\"](\w+)['\"]\)", path.read_text()), path)
    assert set(found) > {"rl", "robots", "gguf"} and set(found) <= set(PROJECT["optional-dependencies"])


def test_no_page_or_message_sends_users_to_a_distribution_that_is_not_ours():
    pages = [REPO / "README.md", *REPO.glob("docs/**/*.md"), *REPO.glob("experiments/**/*.md")]
    for path in [*pages, *(REPO / "toolkit").rglob("*.py")]:
        assert not re.search(r"pip install [^\n]*\btoolkit\[", path.read_text().replace(DISTRIBUTION, "")), path
