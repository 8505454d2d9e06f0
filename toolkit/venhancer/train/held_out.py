"""``evaluate``: the loss on clips that training never saw, with the conditions as they are, shuffled, or taken away."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from toolkit.data.video.clips import clip_paths
from toolkit.data.video.crops import clip_crops
from toolkit.errors import UserError
from toolkit.runs.distributed import barrier, rank
from toolkit.runs.record import Run
from toolkit.runs.seeds import derive, seed_all
from toolkit.show.table import Table
from toolkit.venhancer.config import EnhanceVideo
from toolkit.venhancer.pipeline import VideoEnhancePipeline, load_pipeline
from toolkit.venhancer.train import augment
from toolkit.venhancer.train.objective import conditions, latents_of

STEPS = (99, 299, 499, 699, 899)  # diffusion steps at which the loss is taken
SCALES = (1.5, 2.0, 4.0, 8.0)
FRAME_FACTORS = (1, 2, 4, 8)
BATCH = 8


def evaluate(config: EnhanceVideo, run: Run, accelerator: Accelerator) -> None:
    """Write ``held_out.*`` into the run's metrics and a table: mean squared errors of v."""
    if rank() == 0:
        pipeline = load_pipeline(str(run.dir))
        pipeline.place(torch.float32, accelerator.device, offload=False)
        losses = held_out_losses(pipeline, config, accelerator.device)
        run.record["metrics"].update({f"held_out.{name}": value for name, value in losses.items()})
        rows = [[name, value] for name, value in losses.items()]
        clips = ", ".join(config.data.held_out)
        Table("held-out loss", ["case", "loss"], rows, f"mean squared error of v on {clips}").save(
            run.path("tables", "held_out.json")
        )
    barrier()


def held_out_clips(config: EnhanceVideo) -> list[Path]:
    """The files of ``data.held_out``. Raises UserError for an unknown name."""
    try:
        return [path for name in config.data.held_out for path in clip_paths(name, config.data.path)]
    except UserError as error:
        raise UserError(f"data.held_out: {error}") from None


@torch.no_grad()
def held_out_losses(pipeline: VideoEnhancePipeline, config: EnhanceVideo, device: torch.device) -> dict[str, float]:
    """Losses over the same clips, noise and steps:

    loss; without_control (the base alone); shuffled_scale, shuffled_noise_level (the value of another clip); and loss
    by scale and frame factor.
    """
    sums: dict[str, list[float]] = defaultdict(list)
    for batch, clean_seed in _batches(config, pipeline, device):
        seed_all(clean_seed, "held_out")
        x0, hint = latents_of(pipeline, batch)
        noise, text = torch.randn_like(x0), pipeline.encode_prompt("", "", guided=False).expand(len(x0), -1, -1)
        given = conditions(pipeline, batch, hint, torch.randn_like(hint))
        shuffle = torch.arange(len(x0)).roll(1)
        cases = {
            "loss": given,
            "without_control": {},
            "shuffled_scale": given | {"up_scale": given["up_scale"][shuffle]},
            "shuffled_noise_level": given | {"t_hint": given["t_hint"][shuffle]},
        }
        for step in STEPS:
            steps = torch.full((len(x0),), step, device=device)
            x, target = pipeline.scheduler.add_noise(x0, noise, steps), pipeline.scheduler.velocity(x0, noise, steps)
            for name, case in cases.items():
                error = _errors(pipeline.velocity(x, steps, text, **case), target)
                sums[name] += error.tolist()
                if name == "loss":
                    sums[f"loss.frame_factor_{batch.frame_factor}"] += error.tolist()
                    for scale, one in zip(batch.scale.tolist(), error.tolist(), strict=True):
                        sums[f"loss.scale_{scale:g}"].append(one)
    return {name: math.fsum(values) / len(values) for name, values in sums.items()}


def _errors(v: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(v.float(), target, reduction="none").flatten(1).mean(dim=1)


def _batches(
    config: EnhanceVideo, pipeline: VideoEnhancePipeline, device: torch.device
) -> Iterator[tuple[augment.Degraded, int]]:
    """Crops of every held-out clip, each frame factor and scale in turn."""
    data, paths = config.data, held_out_clips(config)
    crops = clip_crops(paths, data.held_out_crops, data.num_frames, data.crop_px, None, seed=0)
    order = np.random.default_rng(0).permutation(len(crops))
    for number, start in enumerate(range(0, len(order), BATCH)):
        indices = order[start : start + BATCH].tolist()
        factor = min(FRAME_FACTORS[number % len(FRAME_FACTORS)], data.num_frames - 1)
        scale = torch.tensor([SCALES[index % len(SCALES)] for index in range(len(indices))])
        rng = np.random.default_rng(derive(0, "level", number))
        level = torch.from_numpy(rng.integers(0, config.augment.max_noise_level + 1, len(indices)))
        clips = crops.read(indices, augment.frames_for(factor, data.num_frames)).to(device)
        batch = augment.degrade(clips, factor, scale, level, pipeline.fill)
        yield batch, derive(0, "noise", number)
