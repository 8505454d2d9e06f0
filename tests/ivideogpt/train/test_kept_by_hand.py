"""What training keeps, restarts and draws beside its steps: whose luck, which clips, what a checkpoint holds."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.ivideogpt import tiny
from toolkit.data.episodes.clips import Clip
from toolkit.ivideogpt.train import tokenizer as of_tokenizer
from toolkit.ivideogpt.train import transformer as of_transformer
from toolkit.ivideogpt.train.tokenizer import _move_codebooks, _watch, prepare
from toolkit.ivideogpt.train.transformer import TokenClips, _batches, own_tokens, tokenise_spaced, train_transformer
from toolkit.runs.device import make_accelerator
from toolkit.runs.record import Run
from toolkit.runs.seeds import derive
from toolkit.zoo.world.codebook import CodebookEMA
from toolkit.zoo.world.tokenizer import Reconstruction


def averaging(**keys):
    config = tiny.config(log_every_steps=2)
    config.codebook.kind = "ema"
    for name, value in keys.items():
        setattr(config.codebook, name, value)
    return config


def test_codes_that_nothing_uses_restart_in_the_first_part_of_the_training_with_luck_of_each_step(monkeypatch):
    config = averaging(restart_below=0.25, restart_until=0.5, apart=True, decay=0.9)
    config.optim.tokenizer.num_steps = 6
    training = prepare(tiny.tokenizer(), config, make_accelerator(config))
    assert [(one.decay, one.apart) for one in training.codebooks.values()] == [(0.9, True)] * 2
    assert [one.restart_below for one in training.codebooks.values()] == [0.25] * 2
    assert training.codebooks["dynamics"].quantizer is training.tokenizer.dynamics_quantize
    moved = []
    update = lambda self, latents, codes, luck: moved.append((self.restart_below, luck.initial_seed(), latents, codes))  # noqa: E731
    monkeypatch.setattr(CodebookEMA, "update", update)
    parts = {name: torch.zeros(1) for name in Reconstruction._fields}
    parts |= {"context_latents": torch.rand(2, 1, 64, 4), "context_codes": torch.arange(128).view(2, 1, 64)}
    parts |= {"dynamics_latents": torch.rand(2, 3, 4, 4), "dynamics_codes": torch.arange(24).view(2, 3, 4)}
    for step in range(6):
        _move_codebooks(step, training, [Reconstruction(**parts)], config, None)
    assert [below for below, *_ in moved[::2]] == [0.25] * 3 + [0.0] * 3
    assert len({luck for _, luck, *_ in moved}) == 12
    for (_, luck, latents, codes), name in zip(moved[2:4], ("context", "dynamics"), strict=True):
        assert luck == torch.Generator().manual_seed(derive(0, "restart", name, 1)).initial_seed()
        assert torch.equal(latents, parts[f"{name}_latents"].reshape(-1, 4))
        assert torch.equal(codes, parts[f"{name}_codes"].flatten())


def test_a_checkpoint_of_the_tokenizer_holds_both_averages_and_the_discriminator_with_its_optimizer():
    config = averaging()
    plain = prepare(tiny.tokenizer(), config, make_accelerator(config))
    names = {"model", "optimizer", "codebook_context", "codebook_dynamics"}
    assert set(plain.state()) == names and plain.adversary is None
    config.tokenizer_loss.gan, config.tokenizer_loss.gan_hidden, config.tokenizer_loss.gan_depth = True, 8, 2
    config.optim.tokenizer.lr = 3e-3
    full = prepare(tiny.tokenizer(), config, make_accelerator(config)).state()
    assert set(full) == names | {"discriminator", "discriminator_optimizer"}
    judge = full["discriminator_optimizer"].param_groups[0]
    assert judge["lr"] == 3e-3 and {*map(id, judge["params"])} == {*map(id, full["discriminator"].parameters())}
    assert full["codebook_context"].quantizer is full["model"].quantize


def test_a_frozen_codebook_is_neither_averaged_nor_learnt():
    config = averaging(frozen=True)
    training = prepare(tiny.tokenizer(), config, make_accelerator(config))
    held = {id(group) for group in training.optimizer.param_groups[0]["params"]}
    assert not training.codebooks and id(training.tokenizer.quantize.embedding.weight) not in held
    assert id(training.tokenizer.quant_linear.weight) in held


def test_usage_is_watched_on_held_out_clips_and_too_little_of_it_is_said_at_the_end(monkeypatch):
    """32 clips a pass; of 16 codes of the context one is used, of the dynamics' 32 eight."""
    layout = dataclasses.replace(tiny.tokenizer().layout, num_dynamics_codes=32)
    said, logged, passes = [], {}, []

    def tokenize(frames):
        passes.append(len(frames))
        row = torch.full((layout.length(3),), 0)
        for number, slot in enumerate(layout.slot_indices(3)):
            row[slot] = layout.context_slot if number == 0 else layout.frame_slot
            row[slot + 1 : slot + 5] = layout.num_context_codes + (4 * number + torch.arange(4)) % 8
        return row.expand(len(frames), -1)

    coder = SimpleNamespace(layout=layout, tokenize=tokenize, device="cpu")
    monkeypatch.setattr(of_tokenizer.progress, "say", said.append)
    config = tiny.config(log_every_steps=2)
    config.optim.tokenizer.num_steps = 6
    loop = SimpleNamespace(log=lambda **shares: logged.update(shares))
    for step in (1, 5):
        _watch(step, coder, Clip(torch.zeros(48, 4, 3, 2, 2), None, None), loop, config)
        assert len(said) == (step == 5)
    assert passes == [32, 16] * 2 and "6% of the context codes" in said[0]
    assert logged["context_usage"] == 1 / 16 and logged["dynamics_usage"] == 0.25
    shares = torch.tensor([2 / 12] * 4 + [1 / 12] * 4)  # four of the eight come twice as often
    wanted = float((-shares * shares.log()).sum().exp())
    assert logged["context_perplexity"] == 1 and logged["dynamics_perplexity"] == pytest.approx(wanted)


