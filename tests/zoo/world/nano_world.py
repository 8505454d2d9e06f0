"""A world model small enough for float64: 16x16 images, N = 16, n = 4, two layers, grouped key-value heads."""

from __future__ import annotations

import torch

from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.tokenizer import CompressiveVQModel
from toolkit.zoo.world.transformer import VideoTransformer, llama_config

SIZE = 16
ACTION_DIM = 3


def nano_tokenizer(context_length=2, seed=0, **changes):
    """Untrained; codebooks and position tables are spread out so that every part matters."""
    torch.manual_seed(seed)
    keys = {
        "block_out_channels": (16, 16, 32),
        "layers_per_block": 1,
        "latent_channels": 8,
        "norm_num_groups": 8,
        "num_vq_embeddings": 32,
        "num_dyn_embeddings": 24,
        "resolution": SIZE,
        "patch_size": 2,
        "max_att_resolution": 8,
        "context_length": context_length,
    }
    tokenizer = CompressiveVQModel(**(keys | changes)).eval()
    with torch.no_grad():
        for name, parameter in tokenizer.named_parameters():
            if "quantize" in name or "pos_emb" in name:
                parameter.normal_(std=0.5)
    return tokenizer


def nano_transformer(tokenizer, action_dim=ACTION_DIM, seed=1, **changes):
    """Untrained, but not indifferent: wide initial weights, and actions that matter."""
    torch.manual_seed(seed)
    keys = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "initializer_range": 0.2,
        "action_dim": action_dim,
    }
    network = VideoTransformer(llama_config(tokenizer.layout, **(keys | changes))).eval()
    if action_dim:
        torch.nn.init.normal_(network.action_linear.weight, std=0.5)
    return network


def nano_world(context_length=2, action_dim=ACTION_DIM, dtype=torch.float64, kept_frames=0, composite=False, **changes):
    """Both, bound together."""
    tokenizer = nano_tokenizer(context_length)
    transformer = nano_transformer(tokenizer, action_dim, **changes)
    transformer.bind(tokenizer)
    return WorldModel(tokenizer, transformer, kept_frames=kept_frames, composite=composite).to(dtype)


def nano_clips(num=3, num_frames=6, seed=2, dtype=torch.float64):
    """Frames (B,T,3,H,W) in [0,1] and actions (B,T,A)."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand((num, num_frames, 3, SIZE, SIZE), generator=generator, dtype=torch.float64)
    actions = torch.randn((num, num_frames, ACTION_DIM), generator=generator, dtype=torch.float64)
    return frames.to(dtype), actions.to(dtype)
