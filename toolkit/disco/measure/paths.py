"""The sampling ODE: curvature, the denoiser's Jacobian, and until when z matters (Xu et al. 2024, figures 4 and 7)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from toolkit.disco.measure.setting import Setting, ratio, sigma_key
from toolkit.disco.sampling import draw_samples
from toolkit.metrics.judge import make_judge
from toolkit.metrics.turning import curvature, follow, jacobian_norm, turning_grid
from toolkit.show import figures
from toolkit.show.table import Table
from toolkit.zoo.edm.samplers import edm_sigmas, heun

MOST_EXACT_VALUES = 16  # samples of more values get a stochastic estimate of the Jacobian's norm
NUM_PROBES = 8
SWITCH_PERCENT = (25, 50, 75, 90)
CURVATURE_STEPS = 64


@torch.no_grad()
def turning(setting: Setting) -> dict[str, float]:
    """``turning.mean|median.VARIANT`` in degrees over trajectories from the same noise, z from the prior.

    ``turning.ratio`` and ``turning.ratio_median`` are ours / baseline; ``turning.defect.VARIANT`` is length / chord - 1
    (mean); ``turning.curvature.VARIANT.sigma_S`` is the median of the paper's finite difference (appendix F).
    """
    sampling, num = setting.config.sampling, setting.config.measure.num_trajectories
    grid = turning_grid(sampling.sigma_max, setting.parts.denoiser.sigma_data, rho=sampling.rho)
    labels = setting.random_labels(num)
    latents = setting.drawn("prior", labels, num, "turning")
    shape = (num, *setting.parts.denoiser.shape)
    start = torch.randn(shape, generator=setting.rng("turning"), device=setting.device) * sampling.sigma_max
    found: dict[str, float] = {}
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for name in setting.variants:
        denoise = setting.denoise(name, latents, labels)
        path = follow(denoise, start, grid)
        found[f"mean.{name}"], found[f"median.{name}"] = float(path.turning.mean()), float(path.turning.median())
        found[f"defect.{name}"] = float(path.defect.mean())
        curves[name] = _curvature_curve(setting, denoise, start)
        found |= {f"curvature.{name}.{sigma_key(sigma)}": value for sigma, value in zip(*curves[name], strict=True)}
    if "baseline" in setting.variants:
        found["ratio"] = ratio(found["mean.ours"], found["mean.baseline"])
        found["ratio_median"] = ratio(found["median.ours"], found["median.baseline"])
    rows = [[n, found[f"mean.{n}"], found[f"median.{n}"], found[f"defect.{n}"]] for n in setting.variants]
    note = f"{num} trajectories from the same noise, {len(grid)} levels from {grid[0]:g} to {grid[-1]:.3g}"
    columns = ["variant", "turning, degrees (mean)", "(median)", "length / chord - 1"]
    Table("Straightness of the sampling ODE", columns, rows, note).save(setting.run.path("tables", "turning.json"))
    if any(x for x, _ in curves.values()):
        figures.curves(
            setting.run.path("figures", "curvature.png"), curves,
            xlabel="noise level σ", ylabel="median curvature κ", logx=True,
            caption="Median over trajectories; the mean is ruled by the few that pass a zero of the field.",
        )  # fmt: skip
    return found


def _curvature_curve(setting: Setting, denoise, start: Tensor) -> tuple[list[float], list[float]]:
    """Median curvature where the trajectories pass each of ``measure.sigmas`` above 0.1 sigma_data."""
    sampling, lowest = setting.config.sampling, 0.1 * setting.parts.denoiser.sigma_data
    wanted = [s for s in sorted(setting.config.measure.sigmas, reverse=True) if lowest < s < sampling.sigma_max]
    if not wanted:
        return [], []
    levels = edm_sigmas(CURVATURE_STEPS, wanted[-1], sampling.sigma_max, sampling.rho)[:-1].tolist()
    levels = sorted({*levels, *wanted}, reverse=True)
    values: list[float] = []

    def note(step: int, x: Tensor, sigma: float, denoised: Tensor) -> None:
        if sigma in wanted:
            values.append(float(curvature(denoise, x, sigma).median()))

    heun(lambda x, sigma: denoise(x.float(), torch.as_tensor(sigma, dtype=torch.float32)), start, levels, note)
    return wanted[::-1], values[::-1]


def jacobian(setting: Setting) -> dict[str, float]:
    """``jacobian.VARIANT.sigma_S`` = E|dD/dx|_F^2 on noisy held-out items with the encoder's z, and the ratio."""
    num, sigmas = setting.config.measure.num_trajectories, setting.config.measure.sigmas
    x, known = setting.items(setting.dataset.test, num)
    latents, labels = setting.encoded(x, known, "jacobian"), setting.condition(known)
    num_probes = None if x[0].numel() <= MOST_EXACT_VALUES else NUM_PROBES
    found: dict[str, float] = {}
    for name in setting.variants:
        denoise = setting.denoise(name, latents, labels)
        for sigma in sigmas:
            noise = torch.randn(x.shape, generator=setting.rng("jacobian", str(sigma)), device=x.device)
            random = setting.cpu_rng("probes", str(sigma))
            norms = jacobian_norm(denoise, x + sigma * noise, sigma, random, num_probes)
            found[f"{name}.{sigma_key(sigma)}"] = float(norms.mean())
    if "baseline" in setting.variants:
        for key in map(sigma_key, sigmas):
            found[f"ratio.{key}"] = ratio(found[f"ours.{key}"], found[f"baseline.{key}"])
    rows = [[sigma, *(found[f"{name}.{sigma_key(sigma)}"] for name in setting.variants)] for sigma in sigmas]
    table = Table("Squared Frobenius norm of the denoiser's Jacobian", ["sigma", *setting.variants], rows)
    table.save(setting.run.path("tables", "jacobian.json"))
    return found


