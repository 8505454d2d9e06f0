"""Where a network embeds its time step, and the noise that time-step guidance adds there.

Sadat et al. 2025, section 5 (algorithm 2, figure 12): t_emb + s * t^alpha * n with n ~ N(0, I), by default times the
standard deviation of t_emb. t_emb is the output of the time-step MLP, before class or pooled text are added.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from toolkit.errors import UserError, did_you_mean
from toolkit.icg.guiders.hooks import OutputChange
from toolkit.icg.guiders.streams import Draws

# A TimestepEmbedding also embeds sizes (SDXL), guidance (Flux), resolutions (PixArt): the attribute's name tells.
TIME_NAMES = {"time_embedding", "timestep_embedder", "time_embedder", "t_embedder", "time_step_proj"}
# Networks whose attribute has another name. SongUNet, the toy network and Chroma mix the class, x or the layer in
# before their MLP ends: the nearest embedding they have.
KNOWN_MODULES = {
    "ADMUNet": "map_out",
    "SongUNet": "map_out",
    "UViT": "map_out",
    "EDM2UNet": "embed_noise",
    "ControlledVideoUNet": "unet.time_embedding",  # the control network stays as it is
    "MLPDenoiser": "embed_noise",
    "ToyScoreDenoiser": "features",
    "AceStepTransformer1DModel": "time_embed",  # time_embed_r embeds a difference of two times
    "ChromaTransformer2DModel": "time_text_embed.time_proj",
    "Kandinsky5Transformer3DModel": "time_embeddings",
    "Krea2Transformer2DModel": "time_embed",
    "PRXTransformer2DModel": "time_in",
    "StableAudioDiTModel": "timestep_proj",
}
DIT_PATTERN = "transformer_blocks.*.norm1.emb.timestep_embedder"

Named = list[tuple[str, nn.Module]]


def find_time_embeddings(
    network: nn.Module, names: Sequence[str] | None = None, max_layers: int | None = None
) -> list[tuple[str, nn.Module]]:
    """The modules whose output is the time-step embedding.

    Args:
        network: a denoiser of diffusers or of the zoo.
        names: dotted names or patterns (``blocks.*.time_mlp``) of the modules instead of the search.
        max_layers: keep the first so many blocks of DiT. UNets have one embedding, which their blocks are given.

    Raises:
        UserError: nothing or more than one kind of embedding matches; the message names the candidates.
    """
    found = _named(network, names) if names is not None else _searched(network)
    if max_layers is None:
        return found
    if _first_blocks(network, max_layers):
        return found
    if not _is_dit(found):
        raise UserError(
            f"max_layers={max_layers}: {type(network).__name__} has one time embedding; DiT and diffusers' UNets "
            "have layers"
        )
    return [(name, module) for name, module in found if _block(name) < max_layers]


@dataclass(frozen=True)
class Places:
    """Of one network: modules whose output is the embedding, those changed at their first call of a pass only, and the
    blocks that are given it with noise where the embedding itself stays clean."""

    embeddings: Named
    once: set[str]
    blocks: Named


@dataclass(eq=False)
class TimeEmbeddings:
    """Where networks embed their time, for ``names`` and ``max_layers`` as in :func:`find_time_embeddings`.

    A network is searched at its first call of a run: walking through its modules takes longer than the noise.
    """

    names: Sequence[str] | None = None
    max_layers: int | None = None
    found: dict[nn.Module, Places] = field(default_factory=dict)

    def of(self, network: nn.Module) -> Places:
        """Raises UserError where the embedding cannot be told, and for a function, which has none."""
        if not isinstance(network, nn.Module):
            raise UserError("time-step guidance adds noise inside of the network: give the nn.Module, not a function")
        if network not in self.found:
            embeddings = find_time_embeddings(network, self.names, self.max_layers)
            once: set[str] = set()
            blocks: Named = []
            if self.max_layers is not None:
                once = _shared_first_block(find_time_embeddings(network, self.names), self.max_layers)
                blocks = _first_blocks(network, self.max_layers)
            self.found[network] = Places(embeddings, once, blocks)
        return self.found[network]

    def forget(self) -> None:
        """A run begins or ends: networks may be others, or have other modules."""
        self.found.clear()


def time_noise(draws: Draws, scale: float, std_scaling: bool, where: TimeEmbeddings) -> OutputChange:
    """Noise of ``scale`` = s * t^alpha for one call: one vector per sample, the same in every layer and token.

    With ``max_layers`` the embedding of a UNet stays clean, and only its first so many blocks get it with noise.
    """
    noise: Tensor | None = None
    added: Tensor | None = None
    is_late = False

    def change(embedding_RE: Tensor, num_samples: int) -> Tensor:
        nonlocal noise, added
        values = embedding_RE.float()
        num = min(len(values), num_samples)
        if noise is None:
            noise = draws.normal((num, values.shape[-1]), values.device)
        rows = noise
        if rows.shape != values.shape:  # several rows of each sample in turn, and of each row its tokens
            rows = rows.repeat_interleave(len(values) // num, 0)
            rows = rows.view(-1, *[1] * (values.dim() - 2), values.shape[-1])
        # A row has one t, so its deviation is the paper's t_emb.std(), and independent of the rest of the batch.
        added = (scale * values.std(-1, keepdim=True) if std_scaling else scale) * rows
        return embedding_RE if is_late else (values + added).to(embedding_RE.dtype)

    def change_late(temb_RE: Tensor, num_samples: int) -> Tensor:
        assert added is not None
        return (temb_RE.float() + added).to(temb_RE.dtype)

    def late(network: nn.Module) -> Named:
        nonlocal is_late
        found = where.of(network).blocks
        is_late = bool(found)
        return found

    return OutputChange(
        find=lambda network: where.of(network).embeddings,
        change=change,
        once=lambda network: where.of(network).once,
        late=late,
        change_late=change_late,
    )


def _first_blocks(network: nn.Module, max_layers: int) -> Named:
    """The first so many residual blocks of a UNet's encoder, and of its decoder (section 5); [] in other networks."""
    if getattr(network, "time_embed_act", None) is not None:
        return []
    found: Named = []
    for side in ("down_blocks", "up_blocks"):
        blocks = [(name, one) for name, one in network.named_modules() if isinstance(one, ResnetBlock2D)]
        found += [one for one in blocks if one[0].startswith(side)][:max_layers]
    return found


