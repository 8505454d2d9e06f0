"""Random text: embeddings of random tokens to draw independent conditions from (Sadat et al. 2025, sec. 4, text mode).

The paper encodes a fresh random prompt at every step; a bank made once costs the loop nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from toolkit.errors import UserError, brief
from toolkit.icg.guiders.conditions import canonical, carries_text
from toolkit.icg.guiders.pipeline_loop import flattened, networks_of, own_guidance_off, uncompiled
from toolkit.runs import seeds

AT_ONCE = 16  # prompts of one call
ON = 5.0  # a scale at which a pipeline's own guidance is on
NEAR = 1e-4  # embeddings that differ by less are equal: rounding depends on the batch size


class _Reached(Exception):
    """Ends the pipeline's call once the network was called often enough."""


@torch.no_grad()
def text_inputs(pipe: Any, prompts: Sequence[str], denoiser: str | None = None, **call: Any) -> dict[str, Tensor]:
    """The tensors that carry N prompts to the network of a pipeline, and their masks, (N, ...) under its own names.

    The pipeline is called until it reaches its network, so whatever it does with text is done.

    Args:
        denoiser: as in ``guided``. call: what else the pipeline's call needs (``image=...``).

    Raises:
        UserError: the pipeline takes no prompt, or more than one; the text does not reach the network in tensors.
    """
    reached = _calls(pipe, 1, denoiser, {"prompt": list(prompts)} | own_guidance_off(pipe) | call)
    found = _of_text(reached[0], len(prompts))
    if not any(carries_text(name) for name in found):
        kind = type(pipe).__name__
        raise UserError(f"{kind} gives its network no text in tensors of {len(prompts)} rows; build the bank yourself")
    return found


@torch.no_grad()
def null_inputs(pipe: Any, prompts: Sequence[str], negative: str | None = None, **call: Any) -> dict[str, Tensor]:
    """As ``text_inputs``: what the pipeline's own guidance sets against these prompts, (N, ...).

    Own guidance is one call of twice the rows, or two calls; the null condition is what differs from the prompts.

    Raises:
        UserError: as ``text_inputs``; the pipeline has no guidance of its own.
    """
    own, kind, num = text_inputs(pipe, prompts, **call), type(pipe).__name__, len(prompts)
    options: dict[str, Any] = dict.fromkeys(own_guidance_off(pipe), ON)
    if negative is not None or "true_cfg_scale" in options:
        options["negative_prompt"] = [negative or ""] * num
    reached = _calls(pipe, 2, None, {"prompt": list(prompts)} | options | call) if options else []
    rows = [_of_text(arguments, num) for arguments in reached]
    if len(rows) == 1:  # twice as many
        whole = _of_text(reached[0], 2 * num)
        rows = [{name: half[part] for name, half in whole.items()} for part in (slice(0, num), slice(num, None))]
    far = [_distance(one, own) for one in rows]
    if not far or max(far) < NEAR:
        raise UserError(f"guidance=cfg: {kind} has no guidance of its own, and so no null condition")
    return rows[far.index(max(far))]


def _distance(one: dict[str, Tensor], own: dict[str, Tensor]) -> float:
    """The largest difference of the texts; infinite where they are of different lengths."""
    texts = [(value.float(), own[name].float()) for name, value in one.items() if carries_text(name)]
    return max(float((a - b).abs().max()) if a.shape == b.shape else float("inf") for a, b in texts)


