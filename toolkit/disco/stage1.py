"""Stage 1 (Xu et al. 2024, algorithm 1): denoiser and encoder trained end to end with the EDM loss.

Shapes: B batch, m slots, k codes per slot. Everything random comes from the default generators, which the loop
reseeds at each step.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from toolkit.disco.baselines import code_logits
from toolkit.disco.config import Latents, Loss, TrainDisco
from toolkit.disco.discretize import (
    gumbel_softmax,
    latent_use,
    sample_codes,
    sample_gaussian,
    split_gaussian,
    usage_bonus,
)
from toolkit.runs.distributed import world_size
from toolkit.runs.passes import add_terms, passes
from toolkit.zoo.checkpointing import called
from toolkit.zoo.disco.encoders import LatentEncoder
from toolkit.zoo.edm.denoiser import Denoiser
from toolkit.zoo.edm.latents import SlotLinear
from toolkit.zoo.edm.loss import add_noise, drop_labels, edm_weight, weighted_error

RESTART_EVERY_STEPS = 200
EDM_P_MEAN, EDM_P_STD = -1.2, 1.2  # ln sigma of EDM's ImageNet-64 training, the reference of edm_monotonic


class JointModel(nn.Module):
    """Denoiser and encoder as one module, so that DDP synchronises the gradients of both.

    ``forward(y, class_labels, known_labels)`` is the training loss of one batch of clean samples, with a few scalars.
    """

    def __init__(self, denoiser: Denoiser, encoder: LatentEncoder | None, config: TrainDisco):
        super().__init__()
        self.denoiser, self.encoder = denoiser, encoder
        self.loss_config: Loss = config.loss
        self.latents: Latents = config.latents
        usage = torch.full((denoiser.num_latents, denoiser.codebook_size), 1 / max(1, denoiser.codebook_size))
        self.register_buffer("mean_usage", usage)
        self.mean_usage: Tensor
        self.whole_use: Tensor | None = None  # mean use of the codes (m, k) in the batch of which a pass is a part

    def draw(self, batch_size: int) -> dict[str, Tensor]:
        """What is random in the loss of ``batch_size`` samples, one row each, from the default generator."""
        device, latents = self.mean_usage.device, self.latents
        drawn = {
            "level": torch.randn(batch_size, device=device),
            "noise": torch.randn(batch_size, *self.denoiser.shape, device=device),
        }
        if self.encoder is not None:
            shape = (batch_size, self.denoiser.num_latents, self.denoiser.codebook_size)
            make = torch.randn if latents.kind == "continuous" else torch.rand
            drawn |= {"latents": make(shape, device=device), "drop": torch.rand(batch_size, device=device)}
        if self.denoiser.num_classes and self.loss_config.label_drop:
            drawn["label_drop"] = torch.rand(batch_size, 1, device=device)
        return drawn

    def forward(
        self,
        y: Tensor,
        class_labels: Tensor | None,
        known_labels: Tensor | None = None,
        drawn: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """EDM loss (eq. 3 of the paper; Karras et al. 2022, eq. 2 and table 1).

        y: clean samples (B, ...). class_labels: int64 (B,) condition or None. known_labels: int64 (B,), read only
        when true labels serve as latents. drawn: as ``draw`` gives it.
        """
        drawn = self.draw(len(y)) if drawn is None else drawn
        x, sigma = add_noise(y, self.loss_config.p_mean, self.loss_config.p_std, (drawn["level"], drawn["noise"]))
        latents, penalty, logits = self._draw_latents(y, known_labels, drawn.get("latents"))
        drop = None if latents is None else drawn["drop"] < self.latents.drop
        labels = self._drop_labels(class_labels, drawn.get("label_drop"))
        denoised = self.denoiser(x, sigma, labels, latents=latents, drop=drop)
        loss = weighted_error(denoised, y, loss_weight(sigma, self.denoiser.sigma_data, self.loss_config))
        logs = {"loss": loss.detach()}
        if logits is not None and self.latents.kind == "discrete":
            logs["logits"] = logits.detach()
        return loss + penalty, logs

    def _draw_latents(
        self, y: Tensor, known_labels: Tensor | None, drawn: Tensor | None
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """z ~ E(y), what it adds to the loss, and the encoder's logits."""
        zero = y.new_zeros(())
        if self.encoder is None:
            return None, zero, None
        kind = self.latents.kind
        if kind in ("labels", "kmeans", "random"):
            with torch.no_grad():
                return sample_codes(code_logits(self.encoder, y, known_labels), drawn=drawn), zero, None
        logits = code_logits(self.encoder, y, known_labels)
        if kind == "continuous":
            mean, log_variance = split_gaussian(logits)
            latents = sample_gaussian(mean, log_variance, drawn=drawn)
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1).mean()
            return latents, self.latents.kl_weight * divergence / y[0].numel(), logits
        latents = gumbel_softmax(logits, self.latents.temperature, self.latents.hard, drawn=drawn)
        penalty = usage_bonus(logits, self.latents.usage_bonus, self.whole_use) if self.latents.usage_bonus else zero
        return latents, penalty, logits

    def _drop_labels(self, class_labels: Tensor | None, uniform: Tensor | None = None) -> Tensor | None:
        """One-hot labels with whole rows zeroed at ``loss.label_drop``, for classifier-free guidance on the class."""
        if class_labels is None or self.loss_config.label_drop == 0:
            return class_labels
        return drop_labels(class_labels, self.denoiser.num_classes, self.loss_config.label_drop, uniform)

    @torch.no_grad()
    def note_usage(self, logits: Tensor) -> None:
        """Take the logits (B, m, k) of a step's whole batch into the running mean use of the codes."""
        self.mean_usage.lerp_(logits.softmax(-1).mean(0), 0.05)

    @torch.no_grad()
    def restart_dead_codes(self) -> int:
        """Give each dead code half of the use of its slot's most used one. Returns how many were restarted."""
        assert self.encoder is not None
        weight, bias = _head_rows(self.encoder, *self.mean_usage.shape)
        tables = _embedding_tables(self.denoiser)
        dead = (self.mean_usage < 0.01 / self.mean_usage.shape[1]).nonzero().tolist()
        for slot, code in dead:
            most_used = int(self.mean_usage[slot].argmax())
            noise = 0.05 * weight[slot, most_used].std() * torch.randn_like(weight[slot, code])
            weight[slot, code] = weight[slot, most_used] + noise
            bias[slot, most_used] -= math.log(2)
            bias[slot, code] = bias[slot, most_used]
            tables[slot][code] = tables[slot][most_used]
            self.mean_usage[slot, most_used] /= 2
            self.mean_usage[slot, code] = self.mean_usage[slot, most_used]
        return len(dead)


