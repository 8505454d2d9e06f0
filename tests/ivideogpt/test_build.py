"""Networks from a config: sizes that do not fit are refused."""

import json

import numpy as np
import pytest
import torch

from tests.ivideogpt import tiny
from toolkit.data.config import EpisodeData
from toolkit.data.episodes.episode import Episode, write_episode
from toolkit.errors import UserError
from toolkit.ivideogpt import build
from toolkit.ivideogpt.build import build_tokenizer, build_transformer, join, start_transformer, with_dropout
from toolkit.ivideogpt.clips import load_clips
from toolkit.zoo.world.sampling import Sampling


def test_the_networks_are_the_configs():
    config = tiny.config()
    tokenizer = build_tokenizer(config, 16)
    assert tokenizer.config.block_out_channels == (8, 16) and tokenizer.layout.tokens_per_frame == 4
    network = build_transformer(config, tokenizer, 2)
    assert network.action_dim == 2 and network.has_reward and network.config.hidden_size == 16
    free = build_transformer(tiny.config(action_conditioned=False, reward_head=False), tokenizer, 2)
    assert free.action_dim == 0 and not free.has_reward


def test_cross_attention_begins_at_its_own_place_where_asked():
    config = tiny.config()
    config.tokenizer.start_diagonal = 1.5
    block = build_tokenizer(config, 16).cond_decoder.cross_att_blocks[0]
    assert torch.equal(block.q_pos_emb, block.kv_pos_emb) and block.q_pos_emb.std() > 1
    assert build_tokenizer(tiny.config(), 16).cond_decoder.cross_att_blocks[0].q_pos_emb.abs().sum() == 0


def test_cross_attention_drops_its_weights_and_its_output_alike():
    tokenizer = with_dropout(tiny.tokenizer(), 0.3)
    blocks = [*tokenizer.cond_encoder.cross_att_blocks, *tokenizer.cond_decoder.cross_att_blocks]
    assert blocks and {(block.att.dropout, block.resid_dropout.p) for block in blocks} == {(0.3, 0.3)}


def test_a_transformer_that_took_actions_before_knows_their_units(monkeypatch):
    """What is trained anew, or gets its projection of actions only now, has to be told their mean and deviation."""
    config, tokenizer = tiny.config(), tiny.tokenizer()
    free = tiny.config(action_conditioned=False, reward_head=False)
    clips = load_clips(config)
    assert start_transformer(config, tokenizer, clips)[1] is False
    for given, wanted, knows in ((config, config, True), (free, config, False), (free, free, False)):
        network = build_transformer(given, tokenizer, 2)
        monkeypatch.setattr(build, "init_transformer", lambda *_, network=network: network)
        found, knows_units = start_transformer(wanted, tokenizer, clips)
        assert knows_units is knows and (found is network) == (given is wanted)
        assert found.action_dim == (0 if wanted is free else 2) and found.has_reward == (wanted is config)


def test_clips_longer_than_the_positions_are_refused():
    with pytest.raises(UserError, match=r"num_frames=20: makes 159 tokens.*hold 7 frames"):
        build_transformer(tiny.config(num_frames=20), tiny.tokenizer(), 2)


def test_the_world_model_keeps_the_stated_bounds_the_kind_of_its_actions_and_how_it_is_sampled(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        image = rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
        write_episode(tmp_path / f"{number}.npz", Episode(image, np.eye(2, dtype=np.float32)[np.zeros(6, int)]))
    config = tiny.config(reward_head=False)
    config.data = EpisodeData(name="episodes_folder", path=str(tmp_path), num_valid=1)
    config.rollout.temperature = 0.5
    seen = joined(config)
    assert seen.config["action_low"] == seen.config["action_high"] == [1, 0] and seen.config["discrete"] is None
    assert seen.sampling == Sampling(temperature=0.5)
    (tmp_path / "episodes.json").write_text(json.dumps({"action_low": [-2, 0], "action_high": [1, 3], "discrete": 2}))
    stated = joined(config)
    assert stated.config["action_low"] == [-2, 0] and stated.config["action_high"] == [1, 3]
    assert stated.config["discrete"] == 2
    config.data.frame_step = 2
    config.num_frames = 3
    assert joined(config).config["action_high"] == [1, 3, 1, 3]


def joined(config):
    """The world model of ``config`` before any training."""
    clips, tokenizer = load_clips(config), tiny.tokenizer()
    return join(tokenizer, build_transformer(config, tokenizer, clips.action_dim), config, clips)


def test_frames_that_cannot_be_halved_are_refused_by_the_datas_key():
    with pytest.raises(UserError, match=r"^data\.size_px=17: must be a multiple of 2$"):
        build.build_tokenizer(tiny.config(), 17)
