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

    codec: an autoencoder of diffusers, or ``unshuffle``, which turns each block of codec_factor x codec_factor pixels
    into one latent. codec_factor: edge of a latent in pixels. vae: folder or hub id of the autoencoder. text_encoder:
    folder or hub id of a text encoder. None: no text encoder. block_out_channels: widths of the levels, from the finest
    on. attention_levels: number of levels with attention, from the finest on (the middle always has it).
    layers_per_block: blocks per level. cross_attention_dim: width of the text's tokens. attention_head_dim: channels of
    an attention head. entry_heads: attention heads of the temporal transformer after the first convolution.
    norm_num_groups: groups of the group norms. asymmetric: whether to keep the release's odd padding. dropout: dropout
    in training. conditioning: what is told noise level and scale: the key frames (the paper's video-aware
    conditioning), all frames alike (``shared``), or nothing. diffuses: latents, or residuals: their difference from the
    latents of the filled-in input, in units of its contrast. data_std: standard deviation of the latents that the
    network is preconditioned for. None: it predicts v. resize: how key frames are resized. blend: whether frames
    between key frames are filled in as blends of them instead of copies of the one before. tile_rows: height of a tile
    in latents. tile_columns: width of a tile in latents.
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

    name: name of the clips. ``data=NAME`` sets it too. path: your own folder with the clips. num_frames: frames of a
    training clip. crop_px: edge of a training clip in pixels. rate_fps: frame rate that the clips are brought to. None:
    keeps their own. num_crops: number of crops that are decoded once and cached. held_out: names of the clips that
    ``evaluate`` measures the loss on. held_out_crops: number of crops of the held-out clips.
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
    """``stage=train_keys``: a network that enlarges key frames by 4, one by one, trained to come close to the original.

    channels: channels of the hidden layers. num_blocks: residual blocks of two convolutions. photographs: whether to
    train on photographs that packages ship, beside frames of ``data``. films: whether to train on frames of ``data``.
    left_out_s: times in the film, in seconds; the 20 s after each are not trained on. film_share: share of the inputs
    that are slightly blurred and compressed, as films are. drawn_share: share of the crops that are dead leaves, shapes
    drawn over each other. patch_px: edge in pixels of the patch of a crop (data.crop_px) that a step trains on.
    muon_lr: learning rate of Muon for the kernels of the blocks, with the schedule of optim.lr, which everything else
    uses. None: AdamW for all.
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

    max_frame_factor: largest frame skip. max_scale: largest scale. frame_factor_weighting: how often a frame skip is
    drawn: in proportion to its size (the paper's), uniformly, or in inverse proportion. scale_weighting: how often a
    scale is drawn: in proportion to its size (the paper's), uniformly, or in inverse proportion. max_key_frames: most
    key frames of a clip. None: as many as fit into data.num_frames. max_noise_level: highest noise level of the key
    frames' latents, of 1000 steps. clean_fraction: share of the clips whose key frames get no noise, in addition to
    those that draw level 0. text_drop: share of the clips whose text is dropped.
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

    joint: whether to train base and control branch together. step_weighting: how often a diffusion step is drawn:
    uniformly (the paper's) or in proportion to its number. num_steps: optimiser steps; a larger number continues a
    finished training. base_num_steps: optimiser steps of the base, which is trained first if ``init`` names none.
    batch_size: clips per step, over all processes. micro_batch_size: clips per pass and process; gradients are
    accumulated. None: all at once. gradient_checkpointing: whether blocks store only their inputs and are recomputed in
    the backward pass. lr: learning rate. betas: AdamW's two betas. weight_decay: weight decay of AdamW. warmup_steps:
    steps over which the learning rate rises from 0. schedule: schedule of the learning rate after the warm-up.
    grad_clip: largest norm of the gradient. ema_half_life_images: half-life of the sampled weight average, in training
    clips. sharding: ``fsdp`` spreads weights, gradients, moments and the average over the processes, for
    ``stage=train``.
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
