"""All of it is slow; the counts are printed at the end."""

from pathlib import Path

import pytest

from tests.fuzz import harness

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter):
    if harness._table:
        terminalreporter.write_line("\nfuzzed\n" + harness.table())
