"""From the latents that a model of ours makes to pictures, by a diffusers autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.schema import UserError
from toolkit.zoo.denoiser import Denoiser
from toolkit.zoo.loading import hub_answers, load_or_refuse


class LatentDecoder:
    """Pictures in [-1, 1] of samples (B, C, h, w): ``vae`` is a folder or hub id of an AutoencoderKL.

    Raises UserError where it is not there, or the denoiser makes no latents of its kind.
    """

    def __init__(self, vae: str, denoiser: Denoiser, device: torch.device) -> None:
        if not hasattr(denoiser, "to_raw_latents"):
            raise UserError(f"vae={vae}: {type(denoiser).__name__} makes pixels, not latents")
        self.denoiser: Any = denoiser
        self.vae = _load(vae).to(device).eval()
        channels, height, width = denoiser.shape
        if self.vae.config["latent_channels"] != channels:
            raise UserError(
                f"vae={vae}: has {self.vae.config['latent_channels']} latent channels, the model {channels}"
            )
        self.denoiser.to_raw_latents(torch.zeros(1, channels, 1, 1, device=device))  # refuses a network of pixels
        factor = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        self.shape = (self.vae.config["out_channels"], factor * height, factor * width)

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> Tensor:
        raw = self.denoiser.to_raw_latents(samples)
        return torch.cat([self.vae.decode(one).sample for one in raw.split(1)])  # one by one: decoding takes memory


def _load(vae: str) -> Any:
    from diffusers import AutoencoderKL

    offline = Path(vae).exists() or not hub_answers()
    options = {"use_safetensors": True, "local_files_only": offline}
    return load_or_refuse("vae", vae, lambda: AutoencoderKL.from_pretrained(vae, **options))
