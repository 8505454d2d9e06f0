"""The config of ``toolkit train-disco``. Defaults are the paper's where it states them (section 3 and appendix D)."""

from __future__ import annotations

from dataclasses import dataclass, field

from toolkit.data.config import Data
from toolkit.errors import UserError, did_you_mean
from toolkit.schema import MISSING, Job, choice, cosmetic, number, written
from toolkit.zoo.config import NETWORK_SCHEMAS, NetworkConfig

STAGES = ["denoiser", "baseline", "prior", "sample", "measure"]
MEASURES = ["loss", "use", "turning", "jacobian", "quality", "prior_gap", "guidance", "shared", "switch", "cost"]
MEASURES += ["memorisation"]


@dataclass
class EncoderConfig:
    """E(y): a ViT with one class token per latent (appendix D.1), or an MLP for points and tiny images.

    kind: ViT or MLP. width: width of the hidden layers. depth: number of hidden layers. num_heads: attention heads of
    the ViT. patch_size: edge of the ViT's square patches in pixels. init_scale: factor on the initial weights of the
    output layer that gives the logits. A larger one starts with more decided codes.
    """

    kind: str = choice("vit", "vit", "mlp")
    width: int = number(768, least=4)
    depth: int = number(12, least=1)
    num_heads: int = number(12, least=1)
    patch_size: int = number(8, least=1)
    init_scale: float = number(1.0, above=0)


@dataclass
class Latents:
    """What z is, how it is drawn, and how it enters the denoiser (sections 3.1 to 3.3).

    kind: kind of latents. ``discrete`` is the paper's; for comparison: no latents, class labels, k-means clusters,
    random codes, or continuous latents as in a VAE. num_latents: m, the number of latents per sample; each has its own
    codebook. codebook_size: k, the number of codes of each latent, or the dimension of continuous ones. hard: whether
    training uses one-hot codes (straight-through) instead of relaxed ones. temperature: temperature of the
    Gumbel-softmax in training. extraction_temperature: temperature for the codes that the prior learns from. drop:
    share of the training samples whose latents become a learned null. Guidance on z needs it. usage_bonus: weight of
    the entropy of the mean code, which counters merged and dead codes (ours). restart_dead_codes: whether unused codes
    start anew (ours). kl_weight: weight of the KL divergence of continuous latents.

    width: width of the latents' tokens. num_layers: layers of the Transformer on these tokens; 0 leaves it out.
    num_heads: attention heads of that Transformer. num_groups: 1 shows all latents to every attention layer. More give
    each group its own resolution, from the lowest up. film: whether latents also scale and shift the features. null_kv:
    whether every cross-attention gets one more learned token, so that it can ignore z.
    """

    kind: str = choice("discrete", "none", "discrete", "labels", "kmeans", "random", "continuous")
    num_latents: int = number(10, least=1)
    codebook_size: int = number(100, least=2)
    hard: bool = True
    temperature: float = number(1.0, above=0)
    extraction_temperature: float = number(0.01, above=0)
    drop: float = number(0.1, least=0, below=1)
    usage_bonus: float = number(0.0, least=0)
    restart_dead_codes: bool = False
    kl_weight: float = number(0.1, least=0)
    width: int = number(192, least=4)
    num_layers: int = number(6, least=0)
    num_heads: int = number(8, least=1)
    num_groups: int = number(1, least=1)
    film: bool = False
    null_kv: bool = False
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def check(self) -> None:
        """Heads divide widths; groups divide the latents."""
        if self.width % self.num_heads:
            raise UserError(f"latents.num_heads={self.num_heads}: must divide latents.width={self.width}")
        if self.encoder.kind == "vit" and self.encoder.width % self.encoder.num_heads:
            raise UserError(
                f"latents.encoder.num_heads={self.encoder.num_heads}: "
                f"must divide latents.encoder.width={self.encoder.width}"
            )
        if self.num_latents % self.num_groups:
            raise UserError(f"latents.num_groups={self.num_groups}: must divide latents.num_latents={self.num_latents}")


