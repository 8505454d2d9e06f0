"""``VideoEnhancePipeline``: the parts of an enhancement as a diffusers pipeline that can be loaded and called.

``save_pretrained`` / ``from_pretrained`` / ``push_to_hub`` as in any pipeline. Frames go through the engine;
a call of the pipeline keeps what is in progress in a temporary folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput, logging

from toolkit import zoo
from toolkit.errors import UserError
from toolkit.plain_files import read_object
from toolkit.runs.device import dtype_of
from toolkit.venhancer.config import EnhanceVideo
from toolkit.venhancer.engine.enhancer import Enhancer
from toolkit.venhancer.engine.settings import EnhanceSettings
from toolkit.venhancer.model.codec import PixelUnshuffleCodec
from toolkit.venhancer.model.loading import load_text_encoder, load_vae
from toolkit.venhancer.model.parts import EnhanceParts
from toolkit.venhancer.model.schedule import VideoNoiseSchedule
from toolkit.zoo.loading import hub_answers, load_or_refuse, refuse_other_libraries
from toolkit.zoo.sizes import no_larger_than, sizes_in
from toolkit.zoo.video.controlled_unet import ControlledVideoUNet

_OURS = {one.__name__: one for one in (ControlledVideoUNet, PixelUnshuffleCodec, VideoNoiseSchedule)}


@dataclass
class VideoEnhanceOutput(BaseOutput):
    """``frames``: uint8 (F, H, W, 3)."""

    frames: np.ndarray


class VideoEnhancePipeline(EnhanceParts):
    """Everything that an enhancement needs; ``EnhanceParts`` has the arguments."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> VideoEnhancePipeline:
        """As any pipeline's; our own classes are loaded strictly, without pickles. "small" is the shipped model."""
        source = _folder(pretrained_model_name_or_path)
        index = source / "model_index.json"
        if source.exists() and not index.exists():
            raise UserError(f"{source}: no pipeline there (model_index.json is missing)")
        if index.exists():
            vae = read_object(index, vae=list)["vae"][-1:]
            kwargs.setdefault("denoiser", zoo.load(source, part="denoiser"))
            kwargs.setdefault("scheduler", VideoNoiseSchedule.from_pretrained(source, subfolder="scheduler"))
            if vae == [PixelUnshuffleCodec.__name__]:
                kwargs.setdefault("vae", PixelUnshuffleCodec.from_pretrained(source, subfolder="vae"))
        with _no_progress_bar():
            return super().from_pretrained(str(source), **kwargs)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """As any pipeline's. Our own classes are found by name: a saved index holds the module paths of its version.

        Raises UserError where it names a part that belongs to no library of ours.
        """
        found = super().load_config(*args, **kwargs)
        index = found[0] if isinstance(found, tuple) else found
        ours = {name: part for name, part in index.items() if _is_ours(part)}
        refuse_other_libraries("model_index.json", {name: part for name, part in index.items() if name not in ours})
        for part in ours.values():
            part[0] = _OURS[part[1]].__module__
        return found

    @classmethod
    def from_parts(cls, denoiser: str, vae: str | None, text_encoder: str | None) -> VideoEnhancePipeline:
        """A pipeline for imported official weights: the VAE and CLIP-H come by folder or hub id.

        Raises UserError naming the setting that is missing or cannot be loaded.
        """
        network = zoo.load(denoiser)
        if not isinstance(network, ControlledVideoUNet):
            raise UserError(f"model={denoiser}: a {type(network).__name__}, expected a ControlledVideoUNet")
        if not vae or not text_encoder:
            missing = "vae" if not vae else "text_encoder"
            raise UserError(
                f"{missing}: needed beside model={denoiser}: "
                + ("a folder or hub id of an SD or SVD autoencoder" if not vae else "one of CLIP ViT-H (SD 2.1's)")
            )
        encoder, tokenizer = load_text_encoder(text_encoder)
        return cls(network, load_vae(vae), VideoNoiseSchedule(), encoder, tokenizer)

    @torch.no_grad()
    def __call__(
        self,
        video: np.ndarray,
        scale: float = 4.0,
        frame_factor: int = 1,
        callback_on_step_end: Callable[[Any], None] | None = None,
        **settings: Any,
    ) -> VideoEnhanceOutput:
        """Enhance one shot that fits into memory.

        Args:
            video: uint8 (N, h, w, 3).
            scale: of the output's sides. frame_factor: k; the output has (N - 1) k + 1 frames.
            callback_on_step_end: called with ``enhancer.Progress`` after every window of every step.
            settings: words of ``EnhanceSettings.changed``, such as noise_level, num_steps, seed.

        Raises UserError for another array, and for a setting that does not exist or fit.
        """
        if not isinstance(video, np.ndarray) or video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3:
            found = f"{video.dtype} {video.shape}" if isinstance(video, np.ndarray) else type(video).__name__
            raise UserError(f"video: {found}; expected an array uint8 (N, h, w, 3)")
        height, width = (round(scale * side) for side in video.shape[1:3])
        asked = {"height": height, "width": width, "frame_factor": frame_factor} | settings
        enhancer = Enhancer(self, EnhanceSettings().changed(**asked))
        with tempfile.TemporaryDirectory() as folder:
            chunks = enhancer.enhance(ArraySource(video), Path(folder), progress=callback_on_step_end)
            return VideoEnhanceOutput(frames=np.concatenate([chunk.frames for chunk in chunks]))


class ArraySource:
    """Frames in memory, uint8 (N, h, w, 3), as enhancer.py reads them."""

    def __init__(self, video: np.ndarray) -> None:
        self.video = video
        self.num_frames, self.height, self.width = video.shape[:3]

    def frames(self, start: int) -> Iterator[np.ndarray]:
        yield from self.video[start:]


def _is_ours(part: Any) -> bool:
    """Whether an entry of an index, [library, class], names a class of ours."""
    return isinstance(part, list) and len(part) == 2 and isinstance(part[1], str) and part[1] in _OURS


def _folder(model: str | Path) -> Path:
    """Where ``model`` lies; "small" is this command's own word for the zoo's video_small."""
    return zoo.local("video_small" if str(model) == "small" else model)


def load_pipeline(model: str, vae: str | None = None, text_encoder: str | None = None) -> VideoEnhancePipeline:
    """A saved pipeline ("small": the shipped one), a training run's, or an imported network with the parts it lacks.

    Raises UserError: nothing there, or a part missing.
    """
    folder = _folder(model)
    folder = folder / "model" if (folder / "model" / "model_index.json").exists() else folder
    if (folder / "model_index.json").exists():
        with no_larger_than(sizes_in(folder.rglob("*.safetensors")), folder):
            return load_or_refuse("model", model, lambda: VideoEnhancePipeline.from_pretrained(folder))
    if folder.exists() or vae or text_encoder:
        return VideoEnhancePipeline.from_parts(model, vae, text_encoder)
    offline = not hub_answers()
    return load_or_refuse("model", model, lambda: VideoEnhancePipeline.from_pretrained(model, local_files_only=offline))


def place_pipeline(config: EnhanceVideo, device: str | torch.device) -> VideoEnhancePipeline:
    """The pipeline that ``config`` names, on ``device``, in its precision. Raises UserError as ``load_pipeline``."""
    pipeline = load_pipeline(config.model, config.vae, config.text_encoder)
    pipeline.place(dtype_of(config.precision), torch.device(device), config.cpu_offload)
    return pipeline


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """diffusers' bar over the components is off inside: loading them takes a moment."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
