"""The tokenizer's training loss (appendix A.2): reconstruction, perceptual, commitment, and optionally adversarial."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from toolkit.ivideogpt.config import TokenizerLoss
from toolkit.zoo.vq_tokenizer import CompressiveVQModel, Reconstruction

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
        """Loss terms of context (B,T0,3,H,W) and future frames (B,F,3,H,W) in [0, 1]; "loss" is their weighted sum.

        Context and future are averaged separately, so one context frame weighs as much as all future frames.
        """
        found = self.tokenizer(context, future, quantize)
        terms = {
            "reconstruction": self._difference(
                found.sample, future, motion(context, future, self.config.motion_weight)
            ),
            "context_reconstruction": self._difference(found.ref_sample, context, None),
        }
        if quantize:
            terms |= {"codebook": found.commit_loss + found.dyn_commit_loss}
        loss = sum(terms.values(), start=future.new_zeros(()))
        if self.perceptual is not None:
            terms["perceptual"] = self._perceptual(found.sample, future)
            terms["context_perceptual"] = self._perceptual(found.ref_sample, context)
            loss = loss + self.config.perceptual_weight * (terms["perceptual"] + terms["context_perceptual"])
        return {"loss": loss, **terms}, found

    def _difference(self, x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        error = (x - y).abs() if self.config.reconstruction == "l1" else (x - y).square()
        return error.mean() if weight is None else (weight * error).mean()

    def _perceptual(self, x: Tensor, y: Tensor) -> Tensor:
        assert self.perceptual is not None
        return self.perceptual(x.flatten(0, 1), y.flatten(0, 1)).mean()


def motion(context: Tensor, future: Tensor, weight: float) -> Tensor | None:
    """1 + weight x (largest channel difference to the last context frame), (B,F,1,H,W): small movers count (ours)."""
    if not weight:
        return None
    return 1 + weight * (future - context[:, -1:]).abs().amax(2, keepdim=True)


def generator_loss(discriminator: Any, found: Reconstruction, terms: dict[str, Tensor], tokenizer: Any) -> Tensor:
    """lambda x (-mean D), lambda = |grad of the perceptual (else reconstruction) term| / |grad of this one|, both at the
    last convolution of the conditional decoder, at most 1e4 (taming-transformers' balance).
    """
    adversarial = -discriminator(fakes(found)).mean()
    last = tokenizer.cond_decoder.conv_out.weight
    reference = terms.get("perceptual", terms["reconstruction"])
    norms = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (reference, adversarial)]
    return (norms[0] / norms[1].clamp_min(1e-8)).clamp(max=MOST_GAN_WEIGHT).detach() * adversarial


def discriminator_loss(discriminator: Any, found: Reconstruction, context: Tensor, future: Tensor) -> Tensor:
    """Hinge: mean relu(1 + D(fake)) + mean relu(1 - D(real)) over context and future frames together."""
    real = torch.cat([context.flatten(0, 1), future.flatten(0, 1)])
    return torch.relu(1 + discriminator(fakes(found).detach())).mean() + torch.relu(1 - discriminator(real)).mean()


def fakes(found: Reconstruction) -> Tensor:
    """All reconstructed frames of a batch, [N, 3, H, W]."""
    return torch.cat([found.ref_sample.flatten(0, 1), found.sample.flatten(0, 1)])
