"""The transformer's loop against one written out; what of the tokenizer's begins when."""

import json

import pytest
import torch

from tests.ivideogpt import tiny
from toolkit.ivideogpt.clips import arrange
from toolkit.ivideogpt.train.tokenizer import train_tokenizer
from toolkit.ivideogpt.train.transformer import TransformerObjective, tokenise, train_transformer
from toolkit.runs.device import make_accelerator
from toolkit.runs.record import Run


def logged(folder, key):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def opened(folder, config):
    run = Run(folder, config)
    run.open([])
    return run


def rate(step, lr, num_steps, warmup):
    """A warm-up times a cosine over the whole training."""
    return lr * min(1, (step + 1) / warmup) * (1 + torch.cos(torch.tensor(torch.pi * step / num_steps)).item()) / 2


def test_the_transformers_loop_is_adamw_on_clipped_gradients(tmp_path):
    config, world = tiny.config(log_every_steps=1), tiny.world()
    optim = config.optim.transformer
    optim.num_steps, optim.warmup_steps, optim.schedule, optim.lr = 4, 2, "cosine", 1e-2
    optim.weight_decay, optim.grad_clip, optim.cached_clips = 0.3, 0.5, None
    network, clips = world.transformer.requires_grad_(True), tiny.clips()
    again = tiny.world().transformer.requires_grad_(True).train()
    run = opened(tmp_path, config)
    with run.stage("transformer"):
        train_transformer(network, world.tokenizer, run, config, clips, make_accelerator(config))
    run.close("done")

    embedding = again.llm.model.embed_tokens.weight
    decayed = [one for one in again.parameters() if one.dim() > 1 and one is not embedding]
    others = [one for one in again.parameters() if one.dim() == 1 or one is embedding]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=tuple(optim.betas))
    objective, losses = TransformerObjective(again, world.tokenizer, config, clips.statistics), []
    for step in range(4):
        clip = arrange(clips.train.sample(2, config.seed, "transformer", step, 0), config)
        loss = objective(tokenise(world.tokenizer, clip, torch.device("cpu")))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(again.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, 1e-2, 4, 2)
        optimizer.step()
        losses.append(loss.item())
    assert logged(tmp_path, "loss") == pytest.approx(losses, rel=1e-3)
    action = again.action_linear
    mean, std = (torch.from_numpy(clips.statistics[name]) for name in ("mean", "std"))
    x = torch.randn(5, 2)
    torch.testing.assert_close(network.action_linear(x), action((x - mean) / std), rtol=1e-2, atol=2e-3)


def test_the_tokenizers_loop_has_its_discriminator_and_codes_from_their_steps_on(tmp_path):
    """Step 0 alone is without codes, steps from 2 on are adversarial."""
    config = tiny.config(log_every_steps=1)
    optim, loss = config.optim.tokenizer, config.tokenizer_loss
    optim.num_steps, optim.warmup_steps, optim.lr, optim.weight_decay, optim.grad_clip = 4, 2, 5e-3, 0.4, 0.5
    config.codebook.warmup_steps = 1
    loss.gan, loss.gan_start_step, loss.gan_weight, loss.gan_depth, loss.gan_hidden = True, 2, 0.6, 2, 8
    run = opened(tmp_path, config)
    with run.stage("tokenizer"):
        train_tokenizer(tiny.tokenizer(), run, config, tiny.clips(), make_accelerator(config))
    run.close("done")
    assert len(logged(tmp_path, "codebook")) == 3 and len(logged(tmp_path, "adversarial")) == 2
    assert len(logged(tmp_path, "discriminator")) == 2
