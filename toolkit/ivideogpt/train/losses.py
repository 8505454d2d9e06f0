"""The tokenizer's training loss (appendix A.2): reconstruction, perceptual, commitment, and optionally adversarial."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from toolkit.ivideogpt.config import TokenizerLoss
from toolkit.zoo.world.tokenizer import CompressiveVQModel, Reconstruction

MOST_GAN_WEIGHT = 1e4


class TokenizerObjective(nn.Module):
    """A tokenizer and its loss in one module, so that it can be trained on several processes.

    ``codebook_loss``: also the term that moves the codes by gradient (not with EMA codebooks).
    """

    def __init__(self, tokenizer: CompressiveVQModel, config: TokenizerLoss, perceptual: nn.Module | None):
        super().__init__()
        self.tokenizer, self.config, self.perceptual = tokenizer, config, perceptual
        for quantizer in (tokenizer.quantize, tokenizer.dynamics_quantize):
            quantizer.commitment = config.commitment

    def forward(self, context: Tensor, future: Tensor, quantize: bool) -> tuple[dict[str, Tensor], Reconstruction]:
        """Loss terms of context (B, T0, 3, H, W) and future frames (B, F, 3, H, W) in [0, 1]; "loss" is their sum.

        The sum is weighted. Context and future are averaged separately, so one context frame weighs as much as all
        future frames.
        """
        found = self.tokenizer(context, future, quantize)
        keys = self.config
        moving = emphasis(future, context[:, -1:], keys.motion_weight)
        salient = [emphasis(frames, median(frames), keys.contrast_weight) for frames in (future, context)]
        terms = {
            "reconstruction": self._difference(found.sample, future, 1 + torch.maximum(moving, salient[0])),
            "context_reconstruction": self._difference(found.ref_sample, context, 1 + salient[1]),
        }
        if quantize:
            terms |= {"codebook": found.commit_loss + found.dyn_commit_loss}
        loss = sum(terms.values(), start=future.new_zeros(()))
        if self.perceptual is not None:
            terms["perceptual"] = self._perceptual(found.sample, future)
            terms["context_perceptual"] = self._perceptual(found.ref_sample, context)
            loss = loss + self.config.perceptual_weight * (terms["perceptual"] + terms["context_perceptual"])
        return {"loss": loss, **terms}, found

    def _difference(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        error = (x - y).abs() if self.config.reconstruction == "l1" else (x - y).square()
        return (weight * error).mean()

    def _perceptual(self, x: Tensor, y: Tensor) -> Tensor:
        assert self.perceptual is not None
        return self.perceptual(x.flatten(0, 1), y.flatten(0, 1)).mean()


def emphasis(frames: Tensor, reference: Tensor, weight: float) -> Tensor:
    """weight x the largest channel difference to ``reference``, (B, T, 1, H, W) or, where it is 0, a scalar (ours).

    Under a plain L1 loss small objects are left out: drawing them imprecisely, as at first, costs more than not at all.
    """
    return weight * (frames - reference).abs().amax(2, keepdim=True) if weight else frames.new_zeros(())


def median(frames: Tensor) -> Tensor:
    """The median colour of each frame, (B, T, 3, 1, 1): its background, where there is one."""
    return frames.flatten(-2).median(-1).values[..., None, None]


def generator_loss(
    discriminator: Any, found: Reconstruction, terms: dict[str, Tensor], tokenizer: Any, weight: Tensor | None = None
) -> Tensor:
    """lambda x (-mean D), lambda = ``weight``, or the ``balance`` of the two gradients where none is given."""
    adversarial = -discriminator(fakes(found)).mean()
    if weight is None:
        weight = balance(*last_gradients(adversarial, terms, tokenizer))
    return weight.detach() * adversarial


def last_gradients(adversarial: Tensor, terms: dict[str, Tensor], tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Gradients of the perceptual (else reconstruction) term and of the adversarial one, at the conditional decoder's
    last convolution."""
    last = tokenizer.cond_decoder.conv_out.weight
    reference = terms.get("perceptual", terms["reconstruction"])
    first, second = (torch.autograd.grad(term, last, retain_graph=True)[0] for term in (reference, adversarial))
    return first, second


def balance(reference: Tensor, adversarial: Tensor) -> Tensor:
    """lambda = |gradient of the reference| / |adversarial gradient|, at most 1e4 (taming-transformers' balance)."""
    return (reference.norm() / adversarial.norm().clamp_min(1e-8)).clamp(max=MOST_GAN_WEIGHT)


def hinge(discriminator: Any, images: Tensor, sign: int) -> Tensor:
    """The discriminator's loss on images: mean relu(1 - D) of real ones (sign 1), mean relu(1 + D) of fakes (-1)."""
    return torch.relu(1 - sign * discriminator(images.detach())).mean()


def fakes(found: Reconstruction) -> Tensor:
    """All reconstructed frames of a batch, (N, 3, H, W)."""
    return torch.cat([found.ref_sample.flatten(0, 1), found.sample.flatten(0, 1)])
