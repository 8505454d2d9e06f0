"""From encoder logits to discrete latents: Gumbel-softmax, draws, and how much the latents are used.

Shapes: B or N samples, m slots, k codes per slot. Entropies are in nats. Everything is computed in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.zoo.edm.noise import Source, normal, uniform


class _StraightThrough(torch.autograd.Function):
    """The one-hot of the arg-max forward, the gradient of the relaxed sample backward.

    ``soft + (hard - soft).detach()`` gives the same gradient, but rounding leaves its forward only nearly one-hot.
    """

    @staticmethod
    def forward(ctx, soft: Tensor) -> Tensor:
        return torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def gumbel_softmax(
    logits: Tensor,
    temperature: float = 1.0,
    hard: bool = True,
    generator: torch.Generator | None = None,
    drawn: Tensor | None = None,
) -> Tensor:
    """A relaxed sample of the categorical over the last dimension (Jang et al. 2017, eq. 2), shape of ``logits``.

    hard=True: straight-through, exactly one-hot forward, an exact draw from softmax(logits) at every temperature
    (neither the noise nor the division moves the arg-max), which shapes the gradient alone. hard=False: the relaxed
    sample itself. drawn: numbers in [0, 1), shape of ``logits``, to draw with. Raises ValueError unless
    temperature > 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be greater than 0")
    soft = F.softmax(_perturb(logits, generator, drawn) / temperature, dim=-1)
    return _StraightThrough.apply(soft) if hard else soft


def sample_codes(
    logits: Tensor, temperature: float = 1.0, generator: Source = None, drawn: Tensor | None = None
) -> Tensor:
    """Codes (..., ) int64 drawn from logits (..., k): the arg-max of a Gumbel-softmax sample at ``temperature``.

    The draw follows softmax(logits) for every temperature > 0, the paper's 0.01 included; 0 leaves the noise out and
    returns the most likely codes. drawn: numbers in [0, 1), shape of ``logits``, to draw with.
    """
    if temperature < 0:
        raise ValueError(f"temperature={temperature}: must be at least 0")
    return (_perturb(logits, generator, drawn) if temperature > 0 else logits).argmax(-1)


def split_gaussian(encoded: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance (B, m, d) of the continuous-latent baseline from the encoder's output (B, m, 2d)."""
    mean, log_variance = encoded.float().chunk(2, dim=-1)
    return mean, log_variance.clamp(-12, 6)


def sample_gaussian(
    mean: Tensor, log_variance: Tensor, generator: Source = None, drawn: Tensor | None = None
) -> Tensor:
    """A reparameterised draw, shape of ``mean``; of ``drawn``, where standard normal numbers are given."""
    noise = normal(mean.shape, generator, mean.device) if drawn is None else drawn
    return mean + noise * (0.5 * log_variance).exp()


def _perturb(logits: Tensor, generator: Source, drawn: Tensor | None) -> Tensor:
    """logits + Gumbel(0,1) noise in float32, with the uniforms kept off 0 and 1, where the noise would be infinite."""
    drawn = uniform(logits.shape, generator, logits.device) if drawn is None else drawn
    return logits.float() - drawn.clamp(torch.finfo(torch.float32).tiny, 1 - 2**-24).log_().neg_().log_()


def usage_bonus(logits: Tensor, weight: float, whole: Tensor | None = None) -> Tensor:
    """-weight * H(q̄) averaged over the slots, to be added to the loss against merged and dead codes (scalar).

    whole: (m, k), the q̄ of a batch of which ``logits`` are a part. The entropy is then taken at it to first order, so
    that the mean over the parts has the value and the gradient of the whole batch.
    """
    mean = logits.float().softmax(-1).mean(0)
    if whole is None:
        return -weight * _entropy(mean).mean()
    slope = -(whole.clamp_min(torch.finfo(torch.float32).tiny).log() + 1)
    return -weight * (_entropy(whole) + (slope * (mean - whole)).sum(-1)).mean()


@torch.no_grad()
def latent_use(logits: Tensor) -> dict[str, Tensor]:
    """How much each slot says about the data, from encoder logits (N, m, k); every value has shape (m,).

    usage_entropy H(q̄) of the mean distribution q̄; conditional_entropy E[H(q)], the encoder's own noise;
    mutual_information I = H(q̄) - E[H(q)]; perplexity exp H(q̄); dead_codes, codes with q̄ below a hundredth of even use.
    A high perplexity alone proves nothing: an encoder that ignores its input can have it, with I = 0.
    """
    log_q = logits.float().log_softmax(-1)
    conditional = -(log_q.exp() * log_q).sum(-1).mean(0)
    mean_q = log_q.exp().mean(0)
    usage = _entropy(mean_q)
    return {
        "usage_entropy": usage,
        "conditional_entropy": conditional,
        "mutual_information": (usage - conditional).clamp(min=0),
        "perplexity": usage.exp(),
        "dead_codes": (mean_q < 0.01 / mean_q.shape[-1]).sum(-1),
    }


def joint_codes(codes_Nm: Tensor) -> tuple[Tensor, int]:
    """One id (N,) per sample for its whole tuple of codes, and the number of distinct tuples."""
    tuples, ids = codes_Nm.unique(dim=0, return_inverse=True)
    return ids, len(tuples)


def normalized_mutual_information(a_N: Tensor, b_N: Tensor) -> float:
    """2 I(a;b) / (H(a) + H(b)) of two integer labellings, in [0, 1]; 1 when both are constant."""
    a, b = (labels.cpu().unique(return_inverse=True)[1] for labels in (a_N, b_N))
    joint = torch.zeros(int(a.max()) + 1, int(b.max()) + 1, dtype=torch.float64)
    joint.index_put_((a, b), joint.new_tensor(1 / len(a)), accumulate=True)
    h_a, h_b, h_ab = (float(_entropy(p)) for p in (joint.sum(1), joint.sum(0), joint.flatten()))
    return 1.0 if math.isclose(h_a + h_b, 0, abs_tol=1e-12) else max(0.0, 2 * (h_a + h_b - h_ab) / (h_a + h_b))


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)
