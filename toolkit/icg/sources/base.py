"""What ``sample-icg`` draws from: a model of ours or a diffusers pipeline, behind one interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.icg.guidance import Guidance
from toolkit.icg.methods import ICG
from toolkit.runs.seeds import derive, generator


@dataclass(frozen=True)
class Request:
    """Which samples: numbers ``start`` to ``stop`` of sampling seed ``repeat``; each has random numbers of its own."""

    seed: int
    repeat: int
    start: int
    stop: int

    @property
    def numbers(self) -> range:
        """The samples, by number."""
        return range(self.start, self.stop)

    def generators(self, purpose: str) -> list[torch.Generator]:
        """One CPU generator per sample, the same alone and in any batch."""
        return [generator(self.seed, "sample", purpose, self.repeat, number) for number in self.numbers]

    def seeds(self, purpose: str) -> list[int]:
        """One seed per sample."""
        return [derive(self.seed, "sample", purpose, self.repeat, number) for number in self.numbers]

    def one_seed(self, purpose: str) -> int:
        """A seed of the whole batch, for what cannot be drawn per sample."""
        return derive(self.seed, "sample", purpose, self.repeat, self.start)


class Source:
    """A trained model, ready to be sampled with any guidance it supports.

    name: where it came from. shape: (C, H, W) of its images, or None before the first. num_classes: K, 0 without
    classes. labels, prompts: the conditions, taken in turn; None where the model has no such thing.
    """

    name = ""
    shape: tuple[int, ...] | None = None
    batch_size = 512
    num_classes = 0
    labels: list[int] | None = None
    prompts: list[str] | None = None
    class_names: tuple[str, ...] = ()
    bank_rows: int  # of a bank of conditions, unless the method says how many
    banks: dict[int, dict[str, Tensor]]  # that prepare made, by number of rows

    def bank_for(self, guidance: Guidance) -> dict[str, Tensor] | None:
        """The fields of the bank that ``guidance`` draws from; None where it draws from none, or there is none."""
        if not isinstance(guidance, ICG) or not guidance.from_bank or not self.banks:
            return None
        return rows_for(guidance, self.banks[guidance.bank_rows or self.bank_rows])

    def refuse(self, guidance: Guidance) -> None:
        """Raises UserError, one line, where the model cannot be guided so."""
        raise NotImplementedError

    def warning(self, guidance: Guidance) -> str:
        """What a reader of the results must know; empty for nothing."""
        return ""

    def prepare(self, guidance: Guidance) -> None:
        """What must be made once before ``draw`` (banks of conditions); may be called again."""

    def extra_metrics(self) -> dict[str, float]:
        """Numbers of the model itself, for the record."""
        return {}

    def draw(
        self, guidance: Guidance, scale: float, request: Request, num_steps: int | None = None
    ) -> tuple[Tensor, float]:
        """Images float32 (n, C, H, W) in [-1, 1] on the CPU, and network calls per image.

        num_steps: other than the config's, to try a setting out.
        """
        raise NotImplementedError

    def label_of(self, number: int) -> int | None:
        """The class of sample ``number``."""
        return None if self.labels is None else self.labels[number % len(self.labels)]

    def caption_of(self, number: int) -> str:
        """What sample ``number`` should show, for the grid."""
        if self.prompts is not None:
            return self.prompts[number % len(self.prompts)]
        label = self.label_of(number)
        if label is None:
            return ""
        return self.class_names[label] if label < len(self.class_names) else str(label)


def refuse_control(guidance: Guidance, name: str) -> None:
    """Raises UserError where a model without a ControlNet is asked for a random control picture."""
    if getattr(guidance, "control_std", None) is not None:
        raise UserError(f"guidance.control_std: {name} has no ControlNet, whose picture could be drawn")


def refuse_diffusers(guidance: Guidance, name: str) -> None:
    """Raises UserError where a denoiser is given to a guider of diffusers that reads noise or velocities."""
    if guidance.in_pipelines:
        raise UserError(f"guidance={guidance.method}: works on pipelines, {name} predicts clean samples")


def rows_for(guidance: ICG, bank: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fields (N, ...) of a bank that ``guidance.fields`` names (None: all); the others stay the sample's own."""
    return {name: rows for name, rows in bank.items() if guidance.fields is None or name in guidance.fields}


@contextmanager
def counted_rows(network: nn.Module) -> Iterator[Any]:
    """Counts the samples that pass through a network: ``counter.rows``; a batched call of two counts as two."""

    class Counter:
        rows = 0

    def count(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        Counter.rows += len(output[0])

    handle = network.register_forward_hook(count)
    try:
        yield Counter
    finally:
        handle.remove()