@dataclass
class Loss:
    """EDM's noise distribution and weighting (Karras et al. 2022, table 1).

    p_mean: mean of log sigma in training (a normal distribution). p_std: standard deviation of log sigma in training.
    sigma_data: standard deviation of the data. None: measured. weighting: ``edm``, or ``edm_monotonic``, which keeps
    its peak value towards larger noise. log_snr_shift: shift of the log signal-to-noise ratio for larger images with
    ``edm_monotonic``; 2 ln(64 / H) for H pixels. label_drop: share of the class labels dropped in training.
    """

    p_mean: float = -1.2
    p_std: float = number(1.2, above=0)
    sigma_data: float | None = number(None, above=0)
    weighting: str = choice("edm", "edm", "edm_monotonic")
    log_snr_shift: float = 0.0
    label_drop: float = number(0.0, least=0, below=1)


@dataclass
class Optim:
    """Adam on denoiser and encoder, EDM's EMA on the denoiser.

    num_steps: optimiser steps of the denoiser, and of the baseline; a larger number continues a finished training.
    batch_size: samples per step, over all processes. micro_batch_size: samples per pass and process; gradients are
    accumulated. None: all at once. gradient_checkpointing: whether blocks store only their inputs and are recomputed in
    the backward pass. lr: learning rate. encoder_lr: learning rate of the encoder. None: lr. betas: Adam's two betas.
    weight_decay: weight decay of AdamW; 0 is Adam. warmup_steps: steps over which the learning rate rises from 0.
    schedule: schedule of the learning rate after the warm-up. grad_clip: largest norm of the gradient. None: no limit.
    ema_half_life_images: half-life of the sampled weight average, in training images. ema_ramp_up: limits the half-life
    to this share of the images seen so far. None: no limit. ema_sigma_rels: relative widths of the averages that are
    tracked for post-hoc EMA (EDM2's are 0.05 and 0.1). Empty: none. ema_snapshot_every_steps: steps between two
    snapshots of these averages. sharding: ``fsdp`` spreads weights, gradients, moments and averages over the processes.
    """

    num_steps: int = number(2000, least=1, extends="denoiser,baseline")
    batch_size: int = number(128, least=1)
    micro_batch_size: int | None = number(None, least=1, computes=False)
    gradient_checkpointing: bool = cosmetic(False)
    lr: float = number(1e-3, above=0)
    encoder_lr: float | None = number(None, above=0)
    betas: list[float] = number([0.9, 0.999], least=0, below=1)
    weight_decay: float = number(0.0, least=0)
    warmup_steps: float = number(0.0, least=0)
    schedule: str = choice("constant", "constant", "cosine")
    grad_clip: float | None = number(1.0, above=0)
    ema_half_life_images: int = number(50_000_000, least=1)
    ema_ramp_up: float | None = number(0.05, above=0)
    ema_sigma_rels: list[float] = number([], above=0, most=0.28)
    ema_snapshot_every_steps: int = number(1000, least=1)
    sharding: str = choice("none", "none", "fsdp", computes=False)

    def check(self) -> None:
        """Adam has two betas; no width twice."""
        if len(self.betas) != 2:
            raise UserError(f"optim.betas={self.betas}: must be two numbers, as in [0.9,0.999]")
        if len(set(self.ema_sigma_rels)) < len(self.ema_sigma_rels):
            raise UserError(f"optim.ema_sigma_rels={self.ema_sigma_rels}: holds a width twice")


@dataclass
class PriorConfig:
    """A(z): the autoregressive Transformer (appendix D.1), or a simpler prior for comparison.

    kind: autoregressive, the code frequencies of each latent (``marginal``), or all codes equally likely (``uniform``).
    width: width of the Transformer. depth: layers of the Transformer. num_heads: its attention heads. dropout: dropout
    in training. num_steps: optimiser steps at most; training ends earlier if the held-out loss stops falling.
    batch_size: code tuples per step. micro_batch_size: code tuples per pass. None: all at once. lr: learning rate.
    weight_decay: weight decay of AdamW. grad_clip: largest norm of the gradient. eval_every_steps: steps between two
    measurements of the held-out loss. patience: training ends after so many measurements without an improvement.
    """

    kind: str = choice("autoregressive", "autoregressive", "marginal", "uniform")
    width: int = number(512, least=4)
    depth: int = number(12, least=1)
    num_heads: int = number(8, least=1)
    dropout: float = number(0.1, least=0, below=1)
    num_steps: int = number(2000, least=1)
    batch_size: int = number(256, least=1)
    micro_batch_size: int | None = number(None, least=1, computes=False)
    lr: float = number(1e-3, above=0)
    weight_decay: float = number(0.01, least=0)
    grad_clip: float = number(1.0, above=0)
    eval_every_steps: int = number(100, least=1)
    patience: int = number(5, least=1)

    def check(self) -> None:
        """Heads divide the width."""
        if self.width % self.num_heads:
            raise UserError(f"prior.num_heads={self.num_heads}: must divide prior.width={self.width}")


