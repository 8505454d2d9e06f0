"""Growing language models: "Stacking Your Transformers" (Du, Luo et al., NeurIPS 2024, arXiv 2405.15319).

Importing this loads no torch; the names below are loaded on first use.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Growth": "config",
    "advise": "timing",
    "cost": "flops",
    "grow": "growth",
    "grow_checkpoint": "report",
    "grow_network": "networks",
    "grow_saved_network": "networks",
    "load_model": "loading",
    "open_checkpoint": "checkpoint",
    "Scorer": "scoring",
    "train_map": "learn",
    "GrowthMasks": "masks",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
