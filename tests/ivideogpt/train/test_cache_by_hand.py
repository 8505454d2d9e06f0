"""Which clips the transformer's steps see, which are cached, and that held-out losses are without dropout."""

import torch

from tests.ivideogpt import tiny
from tests.ivideogpt.train.test_transformer import batch, objective
from toolkit.ivideogpt.train.transformer import _batches, cached_tokens, held_out
from toolkit.runs.record import Run


def test_every_step_draws_other_cached_clips(tmp_path):
    config = tiny.config()
    config.optim.transformer.cached_clips = 12
    world, clips, cpu = tiny.world(), tiny.clips(), torch.device("cpu")
    run = Run(tmp_path, config)
    cache = {tuple(row) for row in cached_tokens(world.tokenizer, run, config, clips, cpu).tokens.tolist()}
    batches = _batches(world.tokenizer, run, config, clips, cpu)
    seen = [tuple(map(tuple, batches(step).tokens.tolist())) for step in range(6)]
    assert len(set(seen)) > 3 and {row for rows in seen for row in rows} <= cache


def test_a_large_cache_goes_on_drawing(tmp_path):
    """Clips are tokenised 256 at a time."""
    config = tiny.config()
    config.optim.transformer.cached_clips = 512
    rows = cached_tokens(tiny.tokenizer(), Run(tmp_path, config), config, tiny.clips(), torch.device("cpu"))
    assert len(rows.tokens) == 512 and not torch.equal(rows.actions[256:], rows.actions[:256])


def test_a_damaged_cache_is_made_again(tmp_path):
    config = tiny.config()
    config.optim.transformer.cached_clips = 4
    tokenizer, clips, cpu = tiny.tokenizer(), tiny.clips(), torch.device("cpu")
    run = Run(tmp_path, config)
    made = cached_tokens(tokenizer, run, config, clips, cpu)
    path = tmp_path / "checkpoints" / "tokens.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert torch.equal(cached_tokens(tokenizer, run, config, clips, cpu).tokens, made.tokens)
    assert path.read_bytes() == whole


def test_held_out_losses_are_without_dropout_and_training_goes_on_with_it():
    world = tiny.world()
    world.transformer.llm.config.attention_dropout = 0.5
    made, clip = objective(world), batch(world)
    wanted = made.eval()(clip)
    assert made.train()(clip)["tokens"] != wanted["tokens"]
    found = held_out(made, clip)
    assert (found["valid_tokens"], found["valid_frame_1"]) == (wanted["tokens"], wanted["frame_1"])
    assert made.training and world.transformer.llm.training
