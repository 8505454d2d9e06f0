"""The config of ``toolkit enhance-video``. Defaults are the paper's and its release's where they state them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import ClassVar

from toolkit.data.config import Encode
from toolkit.errors import UserError
from toolkit.schema import Job, choice, cosmetic, number, written

STAGES = {
    "enhance": ["enhance", "measure"],
    "train": ["train", "evaluate"],
    "train_keys": ["train_keys", "evaluate_keys"],
    "all": ["train", "evaluate", "enhance", "measure"],
}
FIDELITY_NOISE_LEVELS = {"faithful": 50, "balanced": 150, "creative": 250}
WEIGHTINGS = {"proportional": 1, "uniform": 0, "inverse": -1}  # factors are drawn in proportion to this power
MOST_FRAME_FACTOR = 8  # the factors that the paper trains, in time and in space
MOST_SCALE = 8.0
LEAST_SCALE = 0.125  # without the network, which enlarges
MOST_NOISE_LEVEL = 300  # of 1000 steps (section 3.3)
LEAST_SIDE_PX = 16


@dataclass
class Degrade:
    """Make a low-quality input out of a good clip, which then is the reference of the measures.

    scale: factor of an antialiased bicubic down-scaling. frame_step: every how manieth frame is kept. blur_px: standard
    deviation of a Gaussian before the down-scaling. noise: standard deviation of white noise, in grey levels of 255.
    crf: of an h264 compression; None leaves it out.

    The paper's own degradation has scale and frame_step only (section 3.3).
    """

    scale: float = number(1.0, least=1, most=MOST_SCALE)
    frame_step: int = number(1, least=1, most=MOST_FRAME_FACTOR)
    blur_px: float = number(0.0, least=0)
    noise: float = number(0.0, least=0)
    crf: int | None = number(None, least=0, most=51)

    @property
    def active(self) -> bool:
        """Whether anything is degraded."""
        return self != Degrade()


@dataclass
class Demo:
    """What is done without an ``input``: a part of a real clip is degraded, enhanced, and held against itself.

    clip: its name in ``toolkit data list``. start_s, duration_s: the part of it.
    """

    clip: str = "bikes"
    start_s: float = number(0.0, least=0)
    duration_s: float = number(1.5, above=0)
    degrade: Degrade = field(default_factory=lambda: Degrade(scale=4.0, frame_step=2))


@dataclass
class Classic:
    """``backend=classic``: motion-compensated interpolation and Lanczos up-scaling, no network.

    flow_level: 0 estimates the motion at the input's size, 1 at half of it, for a quarter of the time; None takes the
    coarsest that keeps 120 rows or columns. levels, iterations, window_px: of the pyramidal Lucas-Kanade estimator.
    """

    flow_level: int | None = number(None, least=0, most=3)
    levels: int = number(6, least=1, most=10)
    iterations: int = number(3, least=1, most=20)
    window_px: int = number(7, least=3, most=31)


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
    slightly blurred and compressed, as films are. patch_px: edge of what is taken of a crop (data.crop_px) in a step.
    """

    channels: int = number(48, least=4)
    num_blocks: int = number(8, least=1)
    photographs: bool = True
    films: bool = True
    left_out_s: list[float] = number([60.0, 180.0, 300.0, 420.0], least=0)
    film_share: float = number(0.1, least=0, most=1)
    patch_px: int = number(96, least=16)


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
    training clips after which a weight counts half in the average that is sampled.
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


@dataclass
class Sampling:
    """One guided denoising of the whole latent clip (sections 3.4 and 4.1 and the release's sampler).

    solver: the release's DPM-Solver++ (2M, stochastic), Heun, or DDIM. mode: ``fast`` is the release's list of 14
    evaluations, ``normal`` takes num_steps. num_steps: of ``mode=normal``. strength: the share of the schedule that is
    denoised; None: 0.9, the release's, which starts at t = 899 of 1000, or 1 for residuals. guidance_scale: of
    classifier-free guidance on the text; 1 is off. guidance_rescale: how far the contrast is pulled back to that
    without guidance.
    """

    solver: str = choice("dpmpp_2m_sde", "dpmpp_2m_sde", "heun", "ddim")
    mode: str = choice("fast", "fast", "normal")
    num_steps: int = number(50, least=1, most=1000)
    strength: float | None = number(None, above=0, most=1)
    guidance_scale: float = number(7.5, least=0)
    guidance_rescale: float = number(0.2, least=0, most=1)


