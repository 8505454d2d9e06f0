"""The stage ``sample``: a set of any size, drawn block by block on any number of processes.

Every sample has random numbers of its own (``SampleNoise``), so the set is the same whatever the block and whoever
draws it. A finished block leaves a file under ``draws/``; an interrupted set continues with the missing ones.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from toolkit.data.sets import Dataset
from toolkit.disco.artefact import Parts
from toolkit.disco.config import Sampling
from toolkit.disco.sampling import draw_latents, draw_samples
from toolkit.errors import JobError, UserError
from toolkit.runs.distributed import barrier, rank, world_size
from toolkit.runs.files import write_atomic
from toolkit.runs.record import Run
from toolkit.runs.seeds import derive
from toolkit.show import figures
from toolkit.zoo.edm.denoiser import Denoiser
from toolkit.zoo.edm.noise import SampleNoise

MOST_SHOWN = 100  # samples in a grid
MOST_KEPT_VALUES = 2**26  # of each network as float32, 256 MiB


class SampleSet:
    """``sampling.num_samples`` samples of ours and of the baseline, each pair from the same noise.

    folder: of the trained parts. dataset: where real images for ``sampling.latents=oracle`` come from.
    """

    def __init__(self, run: Run, sampling: Sampling, parts: Parts, folder: Path, dataset: Dataset | None) -> None:
        if sampling.latents == "oracle" and dataset is None:
            raise UserError(
                "sampling.latents=oracle: encodes real images, and there are none; use sampling.latents=prior"
            )
        self.run, self.sampling, self.parts, self.dataset = run, sampling, parts, dataset
        both = {"ours": parts.denoiser, "baseline": parts.baseline}
        self.networks: dict[str, Denoiser] = {name: one for name, one in both.items() if one is not None}
        self.device, self.num = parts.denoiser.device, sampling.num_samples
        self.num_kept = MOST_KEPT_VALUES // math.prod(parts.denoiser.shape)
        trained = hashlib.sha256((folder / "model" / "parts.json").read_bytes()).hexdigest()[:16]
        self.folder = run.dir / "draws" / trained

    def draw(self) -> None:
        """Draw this process's share of the missing blocks."""
        for block in itertools.islice(self._blocks(), rank(), None, world_size()):
            if not _is_whole(self._file(block)):
                self._draw_block(block)
        barrier()

    def _blocks(self) -> Iterator[range]:
        size = self.sampling.batch_size
        return (range(start, min(start + size, self.num)) for start in range(0, self.num, size))

    def _file(self, block: range) -> Path:
        """Named by both ends, because ``sampling.batch_size`` may differ when an interrupted set is continued."""
        return self.folder / f"{block.start:08d}-{block.stop:08d}.safetensors"

    def _draw_block(self, block: range) -> None:
        tensors: dict[str, Tensor] = {}
        labels = self.parts.spread_labels(block)
        latents = self._latents(block, labels)
        calls: dict[str, int] = {}
        for name, denoiser in self.networks.items():
            z = latents if name == "ours" else None
            null = {"null_denoiser": self.parts.null} if name == "ours" and self.parts.null is not None else {}
            noise = self._noise(block, "noise")
            samples, calls[name] = draw_samples(denoiser, z, len(block), self.sampling, noise, labels, **null)
            samples = samples.cpu()
            if not torch.isfinite(samples).all():
                raise JobError(f"samples {block.start} to {block[-1]} of {name} hold values that are not finite")
            if samples.dim() == 4:
                figures.save_images(self.run.dir / "images" / name, samples, block.start)
            tensors[name] = samples[: max(0, self.num_kept - block.start)]
        for name, values in (("latents", latents), ("class_labels", labels)):
            if values is not None:
                tensors[name] = values.cpu()
        kept = {name: values.contiguous() for name, values in tensors.items()}
        write_atomic(self._file(block), save(kept, metadata={"calls": json.dumps(calls)}))

    def _noise(self, block: range, purpose: str) -> SampleNoise:
        return SampleNoise(derive(self.run.config.seed, "sample", purpose), block, self.device)

    def _latents(self, block: range, labels: Tensor | None) -> Tensor | None:
        real = None
        if self.sampling.latents == "oracle":
            assert self.dataset is not None
            index = torch.as_tensor(block) % len(self.dataset.test)
            known = self.dataset.test.labels
            given = None if known is None else torch.from_numpy(known[index.numpy()]).to(self.device)
            real = self.dataset.test.batch(index)[0].to(self.device), given
        noise = self._noise(block, "latents")
        return draw_latents(self.parts, len(block), self.sampling, noise, class_labels=labels, data=real)

    def finish(self) -> None:
        """One file of tensors and the pictures, from all blocks, which are then removed; by one process."""
        found: dict[str, list[Tensor]] = {}
        for block in self._blocks():
            with safe_open(self._file(block), "pt") as file:
                self.run.record["evaluations_per_sample"] = json.loads(file.metadata()["calls"])
                for name in file.keys():  # noqa: SIM118 - the handle is no dictionary
                    found.setdefault(name, []).append(file.get_tensor(name))
        tensors = {name: torch.cat(values) for name, values in found.items()}
        drawn = {name: tensors[name] for name in self.networks}
        if self.dataset is not None:
            num_real = self.num if drawn["ours"].dim() == 2 else min(self.num, MOST_SHOWN)
            drawn["real"] = self.dataset.test.all(num_real)[0]
        _draw_figures(self.run, drawn, tensors.get("latents"), self.num)
        save_file(tensors, self.run.path("samples", "samples.safetensors"))
        shutil.rmtree(self.run.dir / "draws", ignore_errors=True)


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return "calls" in (file.metadata() or {})
    except (OSError, SafetensorError):  # not there, or damaged
        return False


def _draw_figures(run: Run, drawn: dict[str, Tensor], latents: Tensor | None, num: int) -> None:
    """Points: a scatter plot per set. Images: a grid of at most ``MOST_SHOWN`` per set, and one of all sets."""
    if drawn["ours"].dim() == 2:
        colours = None if latents is None or latents.is_floating_point() else latents[:, 0].numpy()
        for name, points in drawn.items():
            figures.scatter(run.path("samples", f"{name}.png"), points, colours if name == "ours" else None)
        return
    caption = f"the first {MOST_SHOWN} of {num}" if num > MOST_SHOWN else ""
    for name, images in drawn.items():
        shown = images[:MOST_SHOWN]
        columns = math.ceil(math.sqrt(len(shown)))
        part = "" if name == "real" or not caption else f"{name}: {caption}"
        figures.image_grid(run.path("samples", f"{name}.png"), shown, columns=columns, caption=part)
    shortest = min(16, *(len(images) for images in drawn.values()))
    rows = torch.cat([images[:shortest] for images in drawn.values()])
    figures.image_grid(run.path("samples", "grid.png"), rows, columns=shortest, row_labels=list(drawn))
