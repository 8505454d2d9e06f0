"""Did growth keep the function? Logits of source and target on the same tokens, one layer in memory at a time."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.runs.seeds import generator
from toolkit.stacking.checkpoints.open import Checkpoint
from toolkit.stacking.operators.architecture import Architecture
from toolkit.stacking.operators.tensors import Tensors

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
    source: Checkpoint, config: Any, tensors: Tensors, text: str | None = None, seed: int = 0
) -> Preservation:
    """Compare the source with the target (``config``, ``tensors``) on ``text`` (else a built-in paragraph).

    Without a tokenizer random token ids serve, and ``measured_on`` says so.
    """
    ids, measured_on = probe_ids(source, text, seed)
    before = streamed_logits(source.architecture, source.config, source.tensors, ids)
    after = streamed_logits(source.architecture, config, tensors, ids)
    change, std = (after - before).abs().max().item(), before.std().item()
    tolerance = _tolerance({info.dtype for info in tensors.infos.values()}) * max(1.0, std)
    verdict = "exact" if change == 0 else "preserved" if change <= tolerance else "not preserved"
    losses = [F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item() for logits in (before, after)]
    perplexities = [math.exp(min(loss, 700.0)) for loss in losses]
    return Preservation(verdict, measured_on, ids.numel(), change, std, tolerance, *losses, *perplexities)


def probe_ids(source: Checkpoint, text: str | None, seed: int) -> tuple[Tensor, str]:
    """Token ids (1,T) to compare on, at most MAX_TOKENS, and what they are: "text" or "random ids"."""
    limit = min(MAX_TOKENS, source.config.max_position_embeddings)
    if source.tokenizer is not None:
        ids = source.tokenizer(text or SAMPLE_TEXT, return_tensors="pt", verbose=False).input_ids[:, :limit]
        if ids.shape[1] > 1:
            return ids, "text"
    draws = generator(seed, "probe")
    return torch.randint(source.config.vocab_size, (1, min(128, limit)), generator=draws), "random ids"


@torch.no_grad()
def streamed_logits(
    architecture: Architecture, config: Any, tensors: Tensors, ids: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Logits (B,T,V) of token ids (B,T), computed in ``dtype``; each layer's weights are there only while it runs."""
    network: Any = architecture.skeleton(config)
    stages = {"model.embed_tokens": network.model.embed_tokens, "model.norm": network.model.norm}
    stages |= {f"{architecture.layer_prefix}{i}": block for i, block in enumerate(network.model.layers)}
    stages["lm_head"] = network.lm_head
    for path, module in stages.items():
        origin = "model.embed_tokens" if path == "lm_head" and architecture.tied(config) else path
        module.register_forward_pre_hook(_loader(tensors, origin, dtype))
        module.register_forward_hook(_unloader)
    return network(ids, use_cache=False).logits


def _loader(tensors: Tensors, path: str, dtype: torch.dtype) -> Any:
    def load(module: nn.Module, _: Any) -> None:
        state = {name: tensors.read(f"{path}.{name}").to(dtype) for name, _ in module.named_parameters()}
        module.load_state_dict(state, strict=True, assign=True)

    return load


def _unloader(module: nn.Module, _: Any, __: Any) -> None:
    module.to("meta")


def _tolerance(dtypes: set[torch.dtype]) -> float:
    """Of logits with a standard deviation of one, for weights rounded to the coarsest of these types."""
    return max(1e-4, *(16 * torch.finfo(dtype).eps for dtype in dtypes))
