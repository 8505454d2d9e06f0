"""The config of ``toolkit enhance-video``. Defaults are the paper's and its release's where they state them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from fractions import Fraction

from toolkit.data.config import Encode
from toolkit.errors import UserError
from toolkit.schema import Job, choice, cosmetic, free_text, number, written
from toolkit.venhancer.train.config import (
    MOST_FRAME_FACTOR,
    MOST_SCALE,
    Augment,
    ClipData,
    Optim,
    Upscaler,
    VideoUNetConfig,
)
from toolkit.zoo.upscalers import check_keys

STAGES = {
    "enhance": ["enhance", "measure"],
    "train": ["train", "evaluate"],
    "train_keys": ["train_keys", "evaluate_keys"],
    "all": ["train", "evaluate", "enhance", "measure"],
}
FIDELITY_NOISE_LEVELS = {"faithful": 50, "balanced": 150, "creative": 250}
LEAST_SCALE = 0.125  # without the network, which enlarges
MOST_NOISE_LEVEL = 300  # of 1000 steps (section 3.3)
LEAST_SIDE_PX = 16
MOST_PARTS = 1_000_000  # of a second that a rate may count in: containers keep 32 bits


@dataclass
class Degrade:
    """Make a low-quality input from a good clip, which is then the reference for the measures.

    scale: factor of an antialiased bicubic down-scaling. frame_step: keeps every n-th frame; 1 keeps all. blur_px:
    standard deviation of a Gaussian blur before the down-scaling, in pixels. noise: standard deviation of white noise,
    in grey levels of 255. crf: constant rate factor of an h264 compression. None: no compression.

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
    """What runs without an ``input``: part of a real clip is degraded, enhanced, and compared with the original.

    clip: name of the clip in ``toolkit data list``. start_s: start of the part, in seconds. duration_s: length of the
    part, in seconds.
    """

    clip: str = "bikes"
    start_s: float = number(0.0, least=0)
    duration_s: float = number(1.5, above=0)
    degrade: Degrade = field(default_factory=lambda: Degrade(scale=4.0, frame_step=2))


@dataclass
class Classic:
    """``backend=classic``: motion-compensated interpolation and Lanczos up-scaling, no network.

    flow_level: 0 estimates the motion at the input's size, 1 at half of it, in a quarter of the time. None: the
    coarsest level that keeps 120 rows or columns. levels: pyramid levels of the Lucas-Kanade estimator. iterations:
    iterations of the Lucas-Kanade estimator per level. window_px: window of the Lucas-Kanade estimator, in pixels.
    """

    flow_level: int | None = number(None, least=0, most=3)
    levels: int = number(6, least=1, most=10)
    iterations: int = number(3, least=1, most=20)
    window_px: int = number(7, least=3, most=31)


@dataclass
class Sampling:
    """One guided denoising of the whole latent clip (sections 3.4 and 4.1 and the release's sampler).

    solver: the release's DPM-Solver++ (2M, stochastic), Heun, or DDIM. mode: ``fast`` is the release's list of 14
    evaluations, ``normal`` takes num_steps. num_steps: number of steps for ``mode=normal``. strength: share of the
    schedule that is denoised. None: 0.9 as in the release, which starts at t = 899 of 1000; 1 for residuals. guidance:
    what the prediction for the prompt is compared with: ``cfg`` takes the negative prompt, ``icg`` random words drawn
    anew at every step (Sadat et al. 2025). guidance_scale: scale of guidance on the text; 1 is off. guidance_rescale:
    how far the contrast is brought back to that without guidance.
    """

    solver: str = choice("dpmpp_2m_sde", "dpmpp_2m_sde", "heun", "ddim")
    mode: str = choice("fast", "fast", "normal")
    num_steps: int = number(50, least=1, most=1000)
    strength: float | None = number(None, above=0, most=1)
    guidance: str = choice("cfg", "cfg", "icg")
    guidance_scale: float = number(7.5, least=0)
    guidance_rescale: float = number(0.2, least=0, most=1)


