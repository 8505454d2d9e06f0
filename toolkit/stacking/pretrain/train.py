"""Pre-training one network: AdamW, warm-up, clipping, accumulation; its losses against tokens, FLOPs and time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from toolkit.runs.distributed import gather, rank, world_size
from toolkit.runs.loop import Loop
from toolkit.runs.passes import accumulate, scaler_of, update
from toolkit.runs.record import Run
from toolkit.runs.schedule import learning_rate_factor, share_of_batch
from toolkit.runs.states.sharding import check_sharding, reshard, shard
from toolkit.stacking.config import GrowLLM, Optim
from toolkit.stacking.measure.curves import Spent, TrainingCurve
from toolkit.stacking.measure.flops import Cost
from toolkit.stacking.operators.masks import GrowthMasks
from toolkit.stacking.pretrain.language_loss import LanguageModelLoss
from toolkit.stacking.pretrain.states import NetworkState, OptimizerState
from toolkit.stacking.pretrain.tokens import Sequences, TokenStore, held_out
from toolkit.zoo.checkpointing import checkpoint_activations

POINTS = 40  # of a curve, where compare.eval_every_steps does not say


@dataclass
class Task:
    """A network to train in stage ``stage``.

    num_sequences: how many to train on, rounded up to whole steps. spent: before this training. masks: of G_random,
    opened while it trains. moments: the optimizer's state to begin with, by name. first_step: where the learning rate's
    schedule begins, for training that goes on.
    """

    stage: str
    network: Any
    cost: Cost
    lr: float
    num_sequences: int
    spent: Spent
    masks: GrowthMasks | None = None
    moments: dict[str, Any] | None = None
    first_step: int = 0


@dataclass
class Trained:
    """What training left: the network (weights still sharded under FSDP), its curve, all that was spent."""

    network: Any
    curve: TrainingCurve
    spent: Spent


def train(task: Task, run: Run, config: GrowLLM, store: TokenStore, accelerator: Accelerator) -> Trained:
    """Train ``task`` on ``store`` from its newest checkpoint on; exact wherever it was interrupted.

    Raises UserError where batches do not divide among processes or the corpus is too short, JobError where the loss
    is not finite.
    """
    check_batches(config.optim, config.precision, config.network.context)
    network, context = task.network.to(accelerator.device), config.network.context
    trained = _prepared(network, config, accelerator)
    optimizer = make_optimizer(network, config.optim)
    moments = OptimizerState(optimizer, network)
    if task.moments:
        moments.load_state_dict(task.moments)
    curve, size = TrainingCurve(), config.optim.batch_size
    num_steps = math.ceil(task.num_sequences / size)
    sequences = Sequences(store.train, context, config.seed)
    measure = measurer(trained, store, config, accelerator)
    every = config.compare.eval_every_steps or max(1, num_steps // POINTS)

    def point(step: int) -> float:
        loss = measure()
        curve.add(step, task.spent.after(task.cost, step * size, context), loss)
        return loss

    state: dict[str, Any] = {"model": NetworkState(network), "optimizer": moments, "curve": curve}
    state |= scaler_of(accelerator)
    loop = Loop(run, task.stage, num_steps, state)
    for step in loop:
        if task.masks:
            task.masks.set_step(step)
        if not curve.points:
            point(0)
        start = time.perf_counter()
        batch = sequences.batch(task.spent.sequences + step * size, size, rank(), world_size())
        lr = task.lr * learning_rate_at(
            task.first_step + step, config.optim, task.first_step + num_steps, size * context
        )
        loss, grad_norm = train_step(trained, network, optimizer, batch, lr, config, accelerator)
        curve.note(loss, time.perf_counter() - start)
        loop.log(loss=loss, grad_norm=grad_norm, lr=lr)
        if (step + 1) % every == 0 or step + 1 == num_steps:
            loop.log(valid_loss=point(step + 1))
    if not curve.points:
        point(0)
    spent = task.spent.after(task.cost, num_steps * size, context, curve.time_s)
    return Trained(network, curve, spent)


def _prepared(network: Any, config: GrowLLM, accelerator: Accelerator) -> Any:
    """The loss of ``network`` as a module that is compiled, recomputes and is shared among processes as asked."""
    module = LanguageModelLoss(network)
    if config.optim.gradient_checkpointing:
        checkpoint_activations(network)
    if config.optim.sharding == "fsdp":
        return shard(module, network.model.layers, half=config.precision == "bf16", compiled=config.compile)
    if config.compile:
        module.compile()
    return accelerator.prepare_model(module)


def train_step(
    trained: Any,
    network: Any,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    lr: float,
    config: GrowLLM,
    accelerator: Accelerator,
) -> tuple[Tensor, Tensor | None]:
    """One optimiser step on this rank's inputs and targets (B, T); the mean loss and, as ``update``, the norm."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    batch = tuple(part.to(accelerator.device, non_blocking=True) for part in batch)  # type: ignore[assignment]
    terms = accumulate(trained, batch, config.optim.micro_batch_size, accelerator)
    return terms["loss"], update(optimizer, network.parameters(), config.optim.grad_clip, accelerator)


def make_optimizer(network: Any, optim: Optim) -> torch.optim.Optimizer:
    """AdamW, fused to one kernel on CPU and CUDA; matrices decay, norm gains where ``decay_norms`` says so."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    gains = [parameter for parameter in parameters if parameter.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": optim.weight_decay},
        {"params": gains, "weight_decay": optim.weight_decay if optim.decay_norms else 0.0},
    ]
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.betas[0], optim.betas[1]), fused=fused)


def learning_rate_at(step: int, optim: Optim, num_steps: int, tokens_per_step: int) -> float:
    """The factor of the learning rate; a cosine ends after ``schedule_tokens``, or ``num_steps`` where that is None."""
    horizon = optim.schedule_tokens / tokens_per_step if optim.schedule_tokens else num_steps
    return learning_rate_factor(
        step, horizon, optim.schedule, optim.warmup_steps, lowest=optim.min_lr_ratio, after_warmup=True
    )


def measurer(trained: Any, store: TokenStore, config: GrowLLM, accelerator: Accelerator) -> Callable[[], float]:
    """A function that gives the network's mean loss on the fixed held-out windows, in nats per token.

    The same on any number of processes, up to rounding.
    """
    ids, targets = held_out(store.valid, config.network.context, config.compare.eval_tokens)
    own = range(rank(), len(ids), world_size())  # the windows of this rank; some ranks may have one more
    most = math.ceil(len(ids) / world_size())
    size = config.optim.micro_batch_size or max(1, config.optim.batch_size // world_size())

    @torch.no_grad()
    def measure() -> float:
        total = 0.0
        for start in range(0, most, size):
            rows = list(own[start : start + size])
            part = rows or [0]  # all ranks call the network equally often; a row 0 without rows to measure has weight 0
            part_ids, part_targets = (x[part].to(accelerator.device) for x in (ids, targets))
            with accelerator.autocast():
                total += trained(part_ids, part_targets).item() * len(rows)
        reshard(trained)
        return math.fsum(gather(total)) / len(ids)

    return measure


def check_batches(optim: Optim, precision: str, context: int) -> None:
    """Raises UserError where a batch does not fit into memory, or neither it nor weights can be shared."""
    check_sharding(optim.sharding, precision)
    share_of_batch(optim.batch_size, item_bytes=2 * 8 * context)