@dataclass
class Sampling:
    """How samples are drawn (algorithm 3, EDM's samplers, Restart).

    num_samples: number of samples to show and save. batch_size: samples at a time; only speed changes. solver: ``heun``
    is EDM's deterministic sampler, ``churn`` its stochastic one, ``restart`` that of Xu et al. 2023. num_steps: number
    of noise levels. Heun evaluates the network 2 num_steps - 1 times. sigma_min: smallest noise level. sigma_max:
    largest noise level. rho: exponent of the noise levels. churn: S_churn of ``solver=churn``. latents: where z comes
    from: the prior, the encoder applied to real images (``oracle``), or ``fixed`` codes. fixed: the codes for
    ``latents=fixed``, one per latent. prefix: fixed codes for the first latents; the prior draws the rest. temperature:
    temperature of the prior. cfg_scale: scale of guidance on z. 0 is none, 1 the paper's. cfg_interval: noise levels
    [low, high] between which guidance acts. None: everywhere. latents_off_below: noise level below which z is left out.
    null_model: network without latents that replaces the null branch, in guidance and below latents_off_below:
    ``baseline``, or a folder or hub id. show_latents: whether to draw what z means, beside the samples: samples that
    share z, and one latent changed at a time. ema_sigma_rel: relative width of the sampled weight average,
    reconstructed from the snapshots of training (optim.ema_sigma_rels). None: the average of
    optim.ema_half_life_images.
    """

    num_samples: int = number(64, least=1)
    batch_size: int = number(256, least=1, computes=False)
    solver: str = choice("heun", "heun", "churn", "restart")
    num_steps: int = number(18, least=1)
    sigma_min: float = number(0.002, above=0)
    sigma_max: float = number(80.0, above=0)
    rho: float = number(7.0, above=0)
    churn: float = number(40.0, least=0)
    latents: str = choice("prior", "prior", "oracle", "fixed")
    fixed: list[int] | None = None
    prefix: list[int] | None = None
    temperature: float = number(1.0, above=0)
    cfg_scale: float = 0.0
    cfg_interval: list[float] | None = number(None, least=0)
    latents_off_below: float = number(0.0, least=0)
    null_model: str | None = None
    show_latents: bool = written(False, "sample")
    ema_sigma_rel: float | None = number(None, above=0, most=0.28)

    def check(self) -> None:
        """sigma_min below sigma_max; an interval is two ordered numbers; fixed latents are given."""
        if self.sigma_min >= self.sigma_max:
            raise UserError(
                f"sampling.sigma_min={self.sigma_min}: must be less than sampling.sigma_max={self.sigma_max}"
            )
        low_high = self.cfg_interval
        if low_high is not None and (len(low_high) != 2 or low_high[0] >= low_high[1]):
            raise UserError(f"sampling.cfg_interval={low_high}: must be two sigmas, low then high, as in [0.2,5]")
        if self.null_model and not (self.cfg_scale or self.latents_off_below):
            raise UserError(
                f"sampling.null_model={self.null_model}: stands for the null branch, which nothing asks for; "
                "set sampling.latents_off_below or sampling.cfg_scale"
            )
        if self.latents == "fixed" and self.fixed is None:
            raise UserError("sampling.fixed: must be given with sampling.latents=fixed, as in [3,0,7,1]")


@dataclass
class Measure:
    """Which measures to take (``docs/disco.md`` says what each is), and on how much.

    names: names of the measures. num_samples: samples for each score. num_repeats: sampling seeds for each score.
    evaluations: network evaluations per sample at which quality is measured. sigmas: noise levels at which loss and
    Jacobian are measured. cfg_scales: scales for the measure ``guidance``. num_trajectories: number of sampling paths
    to follow.
    """

    names: list[str] = field(
        default_factory=lambda: ["loss", "use", "turning", "jacobian", "quality", "prior_gap", "shared", "cost"]
    )
    num_samples: int = number(5000, least=10)
    num_repeats: int = number(1, least=1)
    evaluations: list[int] = number([9, 17, 35], least=1)
    sigmas: list[float] = number([0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0], above=0)
    cfg_scales: list[float] = field(default_factory=lambda: [0.0, 0.5, 1.0])
    num_trajectories: int = number(256, least=1)

    def check(self) -> None:
        """The measures exist; there is a budget and a noise level to take them at."""
        for name in self.names:
            if name not in MEASURES:
                raise UserError(f"measure.names={name}: {did_you_mean(name, MEASURES)}one of {', '.join(MEASURES)}")
        for key in ("evaluations", "sigmas"):
            if not getattr(self, key):
                raise UserError(f"measure.{key}=[]: must have at least one value")


