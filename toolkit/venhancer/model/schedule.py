"""The noise schedule of the released models: 1000 steps, log-SNR cosine shifted for resolution, zero terminal SNR.

x_t = alpha_t x_0 + sigma_t eps with alpha_t^2 + sigma_t^2 = 1, and v = alpha_t eps - sigma_t x_0 (Salimans & Ho 2022).
The cosine in log-SNR and its shift by 2 ln(1 / scale) are Hoogeboom et al. 2023's ("simple diffusion"); the shift goes
from ``scale_min`` at the clean end to ``scale_max`` at the noisy one, and the sigmas are then stretched so that the
last is exactly 1 (Lin et al. 2024).
"""

from __future__ import annotations

import math

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from toolkit.venhancer.model.stored import POSITIVE, check_stored, whole

LOGSNR_MAX = 15.0
RULES = {"num_train_timesteps": whole(901), "scale_min": POSITIVE, "scale_max": POSITIVE}  # sampling starts at step 900


def log_snr_sigmas(num_steps: int = 1000, scale_min: float = 2.0, scale_max: float = 4.0) -> Tensor:
    """sigma_0 .. sigma_{num_steps - 1}: float32, increasing, the last one 1."""
    noisy, clean = math.atan(math.exp(LOGSNR_MAX / 2)), math.atan(math.exp(-LOGSNR_MAX / 2))
    u = torch.linspace(1, 0, num_steps, dtype=torch.float64)
    cosine = -2 * torch.log(torch.tan(noisy + u * (clean - noisy)))
    shift = 2 * (u * math.log(1 / scale_min) + (1 - u) * math.log(1 / scale_max))
    sigmas = torch.sigmoid(-(cosine + shift)).sqrt()
    stretch = (1 - sigmas[0]) / (sigmas[-1] - sigmas[0])
    return (sigmas[0] + stretch * (sigmas - sigmas[0])).float().clamp(max=1.0)


class VideoNoiseSchedule(SchedulerMixin, ConfigMixin):
    """alpha and sigma of every step, whole (``step``) or fractional (``time``), and what follows from them."""

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, scale_min: float = 2.0, scale_max: float = 4.0) -> None:
        settings = {"num_train_timesteps": num_train_timesteps, "scale_min": scale_min, "scale_max": scale_max}
        check_stored(settings, RULES)
        self.sigmas = log_snr_sigmas(num_train_timesteps, scale_min, scale_max)
        self.alphas = (1 - self.sigmas.double().square()).sqrt().float()

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]

    def at(self, time: float) -> tuple[float, float]:
        """(alpha, sigma) at a time in 0..T - 1: between two steps log(sigma / alpha) is linear."""
        low = min(int(time), len(self) - 1)
        if time == low:
            return self.alphas[low].item(), self.sigmas[low].item()
        log_ratios = (self.sigmas[low : low + 2].double() / self.alphas[low : low + 2].double()).log()
        between = (1 - (time - low)) * log_ratios[0].item() + (time - low) * log_ratios[1].item()
        if math.isinf(between):  # beyond the last but one step there is no signal
            return 0.0, 1.0
        return 1 / math.sqrt(1 + math.exp(2 * between)), 1 / math.sqrt(1 + math.exp(-2 * between))

    def add_noise(self, x0: Tensor, noise: Tensor, step: Tensor | int) -> Tensor:
        """x_t at whole steps; ``step`` is a number or [B]."""
        alpha, sigma = self._pair(step, x0)
        return alpha * x0 + sigma * noise

    def velocity(self, x0: Tensor, noise: Tensor, step: Tensor | int) -> Tensor:
        """v, the network's target."""
        alpha, sigma = self._pair(step, x0)
        return alpha * noise - sigma * x0

    def clean(self, x: Tensor, v: Tensor, step: Tensor | int) -> Tensor:
        """x_0 from x_t and v."""
        alpha, sigma = self._pair(step, x)
        return alpha * x - sigma * v

    def _pair(self, step: Tensor | int, like: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(step, device="cpu").reshape(-1)
        shape = (-1, *[1] * (like.dim() - 1))
        return self.alphas[index].to(like).reshape(shape), self.sigmas[index].to(like).reshape(shape)
