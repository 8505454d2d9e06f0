"""What is installed and how: version, the distribution's name, and what to type for what is missing."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.2.0"
DISTRIBUTION = "five-papers-toolkit"  # "toolkit" on the package index is somebody else's
_CHECKOUT = Path(__file__).resolve().parents[1]


def install_hint(extra: str) -> str:
    """The command that adds ``extra`` to this installation: to the checkout it runs from, or to an installed wheel."""
    if (_CHECKOUT / "pyproject.toml").is_file():
        place = "." if Path.cwd() == _CHECKOUT else _CHECKOUT
        return f"pip install -e '{place}[{extra}]'"
    return f"pip install '{DISTRIBUTION}[{extra}]'"