def _calls(pipe: Any, num: int, denoiser: str | None, call: dict[str, Any]) -> list[dict[str, Any]]:
    """The arguments of the first ``num`` calls of the network; of one alone where it has twice the rows of a prompt."""
    kind, found = type(pipe).__name__, []
    if "prompt" not in inspect.signature(type(pipe).__call__).parameters:
        raise UserError(f"{kind} takes no prompt, so there is no text to encode; build the bank yourself")
    prompts = len(call["prompt"])

    def reach(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(type(uncompiled(network)).forward).bind(network, *args, **kwargs).arguments
        found.append({name: value for name, value in bound.items() if name != "self"})
        if len(found) == num or len(next(iter(found[-1].values()))) >= 2 * prompts:
            raise _Reached

    handles = [one.register_forward_pre_hook(reach, with_kwargs=True) for one in networks_of(pipe, denoiser)]
    try:
        pipe(**call)
    except _Reached:
        pass
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{kind} cannot be called with a prompt alone ({brief(error, 200)}): give the rest of its call by name "
            "(image=...), or build the bank yourself"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        pipe.maybe_free_model_hooks()
    return found


def _of_text(arguments: dict[str, Any], num: int) -> dict[str, Tensor]:
    """Text and masks of one row per prompt; text with several rows each (the frames of a video) once."""
    found = {}
    for name, value in flattened(arguments).items():
        is_text = carries_text(name) or ("mask" in name and name.startswith(("encoder", "prompt", "attention", "text")))
        if is_text and isinstance(value, Tensor) and value.dim() and len(value) % num == 0:
            found[name] = value[:: len(value) // num]
    return found


def encode_prompts(pipe: Any, prompts: Sequence[str], **call: Any) -> dict[str, Tensor]:
    """``prompt_embeds`` (N, L, C), and where the family has them ``pooled_prompt_embeds`` (N, C) and further streams.

    As ``text_inputs``, without masks and under our names, for ``set_condition_bank``.
    """
    return {canonical(name): rows for name, rows in text_inputs(pipe, prompts, **call).items() if carries_text(name)}


def random_token_bank(pipe: Any, num_rows: int = 64, seed: int = 0, **call: Any) -> dict[str, Tensor]:
    """Embeddings of ``num_rows`` prompts of uniformly random tokens at full length, for ``set_condition_bank``.

    No start, end or padding tokens and no attention mask, as in the paper. Row i of all fields is one prompt.
    call: what else the pipeline's call needs (``image=...``).

    Raises:
        UserError: as ``encode_prompts``; a pipeline that reads its text with something else than a tokenizer.
    """
    if num_rows < 1:
        raise UserError(f"num_rows={num_rows}: must be at least 1")
    parts, at_once = [], 1 if call else AT_ONCE  # of pictures there may be one
    for start in range(0, num_rows, at_once):
        num = min(at_once, num_rows - start)
        with _random_tokenizers(pipe, seed, start, num_rows):
            parts.append(encode_prompts(pipe, [""] * num, **call))
    bank = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    for name, rows in bank.items():
        if num_rows > 1 and torch.equal(rows[0], rows[1]):
            raise UserError(
                f"{type(pipe).__name__}: {name} is the same for all random texts, which do not come from a tokenizer "
                "of its own; build the bank yourself"
            )
    return bank


class RandomTokens:
    """Stands in for a tokenizer: ids of random texts from number ``start`` on; the rest is the tokenizer's own.

    Text i of ``num_rows`` has the same ids at every call of one length.
    """

    def __init__(self, tokenizer: Any, seed: int, name: str, start: int, num_rows: int) -> None:
        self._tokenizer, self._seed, self._name = tokenizer, seed, name
        self._start, self._num_rows = start, num_rows

    def __call__(self, texts: Any, max_length: int | None = None, **_: Any) -> BatchEncoding:
        num = 1 if isinstance(texts, str) else len(texts)
        length = max_length or self._tokenizer.model_max_length
        generator = seeds.generator(self._seed, self._name)
        ids = torch.randint(len(self._tokenizer), (self._num_rows, length), generator=generator)
        ids = ids[self._start : self._start + num]
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@contextmanager
def _random_tokenizers(pipe: Any, seed: int, start: int, num_rows: int) -> Iterator[None]:
    parts = pipe.components.items()
    real = {name: part for name, part in parts if name.startswith("tokenizer") and part is not None}
    try:
        for name, tokenizer in real.items():
            # around the pipeline's own __setattr__, which would record the stand-in in its config
            object.__setattr__(pipe, name, RandomTokens(tokenizer, seed, name, start, num_rows))
        yield
    finally:
        for name, tokenizer in real.items():
            object.__setattr__(pipe, name, tokenizer)