@dataclass
class Windows:
    """Windows in time on key frames, tiles in space, x0 blended where they overlap (the release: 32 frames, 1/2).

    num_frames: frames of a window. overlap: share of a window that the next one sees too. tile_height_px: height of a
    tile, in pixels of the output. None: the model's. tile_width_px: width of a tile, in pixels of the output. None: the
    model's. tile_overlap: share of a tile that its neighbour sees too. shift_tiles: whether to move the grid of tiles
    from step to step, so that no seam stays in place.
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
    a video file, a folder of videos, numbered pictures (``frames/%05d.png``, or a folder of them), or the name of a
    clip in ``toolkit data list``; without it, ``demo`` runs. input_fps: frame rate of numbered pictures. None: the
    value of ``fps``. output: the file to write (a folder if the input is one); without it, the run's ``samples/``.
    overwrite: whether to replace an existing output. skip_bad: whether to skip clips of a folder that cannot be read or
    enhanced, with a message. The other clips are made, and the run ends as failed. reference: the clip as it should
    look, for the measures; ``start_s`` and ``duration_s`` cut it as they cut the input. start_s: start of the part of
    the input to use, in seconds. duration_s: length of the part of the input to use, in seconds. deinterlace: ``auto``
    makes one full picture from the two fields of frames marked as interlaced, ``on`` of all frames.

    scale: factor on the size, any number from 1 to 8; without the network from 1/8. None: the size before ``degrade``,
    or 2 without ``degrade``. width: width of the output in pixels, instead of a scale. Height follows from the aspect
    ratio unless it is given too. height: height of the output in pixels, instead of a scale. Width follows from the
    aspect ratio unless it is given too. fps: frame rate to write: ``24``, ``29.97`` (meaning 30000/1001),
    ``24000/1001``. None: given by ``frame_factor``; without it the rate before ``degrade``, which is the input's if
    nothing is degraded. frame_factor: the frame rate as a multiple of the input's, instead of fps. scene_cuts: whether
    to enhance scenes separately, so that nothing is interpolated across a cut. cut_threshold: difference between two
    frames above which there is a cut. backend: ``generative`` uses networks, chosen by ``keys`` and ``between``;
    ``classic`` uses motion compensation and Lanczos; ``bicubic`` is the simplest.

    model: ``small`` (ships with the toolkit), a folder, or a hub id. init: for stage=train, folder or hub id of the
    base that stays frozen (a VideoUNet, or a UNet3DConditionModel such as ModelScope's text-to-video). For
    stage=train_keys, a run of that stage to train further. vae: autoencoder for a model that has none of its own.
    text_encoder: text encoder for a model that has none of its own. prompt: what the video should show, for models with
    a text encoder. None: no text. negative_prompt: what the video should not show. None: no text. fidelity: how free
    the network is, set by the noise on the key frames: level 50, 150 or 250. noise_level: the same as a number, from 0
    (faithful) to 300 (free). None: set by fidelity. scale_condition: the value s that the network is told. None: the
    true one. conditioning_scale: how much the control branch adds. keys: what enhances the key frames: VEnhancer's
    ``network`` (``model``), or something that enlarges them one by one: the shipped ``upscaler``, ``lanczos``,
    ``ncnn:`` or ``spandrel:`` and a model. between: what makes the frames between key frames: VEnhancer's network,
    motion compensation between the enhanced key frames, blending of them, or RIFE. color_fix: ``wavelet`` takes the low
    frequencies from the input, ``adain`` mean and contrast of each channel. cpu_offload: whether parts of the model
    wait in CPU memory while others work.

    part_frames: frames to enhance and write at a time. A killed job continues after the last finished part. live_still:
    whether a terminal shows the current picture below the progress bar, once a second. side_by_side_s: length in
    seconds of the video that shows input and output side by side; 0 makes none. measure_frames: number of frames to
    measure, at most. perceptual: whether to measure PLIPS too. Its weights are downloaded once (24 MB). baselines:
    methods that the result is compared with. data: clips to train on, by name.
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
    prompt: str | None = free_text(None)
    negative_prompt: str | None = free_text(None)
    fidelity: str = choice("balanced", *FIDELITY_NOISE_LEVELS)
    noise_level: int | None = number(None, least=0, most=MOST_NOISE_LEVEL)
    scale_condition: float | None = number(None, least=1, most=MOST_SCALE)
    conditioning_scale: float = number(1.0, least=0)
    keys: str = "network"
    between: str = choice("network", "network", "motion", "blend", "rife")
    color_fix: str = choice("wavelet", "none", "wavelet", "adain")
    sampling: Sampling = field(default_factory=Sampling)
    windows: Windows = field(default_factory=Windows)
    cpu_offload: bool = cosmetic(False)

    encode: Encode = field(default_factory=Encode)
    part_frames: int = number(48, least=1)
    live_still: bool = cosmetic(True)
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

    @property
    def diffuses(self) -> bool:
        """Whether VEnhancer's network makes the key frames."""
        return self.backend == "generative" and self.keys == "network"

    @property
    def trains_base(self) -> bool:
        """Whether stage=train begins with a base, on which the control network then learns."""
        return not self.init and not self.optim.joint

    def idle(self) -> dict[str, tuple[str, ...]]:
        """What is of stages that do not run, and of what is not chosen."""
        asked = f"stage={self.stage}"
        if "enhance" not in self.stages():
            of_keys = "train_keys" in self.stages()
            return {
                f"{asked} enhances nothing": _OF_ENHANCING,
                f"{asked} does not read it": _OF_BASE if of_keys else _OF_KEYS,
            }
        found = {} if "train" in self.stages() else {f"{asked} trains nothing": (*_OF_BASE, *_OF_KEYS, *_OF_TRAINING)}
        found |= {} if self.input is None else {f"input={self.input} is given": ("demo",)}
        return found | ({} if self.backend == "generative" else {f"backend={self.backend} uses no network": _NETWORKS})

    def set_for_the_network(self) -> list[str]:
        """Keys of VEnhancer's network that have another value than their default."""
        plain = EnhanceVideo()
        return [key for key in _OF_THE_NETWORK if getattr(self, key) != getattr(plain, key)]

    def _check_keys(self) -> None:
        """Raises UserError for what only VEnhancer's network could do, where it is not asked."""
        check_keys(self.keys)
        if self.diffuses or self.backend != "generative" or "enhance" not in self.stages():
            return
        if self.between == "network":
            raise UserError(f"between=network: needs keys=network; with keys={self.keys} take motion, blend or rife")
        for key in self.set_for_the_network():
            raise UserError(f"{key}: is of VEnhancer's network, and keys={self.keys} is asked; add {_SMALL}")
        if "train" in self.stages():
            raise UserError(f"stage={self.stage}: trains VEnhancer's network; with keys={self.keys} add {_SMALL}")

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
        self._check_keys()
        if self.negative_prompt is not None and self.sampling.guidance == "icg":
            raise UserError(
                f"negative_prompt={self.negative_prompt}: sampling.guidance=icg draws its own; leave it out"
            )
        if self.input is None and self.reference is not None:
            raise UserError(f"reference={self.reference}: belongs to input=..., which is not given")
        if self.reference is not None and self.degrade.active:
            raise UserError(f"reference={self.reference}: with degrade the input itself is the reference")
        upscaler = self.upscaler
        if "train_keys" in self.stages() and upscaler.drawn_share < 1 and not (upscaler.photographs or upscaler.films):
            or_drawn = "one must be true, or upscaler.drawn_share=1"
            raise UserError(f"upscaler.photographs=false, upscaler.films=false: nothing to learn from; {or_drawn}")
        if self.optim.sharding == "fsdp" and self.compile:
            raise UserError("compile=true: not with optim.sharding=fsdp, for these blocks all differ; use one of them")
        if "train_keys" in self.stages() and self.optim.sharding != "none":
            raise UserError(f"optim.sharding={self.optim.sharding}: is of stage=train; that of key frames is small")
        if "train" in self.stages() and self.trains_base and not self.optim.base_num_steps:
            why = "the control network would be trained on a base of random weights"
            raise UserError(f"optim.base_num_steps=0: {why}; give steps, init=MODEL, or optim.joint=true")
        if "evaluate" in self.stages() and not self.data.held_out:
            raise UserError("data.held_out=[]: name at least one clip that training does not see")
        deep = len(self.network.block_out_channels) > 2  # one halving leaves square latents as they are
        if "train" in self.stages() and self.init is None and self.network.asymmetric and deep:
            why = "training crops are square, which the release's odd padding does not take"
            raise UserError(f"network.asymmetric=true: {why}; add network.asymmetric=false, or init=")
        for name in self.baselines:
            if name not in ("bicubic", "classic"):
                raise UserError(f"baselines={name}: choose among bicubic, classic")


