"""VEnhancer's network: the base and the control network that steers it, as one module (arXiv 2407.07667, figure 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from toolkit.zoo.video.controlnet import VideoControlNetModel
from toolkit.zoo.video.unet import VideoUNet


class ControlledVideoUNet(ModelMixin, ConfigMixin):
    """v(x_t, t, text, key frames): ``unet`` with the residuals of ``controlnet``.

    Args:
        unet_config, controlnet_config: arguments of the two.
    """

    config_name = "config.json"  # type: ignore[assignment]

    @register_to_config
    def __init__(
        self, unet_config: Mapping[str, Any] | None = None, controlnet_config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.unet = VideoUNet(**_arguments(unet_config))
        self.controlnet = VideoControlNetModel(**_arguments(controlnet_config))

    @classmethod
    def from_parts(cls, unet: VideoUNet, controlnet: VideoControlNetModel) -> ControlledVideoUNet:
        """The two networks as one module, without copying them."""
        with torch.device("meta"):
            pair = cls(unet_config=_arguments(unet.config), controlnet_config=_arguments(controlnet.config))
        pair.unet, pair.controlnet = unet, controlnet
        return pair

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        y: Tensor,
        hint: Tensor | None = None,
        t_hint: Tensor | float = 0,
        up_scale: Tensor | float = 1,
        mask_cond: Tensor | None = None,
        key_frame_index: Tensor | None = None,
        conditioning_scale: float = 1.0,
    ) -> Tensor:
        """Predict v.

        Args:
            x: noisy latents (B, C, F, H, W). t: step, a number or [B].
            y: text (n B, L, D); with n > 1 texts per sample their predictions come back sample by sample.
            hint: latents of key frames (B, C, K, H, W), noised to step ``t_hint``; None: the base alone.
            up_scale: s.
            mask_cond: (B, F), 0 for the key frames in the order of ``hint``, 1 for the others (the first release's
                convention). Without this and the next every frame is a key frame.
            key_frame_index: int (B, F), which of ``hint`` belongs to a frame, -1 for none (later releases' convention).
            conditioning_scale: factor of the control network's residuals.

        Returns:
            (n B, C, F, H, W).

        Raises:
            ValueError: both conventions at once, or shapes that do not fit.
        """
        if hint is None:
            return self.unet(x, t, y)
        if mask_cond is not None and key_frame_index is not None:
            raise ValueError("mask_cond and key_frame_index say the same thing: give one")
        if mask_cond is not None:
            key_frame_index = index_of_keys(mask_cond)
        if key_frame_index is None:
            key_frame_index = torch.arange(x.shape[2], device=x.device).expand(len(x), -1)

        def control(skips: list[Tensor], middle: Tensor) -> tuple[list[Tensor], Tensor]:
            more, last = self.controlnet(
                x, t, y, hint, key_frame_index, t_hint, up_scale, conditioning_scale=conditioning_scale
            )
            for level, residual in enumerate(more):
                skips[level] = _add(skips[level], residual)
            return skips, _add(middle, last)

        return self.unet(x, t, y, control)


def index_of_keys(mask: Tensor) -> Tensor:
    """(B, F) with 0 for key frames -> their running number, -1 for the others."""
    is_key = mask == 0
    return torch.where(is_key, is_key.cumsum(dim=1) - 1, -1)


def _add(feature: Tensor, residual: Tensor) -> Tensor:
    """Their sum, without a third tensor where neither has branched off and no gradient is taken."""
    if torch.is_grad_enabled() or len(feature) != len(residual):
        return feature + residual  # a batch of one feature meets several texts' residuals
    return residual.add_(feature)


def _arguments(config: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (config or {}).items() if not key.startswith("_")}
