"""Training G_learn's map for one growth of a run: which sequences, how long, what is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from toolkit.runs import progress
from toolkit.stacking.checkpoint import Checkpoint
from toolkit.stacking.config import GrowLLM
from toolkit.stacking.growth import grow
from toolkit.stacking.learn import GrowthMap, train_map
from toolkit.stacking.tokens import Sequences, TokenStore


def trained_map(
    config: GrowLLM, base: Checkpoint, store: TokenStore, context: int, device: Any = "cpu", first: int = 0
) -> GrowthMap | None:
    """G_learn's map of ``base``, trained on ``store`` from sequence ``first`` on; None for other operators.

    Raises UserError where the operator does not fit or the corpus is too short, JobError for a loss that is not finite.
    """
    if config.operator != "learn":
        return None
    learn = config.learn
    grown = grow(base.architecture, base.config, base.tensors, config.growth(), config.seed)
    assert grown.growth_map is not None
    growth_map = grown.growth_map.to(device)
    sequences = Sequences(store.train, context, config.seed)
    with progress.bar("learn", 0, learn.num_steps) as bar:

        def batches() -> Iterator[Tensor]:
            for step in range(learn.num_steps):
                ids, _ = sequences.batch(first + step * learn.batch_size, learn.batch_size)
                yield ids.to(device)
                bar.advance(step + 1)

        train_map(
            growth_map,
            grown.config,
            base.tensors,
            batches(),
            num_steps=learn.num_steps,
            warmup_steps=learn.warmup_steps,
            max_learning_rate=learn.lr,
            min_learning_rate=learn.min_lr,
        )
    return growth_map.cpu()
