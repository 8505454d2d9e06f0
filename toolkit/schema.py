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

    command: name of the command. Presets of other commands are refused. seed: seed of all random numbers; on a CPU the
    same seed reproduces a run bit for bit. device: where networks run; ``auto`` uses a GPU if there is one. precision:
    number format of the computation. ``bf16`` and ``fp16`` compute with 16 bits; training keeps weights and averages at
    32. ``fp16`` needs a GPU and scales the loss. compile: whether to compile networks with torch.compile. num_threads:
    threads of a CPU job. None: the free cores at the start; a resumed run keeps the number. num_workers: threads that
    load data ahead; only speed changes. log_every_steps: steps between two points of a curve. checkpoint_every_steps:
    steps between two checkpoints, from which an interrupted run resumes. checkpoint_in_background: whether to write
    checkpoints during training, from a copy in CPU memory. keep_checkpoints: how many of the newest checkpoints to
    keep. keep_every_steps: also keeps checkpoints at multiples of this step. None: no others. tracker: where the curves
    go beside ``metrics.jsonl``.
    """

    asked = tuple[str, ...]()  # the words that were typed: no key, for presets set keys too

    command: str = ""
    seed: int = number(0, least=0, most=MOST_SEED)
    device: str = choice("auto", "auto", "cpu", "cuda", "mps", computes=False)
    precision: str = choice("fp32", "fp32", "bf16", "fp16")
    compile: bool = False
    num_threads: int | None = number(None, least=1, most=1024, computes=False)  # of far more the system dies
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

    def idle(self) -> dict[str, tuple[str, ...]]:
        """Keys, and groups of keys, that change nothing in this config, by the reason why."""
        return {}


def without_effect(config: Job) -> list[str]:
    """What to say of the keys that were typed and are ``idle``: a line for each reason."""
    typed = [word.lstrip("+~").partition("=")[0].partition("@")[0] for word in config.asked]
    found = []
    for why, keys in config.idle().items():
        unread = [key for key in typed if key.startswith(tuple(f"{one}." for one in keys)) or key in keys]
        found += [f"{why}, so without effect: {', '.join(dict.fromkeys(unread))}"] if unread else []
    return found


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
