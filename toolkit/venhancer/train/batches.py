"""Training batches as a function of the step alone, so that a resumed run sees what it would have seen."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from toolkit.data.video.crops import ClipCrops
from toolkit.runs.passes import own_part
from toolkit.runs.seeds import derive
from toolkit.venhancer.config import EnhanceVideo
from toolkit.venhancer.pipeline import VideoEnhancePipeline
from toolkit.venhancer.train import augment


class Batches:
    """``batches(step)``: degraded clips and their text, this process's share of the batch."""

    def __init__(
        self, config: EnhanceVideo, crops: ClipCrops, pipeline: VideoEnhancePipeline, device: torch.device
    ) -> None:
        self.config, self.crops, self.pipeline, self.device = config, crops, pipeline, device
        self.captions = crops.captions
        self._texts: dict[str, Tensor] = {}
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __call__(self, step: int) -> tuple[augment.Degraded, Tensor]:
        config, wanted = self.config.augment, self._indices(step)
        rng = np.random.default_rng(derive(self.config.seed, "augment", step))  # equal on every process
        size = self.config.optim.batch_size
        most = min(config.max_frame_factor, self.config.data.num_frames - 1)
        frame_factor = augment.draw_frame_factor(rng, most, config.frame_factor_weighting)
        scale = augment.draw_scales(rng, size, config.max_scale, config.scale_weighting)
        level = torch.from_numpy(rng.integers(0, config.max_noise_level + 1, size))
        level[torch.from_numpy(rng.random(size) < config.clean_fraction)] = 0
        flips, dropped = rng.random((size, 2)) < 0.5, rng.random(size) < config.text_drop
        mine = own_part(size)
        num_frames = augment.frames_for(frame_factor, self.crops.shape[1], config.max_key_frames)
        clips = self._flipped(self.crops.read(wanted, num_frames), flips[mine])
        batch = augment.degrade(clips.to(self.device), frame_factor, scale[mine], level[mine], self.pipeline.fill)
        texts = ["" if drop else self.captions[index] for index, drop in zip(wanted, dropped[mine], strict=True)]
        return batch, torch.cat([self._text(text) for text in texts])

    def _indices(self, step: int) -> list[int]:
        """Crops of this process: every crop once before any comes again, in an order that changes."""
        size = self.config.optim.batch_size
        mine = own_part(size)
        return [self._crop(step * size + place) for place in range(mine.start, mine.stop)]

    def _crop(self, place: int) -> int:
        epoch, index = divmod(place, len(self.crops))
        if self._order[0] != epoch:
            rng = np.random.default_rng(derive(self.config.seed, "order", epoch))
            self._order = (epoch, rng.permutation(len(self.crops)))
        return int(self._order[1][index])

    @staticmethod
    def _flipped(clips: Tensor, flips: np.ndarray) -> Tensor:
        """Mirrored, and played backwards, each for half of the clips."""
        clips = clips.clone()
        for index, (mirror, backwards) in enumerate(flips):
            axes = [axis for axis, asked in ((-1, mirror), (0, backwards)) if asked]
            clips[index] = clips[index].flip(axes) if axes else clips[index]
        return clips

    def _text(self, text: str) -> Tensor:
        if text not in self._texts:
            self._texts[text] = self.pipeline.encode_prompt(text, "", guided=False)
        return self._texts[text]
