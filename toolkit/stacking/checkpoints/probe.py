"""Did growth keep the function? Logits of source and target on the same tokens, as transformers loads the two."""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.errors import UserError
from toolkit.runs.seeds import generator
from toolkit.stacking.checkpoints.load import load_network
from toolkit.stacking.checkpoints.open import Checkpoint
from toolkit.stacking.operators.tensors import Tensors

IN_MEMORY = 2**28  # parameters of a network that is loaded as a whole, 1 GiB in float32; a larger one layer by layer
MAX_TOKENS = 256
SAMPLE_TEXT = """A river begins as rain that the ground could not hold. It runs downhill by the easiest way, and
where the slope is gentle it slows, drops its sand, and bends. People who settle beside it learn its
habits: the fields that flood in March, the ford that can be crossed on foot in September, the mill
that stands idle when the summer is dry. In time they build a bridge, first of wood, then of stone,
and quarrel about who should pay for it. Years later a child asks why the old road does not lead to
the bridge, and somebody explains that the river used to be elsewhere."""


@dataclass(frozen=True)
class Preservation:
    """The comparison of two networks.

    measured_on: "text" or "random ids". max_logit_change: largest absolute difference of logits, whose standard
    deviation in the source is ``logit_std``. verdict: "exact" (no difference), "preserved" (within ``tolerance``, the
    rounding of the stored type), "not preserved". Losses in nats per token, perplexities their exponentials.
    """

    verdict: str
    measured_on: str
    num_tokens: int
    max_logit_change: float
    logit_std: float
    tolerance: float
    source_loss: float
    target_loss: float
    source_perplexity: float
    target_perplexity: float

    def as_dict(self) -> dict[str, Any]:
        """For reports."""
        return asdict(self)


def preservation(
    source: Checkpoint, target: Path, tensors: Tensors, text: str | None = None, seed: int = 0
) -> Preservation:
    """Compare the source with the checkpoint in the folder ``target``, whose weights are ``tensors``.

    On ``text``, else a built-in paragraph; without a tokenizer random token ids serve, and ``measured_on`` says so.
    Both are read by transformers, not by what read and wrote them here: an error in that would go unseen.
    """
    ids, measured_on = probe_ids(source, text, seed)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        before = transformers_logits(source.folder or Path(source.source), ids, source.tensors, scratch)
        if not before.isfinite().all():
            raise UserError(f"{source.source}: {_not_finite(source.tensors)}; measure=false grows it all the same")
        after = transformers_logits(target, ids, tensors, scratch)
    change, std = (after - before).abs().max().item(), before.std().item()
    tolerance = _tolerance({info.dtype for info in tensors.infos.values()}) * max(1.0, std)
    verdict = "exact" if change == 0 else "preserved" if change <= tolerance else "not preserved"
    losses = [F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item() for logits in (before, after)]
    perplexities = [math.exp(min(loss, 700.0)) for loss in losses]
    return Preservation(verdict, measured_on, ids.numel(), change, std, tolerance, *losses, *perplexities)


def _not_finite(tensors: Tensors) -> str:
    """What is wrong with weights whose logits are not finite numbers."""
    bad = (name for name in tensors.infos if not tensors.read(name).isfinite().all())
    name = next(bad, None)
    return f"{name} holds numbers that are not finite" if name else "its logits are not finite numbers in float32"


def probe_ids(source: Checkpoint, text: str | None, seed: int) -> tuple[Tensor, str]:
    """Token ids (1, T) to compare on, at most MAX_TOKENS, and what they are: "text" or "random ids"."""
    limit, vocabulary = min(MAX_TOKENS, source.architecture.context(source.config)), source.config.vocab_size
    if source.tokenizer is not None:
        ids = source.tokenizer(text or SAMPLE_TEXT, return_tensors="pt", verbose=False).input_ids[:, :limit]
        if ids.shape[1] > 1 and ids.max() < vocabulary:
            return ids, "text"
    draws = generator(seed, "probe")
    return torch.randint(vocabulary, (1, min(128, limit)), generator=draws), "random ids"


@torch.no_grad()
def transformers_logits(where: Path, ids: Tensor, tensors: Tensors, scratch: str) -> Tensor:
    """Logits (B, T, V) in float32 of token ids (B, T). Of a large network memory holds a layer at a time."""
    large = sum(math.prod(info.shape) for info in tensors.infos.values()) > IN_MEMORY
    network = load_network(str(where), torch.float32, scratch if large and where.is_dir() else None)
    return network(ids, use_cache=False).logits.float()


def _tolerance(dtypes: set[torch.dtype]) -> float:
    """Of logits with a standard deviation of one, for weights rounded to the coarsest of these types."""
    return max(1e-4, *(16 * torch.finfo(dtype).eps for dtype in dtypes))
