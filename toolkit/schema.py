"""What every command's config shares: field constraints, their check, and the errors users see.

Only the standard library is imported here, so a bad config is reported before torch is loaded.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MISSING: Any = "???"  # OmegaConf's mark for a value that must come from a config group or the user


class UserError(ValueError):
    """Bad input: shown as one line, exit code 2. Name the key or file, what is wrong, what is right."""


class JobError(RuntimeError):
    """The job itself failed (NaN loss, full disk): shown as one line, exit code 1."""


class Interrupted(BaseException):
    """A signal asked the job to stop; ``exit_code`` is 130 (SIGINT) or 143 (SIGTERM)."""

    def __init__(self, exit_code: int):
        super().__init__(f"interrupted (exit code {exit_code})")
        self.exit_code = exit_code


def number(
    default: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    computes: bool = True,
    extends: str = "",
) -> Any:
    """A numeric field with a range. Lists are checked item by item, None passes.

    ``computes=False`` marks a key that does not change what is computed (it stays out of the config hash).
    ``extends`` names the stages (comma separated) that train on when a finished run is repeated with a larger value.
    """
    limits = {"above": above, "least": least, "below": below, "most": most}
    metadata = {"limits": {k: v for k, v in limits.items() if v is not None}, "computes": computes, "extends": extends}
    return _field(default, metadata)


def choice(default: str, *options: str, computes: bool = True) -> Any:
    """A string field that takes one of ``options``."""
    return _field(default, {"options": options, "computes": computes})


def cosmetic(default: Any) -> Any:
    """A field that does not change what is computed: a run may be resumed with another value."""
    return _field(default, {"computes": False})


def _field(default: Any, metadata: dict[str, Any]) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Data:
    """A data set by name (see ``toolkit data list``); ``folder`` reads any folder of images."""

    name: str = "digits"
    path: str | None = None
    size_px: int | None = number(None, least=1)
    channels: int | None = number(None, least=1)
    num_train: int | None = number(None, least=1)
    valid_fraction: float = number(0.1, above=0, below=1)
    flip: bool = False
    class_labels: bool = True


@dataclass
class Network:
    """A denoiser network; the group ``network`` has one class per family."""

    family: str = MISSING


@dataclass
class ADM(Network):
    """The ADM UNet of the EDM release."""

    family: str = "adm"
    width: int = number(192, least=8)
    width_multipliers: list[int] = number([1, 2, 3, 4], least=1)
    num_blocks: int = number(3, least=1)
    attention_resolutions: list[int] = number([32, 16, 8], least=1)
    channels_per_head: int = number(64, least=1)
    dropout: float = number(0.1, least=0, below=1)


@dataclass
class Song(Network):
    """The DDPM++ and NCSN++ UNets of the EDM release."""

    family: str = "song"
    width: int = number(128, least=8)
    width_multipliers: list[int] = number([2, 2, 2], least=1)
    num_blocks: int = number(4, least=1)
    attention_resolutions: list[int] = number([16], least=1)
    dropout: float = number(0.13, least=0, below=1)
    variant: str = choice("ddpmpp", "ddpmpp", "ncsnpp")


@dataclass
class UViT(Network):
    """The U-ViT of the ImageNet-128 experiment."""

    family: str = "uvit"
    width: int = number(128, least=8)
    width_multipliers: list[int] = number([1, 2, 4, 16], least=1)
    num_blocks: int = number(2, least=1)
    depth: int = number(36, least=1)
    dropout: float = number(0.1, least=0, below=1)


@dataclass
class MLP(Network):
    """Residual FiLM blocks on flattened samples: points and very small images."""

    family: str = "mlp"
    width: int = number(128, least=4)
    depth: int = number(4, least=1)
    layer_norm: bool = False


@dataclass
class ToyScore(Network):
    """The paper's own parameterisation of the 2-D toy (appendix F.2)."""

    family: str = "toy_score"
    width: int = number(96, least=4)
    depth: int = number(4, least=1)
    component_std: float = number(0.2, above=0)


@dataclass
class TextData:
    """A text corpus by name (see ``toolkit data list``); ``text_folder`` reads any folder of text or jsonl files.

    text_key: the field of a jsonl line that holds the text. max_mb: how much of the corpus to take, in 10^6 bytes.
    valid_fraction: share of the documents that is held out.
    """

    name: str = "text_python"
    path: str | None = None
    text_key: str = "text"
    max_mb: float | None = number(None, above=0)
    valid_fraction: float = number(0.05, above=0, below=1)


@dataclass
class EpisodeData:
    """Episodes by name (kind ``episodes`` of ``toolkit data list``); ``episodes_folder`` reads any folder of npz."""

    name: str = "push_sprite"
    path: str | None = None
    size_px: int | None = number(None, least=8)
    image_key: str = "image"
    frame_step: int = number(1, least=1)
    num_train: int | None = number(None, least=1)
    num_valid: int = number(256, least=1)
    num_frames: int = number(24, least=2)  # of an episode that is recorded for this run
    valid_fraction: float = number(0.1, above=0, below=1)
    texture: float = number(0.0, least=0, most=1)  # of push_sprite
    num_distractors: int = number(1, least=0)
    random_goal: bool = False
    agent_shape: str = choice("disc", "disc", "square", "diamond")
    augment: bool = False
    skip_bad: bool = False


@dataclass
class Job:
    """Keys that every command has."""

    command: str = ""
    seed: int = number(0, least=0)
    device: str = choice("auto", "auto", "cpu", "cuda", "mps", computes=False)
    precision: str = choice("fp32", "fp32", "bf16")
    compile: bool = False
    num_threads: int | None = number(None, least=1, computes=False)  # of a CPU job; None: as many as cores
    num_workers: int = number(0, least=0, computes=False)
    log_every_steps: int = number(50, least=1, computes=False)
    checkpoint_every_steps: int = number(500, least=1, computes=False)
    keep_checkpoints: int = number(2, least=1, computes=False)
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
        raise UserError(f"{key}={value}: {did_you_mean(str(value), options)}choose one of {', '.join(options)}")
    for name, limit in metadata.get("limits", {}).items():
        holds, words = _LIMITS[name]
        if (isinstance(value, float) and math.isnan(value)) or not holds(value, limit):
            raise UserError(f"{key}={value}: must be {words} {limit}")


def did_you_mean(word: str, options: Any) -> str:
    """``"did you mean 'x'? "`` or the empty string."""
    near = difflib.get_close_matches(word, list(options), n=1)
    return f"did you mean '{near[0]}'? " if near else ""
