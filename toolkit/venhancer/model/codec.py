"""Between pixels and latents: one interface over our pixel-unshuffle codec and the VAEs of Stable (Video) Diffusion."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from torch.nn import functional as F

from toolkit.errors import UserError
from toolkit.venhancer.model.stored import POSITIVE, check_stored, whole


class Codec(Protocol):
    """Frames (N, 3, H, W) in [-1, 1] <-> latents [N, C, H / factor, W / factor].

    Attributes:
        margin: latents around a tile on which it depends; 0: none, tiles need no overlap.
        group: frames decoded together, of which ``context`` at either end only help to decode the others.
    """

    channels: int
    factor: int
    margin: int
    group: int
    context: int

    def encode(self, frames: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


class PixelUnshuffleCodec(ModelMixin, ConfigMixin):
    """Exact: each factor x factor block of pixels becomes one latent of 3 factor^2 numbers.

    Args:
        factor: pixels per latent, each way. scale: the latents' factor.
    """

    config_name = "config.json"  # type: ignore[assignment]
    margin, group, context = 0, 1, 0

    @register_to_config
    def __init__(self, factor: int = 8, scale: float = 1.0) -> None:
        super().__init__()
        check_stored({"factor": factor, "scale": scale}, {"factor": whole(1), "scale": POSITIVE})
        self.register_buffer("_marker", torch.zeros(1))  # save_pretrained wants a tensor

    @property
    def factor(self) -> int:
        return self.config["factor"]

    @property
    def channels(self) -> int:
        return 3 * self.factor**2

    def encode(self, frames: Tensor) -> Tensor:
        return F.pixel_unshuffle(frames, self.factor) * self.config["scale"]

    def decode(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(latents / self.config["scale"], self.factor)


class VAECodec:
    """A KL autoencoder of diffusers: the posterior's mode times the scaling factor, frame by frame.

    A temporal decoder (Stable Video Diffusion) sees five frames at a time, of which the three in the middle are kept.
    """

    margin = 8

    def __init__(self, vae: AutoencoderKL | AutoencoderKLTemporalDecoder) -> None:
        self.vae = vae
        self.temporal = isinstance(vae, AutoencoderKLTemporalDecoder)
        self.channels = vae.config["latent_channels"]
        self.factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.group, self.context = (5, 1) if self.temporal else (1, 0)

    def encode(self, frames: Tensor) -> Tensor:
        latents = [self.vae.encode(frame[None].to(self.vae.dtype)).latent_dist.mode() for frame in frames]
        return torch.cat(latents).float() * self.vae.config["scaling_factor"]

    def decode(self, latents: Tensor) -> Tensor:
        latents = (latents / self.vae.config["scaling_factor"]).to(self.vae.dtype)
        if self.temporal:
            return self.vae.decode(latents, num_frames=len(latents)).sample.float()
        return torch.cat([self.vae.decode(one[None]).sample for one in latents]).float()


def as_codec(vae: Any) -> Codec:
    """The codec of a pipeline's ``vae``. Raises UserError for another class."""
    if isinstance(vae, PixelUnshuffleCodec):
        return vae
    if isinstance(vae, (AutoencoderKL, AutoencoderKLTemporalDecoder)):
        return VAECodec(vae)
    raise UserError(
        f"vae: {type(vae).__name__} is none of PixelUnshuffleCodec, AutoencoderKL, AutoencoderKLTemporalDecoder"
    )