def _shared_first_block(found: Named, max_layers: int) -> set[str]:
    """DiT's output layer calls the embedding of block 0 a second time: clean when only the first layers are noisy."""
    return {found[0][0]} if _is_dit(found) and max_layers < len(found) else set()


def _named(network: nn.Module, names: Sequence[str]) -> Named:
    modules = dict(network.named_modules())
    found: dict[str, nn.Module] = {}
    for name in names:
        pattern = re.escape(name).replace(r"\*", "[^.]*")
        matches = {key: module for key, module in modules.items() if re.fullmatch(pattern, key)}
        if not matches:
            candidates = ", ".join(_kinds(_candidates(network))) or "none found"
            raise UserError(
                f"time_embedding_modules: no module {name!r} in {type(network).__name__}; "
                f"{did_you_mean(name, modules)}candidates: {candidates}"
            )
        found |= matches
    return list(found.items())


def _searched(network: nn.Module) -> Named:
    found = _candidates(network)
    kinds = _kinds(found)
    if len(kinds) == 1:
        return found
    choices = kinds or _kinds([(name, module) for name, module in network.named_modules() if _resembles(name, module)])
    problem = "several time embeddings match" if kinds else "no time embedding found"
    raise UserError(
        f"time_embedding_modules: {problem} in {type(network).__name__}; "
        f"name the right one, candidates: {', '.join(choices) or 'none'}"
    )


def _candidates(network: Any) -> Named:
    names = [kind.__name__ for kind in type(network).__mro__]
    known = KNOWN_MODULES.get(names[0])
    if "UNet1DModel" in names:  # by name: importing it would load every transformer of diffusers, and scipy.stats
        known = "time_mlp" if network.config.use_timestep_embedding else "time_proj"
    if known is not None:
        return [(known, network.get_submodule(known))]
    named = [(name, module) for name, module in network.named_modules() if name.rpartition(".")[2] in TIME_NAMES]
    # HunyuanVideo's text refiner has a time embedding of its own, within its context_embedder.
    return [(name, module) for name, module in named if "context_embedder" not in name]


def _resembles(name: str, module: nn.Module) -> bool:
    return isinstance(module, TimestepEmbedding) or "time" in name.rpartition(".")[2]


def _kinds(found: Named) -> list[str]:
    """Names with block numbers replaced by a star, each once."""
    return list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name, _ in found))


def _is_dit(found: Named) -> bool:
    return bool(found) and _kinds(found) == [DIT_PATTERN]


def _block(name: str) -> int:
    return int(name.split(".")[1])
