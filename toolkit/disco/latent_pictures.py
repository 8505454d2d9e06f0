"""Pictures that show what z encodes (Xu et al. 2024, figures 2b and 14).

Samples that share z, and one latent changed at a time. Shapes: m slots, k codes per slot.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.disco.artefact import Parts
from toolkit.disco.config import Sampling
from toolkit.disco.sampling import draw_latents, draw_samples
from toolkit.errors import UserError
from toolkit.runs.record import Run
from toolkit.runs.seeds import derive
from toolkit.show import figures
from toolkit.zoo.edm.noise import SampleNoise

NUM_LATENTS = 8  # draws of z: rows of a picture
NUM_NOISES = 10  # columns
MOST_CODES = 16  # shown of each slot


def check_shows(parts: Parts) -> None:
    """Raises UserError where the model makes no images from discrete latents of a prior."""
    denoiser = parts.denoiser
    if not denoiser.num_latents or denoiser.latent_kind != "discrete" or len(denoiser.shape) != 3:
        raise UserError("sampling.show_latents: pictures of discrete latents, and this model has none for images")
    if parts.prior is None:
        raise UserError("sampling.show_latents: draws z from the prior, and none was trained (run stage=prior)")


def draw_latent_pictures(run: Run, parts: Parts, sampling: Sampling) -> None:
    """Three grids in ``samples/`` (two for a model without classes), all from z of the prior.

    shared_z.png: a row has one z (and class), a column one noise. z_and_class.png: a row has one z, a column one class;
    the noise is the same everywhere. one_latent.png: one noise, one class and one z, of which a row changes one latent
    alone, to every code in turn.
    """
    pictures = _Pictures(run, parts, sampling)
    pictures.shared()
    if parts.denoiser.num_classes:
        pictures.across_classes()
    pictures.one_latent()


class _Pictures:
    def __init__(self, run: Run, parts: Parts, sampling: Sampling) -> None:
        self.run, self.parts, self.sampling = run, parts, sampling
        self.device = parts.denoiser.device
        self.labels = parts.spread_labels(NUM_LATENTS)
        noise = self._noise("shown latents", torch.arange(NUM_LATENTS))
        drawn = draw_latents(parts, NUM_LATENTS, sampling, noise, source="prior", class_labels=self.labels)
        assert drawn is not None
        self.latents = drawn

    def _noise(self, purpose: str, index: Tensor) -> SampleNoise:
        return SampleNoise(derive(self.run.config.seed, "sample", purpose), index, self.device)

    def _draw(self, name: str, latents: Tensor, labels: Tensor | None, noises: Tensor, **laid_out: object) -> None:
        """One picture; ``noises`` int64 (n,) says which samples start from the same noise."""
        noise = self._noise("shown noise", noises)
        x, _ = draw_samples(self.parts.denoiser, latents, len(latents), self.sampling, noise, labels)
        figures.image_grid(self.run.path("samples", f"{name}.png"), x.cpu(), **laid_out)  # type: ignore[arg-type]

    def shared(self) -> None:
        """A row has one z, a column one noise."""
        labels = None if self.labels is None else self.labels.repeat_interleave(NUM_NOISES)
        noises = torch.arange(NUM_NOISES).repeat(NUM_LATENTS)
        caption = "Each row shares z" + ("" if labels is None else " and the class") + ", each column the noise."
        z = self.latents.repeat_interleave(NUM_NOISES, dim=0)
        self._draw("shared_z", z, labels, noises, columns=NUM_NOISES, row_labels=self._names(), caption=caption)

    def across_classes(self) -> None:
        """A row has one z, a column one class; one noise."""
        num = min(self.parts.denoiser.num_classes, NUM_NOISES)
        labels = torch.arange(num, device=self.device).repeat(NUM_LATENTS)
        noises = torch.zeros(len(labels), dtype=torch.int64)
        caption = "Each row shares z, each column the class; the noise is the same everywhere."
        z = self.latents.repeat_interleave(num, dim=0)
        self._draw("z_and_class", z, labels, noises, columns=num, row_labels=self._names(), caption=caption)

    def one_latent(self) -> None:
        """One z, of which a row changes one latent alone."""
        num_latents, num = self.parts.denoiser.num_latents, min(self.parts.denoiser.codebook_size, MOST_CODES)
        z = self.latents[-1].repeat(num_latents, num, 1)
        slots = torch.arange(num_latents, device=self.device)
        z[slots, :, slots] = torch.arange(num, device=self.device)
        labels = None if self.labels is None else self.labels[-1].repeat(num_latents * num)
        noises = torch.zeros(num_latents * num, dtype=torch.int64)
        first = " ".join(str(code) for code in self.latents[-1].tolist())
        caption = f"One noise and z = {first}; a row changes one latent alone, to the code above."
        names = {"row_labels": [f"latent {slot + 1}" for slot in range(num_latents)]}
        names["column_labels"] = [str(code) for code in range(num)]
        self._draw("one_latent", z.flatten(0, 1), labels, noises, columns=num, caption=caption, **names)

    def _names(self) -> list[str]:
        """Row labels: the first six codes of each z."""
        return [" ".join(str(code) for code in codes) for codes in self.latents[:, :6].tolist()]
