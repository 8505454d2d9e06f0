"""What each stage of ``grow-llm`` trains, and on what, for ``toolkit plan``."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from toolkit.errors import UserError
from toolkit.runs.stage_shape import Networks, StageShape
from toolkit.stacking.config import GrowLLM
from toolkit.stacking.pretrain.dry_run import arms
from toolkit.stacking.pretrain.language_loss import LanguageModelLoss
from toolkit.stacking.pretrain.networks import unfilled
from toolkit.zoo.checkpointing import checkpointing_of


def stages(config: GrowLLM) -> list[StageShape]:
    """The stages that train, in order. Raises UserError where the stage trains nothing, or as the run would."""
    if config.stage not in ("all", "pretrain"):
        raise UserError(f"stage={config.stage}: trains nothing; stage=all and stage=pretrain do")
    optim, context, trained = config.optim, config.network.context, arms(config)
    builds = {id(network): partial(_networks, network, config) for _, network, _ in trained}
    itemsize = 2 if config.tokenize.vocab_size <= 2**16 else 4
    return [
        StageShape(
            name,
            "sequences",
            math.ceil(math.ceil(tokens / context) / optim.batch_size),
            optim.batch_size,
            builds[id(network)],
            config.precision,
            optim.micro_batch_size,
            optim.gradient_checkpointing,
            sharded=optim.sharding == "fsdp",
            half=config.precision == "bf16",
            repeats=len(config.scratch_lrs()) if name == "scratch" else 1,
            cache_bytes=0 if number else round(itemsize * max(one[2] for one in trained)),
        )
        for number, (name, network, tokens) in enumerate(trained)
        if tokens
    ]


def _networks(network_config: Any, config: GrowLLM) -> Networks:
    network = unfilled(network_config).train()
    module, context = LanguageModelLoss(network), config.network.context

    def loss(batch: int) -> Tensor:
        ids = torch.randint(network_config.vocab_size, (batch, context))
        return module(ids, ids)

    return Networks(module, loss, units=list(network.model.layers), recompute=checkpointing_of(network))
