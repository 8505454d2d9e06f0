"""The Inception score (Salimans et al. 2016): how sure and how varied a classifier finds samples."""

from __future__ import annotations

import torch
from torch import Tensor


def inception_score(probabilities: Tensor, split_size: int = 5000) -> float:
    """exp of the mean KL divergence between each p(y|x) and their mean p(y), per split of ``split_size`` images in
    order (ADM's evaluator), then their mean over the splits: 1 at worst, the number of classes at best.

    ``probabilities``: (n, classes), rows that sum to 1. Raises ValueError for no rows.
    """
    if not len(probabilities):
        raise ValueError("no images to score")
    scores = []
    for split in probabilities.double().split(split_size):
        marginal = split.mean(0, keepdim=True)
        divergence = torch.special.xlogy(split, split) - torch.special.xlogy(split, marginal)
        scores.append(divergence.sum(1).mean().exp())
    return float(torch.stack(scores).mean())
