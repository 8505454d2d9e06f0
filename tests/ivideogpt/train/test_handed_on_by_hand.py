"""What one part of training hands to the next: the judge's steps over passes, first codes, held-out rises, betas."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from tests.ivideogpt import tiny
from toolkit.ivideogpt.config import TokenizerLoss
from toolkit.ivideogpt.train import transformer as of_transformer
from toolkit.ivideogpt.train.adversarial import Adversary
from toolkit.ivideogpt.train.tokenizer import prepare, start_codebooks
from toolkit.ivideogpt.train.transformer import (
    TokenClips,
    TransformerObjective,
    _batches,
    held_out,
    make_optimizer,
    train_transformer,
)
from toolkit.runs.device import make_accelerator
from toolkit.runs.record import Run
from toolkit.runs.seeds import derive, generator
from toolkit.zoo.world.codebook import draw_apart
from toolkit.zoo.world.discriminator import PatchDiscriminator
from toolkit.zoo.world.tokenizer import Reconstruction

RNG = torch.Generator().manual_seed(0)


def rebuilt(future, context):
    """A reconstruction of which only the frames matter."""
    nothing = dict.fromkeys(Reconstruction._fields, torch.zeros(()))
    return Reconstruction(**nothing | {"sample": future, "ref_sample": context})


def test_two_steps_of_the_judge_over_passes_are_those_of_whole_batches():
    """Five clips in passes of two: a mean over clips, one power iteration for fakes and one for reals a step."""
    keys = TokenizerLoss(gan=True, gan_hidden=8, gan_depth=2)
    torch.manual_seed(4)
    judge = Adversary(keys, 7e-3, torch.device("cpu"))
    torch.manual_seed(4)
    written = PatchDiscriminator(hidden_channels=8, depth=2)
    optimizer = torch.optim.AdamW(written.parameters(), lr=7e-3)
    for _ in range(2):
        context, future = (torch.rand(5, num, 3, 16, 16, generator=RNG) for num in (1, 2))
        made = [torch.rand(one.shape, generator=RNG) for one in (future, context)]
        cut = [rebuilt(*(one[start : start + 2] for one in made)) for start in (0, 2, 4)]
        told = judge.train(cut, (context, future), 2, 0.05, make_accelerator(tiny.config()))
        fake, real = (
            torch.cat([one.flatten(0, 1) for one in pair]) for pair in ((made[1], made[0]), (context, future))
        )
        loss = F.relu(1 + written(fake)).mean()
        loss = loss + F.relu(1 - written(real)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(written.parameters(), 0.05)
        optimizer.step()
        assert told.item() == pytest.approx(loss.item(), rel=1e-5)
    again = written.state_dict()
    for name, value in judge.discriminator.state_dict().items():
        if name == "trunk.2.bias":  # instance norm takes it away: its gradient is rounding, which Adam enlarges
            continue
        torch.testing.assert_close(value, again[name], rtol=1e-4, atol=1e-5, msg=name)
    assert not judge.discriminator.training


@pytest.mark.parametrize("apart", [True, False])
def test_first_codes_are_latents_drawn_apart_where_asked_and_their_averages_begin_anew(apart):
    config = tiny.config(seed=3)
    config.codebook.kind, config.codebook.apart, config.optim.tokenizer.micro_batch_size = "ema", apart, 2
    training = prepare(tiny.tokenizer(), config, make_accelerator(config))
    network = training.tokenizer.eval()
    batch = tuple(torch.rand(3, num, 3, 16, 16, generator=RNG) for num in (1, 2))
    with torch.no_grad():
        found = network(*batch, False)
    start_codebooks(training, batch, config, make_accelerator(config))
    books = {"context": network.quantize, "dynamics": network.dynamics_quantize}
    for name, book in books.items():
        latents = getattr(found, f"{name}_latents").flatten(0, -2)
        luck = generator(3, "codebook", name)
        order = None if apart else torch.randperm(len(latents), generator=luck)[:16]
        wanted = draw_apart(latents, 16, luck) if order is None else latents[order]
        table = book.embedding.weight.detach()
        torch.testing.assert_close(table, wanted, rtol=1e-4, atol=1e-5)
        average = training.codebooks[name]
        assert torch.equal(average.sums, table) and torch.equal(average.counts, torch.ones(16))


def test_the_rise_is_the_loss_with_the_clip_befores_actions_less_that_with_its_own():
    world, config, clips = tiny.world(), tiny.config(), tiny.clips()
    objective = TransformerObjective(world.transformer, world.tokenizer, config, {}).eval()
    clip = of_transformer.tokenise(world.tokenizer, clips.valid.fixed(3), torch.device("cpu"))
    clip = dataclasses.replace(clip, tokens=clip.tokens[:, : world.tokenizer.layout.length(3)])
    with torch.no_grad():
        own = objective(clip)["tokens"]
        other = objective(dataclasses.replace(clip, actions=clip.actions[[2, 0, 1]]))["tokens"]
    rise = held_out(objective, clip)["valid_rise_with_other_actions"]
    assert rise.item() == pytest.approx((other - own).item(), rel=1e-4) and abs(rise) > 1e-4


def test_both_betas_and_the_rate_are_the_configs():
    config = tiny.config()
    config.optim.transformer.betas, config.optim.transformer.lr = [0.7, 0.8], 3e-3
    network = tiny.world().transformer.requires_grad_(True)
    groups = make_optimizer(network, config).param_groups
    assert [(group["betas"], group["lr"]) for group in groups] == [((0.7, 0.8), 3e-3)] * 2


def test_a_process_takes_its_own_part_of_the_cached_clips_that_all_draw(monkeypatch):
    rows = TokenClips(torch.arange(30).view(10, 3), None, torch.arange(10.0))
    monkeypatch.setattr(of_transformer, "cached_tokens", lambda *_: rows)
    monkeypatch.setattr(of_transformer, "own_part", lambda size, key: slice(4, 6))
    config = tiny.config(seed=2)
    config.optim.transformer.cached_clips, config.optim.transformer.batch_size = 10, 6
    found = _batches(None, None, config, None, torch.device("cpu"))(7)
    luck = torch.Generator().manual_seed(derive(2, "cached", 7, 0))
    chosen = torch.randint(10, (6,), generator=luck)[4:6]
    assert torch.equal(found.rewards, chosen.float()) and torch.equal(found.tokens[:, 0], 3 * chosen)


@pytest.mark.parametrize("normalised", [True, False])
def test_weights_that_were_trained_in_parts_are_put_together_and_take_the_datas_units(
    tmp_path, monkeypatch, normalised
):
    """``plain_copy`` gives another network, as where weights are shared among processes."""
    world, clips, config = tiny.world(), tiny.clips(), tiny.config()
    config.optim.transformer.num_steps = 0
    plain = tiny.world().transformer
    for one in plain.parameters():
        torch.nn.init.zeros_(one)
    monkeypatch.setattr(of_transformer, "plain_copy", lambda network, sharding: plain)
    run = Run(tmp_path, config)
    run.open([])
    with run.stage("transformer"):
        made = train_transformer(
            world.transformer, world.tokenizer, run, config, clips, make_accelerator(config), normalised
        )
    run.close("done")
    assert made is plain and not made.training
    x = torch.rand(5, 2, generator=RNG)
    mean, std = (torch.from_numpy(clips.statistics[name]) for name in ("mean", "std"))
    given = (x - mean) / std if normalised else x
    torch.testing.assert_close(made.action_linear(x), world.transformer.action_linear(given), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.llm.lm_head.weight, world.transformer.llm.lm_head.weight)
