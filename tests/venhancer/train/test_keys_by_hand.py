"""The training of key frames' network against one written out: loss, both optimisers, clipping, and what is saved."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from tests.venhancer.train.test_keys import config_for, folder, trained  # noqa: F401
from toolkit.venhancer.train import keys
from toolkit.venhancer.train.config import Optim
from toolkit.venhancer.train.muon import Muon


def test_the_loop_is_charbonnier_muon_and_adamw_and_what_is_saved_is_the_average(folder, tmp_path):  # noqa: F811
    """Warm-up of two in four steps, times a cosine; the half-life is a fifth of the pictures seen, at most 0.7."""
    optim = Optim(num_steps=4, batch_size=2, lr=2e-2, warmup_steps=2, schedule="cosine", weight_decay=0.3)
    optim = replace(optim, grad_clip=0.01, betas=[0.8, 0.95], ema_half_life_images=0.7)
    config = replace(config_for(folder, muon_lr=0.1), optim=optim)
    saved = trained(config, tmp_path / "run")

    network = keys.first_network(config)
    batches = keys.Batches(config, keys.load_crops(config), torch.device("cpu"))
    inner = [network.blocks[0].first.weight, network.blocks[0].second.weight, network.exit.weight]
    outer = [one for one in network.parameters() if not any(one is other for other in inner)]
    muon = Muon(inner, lr=0.1)
    adamw = torch.optim.AdamW(outer, lr=2e-2, betas=(0.8, 0.95), weight_decay=0.3)
    average = {name: value.detach().clone() for name, value in network.named_parameters()}
    for step, warmup in enumerate((0.5, 1.0, 1.0, 1.0)):
        factor = warmup * (1 + math.cos(math.pi * step / 4)) / 2
        muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"] = 0.1 * factor, 2e-2 * factor
        small, truth = batches(step)
        loss = torch.sqrt((network(small) - truth) ** 2 + (0.05 / 255) ** 2).mean()
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        norm = math.sqrt(sum(float(one.double().square().sum()) for one in gradients))
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient * min(1.0, 0.01 / norm)
        muon.step()
        adamw.step()
        kept = 0.5 ** (2 / min(0.7, 0.2 * 2 * step)) if step else 0.0
        for name, value in network.named_parameters():
            average[name] = kept * average[name] + (1 - kept) * value.detach()
    assert norm > 0.01  # the clip is at work
    for name, value in average.items():
        assert (saved[name] - value).abs().max() < 2e-5 * max(1.0, float(value.abs().max())), name


class Known(torch.nn.Module):
    """Gives ``answer``, whatever it is shown, and keeps what it was shown."""

    def __init__(self, answer):
        super().__init__()
        self.weight, self.answer = torch.nn.Parameter(torch.zeros(1)), answer

    def forward(self, small):
        self.shown = small
        return self.answer


def test_held_out_pictures_are_judged_on_their_middle_without_its_border(tmp_path):
    """Of 500 x 50 pixels the 480 x 48 in the middle; ten levels off is 20 log10(255 / 10) = 28.13 dB."""
    pixels = np.random.default_rng(0).integers(40, 200, (50, 500, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    middle = pixels[1:49, 10:490]
    answer = torch.from_numpy(middle.astype(np.float32)).permute(2, 0, 1)[None] / 255
    inner = torch.zeros_like(answer[0, 0]).bool()
    inner[8:-8, 8:-8] = True
    network = Known(torch.where(inner, answer + 10 / 255, 1 - answer))
    ours, bicubic = keys._scores(network, tmp_path / "a.png")
    assert abs(ours - 28.1308) < 1e-3
    small = Image.fromarray(middle).resize((120, 12), Image.Resampling.BICUBIC)
    shown = network.shown[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(shown - np.asarray(small)).max() < 1.01
    large = torch.nn.functional.interpolate(network.shown, size=(48, 480), mode="bicubic").clamp(0, 1)
    error = np.rint(255 * large[0].permute(1, 2, 0).numpy())[8:-8, 8:-8] - middle[8:-8, 8:-8]
    assert abs(bicubic - 10 * np.log10(255**2 / np.mean(error**2))) < 1e-2


def test_a_square_lies_in_eight_ways_four_of_them_mirrored():
    square = torch.arange(9.0).view(1, 3, 3)
    ways = [keys.turned(square, number)[0].tolist() for number in range(8)]
    assert ways[0] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]] and ways[1] == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]
    assert ways[4] == [[2, 1, 0], [5, 4, 3], [8, 7, 6]] and len({str(way) for way in ways}) == 8


class Numbered:
    """Crops of 6 x 6 pixels: 40 times the crop's number, and up to 35 for the pixel's place, in every colour."""

    def __len__(self):
        return 5

    def read(self, indices):
        places = torch.arange(36, dtype=torch.uint8).view(1, 6, 6).expand(3, -1, -1)
        return torch.stack([40 * index + places for index in indices])


def batches_of(**upscaler):
    config = config_for(None, **upscaler | {"patch_px": 4})
    config = replace(config, data=replace(config.data, crop_px=6), optim=replace(config.optim, batch_size=200))
    return keys.Batches(config, Numbered(), torch.device("cpu"))


def test_patches_of_all_crops_begin_anywhere_they_fit():
    """Three rows by three columns of corners; the least of a patch is its corner's, however it lies."""
    small, truth = batches_of(film_share=0.0, drawn_share=1.0)(0)
    corners = (255 * truth).round().int().flatten(1).min(dim=1).values
    assert set((corners // 40).tolist()) == set(range(5))
    assert set((corners % 40).tolist()) == {6 * top + left for top in range(3) for left in range(3)}
    assert torch.equal(small, keys.reduce((255 * truth).round().byte()) / 255)  # none is treated as a film


def test_as_many_inputs_as_are_asked_for_are_blurred_and_compressed_as_films_are(monkeypatch):
    treated = []
    monkeypatch.setattr(keys, "_as_film", lambda small, *how: treated.append(how) or small)
    batches = batches_of(film_share=0.25, drawn_share=1.0)
    for step in range(3):
        batches(step)
    blurs, qualities = zip(*treated, strict=True)
    assert abs(len(treated) / 600 - 0.25) < 0.07  # four standard errors
    assert set(qualities) == set(range(80, 96))
    assert 0.2 <= min(blurs) < 0.23 and 0.67 < max(blurs) <= 0.7


def test_the_verdict_is_the_mean_over_photographs_held_out_and_how_far_it_lies_above_bicubic(tmp_path, monkeypatch):
    scores, told = {"a.png": (30.0, 27.0), "b.png": (33.0, 28.0)}, {}
    monkeypatch.setattr(keys.zoo, "load", lambda place, device: "network")
    monkeypatch.setattr(keys, "photographs", lambda held_out=False: [Path(name) for name in scores] if held_out else [])
    monkeypatch.setattr(keys, "_scores", lambda network, path: scores[path.name])
    run = SimpleNamespace(dir=tmp_path, path=lambda *_: tmp_path / "held_out.json")
    run.add_metrics = lambda name, found: told.update({name: found})
    keys.evaluate(None, run, SimpleNamespace(device="cpu"))
    assert told == {"held_out": {"psnr": 31.5, "psnr_bicubic": 27.5, "gain": 4.0}}
    assert json.loads(run.path().read_text())["rows"] == [["a.png", 30.0, 27.0], ["b.png", 33.0, 28.0]]