@dataclass
class TrainDisco(Job):
    """``toolkit train-disco``.

    stage: last stage to run: denoiser (with its encoder), baseline, prior, sample, measure; ``all`` runs every one.
    model: a trained run, or a model that ships (``faces32`` or ``mnist28``). It is only sampled and measured. init:
    run, folder or hub id of a denoiser whose weights training starts from. baseline: network to compare with: none, the
    same without latents, or one with as many parameters as the denoiser (``matched``) or as denoiser and encoder
    (``matched_total``). data: name of a data set; ``toolkit data list`` shows them. network: the denoiser, by the name
    of a file in conf/network.
    """

    command: str = "train-disco"
    stage: str = choice("all", "all", *STAGES, computes=False)
    model: str | None = None
    init: str | None = None
    baseline: str = choice("same_width", "none", "same_width", "matched", "matched_total")
    data: Data = field(default_factory=Data)
    network: NetworkConfig = MISSING
    latents: Latents = field(default_factory=Latents)
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)
    prior: PriorConfig = field(default_factory=PriorConfig)
    sampling: Sampling = field(default_factory=Sampling)
    measure: Measure = field(default_factory=Measure)

    def stages(self) -> list[str]:
        """Everything up to the stage asked for; with ``model`` only what does not train."""
        wanted = STAGES if self.stage == "all" else STAGES[: STAGES.index(self.stage) + 1]
        if self.model:
            wanted = [name for name in wanted if name in ("sample", "measure")]
        if self.baseline == "none":
            wanted = [name for name in wanted if name != "baseline"]
        return wanted

    def idle(self) -> dict[str, tuple[str, ...]]:
        """What is of training where there is none; ``init`` has a network of its own."""
        if self.model:
            return {f"model={self.model} is trained already": ("init", "network", "loss", "optim", "prior")}
        return {f"init={self.init} gives the network": ("network",)} if self.init else {}

    def check(self) -> None:
        """What must fit together across groups."""
        if self.model and self.stage in ("denoiser", "baseline", "prior"):
            raise UserError(f"model={self.model}: its parts are trained; use stage=sample or stage=measure")
        if self.init and self.baseline.startswith("matched"):
            raise UserError(f"baseline={self.baseline}: with init it is the same network, same_width")
        if self.sampling.null_model == "baseline" and self.baseline == "none" and not self.model:
            raise UserError("sampling.null_model=baseline: baseline=none has none")
        if self.baseline == "none" and self.stage == "baseline":
            raise UserError("stage=baseline: baseline=none has none to train")
        if self.sampling.ema_sigma_rel and not (self.model or self.optim.ema_sigma_rels):
            raise UserError(
                f"sampling.ema_sigma_rel={self.sampling.ema_sigma_rel}: training must keep snapshots; "
                "add optim.ema_sigma_rels=[0.05,0.1]"
            )
        if self.optim.sharding == "fsdp" and self.latents.restart_dead_codes:
            raise UserError("optim.sharding=fsdp: not with latents.restart_dead_codes=true, which rewrites weights")
        if self.optim.sharding == "fsdp" and self.compile:
            raise UserError("compile=true: not with optim.sharding=fsdp, for these blocks all differ; use one of them")
        family = self.network.family
        for key in ("num_groups", "film", "null_kv") if family in ("mlp", "toy_score") else ():
            if (value := getattr(self.latents, key)) != getattr(Latents(), key):
                raise UserError(f"latents.{key}={value}: is of networks with attention, not of network={family}")
        if self.latents.kind == "none" and self.stage == "prior":
            raise UserError("stage=prior: latents.kind=none has no latents to model")


SCHEMAS = {
    (None, "train_disco_schema"): TrainDisco,
    **NETWORK_SCHEMAS,
}
