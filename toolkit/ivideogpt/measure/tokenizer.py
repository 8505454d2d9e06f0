"""Measures of the tokenizer: quality of context and future frames apart, codebook health, appearance against motion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from toolkit.ivideogpt.measure.setting import Setting, frame_ssim, psnr
from toolkit.ivideogpt.measure.tracking import TRACKED, locate, pearson
from toolkit.show.table import Table
from toolkit.zoo.world.codebook import perplexity, usage
from toolkit.zoo.world.tokenizer import CompressiveVQModel


def measure_tokenizer(setting: Setting) -> dict[str, Any]:
    """PSNR (dB), SSIM and, where asked for, PLIPS of held-out context and future frames, each against the true frame.

    ``future``: n tokens a frame. ``per_frame``: the same future frames by the context pair alone, N tokens a frame.
    ``copy``: the last context frame, which costs nothing.
    """
    num_context, clip = setting.num_context, setting.test
    context, future = clip.frames[:, :num_context], clip.frames[:, num_context:]
    coded, context_coded, per_frame, codes = _reconstruct(setting, context, future)
    copied = context[:, -1:].expand_as(future)
    found: dict[str, Any] = {}
    pairs = {
        "context": (context_coded, context),
        "future": (coded, future),
        "per_frame": (per_frame, future),
        "copy": (copied, future),
    }
    for name, (made, true) in pairs.items():
        found[f"psnr.{name}"] = float(psnr(made, true).mean())
        found[f"ssim.{name}"] = float(frame_ssim(made, true).mean())
    found |= setting.plips(**pairs)
    found["psnr.gain_over_copy"] = found["psnr.future"] - found["psnr.copy"]
    found |= _health(setting, *codes) | _sprites(setting, coded, future)
    _table(setting, found)
    return found


def _reconstruct(
    setting: Setting, context: Tensor, future: Tensor
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    tokenizer, size = setting.world.tokenizer, setting.config.measure.batch_size
    parts: list[list[Tensor]] = [[], [], [], [], []]
    for start in range(0, len(context), size):
        seen, later = (one[start : start + size].to(setting.device) for one in (context, future))
        encoded = tokenizer.encode_context(seen)
        decoded = tokenizer.decode_context(encoded.codes)
        codes = tokenizer.encode_frames(later, encoded)
        made = (
            tokenizer.decode_frames(codes, decoded),
            decoded.frames,
            per_frame(tokenizer, later),
            encoded.codes,
            codes,
        )
        for kept, one in zip(parts, made, strict=True):
            kept.append(one.cpu())
    coded, context_coded, by_frame, context_codes, codes = (torch.cat(one) for one in parts)
    return coded, context_coded, by_frame, (context_codes, codes)


def per_frame(tokenizer: CompressiveVQModel, frames: Tensor) -> Tensor:
    """Frames (B, F, 3, H, W) through the context pair, each as if it were a context: N tokens a frame."""
    num_context = tokenizer.config.context_length
    alone = frames.flatten(0, 1)[:, None].expand(-1, num_context, -1, -1, -1)
    decoded = tokenizer.decode_context(tokenizer.encode_context(alone).codes).frames[:, 0]
    return decoded.view_as(frames)


def _health(setting: Setting, context_codes: Tensor, codes: Tensor) -> dict[str, float]:
    layout = setting.world.tokenizer.layout
    sizes = {"context": (context_codes, layout.num_context_codes), "dynamics": (codes, layout.num_dynamics_codes)}
    found = {f"usage.{name}": usage(one, size) for name, (one, size) in sizes.items()}
    return found | {f"perplexity.{name}": perplexity(one, size) for name, (one, size) in sizes.items()}


def _sprites(setting: Setting, coded: Tensor, future: Tensor) -> dict[str, float]:
    """Mean distance in pixels between the centroids of moving things in coded and true frames."""
    tracked = TRACKED.get(setting.clips.dataset.env or "", {})
    found = {}
    for name, color in tracked.items():
        gap = (locate(coded, color)[0] - locate(future, color)[0]).norm(dim=-1)
        found[f"error_px.{name}"] = float(gap.mean()) * setting.clips.resolution
    return found


def _table(setting: Setting, found: dict[str, Any]) -> None:
    layout = setting.world.tokenizer.layout
    tokens = {
        "context": layout.tokens_per_context,
        "future": layout.tokens_per_frame,
        "per_frame": layout.tokens_per_context,
        "copy": 0,
    }
    names = {
        "context": "context frames",
        "future": "future frames, compressive",
        "per_frame": "future frames, each by itself",
        "copy": "future frames, context copied",
    }
    rows = [[names[key], tokens[key], found[f"psnr.{key}"], found[f"ssim.{key}"]] for key in names]
    table = Table("tokenizer on held-out clips", ["frames", "tokens a frame", "PSNR, dB", "SSIM"], rows)
    table.save(setting.run.path("tables", "tokenizer.json"))


def measure_decoupling(setting: Setting) -> dict[str, Any]:
    """Does the context carry appearance and do the dynamics tokens carry motion (figure 9 and section 4.4)?

    ``blind``: decoded with the decoder's cross-attention switched off. ``exchanged``: decoded with another clip's
    context. Appearance is the background's colour (median over the frame) against that of either clip; motion is the
    correlation of where the moving thing is with where its own clip has it.
    """
    num_context = setting.num_context
    context, future = setting.test.frames[:, :num_context], setting.test.frames[:, num_context:]
    tokenizer, size = setting.world.tokenizer, setting.config.measure.batch_size
    made: dict[str, list[Tensor]] = {"own": [], "exchanged": [], "blind": []}
    for start in range(0, len(context), size):
        seen, later = (one[start : start + size].to(setting.device) for one in (context, future))
        encoded = tokenizer.encode_context(seen)
        codes, decoded = tokenizer.encode_frames(later, encoded), tokenizer.decode_context(encoded.codes)
        other = tokenizer.decode_context(encoded.codes.roll(1, 0))
        made["own"].append(tokenizer.decode_frames(codes, decoded).cpu())
        made["exchanged"].append(tokenizer.decode_frames(codes, other).cpu())
        with _without_cross_attention(tokenizer):
            made["blind"].append(tokenizer.decode_frames(codes, decoded).cpu())
    decoded_frames = {name: torch.cat(parts).clamp(0, 1) for name, parts in made.items()}
    whose = torch.cat([part.roll(1, 0) for part in context.split(size)])
    return _appearance(decoded_frames, future, whose) | _motion(setting, decoded_frames, future, context)


def _appearance(made: dict[str, Tensor], future: Tensor, other_context: Tensor) -> dict[str, float]:
    """Correlation, over clips and colours, of the frames' median colour with that of their own and the other clip."""
    own, other = _background(future), _background(other_context[:, -1:].expand_as(future))
    found = {
        "psnr.own": float(psnr(made["own"], future).mean()),
        "psnr.blind": float(psnr(made["blind"], future).mean()),
    }
    found["appearance.own_context"] = pearson(_background(made["own"]), own)
    found["appearance.blind"] = pearson(_background(made["blind"]), own)
    found["appearance.exchanged_follows_context"] = pearson(_background(made["exchanged"]), other)
    found["appearance.exchanged_follows_tokens"] = pearson(_background(made["exchanged"]), own)
    found["psnr.loss_without_context"] = found["psnr.own"] - found["psnr.blind"]
    return found


def _background(frames: Tensor) -> Tensor:
    return frames.flatten(-2).median(-1).values


def _motion(setting: Setting, made: dict[str, Tensor], future: Tensor, context: Tensor) -> dict[str, float]:
    tracked = TRACKED.get(setting.clips.dataset.env or "", {})
    if "agent" not in tracked:
        return {}
    true = locate(future, tracked["agent"])[0]
    found = {}
    for name in ("exchanged", "blind"):
        places = locate(made[name], tracked["agent"])[0]
        found[f"motion.{name}"] = min(pearson(places[..., axis], true[..., axis]) for axis in (0, 1))
    return found


@contextmanager
def _without_cross_attention(tokenizer: CompressiveVQModel) -> Iterator[None]:
    """Inside, the conditional decoder's attention to the context adds nothing."""
    blocks: Any = tokenizer.cond_decoder.cross_att_blocks
    layers = [block.att.out_proj for block in blocks]
    kept = [(layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in layers]
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            layer.bias.zero_()
    try:
        yield
    finally:
        with torch.no_grad():
            for layer, (weight, bias) in zip(layers, kept, strict=True):
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