def test_each_step_of_the_tokenizer_has_clips_of_its_own_and_is_watched_now_and_then(tmp_path, monkeypatch):
    clips, steps, watched = tiny.clips(), [], []
    monkeypatch.setattr(of_tokenizer, "Loop", lambda run, stage, num, state: range(num))
    monkeypatch.setattr(of_tokenizer, "train_step", lambda step, training, batch, *_: steps.append(batch))
    monkeypatch.setattr(of_tokenizer, "_watch", lambda step, coder, clip, *_: watched.append((step, clip.frames)))
    config = averaging(warmup_steps=3)
    config.optim.tokenizer.num_steps = 8
    of_tokenizer.train_tokenizer(tiny.tokenizer(), Run(tmp_path, config), config, clips, make_accelerator(config))
    assert [step for step, _ in watched] == [3, 5, 7]
    assert torch.equal(watched[0][1], clips.valid.fixed(64).frames)
    for step, (context, future) in enumerate(steps):
        clip = clips.train.sample(2, 0, "tokenizer", step, 0)
        wanted = of_tokenizer.tokenizer_frames(clip, config, 0, step)
        assert torch.equal(context, wanted[0]) and torch.equal(future, wanted[1])


def test_a_checkpoint_of_the_transformer_holds_its_optimizer_and_held_out_clips_are_those_of_valid(
    tmp_path, monkeypatch
):
    held, logged, world, clips = [], [], tiny.world(), tiny.clips()

    def loop(run, stage, num_steps, state):
        held.append(state)
        steps = type("Steps", (), {"__iter__": lambda self: iter(range(num_steps))})()
        steps.log = lambda **terms: logged.append(terms)
        return steps

    monkeypatch.setattr(of_transformer, "Loop", loop)
    monkeypatch.setattr(of_transformer, "held_out", lambda objective, valid: held.append(valid) or {"valid": 1.0})
    config = tiny.config(log_every_steps=1)
    config.optim.transformer.num_steps, config.optim.transformer.lr = 9, 1e-3
    config.optim.transformer.cached_clips = 4
    network = world.transformer.requires_grad_(True)
    train_transformer(network, world.tokenizer, Run(tmp_path, config), config, clips, make_accelerator(config), False)
    state, *valid = held
    assert state["model"] is network and isinstance(state["optimizer"], torch.optim.AdamW)
    assert [position for position, row in enumerate(logged) if "valid" in row] == [4, 9]  # after steps 4 and 8
    assert torch.equal(valid[0].tokens, world.tokenizer.tokenize(clips.valid.fixed(64).frames))
    assert not network.training


