"""How well pictures fit their prompts: the CLIP score (Hessel et al. 2021, "CLIPScore", eq. 1 without its factor 2.5).

The number depends on the CLIP model; compare only scores of the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.plain_files import read_object
from toolkit.zoo.loading import hub_answers, load_or_refuse

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's CLIP
BATCH = 32


class ClipScore:
    """``clip(images, prompts)``: mean of 100 max(cos, 0) between picture and text.

    Args:
        model: folder or hub id of a transformers CLIPModel with its tokenizer. device: where to compute.

    Raises:
        UserError: nothing usable there.
    """

    def __init__(self, model: str, device: torch.device) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        offline = Path(model).exists() or not hub_answers()
        options: dict[str, Any] = {"local_files_only": offline}
        self.net: Any = load_or_refuse(
            "measure.clip", model, lambda: CLIPModel.from_pretrained(model, use_safetensors=True, **options)
        )
        self.tokenizer: Any = load_or_refuse(
            "measure.clip", model, lambda: CLIPTokenizer.from_pretrained(model, **options)
        )
        self.net.float().to(device).eval()  # half precision, where it is stored so, would be kept
        self.device, self.mean, self.std = device, *_normalisation(model)

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> float:
        """``images`` float32 (n, C, H, W) in [-1, 1], one prompt each."""
        scores = []
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            cosines = F.cosine_similarity(self._pictures(images[part]), self._texts(prompts[part]))
            scores.append(100 * cosines.clamp_min(0).cpu().double())
        return float(torch.cat(scores).mean())

    def _pictures(self, images: Tensor) -> Tensor:
        size = self.net.config.vision_config.image_size
        pixels = (images.to(self.device).expand(-1, 3, -1, -1) + 1) / 2
        pixels = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return _vectors(self.net.get_image_features(pixel_values=(pixels - mean) / std))

    def _texts(self, prompts: Sequence[str]) -> Tensor:
        length = self.net.config.text_config.max_position_embeddings
        options = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
        return _vectors(self.net.get_text_features(**self.tokenizer(list(prompts), **options).to(self.device)))


def _vectors(output: Any) -> Tensor:
    """Newer transformers wrap the projected features."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _normalisation(model: str) -> tuple[Sequence[float], Sequence[float]]:
    """As the model's preprocessor_config.json says, else OpenAI's."""
    path = Path(model) / "preprocessor_config.json"
    if not path.is_file():
        return MEAN, STD
    config = read_object(path)
    return config.get("image_mean", MEAN), config.get("image_std", STD)
