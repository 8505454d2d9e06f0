"""Can diffusion on the residual of the strong start bring it nearer to the truth by PLIPS? Two answers of minutes.

    python experiments/venhancer/residual_pilot.py OUT.json [--steps 700]

The start is the shipped regression network's enlargement by 4; the residual is what it lacks, in luma, over its local
deviation, which a small network foretells. `draws` trains nothing: it asks what detail that is drawn by chance does to
PLIPS, around a mean that is nearer to the truth than the start by so many dB. `trained` is a small denoiser of the
residual (EDM's preconditioning, steps of DPM-Solver++ 2M) on the start, the features of the frozen regression network
and that deviation, trained for minutes on the crops of `stage=train_keys` and sampled on photographs it never saw.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit import zoo
from toolkit.data.stills.crops import open_rgb, still_crops
from toolkit.data.stills.photographs import photographs
from toolkit.data.video.clips import clip_paths
from toolkit.metrics.flow import box_mean, to_grey
from toolkit.metrics.plips import PLIPS
from toolkit.metrics.video import decibel, noise_deviation, squared_error
from toolkit.runs.files import write_json
from toolkit.runs.machine import git_commit, machine
from toolkit.venhancer.train.keys import reduce
from toolkit.zoo.video.upscaler import FrameUpscaler

FACTOR, SIDE_PX, PATCH_PX, BATCH = 4, 256, 96, 8
SIGMA = (0.08, 4.0)  # of the noise on residuals of deviation 1
LEAST_DEVIATION = 1 / 255
NEARER_DB, TEMPERATURES = (0.0, 1.0, 2.5, 4.4, 6.0), (0.0, 0.5, 1.0)


class Block(nn.Module):
    """x + conv(silu((1 + g) conv(x) + h)), g and h of the noise level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.level = nn.Linear(64, 2 * width)
        for layer in (self.second, self.level):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        g, h = self.level(level)[:, :, None, None].chunk(2, 1)
        return x + self.second(F.silu(self.first(x) * (1 + g) + h))


