"""The config of ``toolkit enhance-video``. Defaults are the paper's and its release's where they state them."""

from __future__ import annotations

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
class Sampling:
    """One guided denoising of the whole latent clip (sections 3.4 and 4.1 and the release's sampler).

    solver: the release's DPM-Solver++ (2M, stochastic), Heun, or DDIM. mode: ``fast`` is the release's list of 14
    evaluations, ``normal`` takes num_steps. num_steps: of ``mode=normal``. strength: the share of the schedule that is
    denoised; None: 0.9, the release's, which starts at t = 899 of 1000, or 1 for residuals. guidance: what the
    prompt is held against, ``cfg`` the negative prompt, ``icg`` random words drawn anew at every step (Sadat et al.
    2025). guidance_scale: of guidance on the text; 1 is off. guidance_rescale: how far the contrast is pulled back to
    that without guidance.
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
    difference of two frames above which a cut is seen. backend: ``generative`` is networks, as ``keys`` and ``between``
    name them, ``classic`` motion compensation and Lanczos, ``bicubic`` the plainest.

    model: ``small`` (shipped), a folder, or a hub id. init: of stage=train, folder or hub id of the base (a VideoUNet,
    or a UNet3DConditionModel such as ModelScope's text-to-video) that stays frozen; of stage=train_keys, a run of that
    stage that is trained on. vae, text_encoder: for a model that
    has none of its own. prompt: what is to be seen, for models with a text encoder; None is no text. negative_prompt:
    what is not to be seen; None is no text. fidelity: how free the network is, by the noise on the key frames: level
    50, 150 or 250. noise_level: the same as a number, 0 (faithful) to 300 (free); None takes fidelity's.
    scale_condition: the value that the network is told as s; None tells it the true one. conditioning_scale: how much
    the control branch adds. keys: what enhances the key frames: VEnhancer's ``network`` (``model``), or what enlarges
    them one by one: the shipped ``upscaler``, ``lanczos``, ``ncnn:`` or ``spandrel:`` and a model. between: who makes
    the frames between key frames: VEnhancer's network, motion compensation between the enhanced key frames, blending of
    them, or RIFE. color_fix: ``wavelet`` takes the low frequencies from the input, ``adain`` mean and contrast of each
    channel. cpu_offload: whether parts of the model wait in the CPU's memory while others work.

    part_frames: frames that are enhanced and written at a time; a killed job goes on after the last part. live_still:
    whether a terminal shows, below the progress bar, what is being made, once a second. side_by_side_s: length of the
    video that shows input and output side by side; 0 makes none. measure_frames: how many frames are measured, at most.
    perceptual: whether to measure PLIPS too, whose weights are fetched once (24 MB). baselines: what the result is
    measured beside. data: the clips to train on, by name.
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

    def _check_keys(self) -> None:
        """Raises UserError for what only VEnhancer's network could do, where it is not asked."""
        check_keys(self.keys)
        if self.diffuses or self.backend != "generative" or "enhance" not in self.stages():
            return
        if self.between == "network":
            raise UserError(f"between=network: needs keys=network; with keys={self.keys} take motion, blend or rife")
        plain = EnhanceVideo()
        for key in _OF_THE_NETWORK:
            if getattr(self, key) != getattr(plain, key):
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
        if "evaluate" in self.stages() and not self.data.held_out:
            raise UserError("data.held_out=[]: name at least one clip that training does not see")
        deep = len(self.network.block_out_channels) > 2  # one halving leaves square latents as they are
        if "train" in self.stages() and self.init is None and self.network.asymmetric and deep:
            why = "training crops are square, which the release's odd padding does not take"
            raise UserError(f"network.asymmetric=true: {why}; add network.asymmetric=false, or init=")
        for name in self.baselines:
            if name not in ("bicubic", "classic"):
                raise UserError(f"baselines={name}: choose among bicubic, classic")


_SMALL = "keys=network, or experiment=enhance_small"
_OF_THE_NETWORK = (
    *("model", "vae", "text_encoder", "prompt", "negative_prompt"),
    *("fidelity", "noise_level", "scale_condition", "conditioning_scale", "sampling"),
)


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
    is_rounded_ntsc = ntsc > 0 and value.denominator > 1 and "/" not in text and abs(ntsc - value) < Fraction(1, 200)
    return ntsc if is_rounded_ntsc else value


SCHEMAS = {(None, "enhance_video_schema"): EnhanceVideo}
