"""The denoising loss against the noise level (Xu et al. 2024, figures 7 and 10), and the information in the latents.

The loss is taken on held-out data with the same noise for every variant: z from the encoder ("ours"), null, shuffled
over the batch, and from the prior ("prior_z"), beside the baseline without latents and, where the density is known,
the least possible loss. A lower loss with the encoder's z is guaranteed by information alone; it says nothing of
samples.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from toolkit.disco.baselines import code_logits
from toolkit.disco.discretize import gumbel_softmax, joint_codes, latent_use, normalized_mutual_information
from toolkit.disco.measure.setting import Setting, in_batches, ratio, sigma_key
from toolkit.disco.stage2 import ENCODE_BATCH
from toolkit.metrics.mixture import bayes_loss
from toolkit.show import figures
from toolkit.show.table import Table
from toolkit.zoo.edm.denoiser import Denoiser
from toolkit.zoo.edm.loss import edm_weight
from toolkit.zoo.precision import widest_float


def loss(setting: Setting) -> dict[str, float]:
    """``loss.VARIANT.sigma_S`` (mean squared error per value), ``loss.ratio.sigma_S`` = ours / baseline.

    ``loss.weighted.VARIANT.sigma_S`` carries EDM's weight, with which a network that ignores its input has about 1.
    """
    curves = {name: _curve(setting, *variant) for name, variant in _variants(setting).items()}
    curves |= _bayes_curves(setting)
    sigmas = setting.config.measure.sigmas
    weights = edm_weight(torch.tensor(sigmas, dtype=torch.float64), setting.parts.denoiser.sigma_data).tolist()
    found: dict[str, float] = {}
    for name, values in curves.items():
        for sigma, weight, value in zip(sigmas, weights, values, strict=True):
            found[f"{name}.{sigma_key(sigma)}"] = value
            found[f"weighted.{name}.{sigma_key(sigma)}"] = weight * value
    if "baseline" in curves:
        for sigma, ours, theirs in zip(sigmas, curves["ours"], curves["baseline"], strict=True):
            found[f"ratio.{sigma_key(sigma)}"] = ratio(ours, theirs)
    _report(setting, curves)
    return found


def _variants(setting: Setting) -> dict[str, tuple[Denoiser, Tensor | None]]:
    """Name -> (network, latents of the held-out items)."""
    denoiser, (x, known) = setting.parts.denoiser, setting.held_out
    variants: dict[str, tuple[Denoiser, Tensor | None]] = {}
    z = setting.encoded(x, known, "loss")
    variants["ours"] = denoiser, z
    if z is not None:
        order = torch.randperm(len(z), generator=setting.rng("shuffle"), device=z.device)
        variants["null"] = denoiser, None
        variants["shuffled"] = denoiser, z[order]
        if setting.parts.prior is not None:
            variants["prior_z"] = denoiser, setting.drawn("prior", setting.condition(known), len(x), "loss")
    if setting.discrete and setting.config.latents.kind == "discrete" and not setting.config.latents.hard:
        # trained on relaxed z, used with hard z: report the gap between the two
        variants["relaxed"] = denoiser, _relaxed(setting, x, known)
    if setting.parts.baseline is not None:
        variants["baseline"] = setting.parts.baseline, None
    return variants


@torch.no_grad()
def _relaxed(setting: Setting, x: Tensor, known: Tensor | None) -> Tensor:
    logits = _logits(setting, in_batches(x, known))
    return gumbel_softmax(logits, setting.config.latents.temperature, hard=False, generator=setting.rng("relaxed"))


@torch.no_grad()
def _logits(setting: Setting, batches: Iterable[tuple[Tensor, Tensor | None]]) -> Tensor:
    encoder = setting.parts.encoder
    assert encoder is not None
    return torch.cat([code_logits(encoder, *pair) for pair in batches])


@torch.no_grad()
def _curve(setting: Setting, denoiser: Denoiser, latents: Tensor | None) -> list[float]:
    x, known = setting.held_out
    labels, batch_size = setting.condition(known), setting.config.sampling.batch_size
    losses = []
    for sigma in setting.config.measure.sigmas:
        noise = torch.randn(x.shape, generator=setting.rng("loss", str(sigma)), device=x.device)
        total = 0.0
        for start in range(0, len(x), batch_size):
            i = slice(start, start + batch_size)
            given = {"class_labels": None if labels is None else labels[i]}
            given["latents"] = None if latents is None else latents[i]
            denoised = denoiser(x[i] + sigma * noise[i], sigma, **given)
            total += float((denoised - x[i]).to(widest_float(x.device)).square().sum())
        losses.append(total / x.numel())
    return losses


def _bayes_curves(setting: Setting) -> dict[str, list[float]]:
    """The least possible loss of a known density, without and with the mode known."""
    mixture = setting.dataset.mixture
    if mixture is None:
        return {}
    sigmas = setting.config.measure.sigmas
    return {
        name: [
            bayes_loss(sigma, mixture.centres, mixture.std, setting.cpu_rng("bayes"), component_known=component_known)
            for sigma in sigmas
        ]
        for name, component_known in (("bayes", False), ("bayes_mode_known", True))
    }


def _report(setting: Setting, curves: dict[str, list[float]]) -> None:
    sigmas = setting.config.measure.sigmas
    note = f"{len(setting.held_out[0])} held-out items with noise, the same for every column"
    rows = [[sigma, *(values[row] for values in curves.values())] for row, sigma in enumerate(sigmas)]
    table = Table("Mean squared error against noise level", ["sigma", *curves], rows, note)
    table.save(setting.run.path("tables", "loss.json"))
    figures.curves(
        setting.run.path("figures", "loss.png"),
        {name: (sigmas, values) for name, values in curves.items()},
        xlabel="noise level σ",
        ylabel="mean squared error per value",
        logx=True,
        logy=True,
        caption="Denoising loss on held-out data. 'ours' sees the encoder's z of the clean item.",
    )


def use(setting: Setting) -> dict[str, float]:
    """Test items: per slot H(q̄), E[H(q)], I and dead codes; jointly distinct tuples and agreement with labels.

    A high perplexity is no evidence of use; the mutual information I is.
    """
    test = setting.dataset.test
    index = setting.chosen(test, max(setting.config.measure.num_samples, ENCODE_BATCH))
    logits = _logits(setting, setting.batches(test, index))
    per_slot = {name: values.cpu().double() for name, values in latent_use(logits).items()}
    codes, known = setting.encoded_items(test, index, "use"), setting.known(test, index)
    assert codes is not None
    ids, num_tuples = joint_codes(codes)
    found = {
        "information": float(per_slot["mutual_information"].sum()),
        "conditional_entropy": float(per_slot["conditional_entropy"].sum()),
        "perplexity": float(per_slot["perplexity"].mean()),
        "dead_codes": float(per_slot["dead_codes"].sum()),
        "tuples_per_item": num_tuples / len(index),
    }
    if known is not None:
        found["nmi"] = normalized_mutual_information(ids, known)
    rows = [[slot, *(float(values[slot]) for values in per_slot.values())] for slot in range(codes.shape[1])]
    note = f"{len(index)} test items, {num_tuples} distinct tuples of codes; entropies in nats"
    Table("Use of the latents", ["slot", *per_slot], rows, note).save(setting.run.path("tables", "latents.json"))
    if len(setting.dataset.shape) == 1:
        caption = "Test points by the code that the encoder draws for them."
        figures.scatter(setting.run.path("figures", "codes.png"), test.batch(index)[0], ids.cpu(), caption=caption)
    return found
