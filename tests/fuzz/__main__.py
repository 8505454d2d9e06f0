"""Everything that ``tests/fuzz`` does to files, and its counts.

    python -m tests.fuzz [--write] [WORD ...]

Minutes. WORDs choose files of tests by their names; --write puts the counts into docs/robustness.md.
"""

import sys

import pytest

from tests.fuzz import harness
from tests.robustness_page import put


def main(words: list[str]) -> int:
    """Exits as pytest does: 1 where there was a finding."""
    chosen = [word for word in words if word != "--write"]
    code = pytest.main(["-n", "0", "-q", "-m", "slow", "tests/fuzz", *(["-k", " or ".join(chosen)] if chosen else [])])
    if "--write" in words:
        put("fuzz", ["input", *harness.COLUMNS], [tuple(row) for row in harness.rows()])
    return int(code)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
