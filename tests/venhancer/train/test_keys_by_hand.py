"""The training of key frames' network against one written out: loss, both optimisers, clipping, and what is saved."""

import math
from dataclasses import replace

import torch

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
