"""Networks from a config: sizes that do not fit are refused."""

import pytest
import torch

from tests.ivideogpt import tiny
from toolkit.errors import UserError
from toolkit.ivideogpt.build import build_tokenizer, build_transformer


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


def test_clips_longer_than_the_positions_are_refused():
    with pytest.raises(UserError, match=r"num_frames=20: makes 159 tokens.*hold 7 frames"):
        build_transformer(tiny.config(num_frames=20), tiny.tokenizer(), 2)