_OF_TRAINING = ("init", "data", "optim")
_OF_BASE = ("network", "augment", "optim.joint", "optim.step_weighting", "optim.base_num_steps")
_OF_KEYS: tuple[str, ...] = ("upscaler",)
_NETWORKS = ("keys", "between", "windows")
_OF_ENHANCING = (
    *("input", "input_fps", "output", "reference", "start_s", "duration_s", "degrade", "demo", "deinterlace", "scale"),
    *("width", "height", "fps", "frame_factor", "scene_cuts", "cut_threshold", "backend", "classic", "encode"),
    *("part_frames", "side_by_side_s", "measure_frames", "perceptual", "baselines", "keys", "between", "sampling"),
)
_SMALL = "keys=network, or experiment=enhance_small"
_OF_THE_NETWORK = (
    *("model", "vae", "text_encoder", "prompt", "negative_prompt"),
    *("fidelity", "noise_level", "scale_condition", "conditioning_scale", "color_fix", "sampling"),
)


def parse_fps(text: str, key: str = "fps") -> Fraction:
    """Frames per second as a fraction; 23.976, 29.97, 59.94 and their like mean N x 1000/1001.

    Raises UserError naming the key.
    """
    try:
        short = re.fullmatch(r"[\d./+-]{1,40}(e[+-]?\d{1,2})?", text)  # 1e999999999 would take for ever
        value = Fraction(text if short else "none")
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{key}={text}: must be a number or a fraction, as in 24, 29.97 or 30000/1001") from None
    if not Fraction(1, 1000) <= value <= 1000:
        raise UserError(f"{key}={text}: must be from 0.001 to 1000")
    ntsc = Fraction(round(value) * 1000, 1001)
    is_rounded_ntsc = ntsc > 0 and value.denominator > 1 and "/" not in text and abs(ntsc - value) < Fraction(1, 200)
    return ntsc if is_rounded_ntsc else value.limit_denominator(MOST_PARTS)


SCHEMAS = {(None, "enhance_video_schema"): EnhanceVideo}