def test_gaps_are_drawn_anew_for_every_step_and_every_part_of_a_cache(tmp_path, monkeypatch):
    lucks, world = [], tiny.world()

    def noted(tokenizer, clip, config, luck, device):
        lucks.append(luck.initial_seed())
        return TokenClips(torch.zeros(len(clip), 3), None, None)

    monkeypatch.setattr(of_transformer, "tokenise_spaced", noted)
    config, clips, cpu = tiny.config(seed=4), tiny.clips(), torch.device("cpu")
    batches = _batches(world.tokenizer, None, config, clips, cpu)
    for step in range(3):
        assert len(batches(step).tokens) == 2
    config.optim.transformer.cached_clips = 300
    assert len(of_transformer._tokenise_many(world.tokenizer, config, clips, cpu).tokens) == 300
    wanted = [torch.Generator().manual_seed(derive(4, "gap", one)).initial_seed() for one in (0, 1, 2, 0, 256)]
    assert lucks == wanted


def test_tokens_of_a_clip_with_a_gap_know_that_they_have_one(monkeypatch):
    config = tiny.config(context_gap=2)
    clip = Clip(torch.rand(8, 6, 3, 16, 16), torch.rand(8, 6, 2), torch.rand(8, 6))
    made = tokenise_spaced(tiny.tokenizer(), clip, config, torch.Generator().manual_seed(1), torch.device("cpu"))
    cut, adjacent = of_transformer.spaced(clip, config, torch.Generator().manual_seed(1))
    assert torch.equal(made.adjacent, adjacent) and 0 < adjacent.sum() < 8
    assert torch.equal(made.actions, cut.actions) and torch.equal(made.tokens, tiny.tokenizer().tokenize(cut.frames))


class Sure(nn.Module):
    """Codes of dynamics: 0.4 for the first, 0.1 for each of the next six, whatever is read."""

    def logits(self, tokens, layout, actions):
        made = torch.full((*tokens.shape, layout.context_slot + 2), -30.0)
        first = layout.num_context_codes
        made[..., first : first + 7] = torch.tensor([0.4, *[0.1] * 6]).log()
        made[..., 0] = 9.0  # no code of a future frame
        return made


def test_own_tokens_are_drawn_by_their_probabilities_and_a_share_of_the_true_ones_stays():
    layout = tiny.tokenizer().layout
    tokens = torch.full((400, layout.length(3)), layout.num_context_codes + 9)
    slots = layout.slot_indices(3)
    tokens[:, slots[1:]] = layout.frame_slot
    torch.manual_seed(0)
    seen = own_tokens(Sure(), tokens, layout, None, 0.25)
    future = torch.cat([seen[:, slot + 1 : slot + 5] for slot in slots], 1) - layout.num_context_codes
    shares = torch.bincount(future.flatten(), minlength=10) / future.numel()
    assert shares[[0, 1, 6, 9]].tolist() == pytest.approx([0.1, 0.025, 0.025, 0.75], abs=0.02)
    assert (seen[:, slots[1:]] == layout.frame_slot).all()


class Placed(nn.Module):
    """Sure of one code of dynamics at each place: the place's number, modulo 13."""

    def logits(self, tokens, layout, actions):
        made = torch.zeros(*tokens.shape, layout.context_slot + 2)
        places = torch.arange(tokens.shape[1])
        made[:, places, layout.num_context_codes + places % 13] = 60.0
        return made


def test_an_own_token_is_what_the_place_before_it_says():
    layout = tiny.tokenizer().layout
    tokens = torch.full((2, layout.length(3)), layout.num_context_codes + 14)
    tokens[:, layout.slot_indices(3)[1:]] = layout.frame_slot
    seen = own_tokens(Placed(), tokens, layout, None, 1.0)
    for slot in layout.slot_indices(3):
        for place in range(slot + 1, slot + 5):
            assert (seen[:, place] == layout.num_context_codes + (place - 1) % 13).all()
