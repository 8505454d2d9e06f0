"""How alike samples of one z are (Xu et al. 2024, figures 2b and 14), and what the prior and the latents cost."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

from toolkit.disco.measure.setting import Setting, ratio
from toolkit.disco.sampling import draw_samples
from toolkit.metrics.judge import make_judge
from toolkit.show.table import Table

NOISES_PER_LATENT = 8
TIMINGS = 3


def shared(setting: Setting) -> dict[str, float]:
    """Several samples per z from the prior, each from its own noise.

    ``shared.within_over_total``: mean variance within one z over the variance of all samples (per value, unbiased);
    ``shared.label_agreement``: share of pairs of one z that are of one class, ``..._chance`` for any pairs.
    """
    num, sampling = max(2, setting.config.measure.num_trajectories // NOISES_PER_LATENT), setting.config.sampling
    labels = setting.random_labels(num)
    latents = setting.drawn("prior", labels, num, "shared")
    assert latents is not None
    repeated = latents.repeat_interleave(NOISES_PER_LATENT, dim=0)
    given = None if labels is None else labels.repeat_interleave(NOISES_PER_LATENT)
    samples, _ = draw_samples(
        setting.parts.denoiser, repeated, len(repeated), sampling, setting.rng("shared", "noise"), given
    )
    points = samples.cpu().double().flatten(1)
    groups = points.view(num, NOISES_PER_LATENT, -1)
    within, total = groups.var(dim=1).mean(), points.var(dim=0).mean()
    found = {"within_over_total": ratio(float(within), float(total))}
    classes = make_judge(setting.dataset).classify(samples)
    if classes is not None:
        of_group = classes.view(num, NOISES_PER_LATENT)
        same = (of_group[:, :, None] == of_group[:, None, :]).double().mean(dim=(1, 2))
        pairs = NOISES_PER_LATENT
        found["label_agreement"] = float(((same * pairs - 1) / (pairs - 1)).mean())  # without an item with itself
        shares = torch.bincount(classes).double() / len(classes)
        found["label_agreement_chance"] = float(shares.square().sum())
    rows = [[name, value] for name, value in found.items()]
    note = f"{num} draws of z, {NOISES_PER_LATENT} samples each"
    Table("Samples that share z", ["measure", "value"], rows, note).save(setting.run.path("tables", "shared.json"))
    return found


def cost(setting: Setting) -> dict[str, float]:
    """Seconds for one batch (medians of three): ``cost.prior_s``, ``cost.denoiser_s`` at ``sampling.num_steps``.

    ``cost.prior_share`` = prior / both; ``cost.latents_overhead`` = a sample of ours over one of the baseline, less 1
    (equal steps; only a same-width baseline makes it the price of the latents alone). Timings are not reproducible.
    """
    sampling = setting.config.sampling
    num = min(sampling.batch_size, setting.num_samples)
    labels = setting.random_labels(num)
    seconds = {"prior": _seconds(setting, lambda: setting.drawn("prior", labels, num, "cost"))}
    latents = setting.drawn("prior", labels, num, "cost")
    for name, denoiser in setting.variants.items():
        z = latents if denoiser.num_latents else None
        work = functools.partial(draw_samples, denoiser, z, num, sampling, setting.rng("cost"), labels)
        seconds[name] = _seconds(setting, work)
    found = {"prior_s": seconds["prior"], "denoiser_s": seconds["ours"]}
    found["prior_share"] = seconds["prior"] / (seconds["prior"] + seconds["ours"])
    if "baseline" in seconds:
        found["latents_overhead"] = seconds["ours"] / seconds["baseline"] - 1
    rows = [[name, value] for name, value in found.items()]
    note = f"{num} samples, {2 * sampling.num_steps - 1} evaluations each, on {setting.device}"
    Table("Cost of sampling", ["measure", "value"], rows, note).save(setting.run.path("tables", "cost.json"))
    return found


def _seconds(setting: Setting, work: Callable[[], object]) -> float:
    """Median wall time of ``work`` after one warm-up."""
    timings = []
    for _ in range(TIMINGS + 1):
        started = time.perf_counter()
        work()
        if setting.device.type == "cuda":
            torch.cuda.synchronize(setting.device)
        timings.append(time.perf_counter() - started)
    return sorted(timings[1:])[TIMINGS // 2]
