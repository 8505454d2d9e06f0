"""The config of ``toolkit train-disco``. Defaults are the paper's where it states them (section 3 and appendix D)."""

from __future__ import annotations

from dataclasses import dataclass, field

from toolkit.data.config import Data
from toolkit.errors import UserError, did_you_mean
from toolkit.schema import MISSING, Job, choice, number
from toolkit.zoo.config import NETWORK_SCHEMAS, NetworkConfig

STAGES = ["denoiser", "baseline", "prior", "sample", "measure"]
MEASURES = ["loss", "use", "turning", "jacobian", "quality", "prior_gap", "guidance", "shared", "switch", "cost"]
MEASURES += ["memorisation"]


@dataclass
class EncoderConfig:
    """E(y): a ViT with one class token per latent (appendix D.1), or an MLP for points and tiny images."""

    kind: str = choice("vit", "vit", "mlp")
    width: int = number(768, least=4)
    depth: int = number(12, least=1)
    num_heads: int = number(12, least=1)
    patch_size: int = number(8, least=1)
    init_scale: float = number(1.0, above=0)


@dataclass
class Latents:
    """What z is, how it is drawn, and how it enters the denoiser (sections 3.1 to 3.3)."""

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
    """EDM's noise distribution and weighting (Karras et al. 2022, table 1)."""

    p_mean: float = -1.2
    p_std: float = number(1.2, above=0)
    sigma_data: float | None = number(None, above=0)
    weighting: str = choice("edm", "edm", "edm_monotonic")
    log_snr_shift: float = 0.0
    label_drop: float = number(0.0, least=0, below=1)


@dataclass
class Optim:
    """Adam on denoiser and encoder, EDM's EMA on the denoiser."""

    num_steps: int = number(2000, least=1, extends="denoiser,baseline")
    batch_size: int = number(128, least=1)
    lr: float = number(1e-3, above=0)
    encoder_lr: float | None = number(None, above=0)
    betas: list[float] = number([0.9, 0.999], least=0, below=1)
    weight_decay: float = number(0.0, least=0)
    warmup_steps: float = number(0.0, least=0)
    schedule: str = choice("constant", "constant", "cosine")
    grad_clip: float = number(1.0, above=0)
    ema_half_life_images: int = number(50_000_000, least=1)
    ema_ramp_up: float | None = number(0.05, above=0)

    def check(self) -> None:
        """Adam has two betas."""
        if len(self.betas) != 2:
            raise UserError(f"optim.betas={self.betas}: must be two numbers, as in [0.9,0.999]")


@dataclass
class PriorConfig:
    """A(z): the autoregressive Transformer (appendix D.1), or a simpler prior for comparison."""

    kind: str = choice("autoregressive", "autoregressive", "marginal", "uniform")
    width: int = number(512, least=4)
    depth: int = number(12, least=1)
    num_heads: int = number(8, least=1)
    dropout: float = number(0.1, least=0, below=1)
    num_steps: int = number(2000, least=1)
    batch_size: int = number(256, least=1)
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
    """How samples are drawn (algorithm 3, EDM's samplers, Restart)."""

    num_samples: int = number(64, least=1)
    batch_size: int = number(256, least=1)
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

    def check(self) -> None:
        """sigma_min below sigma_max; an interval is two ordered numbers; fixed latents are given."""
        if self.sigma_min >= self.sigma_max:
            raise UserError(
                f"sampling.sigma_min={self.sigma_min}: must be less than sampling.sigma_max={self.sigma_max}"
            )
        low_high = self.cfg_interval
        if low_high is not None and (len(low_high) != 2 or low_high[0] >= low_high[1]):
            raise UserError(f"sampling.cfg_interval={low_high}: must be two sigmas, low then high, as in [0.2,5]")
        if self.latents == "fixed" and self.fixed is None:
            raise UserError("sampling.fixed: must be given with sampling.latents=fixed, as in [3,0,7,1]")


@dataclass
class Measure:
    """Which measures to take (``docs/disco.md`` says what each is), and on how much."""

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
    """``toolkit train-disco``."""

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

    def check(self) -> None:
        """What must fit together across groups."""
        if self.model and self.stage in ("denoiser", "baseline", "prior"):
            raise UserError(f"model={self.model}: its parts are trained; use stage=sample or stage=measure")
        if self.init and self.baseline.startswith("matched"):
            raise UserError(f"baseline={self.baseline}: with init it is the same network, same_width")
        if self.baseline == "none" and self.stage == "baseline":
            raise UserError("stage=baseline: baseline=none has none to train")
        if self.latents.kind == "none" and self.stage == "prior":
            raise UserError("stage=prior: latents.kind=none has no latents to model")


SCHEMAS = {
    (None, "train_disco_schema"): TrainDisco,
    **NETWORK_SCHEMAS,
}
