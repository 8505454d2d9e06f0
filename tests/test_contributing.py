"""CONTRIBUTING.md, CHANGELOG.md, the hooks and CI tell the same."""

import re
import tomllib

import yaml

import toolkit
from tests.toyroom.harness import REPO
from toolkit.installation import DISTRIBUTION
from toolkit.moved import MOVED

CONTRIBUTING, CHANGELOG = (REPO / "CONTRIBUTING.md").read_text(), (REPO / "CHANGELOG.md").read_text()
CI = (REPO / ".ci" / "run").read_text()


def test_the_linters_are_the_same_in_ci_in_the_hooks_and_on_the_page():
    hooks = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = {hook["entry"].replace(" --force-exclude", "") for hook in hooks}
    assert entries == {"ruff check", "ruff format", "mypy"} and all(hook["language"] == "system" for hook in hooks)
    for command in ("ruff check .", "ruff format --check .", "mypy"):
        assert re.search(rf"^{re.escape(command)}$", CI, flags=re.MULTILINE) and command in CONTRIBUTING
    dev = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    assert {re.split("[<>=]", one)[0] for one in dev} == {"ruff", "mypy", "build", "pre-commit"}


def test_the_version_has_its_changes_and_its_citation():
    assert f"## {toolkit.__version__}" in CHANGELOG
    assert f"\nversion: {toolkit.__version__}\n" in (REPO / "CITATION.cff").read_text()
    assert DISTRIBUTION in CHANGELOG and DISTRIBUTION in CONTRIBUTING
    assert f"{DISTRIBUTION.replace('-', '_')}-*.whl" in CI


def test_every_module_that_moved_is_in_the_changes():
    for old, new in MOVED.items():
        package, _, name = old.rpartition(".")
        assert f"`{old}`" in CHANGELOG or (package in CHANGELOG and f"`.{name}`" in CHANGELOG), old
        assert new in CHANGELOG or new.removeprefix("toolkit.venhancer") in CHANGELOG, new
