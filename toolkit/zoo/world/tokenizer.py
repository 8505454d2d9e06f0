"""iVideoGPT's compressive tokenizer, a conditional VQGAN (Wu et al. 2024, section 3.1, eqs. 1, 2 and 5).

Context frames become N tokens each; every later frame needs only n, because its encoder and decoder look at the
context's feature maps. Config keys and tensor names are the release's (thuml/iVideoGPT), so its ``tokenizer/`` folders
load as they are. Shapes: B clips, T0 context and F future frames, images (3, H, W) in [0, 1]; outputs are not clamped.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.zoo.importing import read_config, read_tensors
from toolkit.zoo.sizes import build_on_meta
from toolkit.zoo.world.codebook import VectorQuantizer
from toolkit.zoo.world.linear import linear
from toolkit.zoo.world.tokenizer_blocks import ConditionalDecoder, ConditionalEncoder, Decoder, Encoder, KeyValue
from toolkit.zoo.world.tokens import TokenLayout
from toolkit.zoo.world.weights import TOKENIZER_WEIGHTS, fill, write_tensors


class Reconstruction(NamedTuple):
    """The training forward.

    sample (B, F, 3, H, W) and ref_sample (B, T0, 3, H, W): future and context frames. commit_loss, dyn_commit_loss: of
    the two codebooks. context_latents (B, T0, N, D), dynamics_latents (B, F, n, D): before quantisation, their codes
    without the D.
    """

    sample: Tensor
    ref_sample: Tensor
    commit_loss: Tensor
    dyn_commit_loss: Tensor
    context_latents: Tensor
    dynamics_latents: Tensor
    context_codes: Tensor
    dynamics_codes: Tensor


class EncodedContext(NamedTuple):
    """codes (B, T0, N) and what the future frames' encoder attends to."""

    codes: Tensor
    memory: list[KeyValue]


class DecodedContext(NamedTuple):
    """frames (B, T0, 3, H, W) and what the future frames' decoder attends to."""

    frames: Tensor
    memory: list[KeyValue]