def backward(
    trained: Any,
    joint: JointModel,
    batch: tuple[Tensor, Tensor | None, Tensor | None],
    drawn: dict[str, Tensor],
    micro_batch_size: int | None,
    accelerator: Accelerator,
) -> tuple[Tensor, Tensor | None]:
    """Leave the gradients of the loss of this process's ``batch``; its mean loss and the encoder's logits.

    trained: ``joint``, wrapped for several processes. drawn: as ``joint.draw`` gives it, for the items of ``batch``.
    """
    is_part = world_size() > 1 or (micro_batch_size or len(batch[0])) < len(batch[0])
    if is_part and joint.latents.usage_bonus and joint.encoder is not None and joint.latents.kind == "discrete":
        joint.whole_use = _whole_use(joint, batch[0], micro_batch_size, accelerator)
    means: dict[str, Tensor] = {}
    logits = []
    for part, share in passes(trained, (*batch, drawn), micro_batch_size):
        with accelerator.autocast():
            loss, logs = trained(*part)
        accelerator.backward(loss * share)
        logits += [logs.pop("logits")] if "logits" in logs else []
        add_terms(means, logs, share)
    return means["loss"], torch.cat(logits) if logits else None


@torch.no_grad()
def _whole_use(joint: JointModel, y: Tensor, micro_batch_size: int | None, accelerator: Accelerator) -> Tensor:
    """The mean distribution over the codes (m, k) in the batch of all processes."""
    use = torch.zeros_like(joint.mean_usage)
    for part, share in passes(joint, y, micro_batch_size):
        with accelerator.autocast():
            logits = called(_logits, joint, part)
        use += logits.float().softmax(-1).mean(0) * share
    return accelerator.reduce(use, "mean")  # type: ignore[no-any-return]