@dataclass
class Windows:
    """Windows in time on key frames, tiles in space, x0 blended where they overlap (the release: 32 frames, 1/2).

    num_frames: of a window. overlap: share of a window that the next one sees too. tile_height_px, tile_width_px: of a
    tile, in pixels of the output; None: those of the model. tile_overlap: share of a tile that its neighbour sees too.
    shift_tiles: whether the grid of tiles moves from step to step, so that no seam stays at its place.
    """

    num_frames: int = number(32, least=2)
    overlap: float = number(0.5, least=0, most=0.5)
    tile_height_px: int | None = number(None, least=16)
    tile_width_px: int | None = number(None, least=16)
    tile_overlap: float = number(0.25, least=0, most=0.5)
    shift_tiles: bool = True


@dataclass
class EnhanceVideo(Job):
    """``toolkit enhance-video``.

    stage: enhance a clip, train a network, or both; ``train_keys`` trains the network that enlarges key frames. input:
    a video file, a folder of them, numbered pictures (``frames/%05d.png``, or a folder of them), or a clip's name of
    ``toolkit data list``; without it, ``demo``. input_fps: the rate of numbered pictures; None takes ``fps`` for it
    too. output: the file to write (a folder where the input is one); without it the run's ``samples/``. overwrite:
    whether an output that exists already is replaced. skip_bad: whether clips of a folder that cannot be read or made
    are left out, said, and the others made; the run then ends as failed. reference: the clip as it should look, for the
    measures. start_s, duration_s: the part of the input to take. deinterlace: ``auto`` makes one full picture of the
    two fields of frames that are marked interlaced, ``on`` of all.

    scale: any real number from 1 to 8, without the network from 1/8 on; None: the size before ``degrade``, 2 where
    there is none. width, height: the size itself, in place of a scale; one of them keeps the aspect ratio. fps: the
    rate to write, ``24``, ``29.97`` (meaning 30000/1001), ``24000/1001``. None: ``frame_factor``, or the rate before
    ``degrade``, that is the input's where there is none. frame_factor: the rate as a multiple of the input's, in place
    of fps. scene_cuts: whether scenes are enhanced apart, so that nothing is interpolated across a cut. cut_threshold:
    difference of two frames above which a cut is seen. backend: ``generative`` is a network, ``classic`` motion
    compensation and Lanczos, ``bicubic`` the plainest.

    model: ``small`` (shipped), a folder, or a hub id. init: of stage=train, folder or hub id of the base (a VideoUNet,
    or a UNet3DConditionModel such as ModelScope's text-to-video) that stays frozen. vae, text_encoder: for a model that
    has none of its own. prompt: what is to be seen, for models with a text encoder; None is no text. negative_prompt:
    what is not to be seen; None is no text. fidelity: how free the network is, by the noise on the key frames: level
    50, 150 or 250. noise_level: the same as a number, 0 (faithful) to 300 (free); None takes fidelity's.
    scale_condition: the value that the network is told as s; None tells it the true one. conditioning_scale: how much
    the control branch adds. between: who makes the frames between key frames: the network, or motion compensation
    between key frames that the network enhanced. color_fix: ``wavelet`` takes the low frequencies from the input,
    ``adain`` mean and contrast of each channel. cpu_offload: whether parts of the model wait in the CPU's memory while
    others work.

    part_frames: frames that are enhanced and written at a time; a killed job goes on after the last part.
    side_by_side_s: length of the video that shows input and output side by side; 0 makes none. measure_frames: how many
    frames are measured, at most. perceptual: whether to measure PLIPS too, whose weights are fetched once (24 MB).
    baselines: what the result is measured beside. data: the clips to train on, by name.
    """

    command: str = "enhance-video"
    stage: str = choice("enhance", *STAGES, computes=False)
    input: str | None = None
    input_fps: str | None = None
    output: str | None = written(None, "enhance")
    overwrite: bool = cosmetic(False)
    skip_bad: bool = cosmetic(False)
    reference: str | None = None
    start_s: float = number(0.0, least=0)
    duration_s: float | None = number(None, above=0)
    degrade: Degrade = field(default_factory=Degrade)
    demo: Demo = field(default_factory=Demo)
    deinterlace: str = choice("auto", "auto", "on", "off")

    scale: float | None = number(None, least=LEAST_SCALE, most=MOST_SCALE)
    width: int | None = number(None, least=LEAST_SIDE_PX)
    height: int | None = number(None, least=LEAST_SIDE_PX)
    fps: str | None = None
    frame_factor: int | None = number(None, least=1, most=MOST_FRAME_FACTOR)
    scene_cuts: bool = True
    cut_threshold: float = number(0.2, above=0, most=1)
    backend: str = choice("generative", "generative", "classic", "bicubic")
    classic: Classic = field(default_factory=Classic)

    model: str = "small"
    init: str | None = None
    vae: str | None = None
    text_encoder: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    fidelity: str = choice("balanced", *FIDELITY_NOISE_LEVELS)
    noise_level: int | None = number(None, least=0, most=MOST_NOISE_LEVEL)
    scale_condition: float | None = number(None, least=1, most=MOST_SCALE)
    conditioning_scale: float = number(1.0, least=0)
    between: str = choice("network", "network", "motion")
    color_fix: str = choice("wavelet", "none", "wavelet", "adain")
    sampling: Sampling = field(default_factory=Sampling)
    windows: Windows = field(default_factory=Windows)
    cpu_offload: bool = cosmetic(False)

    encode: Encode = field(default_factory=Encode)
    part_frames: int = number(48, least=1)
    side_by_side_s: float = number(10.0, least=0)
    measure_frames: int = number(150, least=2)
    perceptual: bool = False
    baselines: list[str] = field(default_factory=lambda: ["bicubic", "classic"])

    network: VideoUNetConfig = field(default_factory=VideoUNetConfig)
    upscaler: Upscaler = field(default_factory=Upscaler)
    data: ClipData = field(default_factory=ClipData)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)

    def stages(self) -> list[str]:
        """What ``stage`` stands for."""
        return STAGES[self.stage]

    @property
    def noise(self) -> int:
        """The noise level in force."""
        return FIDELITY_NOISE_LEVELS[self.fidelity] if self.noise_level is None else self.noise_level

    def resolved(self) -> EnhanceVideo:
        """With ``demo`` in the place of the input where none is given."""
        if self.input is not None:
            return self
        degrade = self.degrade if self.degrade.active else self.demo.degrade
        start_s = self.start_s or self.demo.start_s
        duration_s = self.duration_s or self.demo.duration_s
        return replace(self, input=self.demo.clip, start_s=start_s, duration_s=duration_s, degrade=degrade)

    def check(self) -> None:
        """What must fit together across keys. Raises UserError."""
        if self.input_fps is not None:
            parse_fps(self.input_fps, "input_fps")
        if self.fps is not None:
            parse_fps(self.fps)
            if self.frame_factor is not None:
                raise UserError(f"fps={self.fps}, frame_factor={self.frame_factor}: give one of them")
        if self.scale is not None and (self.width or self.height):
            raise UserError(f"scale={self.scale}, width, height: give the scale or the size (the other one null)")
        if self.scale is not None and self.scale < 1 and self.backend == "generative":
            raise UserError(f"scale={self.scale}: the network enlarges; below 1 take backend=classic")
        if self.input is None and self.reference is not None:
            raise UserError(f"reference={self.reference}: belongs to input=..., which is not given")
        if self.reference is not None and self.degrade.active:
            raise UserError(f"reference={self.reference}: with degrade the input itself is the reference")
        if "train_keys" in self.stages() and not (self.upscaler.photographs or self.upscaler.films):
            raise UserError("upscaler.photographs=false, upscaler.films=false: nothing to learn from; one must be true")
        if "evaluate" in self.stages() and not self.data.held_out:
            raise UserError("data.held_out=[]: name at least one clip that training does not see")
        for name in self.baselines:
            if name not in ("bicubic", "classic"):
                raise UserError(f"baselines={name}: choose among bicubic, classic")


def parse_fps(text: str, key: str = "fps") -> Fraction:
    """Frames per second as a fraction; 23.976, 29.97, 59.94 and their like mean N x 1000/1001.

    Raises UserError naming the key.
    """
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{key}={text}: must be a number or a fraction, as in 24, 29.97 or 30000/1001") from None
    if not 0 < value <= 1000:
        raise UserError(f"{key}={text}: must be greater than 0 and at most 1000")
    ntsc = Fraction(round(value) * 1000, 1001)
    is_rounded_ntsc = value.denominator > 1 and "/" not in text and abs(ntsc - value) < Fraction(1, 200)
    return ntsc if is_rounded_ntsc else value


SCHEMAS = {(None, "enhance_video_schema"): EnhanceVideo}
