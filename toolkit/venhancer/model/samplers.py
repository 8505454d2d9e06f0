"""Solvers as tables of numbers: DPM-Solver++(2M) SDE, Heun and DDIM on the schedule of schedule.py.

Every update of every solver is linear in the latent, the predicted x_0, one tensor of memory and fresh noise. A solver
is therefore a list of ``Evaluation``: where to call the network and with which factors to go on. The same list drives a
whole latent in memory (``sample``) and windows and tiles of one that lies on disk (windows.py).

Latents stay in the variance-preserving form x_t = alpha x_0 + sigma eps throughout; the papers' sigma is our
``sigma / alpha``, which is infinite at zero SNR.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from toolkit.errors import UserError, did_you_mean
from toolkit.venhancer.model.schedule import VideoNoiseSchedule

SOLVERS = ("dpmpp_2m_sde", "heun", "ddim")
# The released "fast" mode: four coarse steps down to 500, then eleven of which the last is dropped.
FAST_TIMES = (*(899.0 - 100 * i for i in range(4)), *(500.0 - 501 / 11 * i for i in range(10)))


@dataclass(frozen=True)
class Evaluation:
    """One call of the network at ``step`` and the update that follows it.

    x_0 = alpha z - sigma v;  z' = keep z + pull x_0 + recall memory + noise eps;  memory' = memory_z z + memory_x0 x_0.
    """

    step: int
    alpha: float
    sigma: float
    keep: float
    pull: float
    recall: float = 0.0
    noise: float = 0.0
    memory_z: float = 0.0
    memory_x0: float = 0.0

    def clean(self, z: Tensor, v: Tensor) -> Tensor:
        """The predicted x_0."""
        return self.alpha * z - self.sigma * v

    def advance(self, z: Tensor, x0: Tensor, memory: Tensor | None, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """(z', memory'). ``memory`` is only read where ``recall`` is not 0, ``noise`` where ``noise`` is not."""
        after = self.keep * z + self.pull * x0
        if self.recall:
            assert memory is not None
            after = after + self.recall * memory
        if self.noise:
            assert noise is not None
            after = after + self.noise * noise
        return after, self.memory_z * z + self.memory_x0 * x0


def sampling_times(
    steps: int | str, solver: str, start_step: int = 900, num_train_timesteps: int = 1000
) -> list[float]:
    """Times of the evaluations, noisiest first (trailing spacing).

    Args:
        steps: a number ("normal" mode: that many evaluations of DPM-Solver++ or DDIM), or "fast".
        solver: DPM-Solver++ leaves out the last but one time, as upstream does.
        start_step: the first time is ``start_step - 1``.

    Raises:
        UserError: an unknown mode.
    """
    first = float(start_step - 1)
    if steps == "fast":
        return [first, *(time for time in FAST_TIMES if time < first)]
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= start_step:
        raise UserError(f"steps={steps}: must be 'fast' or a number of steps in 1..{start_step}")
    count = steps + (solver == "dpmpp_2m_sde")
    times = [max(first - index * start_step / count, 0.0) for index in range(count)]
    return times[:-1] if solver == "dpmpp_2m_sde" else times


def plan_evaluations(schedule: VideoNoiseSchedule, solver: str, times: Sequence[float]) -> list[Evaluation]:
    """The solver's evaluations at ``times``; after the last one the sample is x_0.

    Raises UserError for an unknown solver.
    """
    makers = {"dpmpp_2m_sde": _dpmpp_2m_sde, "heun": _heun, "ddim": _ddim}
    if solver not in makers:
        raise UserError(f"solver={solver}: {did_you_mean(solver, SOLVERS)}choose one of {', '.join(SOLVERS)}")
    levels = [(_nearest(time), *schedule.at(time)) for time in times]
    return makers[solver](schedule, levels)


Level = tuple[int, float, float]  # the step that the network is told, alpha and sigma at the exact time


def _nearest(time: float) -> int:
    """The released sampler rounds half to even, as ``round`` does."""
    return round(time)


def _network(schedule: VideoNoiseSchedule, level: Level) -> tuple[int, float, float]:
    """x_0 is computed with alpha and sigma of the rounded step."""
    step = level[0]
    return step, schedule.alphas[step].item(), schedule.sigmas[step].item()


def _ddim(schedule: VideoNoiseSchedule, levels: list[Level]) -> list[Evaluation]:
    """z' = alpha' x_0 + sigma' eps, with eps = (z - alpha x_0) / sigma (Song et al. 2021)."""
    return [
        Evaluation(*_network(schedule, here), *_euler(here, after))
        for here, after in zip(levels, [*levels[1:], (0, 1.0, 0.0)], strict=True)
    ]


