"""An optional copy of the logged scalars for TensorBoard or Weights & Biases; metrics.jsonl stays the record."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Protocol

from toolkit.errors import UserError
from toolkit.installation import install_hint
from toolkit.schema import Job


class Tracker(Protocol):
    """Takes scalars as they are logged."""

    def log(self, stage: str, step: int, scalars: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run folder, one tag ``stage/name`` per scalar."""

    def __init__(self, folder: Path, config: Job):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, stage: str, step: int, scalars: dict[str, float]) -> None:
        """Write each scalar at its step."""
        for name, value in scalars.items():
            self.writer.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        """Flush to disk."""
        self.writer.close()


class WeightsAndBiases:
    """A W&B run that a resumed job continues; WANDB_MODE=offline keeps it on this machine."""

    def __init__(self, folder: Path, config: Job):
        import dataclasses
        import hashlib

        import wandb

        identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self.run = wandb.init(
            project="toolkit", name=folder.name, id=identity, resume="allow", dir=str(folder),
            config=dataclasses.asdict(config),
        )  # fmt: skip
        self.run.define_metric("*", step_metric="step")

    def log(self, stage: str, step: int, scalars: dict[str, float]) -> None:
        """Log under ``stage/name`` against the stage's own step."""
        self.run.log({f"{stage}/{name}": value for name, value in scalars.items()} | {"step": step})

    def close(self) -> None:
        """Finish the W&B run."""
        self.run.finish()


_KINDS: dict[str, tuple[type, str, str]] = {
    "tensorboard": (TensorBoard, "tensorboard", "track"),
    "wandb": (WeightsAndBiases, "wandb", "wandb"),
}


def make_tracker(folder: Path, config: Job) -> Tracker | None:
    """The tracker that ``config.tracker`` names. Raises UserError when its package is not installed."""
    if config.tracker == "none":
        return None
    kind, package, extra = _KINDS[config.tracker]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"tracker={config.tracker}: {package} is not installed; {install_hint(extra)}")
    return kind(folder, config)
