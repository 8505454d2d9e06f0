"""Stage 2 (Xu et al. 2024, algorithm 2): the prior over latents by maximum likelihood, encoder frozen.

The encoder runs once; z is redrawn from its stored output at every epoch (at temperature 0.01 too these are random
draws from the encoder's distribution, not its arg-max). The weights kept are those with the lowest held-out nats.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from toolkit.data.sets import Split
from toolkit.disco.artefact import Parts
from toolkit.disco.baselines import code_logits
from toolkit.disco.config import TrainDisco
from toolkit.disco.sampling import draw_encoded
from toolkit.runs.loop import Loop, Values
from toolkit.runs.passes import accumulate, scaler_of, update
from toolkit.runs.record import Run
from toolkit.runs.seeds import generator
from toolkit.zoo.disco.prior import LatentDiffusionPrior, MarginalPrior, UniformPrior

ENCODE_BATCH = 1024
MOST_EXACT_BYTES = 2**30


class Latents:
    """Latents of a split, redrawn at will from the encoder's outputs, which are computed once and kept in memory.

    flip: each item is seen mirrored with probability 1/2 at every draw, as the encoder was trained.
    """

    def __init__(self, parts: Parts, split: Split, temperature: float, flip: bool = False) -> None:
        self.parts, self.split, self.temperature, self.flip = parts, split, temperature, flip

    def draw(self, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """One draw of z for every item: (N, m) codes or (N, m, d) numbers, and the class labels a network may see."""
        device = self.parts.denoiser.device
        encoded, labels = self._encoded
        drawn = []
        for part in _batches(len(self.split)):
            outputs = encoded[0][part].to(device).float()
            if self.flip:
                coins = torch.rand(len(outputs), 1, 1, device=device, generator=rng) < 0.5
                outputs = torch.where(coins, encoded[1][part].to(device).float(), outputs)
            drawn.append(draw_encoded(self.parts, outputs, self.temperature, rng))
        return torch.cat(drawn), None if labels is None else labels.to(device)

    @functools.cached_property
    def _encoded(self) -> tuple[list[Tensor], Tensor | None]:
        """The encoder's outputs (N, m, ...) of the items, and of the mirrored ones with ``flip``; the given labels.

        Logits of more than ``MOST_EXACT_BYTES`` are kept as log-probabilities in float16, off by 2e-4 at most as
        probabilities.
        """
        assert self.parts.encoder is not None
        device, discrete = self.parts.denoiser.device, self.parts.denoiser.latent_kind == "discrete"
        outputs: list[list[Tensor]] = [[], []] if self.flip else [[]]
        given: list[Tensor] = []
        for part in _batches(len(self.split)):
            index = torch.arange(len(self.split))[part]
            y, labels = self.split.batch(index)
            known = None if self.split.labels is None else torch.from_numpy(self.split.labels[part]).to(device)
            for mirrored, kept in enumerate(outputs):
                with torch.no_grad():
                    output = code_logits(self.parts.encoder, (y.flip(-1) if mirrored else y).to(device), known)
                is_large = output[0].numel() * output.element_size() * len(self.split) > MOST_EXACT_BYTES
                if discrete and is_large:
                    output = output.float().log_softmax(-1).half()
                kept.append(output.cpu())
            given += [labels] if labels is not None and self.parts.denoiser.num_classes else []
        return [torch.cat(kept) for kept in outputs], torch.cat(given) if given else None


def _batches(num: int) -> Iterator[slice]:
    return (slice(start, min(start + ENCODE_BATCH, num)) for start in range(0, num, ENCODE_BATCH))


def train_prior(
    run: Run,
    config: TrainDisco,
    parts: Parts,
    prior: torch.nn.Module,
    train: Split,
    valid: Split,
    accelerator: Accelerator,
) -> None:
    """Fit ``prior`` in place to the latents of ``train``.

    A uniform prior has nothing to fit and a marginal one is fitted by counting. The others are trained by gradient and
    log the held-out nats of ``valid``.
    """
    if isinstance(prior, UniformPrior):
        return
    temperature, device = config.latents.extraction_temperature, parts.denoiser.device
    train_latents = Latents(parts, train, temperature, config.data.flip)
    if isinstance(prior, MarginalPrior):
        prior.fit(*train_latents.draw(generator(config.seed, "prior", 0, device=device)))
        return
    held_out = Latents(parts, valid, temperature).draw(generator(config.seed, "prior", "valid", device=device))
    _maximise_likelihood(run, config, prior, train_latents, held_out, accelerator)


def _maximise_likelihood(
    run: Run,
    config: TrainDisco,
    prior: torch.nn.Module,
    latents: Latents,
    held_out: tuple[Tensor, Tensor | None],
    accelerator: Accelerator,
) -> None:
    settings, device = config.prior, held_out[0].device
    optimizer = torch.optim.AdamW(prior.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.num_steps)
    best = copy.deepcopy(prior)
    progress = Values(best=float("inf"), waited=0)
    state: dict[str, Any] = {"prior": prior, "optimizer": optimizer, "schedule": schedule, "best": best}
    state |= {"progress": progress, **scaler_of(accelerator)}
    loop = Loop(run, "prior", settings.num_steps, state=state, replicated=True)
    batch_size = min(settings.batch_size, len(latents.split))
    steps_per_epoch = len(latents.split) // batch_size
    epoch, codes, labels = -1, held_out[0], held_out[1]
    prior.train()
    loss_of = functools.partial(negative_log_likelihood, prior)
    for step in loop:
        if step // steps_per_epoch != epoch:
            epoch = step // steps_per_epoch
            rng = generator(config.seed, "prior", epoch, device=device)
            codes, labels = latents.draw(rng)
            order = torch.randperm(len(codes), device=device, generator=rng)
        index = order[step % steps_per_epoch * batch_size :][:batch_size]
        batch = (codes[index], None if labels is None else labels[index], _noise(prior, codes[index]))
        terms = accumulate(loss_of, batch, settings.micro_batch_size, accelerator)
        update(optimizer, prior.parameters(), settings.grad_clip, accelerator)
        schedule.step()
        loop.log(**terms)
        if (step + 1) % settings.eval_every_steps == 0 or step + 1 == settings.num_steps:
            nats = evaluate(prior, *held_out)
            run.log("prior", step + 1, held_out_nats=nats)
            if nats < progress["best"]:
                progress.update(best=nats, waited=0)
                best.load_state_dict(prior.state_dict())
            else:
                progress["waited"] += 1
                loop.stop_early = progress["waited"] >= settings.patience
    prior.load_state_dict(best.state_dict())
    prior.eval()


def negative_log_likelihood(
    prior: torch.nn.Module, latents: Tensor, class_labels: Tensor | None, noise: Tensor | None = None
) -> Tensor:
    """Mean nats per item (eq. 4 with its sign), or the denoising loss where the prior is a diffusion model.

    noise: as that loss takes it.
    """
    if isinstance(prior, LatentDiffusionPrior):
        return prior.loss(latents, class_labels, noise=noise)
    return prior.nll(latents, class_labels).mean()  # type: ignore[operator]


def _noise(prior: torch.nn.Module, latents: Tensor) -> Tensor | None:
    """What a diffusion prior's loss of ``latents`` draws."""
    return prior.draw(len(latents)) if isinstance(prior, LatentDiffusionPrior) else None


@torch.no_grad()
def evaluate(prior: torch.nn.Module, latents: Tensor, class_labels: Tensor | None) -> float:
    """Held-out nats per item (dropout off), in batches; a diffusion prior's noise is the same at every call."""
    was_training = prior.training
    prior.eval()
    total = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for start in range(0, len(latents), ENCODE_BATCH):
            part = slice(start, start + ENCODE_BATCH)
            labels = None if class_labels is None else class_labels[part]
            total += float(negative_log_likelihood(prior, latents[part], labels)) * len(latents[part])
    prior.train(was_training)
    return total / len(latents)
