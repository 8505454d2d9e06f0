"""What an enhancement is made of: networks, codec, schedule and text encoder, as one diffusers pipeline.

The engine works on these parts; ``toolkit.venhancer.pipeline`` adds loading and the call, on top of the engine.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from toolkit.errors import UserError
from toolkit.venhancer.model.codec import PixelUnshuffleCodec, as_codec
from toolkit.venhancer.model.conditioning import Fill
from toolkit.venhancer.model.loading import penultimate
from toolkit.venhancer.model.schedule import VideoNoiseSchedule
from toolkit.venhancer.model.stored import FLAG, POSITIVE_OR_NULL, check_stored, one_of, whole
from toolkit.zoo.video.controlled_unet import ControlledVideoUNet

NULL_TEXT = "this model has a fixed null text embedding: prompt and negative_prompt are ignored"
RULES = {
    "diffuses": one_of("latents", "residuals"),
    "data_std": POSITIVE_OR_NULL,
    "resize": one_of("bilinear", "bicubic"),
    "blend": FLAG,
    "tile_rows": whole(1),
    "tile_columns": whole(1),
    "max_frames": whole(2),
}


class EnhanceParts(DiffusionPipeline):
    """Everything that an enhancement needs.

    Args:
        denoiser: base and control network. vae: PixelUnshuffleCodec, or an autoencoder of diffusers.
        scheduler: the noise schedule.
        text_encoder, tokenizer: CLIP ViT-H of OpenCLIP as transformers has it; None: a fixed null text embedding,
            one token of zeros.
        diffuses: "latents" (as published), or "residuals": latents minus those of the filled-in input, in the units of
            residuals.py, so that a network that predicts nothing gives the plain resize.
        data_std: None, the network gives v (as published); a number, it is preconditioned as in Karras et al. 2022 for
            data of that standard deviation: x_0 = c_skip x_t + c_out F(c_skip x_t / data_std). A network narrower than
            its latents then never has to carry the noise from its input to its output, and what it is shown of x_t, the
            best linear guess of x_0, fades with what x_t has to say (theirs keeps its variance).
        resize: of the input to the target, "bilinear" (as published) or "bicubic".
        blend: fill in-between frames by blending key frames; False repeats the one before (as published).
        tile_rows, tile_columns: of a spatial tile, in latents. max_frames: longest window in frames.
    """

    model_cpu_offload_seq = "text_encoder->denoiser->vae"
    _optional_components: ClassVar[list[str]] = ["text_encoder", "tokenizer"]

    def __init__(
        self,
        denoiser: ControlledVideoUNet,
        vae: Any,
        scheduler: VideoNoiseSchedule,
        text_encoder: Any = None,
        tokenizer: Any = None,
        diffuses: str = "latents",
        data_std: float | None = None,
        resize: str = "bilinear",
        blend: bool = False,
        tile_rows: int = 90,
        tile_columns: int = 160,
        max_frames: int = 32,
    ) -> None:
        super().__init__()
        settings = {"diffuses": diffuses, "data_std": data_std, "resize": resize, "blend": blend}
        settings |= {"tile_rows": tile_rows, "tile_columns": tile_columns, "max_frames": max_frames}
        check_stored(settings, RULES)
        self.register_modules(
            denoiser=denoiser, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(**settings)
        self.codec = as_codec(vae)
        if self.codec.channels != denoiser.unet.config["in_channels"]:
            raise UserError(
                f"vae: {self.codec.channels} latent channels, the network takes {denoiser.unet.config['in_channels']}"
            )

    def place(self, dtype: torch.dtype, device: torch.device, offload: bool) -> None:
        """Move everything to ``device`` in ``dtype`` (float32 for an autoencoder that asks for it in its config).

        ``offload`` keeps there only the part at work.
        """
        exact = isinstance(self.vae, PixelUnshuffleCodec) or self.vae.config.get("force_upcast", False)
        parts = [(self.denoiser, dtype), (self.vae, torch.float32 if exact else dtype), (self.text_encoder, dtype)]
        for part, wanted in parts:
            if part is not None:
                torch.nn.Module.to(part.eval(), dtype=wanted)
        if offload and device.type != "cpu":
            self.enable_model_cpu_offload(device=device)
        else:
            self.to(device)

    @property
    def compute_device(self) -> torch.device:
        return torch.device(self._execution_device)

    @property
    def has_text(self) -> bool:
        return self.text_encoder is not None

    @property
    def diffuses_residuals(self) -> bool:
        return self.config["diffuses"] == "residuals"

    @property
    def start_step(self) -> int:
        """Where sampling starts by default: the release leaves its last hundred steps out, so that a little is kept of
        the up-scaled clip. A residual has nothing to keep, and is to be started without any signal."""
        return len(self.scheduler) if self.diffuses_residuals else 900

    @property
    def fill(self) -> Fill:
        return Fill(self.config["resize"], self.config["blend"])

    def velocity(self, x: Tensor, step: Tensor | int, text: Tensor, **conditions: Any) -> Tensor:
        """v of noisy latents x (B, C, F, h, w) at whole steps; float32 (n B, ...) for n texts per sample.

        ``conditions``: the control network's, as ``ControlledVideoUNet`` takes them.
        """
        data_std, dtype = self.config["data_std"], self.denoiser.dtype
        if "hint" in conditions:
            conditions = conditions | {"hint": conditions["hint"].to(dtype)}
        if data_std is None:
            return self.denoiser(x.to(dtype), step, text, **conditions).float()
        alpha, sigma, total = self._levels(step, x, data_std)
        c_skip, c_out = alpha * data_std**2 / total.square(), sigma * data_std / total
        f = self.denoiser((c_skip / data_std * x).to(dtype), step, text, **conditions).float()
        return (alpha * x - c_skip * x - c_out * f) / sigma

    def loss_weight(self, step: Tensor, like: Tensor) -> Tensor:
        """Factor of the squared error of v in training: 1, or what makes it the error of F (all steps count alike)."""
        data_std = self.config["data_std"]
        if data_std is None:
            return torch.ones(1, device=like.device)
        return (self._levels(step, like, data_std)[2] / data_std).square()

    def _levels(self, step: Tensor | int, like: Tensor, data_std: float) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma, and the standard deviation of x_t, (B or 1, 1, 1, 1, 1)."""
        index = torch.as_tensor(step, device="cpu").reshape(-1)
        shape = (-1, *[1] * (like.dim() - 1))
        alpha, sigma = (
            table[index].to(like.device).reshape(shape) for table in (self.scheduler.alphas, self.scheduler.sigmas)
        )
        return alpha, sigma, (alpha.square() * data_std**2 + sigma.square()).sqrt()

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Tensor:
        """Text tokens (1, L, D), or (2, L, D) with the negative prompt's second when ``guided``."""
        if not self.has_text:
            width = self.denoiser.unet.config["cross_attention_dim"]
            return torch.zeros(1, 1, width, device=self._execution_device, dtype=self.denoiser.dtype)
        texts = [prompt, negative_prompt] if guided else [prompt]
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        return self._encode(tokens.input_ids)

    @torch.no_grad()
    def encode_random_prompt(self, generator: torch.Generator) -> Tensor:
        """Text tokens (1, L, D) of uniformly random token ids at full length.

        ICG guides with them in place of a negative prompt (Sadat et al. 2025, section 5.1, "random text").
        """
        length = self.tokenizer.model_max_length
        ids = torch.randint(self.text_encoder.config.vocab_size, (1, length), generator=generator)
        return self._encode(ids)

    def _encode(self, ids: Tensor) -> Tensor:
        output = self.text_encoder(ids.to(self._execution_device), output_hidden_states=True)
        return penultimate(self.text_encoder, output).to(self.denoiser.dtype)
