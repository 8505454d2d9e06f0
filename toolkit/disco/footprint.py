"""What each stage of ``train-disco`` trains, and on what, for ``toolkit plan``."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from toolkit import data
from toolkit.data.sets import Dataset
from toolkit.disco.build import build_prior, build_stage, latent_shape, wants_classes
from toolkit.disco.config import TrainDisco
from toolkit.disco.stage1 import JointModel
from toolkit.disco.stage2 import negative_log_likelihood
from toolkit.runs.stage_shape import Networks, StageShape
from toolkit.zoo.checkpointing import checkpointed_blocks, checkpointing_of
from toolkit.zoo.disco.prior import LatentDiffusionPrior

NO_CLASSES = "without classes: how many there are is not known before the folder is read"


def stages(config: TrainDisco) -> list[StageShape]:
    """The stages that train, in order. Raises UserError naming the key that would tell the shape of the data."""
    asks = wants_classes(config)
    config = replace(config, init=None)  # whose network is the config's
    dataset = data.stand_in(config.data)
    unknown = (NO_CLASSES,) if asks and not dataset.class_names else ()
    if config.latents.kind == "labels":
        dataset.num_classes = 0
    assert dataset.sigma_data  # measured here, once: where networks are built there are only shapes
    optim, prior = config.optim, config.prior
    found = {
        name: StageShape(
            name,
            "images",
            optim.num_steps,
            optim.batch_size,
            partial(_stage_1, config, dataset, name),
            config.precision,
            optim.micro_batch_size,
            optim.gradient_checkpointing,
            sharded=optim.sharding == "fsdp",
            notes=(*unknown, *_snapshots(config)),
        )
        for name in ("denoiser", "baseline")
    }
    if config.latents.kind == "continuous" or (config.latents.kind != "none" and prior.kind == "autoregressive"):
        build = partial(_stage_2, config, dataset)
        found["prior"] = StageShape(
            "prior",
            "codes",
            prior.num_steps,
            prior.batch_size,
            build,
            config.precision,
            prior.micro_batch_size,
            replicated=True,
        )
    return [found[name] for name in config.stages() if name in found]


def _snapshots(config: TrainDisco) -> tuple[str, ...]:
    """What post-hoc EMA adds to the disk."""
    optim = config.optim
    number = len(optim.ema_sigma_rels) * math.ceil(optim.num_steps / optim.ema_snapshot_every_steps)
    return (f"{number} snapshots of averages, each as large as the denoiser's weights",) if number else ()


def _stage_1(config: TrainDisco, dataset: Dataset, name: str) -> Networks:
    joint = JointModel(*build_stage(config, dataset, name), config)
    of_labels = config.latents.kind == "labels"

    def loss(batch: int) -> Tensor:
        y = torch.randn(batch, *dataset.shape)
        labels = torch.randint(dataset.num_classes, (batch,)) if dataset.num_classes else None
        known = torch.randint(len(dataset.class_names), (batch,)) if of_labels else None
        return joint(y, labels, known)[0]

    return Networks(
        joint,
        loss,
        averaged=[joint.denoiser, *(copy.deepcopy(joint.denoiser) for _ in config.optim.ema_sigma_rels)],
        units=checkpointed_blocks(joint),
        recompute=checkpointing_of(joint.denoiser),
    )


def _stage_2(config: TrainDisco, dataset: Dataset) -> Networks:
    denoiser, encoder = build_stage(config, dataset, "denoiser")
    prior = build_prior(config, dataset)
    assert prior is not None and encoder is not None
    slots, size = latent_shape(config, len(dataset.class_names))

    def loss(batch: int) -> Tensor:
        numbers = isinstance(prior, LatentDiffusionPrior)
        latents = torch.randn(batch, slots, size) if numbers else torch.randint(size, (batch, slots))
        labels = torch.randint(dataset.num_classes, (batch,)) if dataset.num_classes else None
        return negative_log_likelihood(prior, latents, labels)

    frozen = [denoiser.requires_grad_(False), encoder.requires_grad_(False)]
    return Networks(prior.train(), loss, frozen, averaged=[prior])
