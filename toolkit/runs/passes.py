"""One optimiser step over several passes and processes: the update of the whole batch at once, up to rounding.

What is drawn at random for a step is drawn for the whole batch, alike on every process (``Loop.alike``), and then cut
by ``own_part`` and ``passes``, so that neither the number of processes nor that of passes changes it. What is drawn
inside of a network is the exception, pass by pass: dropout's masks, and the world model's ``own_tokens``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from toolkit.errors import JobError
from toolkit.runs.distributed import rank
from toolkit.runs.schedule import share_of_batch

T = TypeVar("T")
LEAST_SCALE = 1.0  # of a fp16 loss; gradients that overflow below it overflow without any scaling


def rows(batch: T, part: slice) -> T:
    """Some items of a batch: a tensor whose first dimension counts items, or a tuple, dict or dataclass of such.

    What is no tensor holds for all items and stays.
    """
    found: Any = batch
    if torch.is_tensor(batch):
        found = batch[part]
    elif isinstance(batch, (tuple, list)):
        found = type(batch)(rows(one, part) for one in batch)
    elif isinstance(batch, dict):
        found = {name: rows(one, part) for name, one in batch.items()}
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        values = {item.name: rows(getattr(batch, item.name), part) for item in dataclasses.fields(batch)}
        found = dataclasses.replace(batch, **values)
    return found  # type: ignore[no-any-return]


def own_part(batch_size: int, key: str = "optim.batch_size") -> slice:
    """Which items of a batch are this process's: processes take theirs one after the other.

    Raises UserError as ``share_of_batch``.
    """
    share = share_of_batch(batch_size, key)
    return slice(rank() * share, (rank() + 1) * share)


def passes(trained: Any, batch: T, micro_batch_size: int | None) -> Iterator[tuple[T, float]]:
    """The micro-batches of this process's ``batch``, each with the share of its items, for a forward and backward pass.

    None is all at once; the last one may be smaller. Gradients are averaged over the processes with the last one alone.
    trained: what ``accelerator.prepare_model`` or FSDP made of the network.
    """
    size = _length(batch)
    micro = min(micro_batch_size or size, size)
    for start in range(0, size, micro):
        stop = min(start + micro, size)
        with _unsynchronised(trained, stop < size):
            yield rows(batch, slice(start, stop)), (stop - start) / size


def accumulate(
    trained: Any, batch: tuple[Any, ...], micro_batch_size: int | None, accelerator: Accelerator
) -> dict[str, Tensor]:
    """Leave the gradients of the mean loss of ``batch``; returns the means of all terms, "loss" among them.

    ``trained(*part)`` gives a loss, or a dictionary of terms with "loss"; each a mean over the items of ``part``.
    """
    means: dict[str, Tensor] = {}
    for part, share in passes(trained, batch, micro_batch_size):
        with accelerator.autocast():
            found = trained(*part)
        terms = found if isinstance(found, dict) else {"loss": found}
        accelerator.backward(terms["loss"] * share)
        add_terms(means, terms, share)
    return means


def add_terms(means: dict[str, Tensor], terms: dict[str, Tensor], share: float) -> None:
    """Add a pass's terms, by the share of its items, to the means of the whole."""
    for name, value in terms.items():
        means[name] = means.get(name, 0) + value.detach() * share


def update(
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    parameters: Iterable[Tensor],
    grad_clip: float,
    accelerator: Accelerator,
) -> Tensor | None:
    """Clip the gradients to the norm ``grad_clip``, take the step and drop them; returns their norm.

    optimizer: one, or several that have a part of the parameters each.

    With precision=fp16 the loss was scaled: a step whose gradients overflow is left out, and has no norm (None). Raises
    JobError where they overflow without any scaling.
    """
    scaler: Any = accelerator.scaler
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer
    if scaler is not None:
        for one in optimizers:
            scaler.unscale_(one)
    if math.isinf(grad_clip):  # nothing to multiply
        norm: Any = torch.nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
    else:
        norm = torch.nn.utils.clip_grad_norm_(parameters, grad_clip)
    if scaler is None:
        for one in optimizers:
            one.step()
    else:
        before = scaler.get_scale()
        if len(optimizers) == 1 or norm.isfinite():  # each would look at its own gradients alone
            for one in optimizers:
                scaler.step(one)
        scaler.update()
        norm = None if scaler.get_scale() < before else norm
        if scaler.get_scale() < LEAST_SCALE:
            raise JobError("precision=fp16: the gradients overflow at any scale of the loss; use bf16 or fp32")
    for one in optimizers:
        one.zero_grad(set_to_none=True)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # type: ignore[no-any-return]


def scaler_of(accelerator: Accelerator) -> dict[str, Any]:
    """What a checkpoint holds of the loss scaling of precision=fp16; nothing with another precision."""
    return {} if accelerator.scaler is None else {"scaler": accelerator.scaler}


def _length(batch: Any) -> int:
    """Items of a batch: the first dimension of its first tensor."""
    if torch.is_tensor(batch):
        return len(batch)
    if dataclasses.is_dataclass(batch):
        batch = vars(batch)
    inside = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (tuple, list)) else ()
    return next((length for length in map(_length, inside) if length), 0)


@contextlib.contextmanager
def _unsynchronised(trained: Any, more_to_come: bool) -> Iterator[None]:
    """Gradients are averaged over the processes once, with the last micro-batch."""
    if hasattr(trained, "set_requires_gradient_sync"):  # FSDP
        trained.set_requires_gradient_sync(not more_to_come)
    elif more_to_come and hasattr(trained, "no_sync"):  # DDP
        with trained.no_sync():
            yield
        return
    yield