class CompressiveVQModel(ModelMixin, ConfigMixin):
    """The tokenizer. Config keys are the release's; ``sample_size``, ``scaling_factor``, ``lookup_from_codebook`` and
    ``force_upcast`` are leftovers in its files that nothing reads.

    Args:
        block_out_channels: widths of the levels; every level but the last halves the image.
        latent_channels: of the h x h latent map; ``vq_embed_dim`` of the codes, the same unless given.
        num_vq_embeddings, num_dyn_embeddings: codes for context and for future frames.
        mid_block_add_attention: of the context pair; the conditional pair always has it.
        context_length: T0. resolution: H = W. patch_size: p; a future frame has (h/p)^2 tokens.
        max_att_resolution: largest map with cross-attention.

    Raises ValueError where these do not fit together.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",) * 3,
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",) * 3,
        block_out_channels: Sequence[int] = (128, 256, 512),
        layers_per_block: int = 2,
        act_fn: str = "silu",
        latent_channels: int = 64,
        sample_size: int = 32,
        num_vq_embeddings: int = 8192,
        norm_num_groups: int = 32,
        vq_embed_dim: int | None = None,
        scaling_factor: float = 0.18215,
        norm_type: str = "group",
        mid_block_add_attention: bool = False,
        lookup_from_codebook: bool = True,
        force_upcast: bool = False,
        num_dyn_embeddings: int = 8192,
        context_length: int = 2,
        max_att_resolution: int = 16,
        resolution: int = 64,
        patch_size: int = 4,
    ):
        super().__init__()
        self.latent_size = resolution >> (len(block_out_channels) - 1)
        _check(self.config, self.latent_size)
        plain: dict[str, Any] = {
            "widths": tuple(block_out_channels),
            "layers_per_block": layers_per_block,
            "num_groups": norm_num_groups,
            "act_fn": act_fn,
        }
        inward = plain | {"in_channels": in_channels, "out_channels": latent_channels, "block_types": down_block_types}
        outward = plain | {"in_channels": latent_channels, "out_channels": out_channels, "block_types": up_block_types}
        attention = {"num_frames": context_length, "max_attention_size": max_att_resolution, "mid_attention": True}
        self.cond_encoder = ConditionalEncoder(image_size=resolution, **attention, **inward)
        self.encoder = Encoder(mid_attention=mid_block_add_attention, **inward)

        dim = vq_embed_dim or latent_channels
        self.quant_conv = nn.Conv2d(latent_channels, dim, 1)
        self.quantize = VectorQuantizer(num_vq_embeddings, dim)
        self.post_quant_conv = nn.Conv2d(dim, latent_channels, 1)
        self.quant_linear = nn.Linear(latent_channels * patch_size**2, dim)
        self.dynamics_quantize = VectorQuantizer(num_dyn_embeddings, dim)
        self.post_quant_linear = nn.Linear(dim, latent_channels * patch_size**2)

        self.cond_decoder = ConditionalDecoder(latent_size=self.latent_size, **attention, **outward)
        self.decoder = Decoder(mid_attention=mid_block_add_attention, **outward)

    @property
    def layout(self) -> TokenLayout:
        """The token arithmetic of clips through this tokenizer."""
        size = self.latent_size
        return TokenLayout(
            self.config.context_length,
            size**2,
            (size // self.config.patch_size) ** 2,
            self.config.num_vq_embeddings,
            self.config.num_dyn_embeddings,
        )

    def forward(self, context: Tensor, future: Tensor, quantize: bool = True) -> Reconstruction:
        """Reconstruct context (B, T0, 3, H, W) and future frames (B, F, 3, H, W).

        quantize=False sends the latents on as they are (a warm-up that is not in the paper); the losses and codes are
        those of the codebooks all the same. Raises ValueError where the frames do not fit.
        """
        self._check_frames(torch.cat([context[:, :1], future[:, :1]], dim=1))
        context_latents, encoder_maps = self._encode_context(context)
        dynamics_latents = self._encode_frames(future, self.cond_encoder.remember(encoder_maps))
        context_found, dynamics_found = self.quantize(context_latents), self.dynamics_quantize(dynamics_latents)
        ref_sample, decoder_maps = self._decode_context(context_found.vectors if quantize else context_latents)
        sample = self._decode_frames(
            dynamics_found.vectors if quantize else dynamics_latents, self.cond_decoder.remember(decoder_maps)
        )
        return Reconstruction(
            sample,
            ref_sample,
            context_found.loss,
            dynamics_found.loss,
            context_latents,
            dynamics_latents,
            context_found.codes,
            dynamics_found.codes,
        )

    @torch.no_grad()
    def tokenize(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W), T >= T0 -> tokens int64 (B, L). Labels are ``layout.labels(tokens)``.

        Without gradient and without dropout, whatever mode the network is in. Raises ValueError where frames don't fit.
        """
        num_context = self.config.context_length
        context = self.encode_context(frames[:, :num_context])
        return self.layout.join(context.codes, self.encode_frames(frames[:, num_context:], context))

    @torch.no_grad()
    def detokenize(self, tokens: Tensor) -> Tensor:
        """Tokens int64 (B, L) -> frames (B, T, 3, H, W), the context's reconstruction included; not clamped.

        In a future frame's place a token that is no dynamics code is moved to the nearest id that is one, as the
        release does. Raises ValueError on a wrong length or a wrong context token.
        """
        context_codes, dynamics_codes = self.layout.split(tokens)
        context = self.decode_context(context_codes)
        return torch.cat([context.frames, self.decode_frames(dynamics_codes, context)], dim=1)

    @torch.no_grad()
    def encode_context(self, frames: Tensor) -> EncodedContext:
        """Context frames (B, T0, 3, H, W) alone: no future frame is needed."""
        self._check_frames(frames)
        if frames.shape[1] != self.config.context_length:
            raise ValueError(f"{frames.shape[1]} context frames: the tokenizer takes {self.config.context_length}")
        with _evaluating(self):
            latents, maps = self._encode_context(frames)
            return EncodedContext(self.quantize.nearest(latents), self.cond_encoder.remember(maps))

    @torch.no_grad()
    def encode_frames(self, frames: Tensor, context: EncodedContext) -> Tensor:
        """Future frames (B, F, 3, H, W) of these clips, each by itself -> codes int64 (B, F, n)."""
        if not frames.shape[1]:
            return torch.empty(len(frames), 0, self.layout.tokens_per_frame, dtype=torch.int64, device=frames.device)
        self._check_frames(frames)
        with _evaluating(self):
            return self.dynamics_quantize.nearest(self._encode_frames(frames, context.memory))

    @torch.no_grad()
    def decode_context(self, codes: Tensor) -> DecodedContext:
        """Codes (B, T0, N) -> the context frames and the memory that ``decode_frames`` needs."""
        with _evaluating(self):
            frames, maps = self._decode_context(self.quantize.embedding(codes))
            return DecodedContext(frames, self.cond_decoder.remember(maps))

    @torch.no_grad()
    def decode_frames(self, codes: Tensor, context: DecodedContext) -> Tensor:
        """Codes (B, F, n) of future frames, clamped to the codebook -> frames (B, F, 3, H, W)."""
        if not codes.shape[1]:
            return context.frames[:, :0]
        codes = codes.clamp(0, self.config.num_dyn_embeddings - 1)
        with _evaluating(self):
            return self._decode_frames(self.dynamics_quantize.embedding(codes), context.memory)

    def save_pretrained(self, folder: str | Path, **more: Any) -> None:
        """A ``tokenizer/`` folder of the release's layout, which does not say where the network was loaded from."""
        self.register_to_config(_name_or_path=None)
        self.save_config(folder)
        write_tensors(self, Path(folder) / TOKENIZER_WEIGHTS)

    def fingerprint(self) -> str:
        """SHA-256 over names and weights: a transformer remembers which tokenizer's ids it speaks."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy())
        return digest.hexdigest()

    def set_context_length(self, context_length: int) -> None:
        """Use fewer context frames: the position tables keep their last rows, as in the release.

        Raises ValueError when asked for more than there are tables for.
        """
        if not 1 <= context_length <= self.config.context_length:
            raise ValueError(f"context_length={context_length}: can be cut to 1 .. {self.config.context_length} only")
        part: Any
        for part in (self.cond_encoder, self.cond_decoder):
            for block in part.cross_att_blocks:
                block.keep_last_frames(context_length, int(len(block.q_pos_emb) ** 0.5))
        self.register_to_config(context_length=context_length)

    def start_conditional_from_plain(self) -> None:
        """Copy the context pair's weights to the conditional pair, as the 256x256 model is started (appendix A.1)."""
        self.cond_encoder.load_state_dict(self.encoder.state_dict(), strict=False)
        self.cond_decoder.load_state_dict(self.decoder.state_dict(), strict=False)

    def start_diagonal(self, scale: float = 1.0, generator: torch.Generator | None = None) -> None:
        """Start cross-attention on the diagonal; see ``CrossAttention.start_diagonal`` (not in the paper)."""
        part: Any
        for part in (self.cond_encoder, self.cond_decoder):
            for block in part.cross_att_blocks:
                block.start_diagonal(scale, generator)

    def _encode_context(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Latents (B, T0, N, D) and the encoder's maps (B, T0, C, s, s)."""
        latents, maps = self.encoder(frames.flatten(0, 1))
        latents = self.quant_conv(latents).flatten(2).transpose(1, 2)
        return latents.unflatten(0, frames.shape[:2]), [one.unflatten(0, frames.shape[:2]) for one in maps]

    def _encode_frames(self, frames: Tensor, memory: list[KeyValue]) -> Tensor:
        """Latents (B, F, n, D)."""
        latents, p = self.cond_encoder(frames.flatten(0, 1), memory), self.config.patch_size
        patches = latents.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (B*F, C, h/p, p, w/p, p)
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # rows, columns, channels
        return linear(patches, self.quant_linear.weight, self.quant_linear.bias).unflatten(0, frames.shape[:2])

    def _decode_context(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Latents (B, T0, N, D) -> frames (B, T0, 3, H, W) and the decoder's maps (B, T0, C, s, s)."""
        rows = latents.flatten(0, 1).transpose(1, 2).unflatten(2, (self.latent_size, -1))
        frames, maps = self.decoder(self.post_quant_conv(rows))
        return frames.unflatten(0, latents.shape[:2]), [one.unflatten(0, latents.shape[:2]) for one in maps]

    def _decode_frames(self, latents: Tensor, memory: list[KeyValue]) -> Tensor:
        """Latents (B, F, n, D) -> frames (B, F, 3, H, W)."""
        p = self.config.patch_size
        weight, bias = self.post_quant_linear.weight, self.post_quant_linear.bias
        patches = linear(latents.flatten(0, 1), weight, bias).unflatten(2, (p, p, -1))
        patches = patches.unflatten(1, (self.latent_size // p, -1))  # (B*F, h/p, w/p, p, p, C)
        maps = patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return self.cond_decoder(maps, memory).unflatten(0, latents.shape[:2])

    def _check_frames(self, frames: Tensor) -> None:
        shape = (self.config.in_channels, self.config.resolution, self.config.resolution)
        if frames.dim() != 5 or tuple(frames.shape[2:]) != shape:
            raise ValueError(
                f"frames of shape {tuple(frames.shape)}: expected (clips, frames, {', '.join(map(str, shape))})"
            )
        if not frames.is_floating_point():
            raise ValueError(f"frames of dtype {frames.dtype}: expected floating point in [0, 1]")


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode (no dropout) inside the block; the mode is restored, also after an exception."""
    training = network.training
    if training:
        network.eval()
    try:
        yield
    finally:
        if training:
            network.train()


def _check(config: Any, latent_size: int) -> None:
    """Raises ValueError naming the key that does not fit."""
    levels = len(config.block_out_channels)
    if not len(config.down_block_types) == len(config.up_block_types) == levels:
        raise ValueError(f"down_block_types, up_block_types: one per level expected, {levels}")
    if latent_size << (levels - 1) != config.resolution:
        raise ValueError(f"resolution={config.resolution}: must be a multiple of {2 ** (levels - 1)}")
    if latent_size % config.patch_size:
        raise ValueError(f"patch_size={config.patch_size}: must divide the latent map's size, {latent_size}")
    if config.norm_type != "group":
        raise ValueError(f"norm_type={config.norm_type}: only group is known")
    if config.context_length < 1:
        raise ValueError(f"context_length={config.context_length}: must be at least 1")
    for width in config.block_out_channels:
        if width % config.norm_num_groups:
            raise ValueError(f"norm_num_groups={config.norm_num_groups}: must divide the width {width}")
        if width % 4:
            raise ValueError(f"block_out_channels: {width} is not a multiple of the 4 attention heads")


def read_tokenizer(folder: Path) -> CompressiveVQModel:
    """The tokenizer of ``folder`` in float32. Raises UserError naming the file and what does not fit."""
    path = folder / "config.json"
    config = read_config(path)
    unknown = [key for key in config if not key.startswith("_") and key not in _tokenizer_keys()]
    if unknown:
        raise UserError(f"{path}: unknown key '{unknown[0]}'; known: {', '.join(sorted(_tokenizer_keys()))}")
    weights = read_tensors(folder / TOKENIZER_WEIGHTS)
    network = build_on_meta(lambda: CompressiveVQModel.from_config(config), weights, path)
    fill(network, weights, folder / TOKENIZER_WEIGHTS)
    return network.to(memory_format=torch.channels_last).eval()  # faster convolutions on a CPU


def _tokenizer_keys() -> set[str]:
    return set(inspect.signature(CompressiveVQModel.__init__).parameters) - {"self"}
