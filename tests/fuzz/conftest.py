"""All of it is slow; the counts are printed at the end."""

import importlib
from pathlib import Path

import pytest

from tests.fuzz import harness

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="module")
def imported(request):
    """The jobs of the papers that a file names in ``ROOMS`` are imported once, before the forks."""
    for room in getattr(request.module, "ROOMS", ()):
        importlib.import_module(f"toolkit.{room}.job")


def pytest_terminal_summary(terminalreporter):
    if harness._table:
        terminalreporter.write_line("\nfuzzed\n" + harness.table())
