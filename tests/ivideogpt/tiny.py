"""The smallest world model and config that have every part."""

import dataclasses
from functools import cache

import numpy as np
import torch

from toolkit.data.config import EpisodeData
from toolkit.ivideogpt.clips import Clips, load_clips
from toolkit.ivideogpt.config import TrainIVideoGPT
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.tokenizer import CompressiveVQModel
from toolkit.zoo.world.transformer import VideoTransformer, llama_config

SIZE = 16


def config(**changes) -> TrainIVideoGPT:
    """push-sprite at 16x16, clips of 4 frames; ``changes`` are keys of TrainIVideoGPT."""
    made = TrainIVideoGPT(num_frames=4, reward_head=True)
    made.data = EpisodeData(size_px=SIZE, num_train=6, num_valid=4, num_frames=6)
    made.tokenizer.block_out_channels = [8, 16]
    made.tokenizer.layers_per_block = 1
    made.tokenizer.latent_channels = 4
    made.tokenizer.norm_num_groups = 4
    made.tokenizer.num_vq_embeddings = made.tokenizer.num_dyn_embeddings = 16
    made.tokenizer.patch_size = 4
    made.tokenizer.max_att_resolution = 8
    made.transformer.hidden_size, made.transformer.intermediate_size = 16, 32
    made.transformer.num_hidden_layers, made.transformer.num_attention_heads = 1, 2
    made.transformer.max_position_embeddings = 96
    made.optim.tokenizer.num_future = 2
    made.optim.tokenizer.batch_size = made.optim.transformer.batch_size = 2
    made.measure.num_clips = made.measure.batch_size = 4
    made.measure.num_counterfactual = 2
    made.measure.num_long_clips, made.measure.num_long_frames = 2, 6
    return dataclasses.replace(made, **changes)


@cache
def clips() -> Clips:
    """The data of ``config()``."""
    return load_clips(config())


def tokenizer(context_length: int = 1) -> CompressiveVQModel:
    """Random weights, 64 + 4 tokens a frame, codes spread like the latents so that different frames differ."""
    torch.manual_seed(0)
    network = CompressiveVQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        num_vq_embeddings=16,
        num_dyn_embeddings=16,
        context_length=context_length,
        max_att_resolution=8,
        resolution=SIZE,
        patch_size=4,
    )
    for quantizer in (network.quantize, network.dynamics_quantize):
        torch.nn.init.normal_(quantizer.embedding.weight)
    return network.eval()


def world(action_dim: int = 2, has_reward: bool = True, context_length: int = 1, positions: int = 96) -> WorldModel:
    """Random weights whose imagination depends on the actions."""
    coder = tokenizer(context_length)
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    heads = {"action_dim": action_dim or None, "has_reward": has_reward}
    network = VideoTransformer(llama_config(coder.layout, max_position_embeddings=positions, **sizes, **heads))
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1 and "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.5)
    bounds = {"action_low": [-1.0] * action_dim, "action_high": [1.0] * action_dim} if action_dim else {}
    return WorldModel(coder, network, **bounds)


def starts(num: int = 3, context_length: int = 1) -> np.ndarray:
    """Contexts uint8 [num, T0, 16, 16, 3]."""
    return np.stack([clips().dataset.test.read(i).image[:context_length] for i in range(num)])
