"""Old names, for one version: they warn and give what is at the new place."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {  # what the pages of 0.1 named
    "toolkit.data.video_scan": "toolkit.data.video.scan",
    "toolkit.data.video_write": "toolkit.data.video.write",
    "toolkit.ivideogpt.env": "toolkit.ivideogpt.control.env",
    "toolkit.runs.browse": "toolkit.show.browse",
    "toolkit.runs.figures": "toolkit.show.figures",
    "toolkit.stacking.build": "toolkit.stacking.pretrain.networks",
    "toolkit.venhancer.backends": "toolkit.venhancer.clips.backends",
    "toolkit.venhancer.enhancer": "toolkit.venhancer.engine.enhancer",
    "toolkit.venhancer.timeline": "toolkit.venhancer.clips.timeline",
    "toolkit.zoo.samplers": "toolkit.zoo.edm.samplers",
}
LAST_VERSION = "0.2"


class OldModules(MetaPathFinder, Loader):
    """An importer of ``MOVED``; it is asked last, for what nothing else finds."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        _warn(spec.name, MOVED[spec.name])
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])


def install() -> None:
    """Let ``import`` know the old modules."""
    if not any(isinstance(finder, OldModules) for finder in sys.meta_path):
        sys.meta_path.append(OldModules())


def moved_names(old: str, new: str, names: Sequence[str]) -> Callable[[str], Any]:
    """``__getattr__`` of the module ``old``, whose ``names`` are now in ``new``."""

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        _warn(f"{old}.{name}", f"{new}.{name}")
        return getattr(importlib.import_module(new), name)

    return __getattr__


def _warn(old: str, new: str) -> None:
    message = f"{old} is now {new}; {LAST_VERSION} is the last version to know the old name"
    warnings.warn(message, DeprecationWarning, stacklevel=3)  # where the user wrote it