def _euler(here: Level, after: Level) -> tuple[float, float]:
    (_, alpha, sigma), (_, alpha_after, sigma_after) = here, after
    return sigma_after / sigma, alpha_after - alpha * sigma_after / sigma


def _heun(schedule: VideoNoiseSchedule, levels: list[Level]) -> list[Evaluation]:
    """Karras et al. 2022, algorithm 2, without churn; Euler's step from zero SNR and to the clean sample.

    The predictor remembers its slope eps; the corrector adds half the difference of the slopes.
    """
    evaluations = []
    for here, after in zip(levels, [*levels[1:], (0, 1.0, 0.0)], strict=True):
        (_, alpha, sigma), (_, alpha_after, sigma_after) = here, after
        predictor = Evaluation(*_network(schedule, here), *_euler(here, after))
        evaluations.append(replace(predictor, memory_z=1 / sigma, memory_x0=-alpha / sigma))
        if alpha and sigma_after:
            half = alpha_after * (sigma_after / alpha_after - sigma / alpha) / 2
            evaluations.append(
                Evaluation(
                    *_network(schedule, after),
                    keep=1 + half / sigma_after,
                    pull=-half * alpha_after / sigma_after,
                    recall=-half,
                )
            )
    return evaluations


def _dpmpp_2m_sde(schedule: VideoNoiseSchedule, levels: list[Level]) -> list[Evaluation]:
    """Lu et al. 2022 (DPM-Solver++), second order multistep, SDE with eta 1, midpoint; h is the step in log-SNR / 2."""
    evaluations: list[Evaluation] = []
    last_h = math.inf
    for here, after in zip(levels, [*levels[1:], (0, 1.0, 0.0)], strict=True):
        (_, alpha, sigma), (_, alpha_after, sigma_after) = here, after
        if not sigma_after:
            evaluations.append(Evaluation(*_network(schedule, here), keep=0.0, pull=1.0))
            break
        h = math.log(sigma / alpha) - math.log(sigma_after / alpha_after) if alpha else math.inf
        pull = -alpha_after * math.expm1(-2 * h)
        extrapolate = pull / 2 * (h / last_h) if evaluations and math.isfinite(last_h) else 0.0
        evaluations.append(
            Evaluation(
                *_network(schedule, here),
                keep=sigma_after / sigma * math.exp(-h),
                pull=pull + extrapolate,
                recall=-extrapolate,
                noise=sigma_after * math.sqrt(-math.expm1(-2 * h)),
                memory_x0=1.0,
            )
        )
        last_h = h
    return evaluations


def guide(v: Tensor, v_negative: Tensor, scale: float, rescale: float) -> Tensor:
    """Classifier-free guidance, and its standard deviation partly brought back to the conditional one's.

    Ho & Salimans 2022; Lin et al. 2024, section 3.4: std over everything but the batch.
    """
    guided = v_negative + scale * (v - v_negative)
    dims = tuple(range(1, v.dim()))
    ratio = v.std(dim=dims, keepdim=True) / (guided.std(dim=dims, keepdim=True) + 1e-12)
    return guided * (rescale * ratio + (1 - rescale))


def sample(
    denoise: Callable[[Tensor, Evaluation], Tensor],
    z: Tensor,
    evaluations: Sequence[Evaluation],
    noise: Callable[[int, Tensor], Tensor] | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Solve from ``z`` to x_0.

    Args:
        denoise: (z, evaluation) -> the predicted x_0.
        noise: (index of the evaluation, z) -> standard normal noise like z; torch's default generator without it.
        callback: called with (index, predicted x_0) after every evaluation.
    """
    memory: Tensor | None = None
    for index, evaluation in enumerate(evaluations):
        x0 = denoise(z, evaluation)
        if callback is not None:
            callback(index, x0)
        fresh = None
        if evaluation.noise:
            fresh = torch.randn_like(z) if noise is None else noise(index, z)
        z, memory = evaluation.advance(z, x0, memory, fresh)
    return z
