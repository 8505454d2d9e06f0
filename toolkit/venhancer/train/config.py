"""The configs of ``stage=train`` and ``stage=train_keys``: networks, clips, augmentation, optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from toolkit.schema import choice, cosmetic, number

WEIGHTINGS = {"proportional": 1, "uniform": 0, "inverse": -1}  # factors are drawn in proportion to this power
MOST_FRAME_FACTOR = 8  # the factors that the paper trains, in time and in space
MOST_SCALE = 8.0


@dataclass
class VideoUNetConfig:
    """The network that ``stage=train`` builds; the defaults are the release's (1.41 + 0.63 billion parameters).

    codec: an autoencoder of diffusers, or ``unshuffle``, which makes each block of codec_factor x codec_factor pixels
    one latent. codec_factor: pixels on an edge of a latent. vae: folder or hub id of the autoencoder. text_encoder:
    folder or hub id of a text encoder; None has none. block_out_channels: widths of the levels, from the finest on.
    attention_levels: levels that attend, from the finest on (the middle always does). layers_per_block: blocks of a
    level. cross_attention_dim: of the text's tokens. attention_head_dim: channels of a head. entry_heads: of the
    temporal transformer after the first convolution. norm_num_groups: groups of the group norms. asymmetric: whether
    the release's odd padding is kept. dropout: in training. conditioning: where noise level and scale are told: to the
    key frames (the paper's video-aware conditioning), to all frames alike (``shared``), or not at all. diffuses:
    latents, or residuals, their difference to those of the filled-in input, in units of its contrast. data_std: None,
    the network gives v; a number, it is preconditioned for latents of that standard deviation. resize: how key frames
    are resized. blend: whether frames between key frames are blends of them, or copies. tile_rows, tile_columns: of a
    tile, in latents.
    """

    codec: str = choice("vae", "vae", "unshuffle")
    codec_factor: int = number(8, least=1)
    vae: str | None = None
    text_encoder: str | None = None
    block_out_channels: list[int] = number([320, 640, 1280, 1280], least=4)
    attention_levels: int = number(3, least=0)
    layers_per_block: int = number(2, least=1)
    cross_attention_dim: int = number(1024, least=1)
    attention_head_dim: int = number(64, least=1)
    entry_heads: int = number(8, least=1)
    norm_num_groups: int = number(32, least=1)
    asymmetric: bool = True
    dropout: float = number(0.1, least=0, below=1)
    conditioning: str = choice("video_aware", "video_aware", "shared", "none")
    diffuses: str = choice("latents", "latents", "residuals")
    data_std: float | None = number(None, above=0)
    resize: str = choice("bilinear", "bilinear", "bicubic")
    blend: bool = False
    tile_rows: int = number(90, least=4)
    tile_columns: int = number(160, least=4)


@dataclass
class ClipData:
    """The clips to train on: a name of ``toolkit data list``, or ``clips_folder`` with a path.

    name: of the clips; ``data=NAME`` says the same. path: a folder of your own that holds them. num_frames, crop_px: of
    a training clip. rate_fps: to which they are brought; None keeps theirs. num_crops: how many are decoded once and
    kept in the cache. held_out: clips (names) that ``evaluate`` measures the loss on. held_out_crops: how many parts of
    them.
    """

    KINDS: ClassVar = ("clips",)

    name: str = "bbb"
    path: str | None = None
    num_frames: int = number(32, least=2)
    crop_px: int = number(128, least=16)
    rate_fps: float | None = number(24.0, above=0)
    num_crops: int = number(2000, least=1)
    held_out: list[str] = field(default_factory=lambda: ["bikes", "vtest", "citycc0", "cube"])
    held_out_crops: int = number(64, least=2)


@dataclass
class Upscaler:
    """``stage=train_keys``: a network that enlarges key frames by 4, one by one, trained to come near to the truth.

    channels: of its hidden layers. num_blocks: residual blocks of two convolutions. photographs: whether it learns from
    photographs that packages ship, beside frames of ``data``. films: whether frames of ``data`` are taken. left_out_s:
    times of the film, in seconds, from which on 20 s are not trained on. film_share: share of the inputs that are
    slightly blurred and compressed, as films are. drawn_share: share of the crops that are dead leaves, shapes drawn
    over each other. patch_px: edge of what is taken of a crop (data.crop_px) in a step. muon_lr: rate of Muon for the
    blocks' kernels, scheduled as optim.lr, which all else has; None: AdamW for all.
    """

    channels: int = number(48, least=4)
    num_blocks: int = number(8, least=1)
    photographs: bool = True
    films: bool = True
    left_out_s: list[float] = number([60.0, 180.0, 300.0, 420.0], least=0)
    film_share: float = number(0.1, least=0, most=1)
    drawn_share: float = number(0.4, least=0, most=1)
    patch_px: int = number(96, least=16)
    muon_lr: float | None = number(5e-3, above=0)


@dataclass
class Augment:
    """Space-time augmentation (section 3.3): frame skip, scale and latent noise, drawn per clip.

    max_frame_factor: the largest frame skip. max_scale: the largest scale. frame_factor_weighting, scale_weighting: how
    often a factor is drawn: in proportion to its size (the paper's), all alike, or in inverse proportion.
    max_key_frames: of a clip; None: as many as data.num_frames has room for. max_noise_level: of the key frames'
    latents, of 1000 steps. clean_fraction: clips whose key frames get no noise at all, beside those that draw level 0.
    text_drop: share of the clips whose text is dropped.
    """

    max_frame_factor: int = number(MOST_FRAME_FACTOR, least=1, most=MOST_FRAME_FACTOR)
    max_scale: float = number(MOST_SCALE, least=1, most=MOST_SCALE)
    frame_factor_weighting: str = choice("proportional", *WEIGHTINGS)
    scale_weighting: str = choice("proportional", *WEIGHTINGS)
    max_key_frames: int | None = number(None, least=2)
    max_noise_level: int = number(300, least=0, most=999)
    clean_fraction: float = number(0.0, least=0, most=1)
    text_drop: float = number(0.1, least=0, most=1)


@dataclass
class Optim:
    """AdamW on the control branch, the base frozen (section 4.1); the EMA and the schedule are ours.

    joint: whether base and control branch are trained together. step_weighting: how often a diffusion step is drawn,
    all alike (the paper's) or in proportion to its number. num_steps: optimiser steps; a larger number trains on.
    base_num_steps: of the base that is trained first where ``init`` names none. batch_size: clips per step, over all
    processes. micro_batch_size: clips per pass and process, whose gradients are accumulated; None is all at once.
    gradient_checkpointing: whether blocks keep their inputs alone and are computed again in the backward pass. lr:
    learning rate. betas: AdamW's two. weight_decay: that of AdamW. warmup_steps: over which the learning rate rises
    from 0. schedule: of the learning rate after that. grad_clip: largest norm of the gradient. ema_half_life_images:
    training clips after which a weight counts half in the average that is sampled. sharding: ``fsdp`` spreads weights,
    gradients, moments and the average over the processes; of ``stage=train``.
    """

    joint: bool = False
    step_weighting: str = choice("uniform", "uniform", "proportional")
    num_steps: int = number(2000, least=1, extends="train,train_keys")
    base_num_steps: int = number(2000, least=0)
    batch_size: int = number(8, least=1)
    micro_batch_size: int | None = number(None, least=1, computes=False)
    gradient_checkpointing: bool = cosmetic(False)
    lr: float = number(1e-4, above=0)
    betas: list[float] = number([0.9, 0.999], least=0, below=1)
    weight_decay: float = number(0.01, least=0)
    warmup_steps: int = number(0, least=0)
    schedule: str = choice("constant", "constant", "cosine")
    grad_clip: float = number(1.0, above=0)
    ema_half_life_images: float = number(4000.0, above=0)
    sharding: str = choice("none", "none", "fsdp", computes=False)
