"""Random text: embeddings of random tokens to draw independent conditions from (Sadat et al. 2025, sec. 4, text mode).

The paper encodes a fresh random prompt at every step; a bank made once costs the loop nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding

from toolkit.errors import UserError
from toolkit.runs import seeds

# Where encode_prompt returns the prompt's embedding and the pooled one (None: it has none).
RETURNS: dict[str, tuple[int, int | None]] = {
    "StableDiffusionXL": (0, 2),
    "StableDiffusion3": (0, 2),
    "StableDiffusion": (0, None),
    "Flux": (0, 1),
    "Sana": (0, None),
}


@torch.no_grad()
def encode_prompts(pipe: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
    """``prompt_embeds`` (N, L, C) and, where the family has it, ``pooled_prompt_embeds`` (N, C) of N prompts.

    Raises UserError for a pipeline of another family than Stable Diffusion (1, 2, XL, 3), Flux or Sana.
    """
    kind = type(pipe).__name__
    family = next((name for name in RETURNS if kind.startswith(name)), None)
    if family is None:
        raise UserError(
            f"{kind}: text embeddings are known for {', '.join(RETURNS)} pipelines; build the bank yourself"
        )
    options: dict[str, Any] = {"StableDiffusion3": {"prompt_2": None, "prompt_3": None}, "Flux": {"prompt_2": None}}
    arguments = {"prompt": list(prompts), "device": pipe._execution_device, **options.get(family, {})}
    if family != "Flux":
        arguments["do_classifier_free_guidance"] = False
    if family == "StableDiffusion":
        arguments["num_images_per_prompt"] = 1
    returned = pipe.encode_prompt(**arguments)
    prompt, pooled = RETURNS[family]
    return {"prompt_embeds": returned[prompt]} | ({} if pooled is None else {"pooled_prompt_embeds": returned[pooled]})


@torch.no_grad()
def encode_mask(pipe: Any, prompt: str) -> Tensor:
    """The attention mask (1, L) that Sana gives to the network beside a prompt's embedding."""
    return pipe.encode_prompt([prompt], do_classifier_free_guidance=False, device=pipe._execution_device)[1]


def random_token_bank(pipe: Any, num_rows: int = 64, seed: int = 0) -> dict[str, Tensor]:
    """Embeddings of ``num_rows`` prompts of uniformly random tokens at full length, for ``set_condition_bank``.

    No start, end or padding tokens and no attention mask, as in the paper. Row i of all fields is one prompt.
    """
    if num_rows < 1:
        raise UserError(f"num_rows={num_rows}: must be at least 1")
    with _random_tokenizers(pipe, seed):
        return encode_prompts(pipe, [""] * num_rows)


class RandomTokens:
    """Stands in for a tokenizer: the same random ids at every call of one size; the rest is the tokenizer's own."""

    def __init__(self, tokenizer: Any, seed: int, name: str) -> None:
        self._tokenizer, self._seed, self._name = tokenizer, seed, name

    def __call__(self, texts: Any, max_length: int | None = None, **_: Any) -> BatchEncoding:
        num_rows = 1 if isinstance(texts, str) else len(texts)
        length = max_length or self._tokenizer.model_max_length
        generator = seeds.generator(self._seed, self._name)
        ids = torch.randint(len(self._tokenizer), (num_rows, length), generator=generator)
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@contextmanager
def _random_tokenizers(pipe: Any, seed: int) -> Iterator[None]:
    parts = pipe.components.items()
    real = {name: part for name, part in parts if name.startswith("tokenizer") and part is not None}
    try:
        for name, tokenizer in real.items():
            # around the pipeline's own __setattr__, which would record the stand-in in its config
            object.__setattr__(pipe, name, RandomTokens(tokenizer, seed, name))
        yield
    finally:
        for name, tokenizer in real.items():
            object.__setattr__(pipe, name, tokenizer)
