"""The same source with a comment more, as a module of its own."""

import importlib.util
import sys
from pathlib import Path


def with_a_comment(module, folder, monkeypatch):
    """``module`` read again from a copy in ``folder`` that begins with a comment."""
    name = f"commented_{module.__name__.rpartition('.')[2]}"
    path = folder / f"{name}.py"
    path.write_text(f"# a comment\n{Path(module.__file__).read_text()}")
    spec = importlib.util.spec_from_file_location(name, path)
    copy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, copy)  # dataclasses look themselves up there
    spec.loader.exec_module(copy)
    return copy