def _logits(joint: JointModel, y: Tensor) -> Tensor:
    assert joint.encoder is not None
    return code_logits(joint.encoder, y)


def _embedding_tables(denoiser: Denoiser) -> list[Tensor]:
    """One view (k, W) per slot of the denoiser's embedding tables."""
    return [table for embedding in denoiser.latent_embedding or [] for table in embedding.maps.weight]  # type: ignore


def _head_rows(encoder: LatentEncoder, num_latents: int, codebook_size: int) -> tuple[Tensor, Tensor]:
    """Views (m, k, inputs) and (m, k) of the weights and biases behind each code's logit."""
    head = encoder.head
    bias = head.bias.view(num_latents, codebook_size)  # type: ignore[union-attr, operator]
    if isinstance(head, SlotLinear):
        return head.weight.transpose(1, 2), bias
    return head.weight.view(num_latents, codebook_size, -1), bias  # type: ignore[union-attr, operator]


def loss_weight(sigma: Tensor, sigma_data: float, config: Loss) -> Tensor:
    """lambda(sigma) of the squared error: EDM's (Karras et al. 2022, table 1), or "edm_monotonic".

    The monotonic one follows VDM++ (Kingma and Gao 2023; our reading): the weight per unit of log-SNR is EDM's, held
    at its peak on the noisy side, with the log-SNR shifted by ``log_snr_shift`` (2 ln(64 / H) for H pixels). It is
    divided by the density that sigma is drawn from, so the choice of p_mean and p_std changes variance, not the aim.
    """
    if config.weighting == "edm":
        return edm_weight(sigma, sigma_data)
    log_sigma = sigma.log()
    density = (-0.5 * ((log_sigma - config.p_mean) / config.p_std).square()).exp()
    peak = _peak_log_sigma(sigma_data)
    shifted = (log_sigma + 0.5 * config.log_snr_shift).clamp(max=peak)
    return _weight_of_noise(shifted, sigma_data) / (density * sigma.square())


def _weight_of_noise(log_sigma: Tensor, sigma_data: float) -> Tensor:
    """EDM's weight on the error of the predicted noise, per unit of ln sigma, up to a constant."""
    density = (-0.5 * ((log_sigma - EDM_P_MEAN) / EDM_P_STD).square()).exp()
    return (log_sigma.exp().square() / sigma_data**2 + 1) * density


@functools.cache
def _peak_log_sigma(sigma_data: float) -> float:
    grid = torch.linspace(-8, 8, 16001, dtype=torch.float64)
    return float(grid[_weight_of_noise(grid, sigma_data).argmax()])


def latent_summary(logits: Tensor) -> dict[str, float]:
    """What the loop logs of latent use: mutual information summed over slots, lowest perplexity, dead codes."""
    use = latent_use(logits)
    return {
        "mutual_information": float(use["mutual_information"].sum()),
        "perplexity": float(use["perplexity"].min()),
        "dead_codes": float(use["dead_codes"].sum()),
    }


def collapse_warning(summary: dict[str, float], num_latents: int) -> str | None:
    """One line when the latents say nothing (under 0.05 nats a slot), with the cheap remedies; else None."""
    if summary["mutual_information"] >= 0.05 * num_latents:
        return None
    return (
        f"the latents carry {summary['mutual_information']:.3f} nats in {num_latents} slots: collapse; "
        "try latents.usage_bonus=0.1, latents.encoder.init_scale=3 or latents.restart_dead_codes=true"
    )
