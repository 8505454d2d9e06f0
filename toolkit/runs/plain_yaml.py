"""YAML that somebody else may have written, as plain values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 2**18  # configs have a few KiB


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which our files do not need: a few of them can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias")
        return super().compose_node(parent, index)


_PlainLoader.add_implicit_resolver(  # 1e-3 is a number, as in Hydra's files
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: str | Path) -> Any:
    """What the file holds: no object is made, no resolver called. Raises ValueError saying what is wrong, OSError."""
    with open(path, "rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
    try:
        return yaml.load(content, _PlainLoader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ValueError(said[:300]) from None
