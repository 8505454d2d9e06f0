"""What every command's config shares: field constraints, their check, and the errors users see.

Only the standard library is imported here, so a bad config is reported before torch is loaded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from toolkit import errors
from toolkit.moved import moved_names

if not TYPE_CHECKING:
    __getattr__ = moved_names(__name__, "toolkit.errors", ("UserError", "JobError", "Interrupted", "did_you_mean"))

MOST_SEED = 2**63 - 1  # which a record holds: a run of a larger one could not be read again
MISSING: Any = "???"  # OmegaConf's mark for a value that must come from a config group or the user


def number(
    default: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    computes: bool = True,
    extends: str = "",
    rewrites: str = "",
) -> Any:
    """A numeric field with a range. Lists are checked item by item, None passes.

    ``computes=False`` marks a key that does not change what is computed (it stays out of the config hash).
    ``extends`` names the stages (comma separated) that train on when a finished run is repeated with a larger value,
    ``rewrites`` those that write their results once more when it is repeated with another one.
    """
    limits = {"above": above, "least": least, "below": below, "most": most}
    found = {key: value for key, value in limits.items() if value is not None}
    return _field(default, {"limits": found, "computes": computes, "extends": extends, "rewrites": rewrites})


def choice(default: str | None, *options: str, computes: bool = True, rewrites: str = "") -> Any:
    """A string field that takes one of ``options``, or None where that is the default; ``rewrites`` as of a number."""
    return _field(default, {"options": options, "computes": computes, "rewrites": rewrites})


def free_text(default: str | None) -> Any:
    """A text for a model, which may be empty; every other text names something, and may not."""
    return _field(default, {"blank": True})


def written(default: Any, stages: str) -> Any:
    """A field that concerns writing alone: with another value ``stages`` write what they made once more."""
    return _field(default, {"rewrites": stages})


def cosmetic(default: Any) -> Any:
    """A field that does not change what is computed: a run may be resumed with another value."""
    return _field(default, {"computes": False})


def _field(default: Any, metadata: dict[str, Any]) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Job:
    """Keys that every command has.

    command: its name; a preset says it too, so that another command can refuse the preset. seed: decides every random
    number; on a CPU the same seed reproduces a run to the bit. device: where networks run; ``auto`` takes a GPU where
    there is one. precision: of the arithmetic; ``bf16`` and ``fp16`` compute with 16 bits, and training keeps weights
    and averages at 32; ``fp16``, on a GPU alone, scales the loss. compile: whether networks go through torch.compile.
    num_threads: of a CPU job; None is as many as cores are free when it starts, and the same again when it goes on.
    num_workers: threads that read data ahead; they change nothing but the speed. log_every_steps: steps between two
    values of a curve. checkpoint_every_steps: steps between two checkpoints, from which an interrupted run goes on.
    checkpoint_in_background: whether they are written, from a copy in the CPU's memory, while training goes on.
    keep_checkpoints: how many of the newest are kept. keep_every_steps: checkpoints of multiples of this step are kept
    besides; None keeps none. tracker: who else is told the curves, beside ``metrics.jsonl``.
    """

    command: str = ""
    seed: int = number(0, least=0, most=MOST_SEED)
    device: str = choice("auto", "auto", "cpu", "cuda", "mps", computes=False)
    precision: str = choice("fp32", "fp32", "bf16", "fp16")
    compile: bool = False
    num_threads: int | None = number(None, least=1, computes=False)
    num_workers: int = number(0, least=0, computes=False)
    log_every_steps: int = number(50, least=1, computes=False)
    checkpoint_every_steps: int = number(500, least=1, computes=False)
    checkpoint_in_background: bool = cosmetic(False)
    keep_checkpoints: int = number(2, least=1, computes=False)
    keep_every_steps: int | None = number(None, least=1, computes=False)
    tracker: str = choice("none", "none", "tensorboard", "wandb", computes=False)

    def stages(self) -> list[str]:
        """Names of the stages this config asks for, in the order they run."""
        raise NotImplementedError

    def check(self) -> None:
        """Checks across fields; raise UserError."""


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Yield ``(dotted key, field, value)`` for every leaf of a nested dataclass."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item, value


def check(config: Any) -> None:
    """Hold every field to its constraint, then run each dataclass's own ``check``.

    Raises UserError naming the key, its value and the allowed ones.
    """
    for key, item, value in fields_of(config):
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if one is not None:
                _check_value(key, one, item.metadata)
    if isinstance(config, Job) and config.keep_every_steps and config.keep_every_steps % config.checkpoint_every_steps:
        raise errors.UserError(
            f"keep_every_steps={config.keep_every_steps}: must be a multiple of "
            f"checkpoint_every_steps={config.checkpoint_every_steps}"
        )
    _check_objects(config)


def _check_objects(config: Any) -> None:
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            _check_objects(value)
    if hasattr(config, "check"):
        config.check()


_LIMITS = {
    "above": (lambda value, limit: value > limit, "greater than"),
    "least": (lambda value, limit: value >= limit, "at least"),
    "below": (lambda value, limit: value < limit, "less than"),
    "most": (lambda value, limit: value <= limit, "at most"),
}


def _check_value(key: str, value: Any, metadata: Any) -> None:
    options = metadata.get("options")
    if options and value not in options:
        hint = errors.did_you_mean(str(value), options)
        raise errors.UserError(f"{key}={value}: {hint}choose one of {', '.join(options)}")
    if isinstance(value, str) and not value.strip() and not metadata.get("blank"):
        raise errors.UserError(f"{key}='{value}': is empty; give a value, or {key}=null for none")
    if isinstance(value, float) and not math.isfinite(value):
        raise errors.UserError(f"{key}={value}: must be a finite number")
    for name, limit in metadata.get("limits", {}).items():
        holds, words = _LIMITS[name]
        if not holds(value, limit):
            raise errors.UserError(f"{key}={value}: must be {words} {limit}")