class Denoiser(nn.Module):
    """x_0 of noisy residuals (B, 1, H, W), at a quarter of their size inside."""

    def __init__(self, width: int = 64, num_blocks: int = 5) -> None:
        super().__init__()
        self.level = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
        self.entry = nn.Conv2d(FACTOR**2, width, 3, padding=1)
        self.given = nn.Conv2d(48 + FACTOR**2 + 2, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(num_blocks))
        self.last = nn.Conv2d(width, FACTOR**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def f(self, x: Tensor, given: Tensor, sigma: Tensor) -> Tensor:
        """EDM's F."""
        angles = (sigma.log() / 4)[:, None] * torch.exp(torch.linspace(0, math.log(200), 16))
        level = self.level(torch.cat([angles.sin(), angles.cos()], 1))
        h = self.entry(F.pixel_unshuffle(x, FACTOR)) + self.given(given)
        for block in self.blocks:
            h = block(h, level)
        return F.pixel_shuffle(self.last(h), FACTOR)

    def forward(self, x: Tensor, given: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.view(-1, 1, 1, 1)
        c_in = (s.square() + 1).rsqrt()
        return c_in.square() * x + s * c_in * self.f(c_in * x, given, sigma).float()


class Start:
    """The regression network, what it knows of a picture, and how much it expects to lack."""

    def __init__(self) -> None:
        network: Any = zoo.load("toolkit/venhancer/weights/upscaler")
        self.network: FrameUpscaler = network.float().eval().requires_grad_(False)
        layers = [
            nn.Conv2d(48 + FACTOR**2 + 1, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.SiLU(),
        ]
        self.deviation = nn.Sequential(*layers, nn.Conv2d(32, 1, 3, padding=1))
        nn.init.zeros_(self.deviation[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.deviation[-1].bias)  # type: ignore[arg-type]

    @torch.no_grad()
    def __call__(self, small: Tensor) -> tuple[Tensor, Tensor]:
        """(start rounded to 8 bits, features) of uint8 (B, 3, h, w); the start is float (B, 3, 4h, 4w) in [0, 255]."""
        x = small.float() / 255
        features = self.network.entry(x - 0.5)
        features = features + self.network.exit(self.network.blocks(features))
        made = F.interpolate(x, scale_factor=FACTOR, mode="bicubic") + F.pixel_shuffle(
            self.network.last(features), FACTOR
        )
        return made.mul(255).round().clamp(0, 255), features

    def expected(self, start: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """(log of the expected deviation (B, 1, h, w), what the denoiser is given) of a luma in [0, 1]."""
        mean = F.avg_pool2d(start, FACTOR)
        contrast = (box_mean(F.avg_pool2d(start.square(), FACTOR), 1) - box_mean(mean, 1).square()).clamp(min=0).sqrt()
        plain = 0.35 * contrast + LEAST_DEVIATION
        shape = (F.pixel_unshuffle(start, FACTOR) - mean) / plain
        log = plain.log() + self.deviation(torch.cat([features, shape, plain.log()], 1))
        log = log.clamp(min=math.log(LEAST_DEVIATION))
        return log, torch.cat([features, shape, mean - 0.5, log.detach()], 1)


def enlarged(deviation: Tensor) -> Tensor:
    """exp of it at four times the size."""
    return F.interpolate(deviation, scale_factor=FACTOR, mode="bilinear").exp()


def train(start: Start, num_steps: int) -> tuple[Denoiser, float]:
    """The denoiser's average, and the seconds of processor time that it took."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    crops = still_crops(photographs(), clip_paths("bbb", None), [60.0, 180.0, 300.0, 420.0], 6000, 128)
    denoiser = Denoiser()
    averaged = copy.deepcopy(denoiser)
    optimizer = torch.optim.AdamW(
        [*denoiser.parameters(), *start.deviation.parameters()], lr=2e-3, betas=(0.9, 0.99), weight_decay=0
    )
    began = time.process_time()
    for step in range(num_steps):
        share = min(1, (step + 1) / 60) * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * share
        top, left = rng.integers(0, 128 - PATCH_PX + 1, 2)
        truth = crops.read(rng.integers(0, len(crops), BATCH).tolist())[
            ..., top : top + PATCH_PX, left : left + PATCH_PX
        ]
        truth = torch.rot90(truth.flip(-1) if rng.random() < 0.5 else truth, int(rng.integers(4)), (-2, -1))
        with torch.autocast("cpu", torch.bfloat16):
            made, features = start(reduce(truth))
            luma = to_grey(made) / 255
            log, given = start.expected(luma, features.float())
            log = log.float()
            lacks = to_grey(truth.float()) / 255 - luma
            spread = F.avg_pool2d(lacks.square(), FACTOR)
            likelihood = (log + spread / (2 * (2 * log).exp())).mean()
            residual = (lacks / enlarged(log.detach())).clamp(-6, 6)
            sigma = torch.exp(torch.rand(BATCH) * math.log(SIGMA[1] / SIGMA[0])) * SIGMA[0]
            s = sigma.view(-1, 1, 1, 1)
            c_in = (s.square() + 1).rsqrt()
            x = residual + s * torch.randn_like(residual)
            target = (residual - c_in.square() * x) / (s * c_in)
            error = (denoiser.f(c_in * x, given, sigma).float() - target).square().mean()
        optimizer.zero_grad()
        (error + 0.1 * likelihood).backward()
        nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for mean, new in zip(averaged.parameters(), denoiser.parameters(), strict=True):
                mean.lerp_(new, 1 - min(0.998, (step + 1) / (step + 20)))
        if step % 100 == 99:
            print(f"step {step + 1}: {float(error.detach()):.3f}, {time.process_time() - began:.0f} CPU-s", flush=True)
    return averaged, time.process_time() - began


@torch.no_grad()
def sample(denoiser: Denoiser, given: Tensor, noise: Tensor, num_steps: int, most: float = SIGMA[1]) -> Tensor:
    """DPM-Solver++ 2M from noise of deviation ``most``."""
    sigmas = [*torch.linspace(most**0.25, 0.15**0.25, num_steps).pow(4).tolist(), 0.0] if num_steps > 1 else [most, 0.0]
    x, before = most * noise, None
    for now, after in itertools.pairwise(sigmas):
        x0 = denoiser(x, given, torch.full((len(x),), now))
        if after == 0:
            return x0
        h = math.log(now / after)
        seen = x0 if before is None else x0 + (x0 - before[1]) * h / (2 * before[0])
        x = after / now * x + (1 - after / now) * seen
        before = (h, x0)
    raise AssertionError


def held_out() -> Tensor:
    """The middle of the eight photographs that nothing was trained on, uint8 (8, 3, 256, 256)."""
    found = []
    for path in photographs(held_out=True):
        image = open_rgb(path)
        image = open_rgb(path, 640) if max(image.size) > 700 else image
        left, top = ((side - SIDE_PX) // 2 for side in image.size)
        found.append(np.array(image.crop((left, top, left + SIDE_PX, top + SIDE_PX))))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


def scores(made: Tensor, truth: Tensor, distance: PLIPS) -> dict[str, float]:
    """PLIPS, PSNR, and the noise over the truth's; means over pictures."""
    made = made.round().clamp(0, 255)
    pairs = [(one[None], other[None]) for one, other in zip(made, truth, strict=True)]
    noise = [sum(noise_deviation(one[side]) for one in pairs) for side in (0, 1)]
    return {
        "plips": float(distance(made, truth).mean()),
        "psnr": sum(decibel(squared_error(*pair)) for pair in pairs) / len(pairs),
        "noise": noise[0] / noise[1],
    }


def unstructured(residual: Tensor) -> Tensor:
    """Gaussian pictures with the residual's spectrum and its own local deviation (B, 3, H, W)."""
    deviation = box_mean(residual.square().mean(1, keepdim=True), 4).clamp(min=1e-3).sqrt()
    amplitude = torch.fft.fft2(to_grey(residual / deviation)).abs()
    noise = torch.randn(amplitude.shape, generator=torch.Generator().manual_seed(0))
    drawn = torch.fft.ifft2(torch.fft.fft2(noise) * box_mean(amplitude, 4)).real
    drawn = drawn / drawn.std((2, 3), keepdim=True) * deviation
    return drawn * (residual.std((1, 2, 3), keepdim=True) / drawn.std((1, 2, 3), keepdim=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=700)
    given_words = parser.parse_args()
    torch.set_num_threads(1)
    distance, start = PLIPS.load(), Start()
    small, truth = reduce(held_out()), held_out().float()
    made, features = start(small)
    lacks = truth - made
    found: dict[str, Any] = {"command": f"residual_pilot.py --steps {given_words.steps}", "git_commit": git_commit()}
    found |= {"machine": machine(), "start": scores(made, truth, distance), "draws": {}, "trained": {}}
    drawn = unstructured(lacks)
    for nearer in NEARER_DB:
        left = 10 ** (-nearer / 20)  # of the residual, which a better mean would not know
        for temperature in TEMPERATURES:
            tried = made + (1 - left) * lacks + temperature * left * drawn
            found["draws"][f"{nearer:g}_dB_{temperature:g}"] = scores(tried, truth, distance)
    denoiser, seconds = train(start, given_words.steps)
    with torch.no_grad():
        log, given = start.expected(to_grey(made) / 255, features)
        unit, residual = 255 * enlarged(log), to_grey(lacks) / (255 * enlarged(log))
    noise = torch.randn(residual.shape, generator=torch.Generator().manual_seed(0))
    found["cpu_s"] = round(seconds, 1)
    found["luma_alone"] = scores(made + to_grey(lacks), truth, distance)
    found["x0_error"] = {
        str(sigma): [
            float((denoiser(residual + sigma * noise, given, torch.full((8,), sigma)) - residual).square().mean()),
            float(residual.var() * sigma**2 / (residual.var() + sigma**2)),  # of the best guess pixel by pixel
        ]
        for sigma in (0.1, 0.3, 1.0, 3.0)
    }
    for steps in (1, 4, 6, 8):
        x0 = sample(denoiser, given, noise, steps)
        found["trained"][f"steps_{steps}"] = scores(made + unit * x0, truth, distance)
        if steps == 8:
            found["trained"]["steps_8_halved"] = scores(made + 0.5 * unit * x0, truth, distance)
    for most in (0.3, 1.0):
        x0 = sample(denoiser, given, noise, 4, most)
        found["trained"][f"from_{most:g}"] = scores(made + unit * x0, truth, distance)
    write_json(given_words.out, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