def switch(setting: Setting) -> dict[str, float]:
    """How far a sample moves when z is exchanged after p percent of the steps (figure 7 of the paper).

    ``switch.effect.percent_P``: root mean square change, in units of what exchanging z from the start does with the
    same noise; ``switch.class_changed.percent_P``: share of samples whose class changes.
    """
    sampling, num = setting.config.sampling, setting.config.measure.num_trajectories
    judge, labels = make_judge(setting.dataset), setting.random_labels(num)
    first, second = (setting.drawn("prior", labels, num, "switch", which) for which in (0, 1))
    sigmas = edm_sigmas(sampling.num_steps, sampling.sigma_min, sampling.sigma_max, sampling.rho).tolist()

    def draw(latents: Tensor | None, **more) -> Tensor:
        noise = setting.rng("switch", "noise")
        return draw_samples(setting.parts.denoiser, latents, num, sampling, noise, labels, **more)[0]

    stayed, exchanged = draw(first), draw(second)
    whole = _rms(exchanged - stayed)
    classes = judge.classify(stayed)
    found: dict[str, float] = {}
    for percent in SWITCH_PERCENT:
        step = min(max(1, round(percent / 100 * sampling.num_steps)), sampling.num_steps - 1)
        below = math.sqrt(sigmas[step - 1] * sigmas[step])  # from step ``step`` on, its level included
        switched = draw(first, switch=(second, below))
        change = _rms(switched - stayed)
        found[f"effect.percent_{percent}"] = ratio(change, whole)
        now = judge.classify(switched)
        if classes is not None and now is not None:
            found[f"class_changed.percent_{percent}"] = float(now.ne(classes).double().mean())
    rows = [[key, value] for key, value in found.items()]
    note = f"{num} samples; 1 is the change when z is exchanged from the start"
    Table("Exchange of z during sampling", ["after", "effect"], rows, note).save(
        setting.run.path("tables", "switch.json")
    )
    return found


def _rms(change: Tensor) -> float:
    return float(change.cpu().double().square().mean().sqrt())
