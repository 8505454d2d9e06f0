"""Independent condition guidance and time-step guidance (Sadat et al. 2025, "No Training, No Problem").

Importing this loads no torch; the names below are loaded on first use.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "IndependentConditionGuidance": "guiders",
    "TimeStepGuidance": "guiders",
    "CombinedGuidance": "combined",
    "SchedulerClock": "clock",
    "guided": "pipelines",
    "GuidedDenoiser": "denoisers",
    "guided_denoiser": "denoisers",
    "encode_prompts": "text",
    "random_token_bank": "text",
    "find_time_embeddings": "timestep",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
