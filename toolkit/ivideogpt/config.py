"""The config of ``toolkit train-ivideogpt``. Network defaults are the release's 64x64 sizes (tables 2 and 3)."""

from __future__ import annotations

from dataclasses import dataclass, field

from toolkit.data.config import EpisodeData
from toolkit.errors import UserError, did_you_mean
from toolkit.schema import Job, choice, number

STAGES = ["tokenizer", "transformer", "rollout", "plan", "measure"]
MEASURES = ["tokens", "tokenizer", "decoupling", "prediction", "actions", "reward", "goal"]


@dataclass
class TokenizerConfig:
    """The compressive tokenizer's network; keys as in the release's config.json, sizes of its 64x64 model."""

    block_out_channels: list[int] = number([128, 256, 512], least=4)
    layers_per_block: int = number(2, least=1)
    latent_channels: int = number(64, least=1)
    norm_num_groups: int = number(32, least=1)
    num_vq_embeddings: int = number(8192, least=2)
    num_dyn_embeddings: int = number(8192, least=2)
    patch_size: int = number(4, least=1)
    max_att_resolution: int = number(16, least=1)
    dropout: float = number(0.1, least=0, below=1)  # of the cross-attention, in training
    start_diagonal: float = number(
        0.0, least=0
    )  # how sharply cross-attention begins at its own place (ours); 0: random
    start_from_plain: bool = False  # the conditional pair begins as a copy of the context pair (256x256, appendix A.1)

    def check(self) -> None:
        """Groups divide the channels; four heads divide them too."""
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise UserError(
                    f"tokenizer.norm_num_groups={self.norm_num_groups}: must divide every one of "
                    f"tokenizer.block_out_channels={self.block_out_channels}"
                )


@dataclass
class Codebook:
    """How the two codebooks learn. The release: by gradient, from +-1/8192, nothing else."""

    kind: str = choice("gradient", "gradient", "ema")
    decay: float = number(0.99, above=0, below=1)  # of ema
    warmup_steps: int = number(0, least=0)  # without quantising; then the codebooks start from what is encoded
    restart_below: float | None = number(None, least=0)  # of ema: uses per batch below which a code starts anew
    apart: bool = False  # codes start, and start anew, far from the others (k-means++), not at any latent (ours)
    restart_until: float = number(0.7, least=0, most=1)  # share of the training in which codes may start anew
    frozen: bool = False  # keep the codebooks of init (tokenizer-only adaptation)


@dataclass
class TokenizerLoss:
    """Appendix A.2: reconstruction, perceptual and commitment with equal weights; optionally adversarial."""

    reconstruction: str = choice("l1", "l1", "l2")
    motion_weight: float = number(0.0, least=0)  # extra weight of pixels that differ from the last context frame (ours)
    contrast_weight: float = number(0.0, least=0)  # extra weight of pixels that differ from their frame's median (ours)
    perceptual: str = choice("none", "none", "lpips", "gradients")
    perceptual_weight: float = number(1.0, least=0)
    perceptual_path: str | None = None
    commitment: float = number(1.0, least=0)
    gan: bool = False
    gan_start_step: int = number(100_000, least=0)
    gan_weight: float = number(0.8, least=0)
    gan_depth: int = number(4, least=1)
    gan_hidden: int = number(512, least=8)

    def check(self) -> None:
        """The discriminator's width can be halved at every level."""
        if self.gan_hidden % 2 ** (self.gan_depth - 1):
            raise UserError(
                f"tokenizer_loss.gan_hidden={self.gan_hidden}: must be a multiple of {2 ** (self.gan_depth - 1)} "
                f"for tokenizer_loss.gan_depth={self.gan_depth}"
            )


@dataclass
class TokenizerOptim:
    """AdamW (betas 0.9 and 0.999), counted in updates of the weights."""

    num_steps: int = number(100_000, least=0, extends="tokenizer")
    batch_size: int = number(64, least=1)
    num_future: int = number(7, least=1)  # future frames of a clip that are encoded in one update
    lr: float = number(1e-4, above=0)
    schedule: str = choice("constant", "constant", "cosine")
    warmup_steps: int = number(500, least=0)
    weight_decay: float = number(0.0, least=0)
    grad_clip: float = number(1.0, above=0)


@dataclass
class TransformerConfig:
    """The Llama that models the tokens; keys as in its config.json, sizes of the small model."""

    hidden_size: int = number(768, least=8)
    intermediate_size: int = number(3072, least=8)
    num_hidden_layers: int = number(12, least=1)
    num_attention_heads: int = number(12, least=1)
    num_key_value_heads: int | None = number(None, least=1)
    max_position_embeddings: int = number(1024, least=2)
    attention_dropout: float = number(0.1, least=0, below=1)
    spatial_embedding: bool = False  # tokens are told where in the picture they lie (ours)

    def check(self) -> None:
        """Heads divide the width, in even parts; key-value heads divide the heads."""
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(
                f"transformer.num_attention_heads={self.num_attention_heads}: must divide "
                f"transformer.hidden_size={self.hidden_size} into even parts"
            )
        if self.num_key_value_heads and self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"transformer.num_key_value_heads={self.num_key_value_heads}: must divide "
                f"transformer.num_attention_heads={self.num_attention_heads}"
            )


@dataclass
class TransformerOptim:
    """AdamW; weight decay on matrices only, not on embeddings (as the release)."""

    num_steps: int = number(100_000, least=0, extends="transformer")
    batch_size: int = number(64, least=1)
    lr: float = number(1e-4, above=0)
    betas: list[float] = number([0.9, 0.999], least=0, below=1)
    schedule: str = choice("cosine", "constant", "cosine")
    warmup_steps: int = number(5000, least=0)
    weight_decay: float = number(0.01, least=0)
    grad_clip: float = number(1.0, above=0)
    first_frame_weight: float = number(1.0, above=0)  # of the loss of the first future frame (ours)
    reward_weight: float = number(1.0, least=0)
    cached_clips: int | None = number(None, least=1)  # tokenise this many clips once; None: new clips every step

    def check(self) -> None:
        """Adam has two betas."""
        if len(self.betas) != 2:
            raise UserError(f"optim.transformer.betas={self.betas}: must be two numbers, as in [0.9,0.999]")


@dataclass
class Optim:
    """One optimiser per network."""

    tokenizer: TokenizerOptim = field(default_factory=TokenizerOptim)
    transformer: TransformerOptim = field(default_factory=TransformerOptim)


@dataclass
class Rollout:
    """Imagined clips: truth, reconstruction, imagination and what other actions would do, side by side."""

    num_clips: int = number(8, least=1)
    num_frames: int | None = number(None, least=1)  # imagined; None: as many as a training clip has
    on_overflow: str = choice("raise", "raise", "recontext")  # beyond the positions: refuse, or renew the context
    sampling: str = choice("sample", "sample", "greedy")
    temperature: float = number(1.0, above=0)
    top_k: int | None = number(100, least=1)
    scale: int = number(4, least=1)
    rate_fps: float = number(6, above=0)


@dataclass
class Plan:
    """Model-predictive control in the true simulator, the plan made in the model (table 6; VP2, Tian et al. 2023)."""

    num_episodes: int = number(0, least=0)  # 0: no planning
    planners: list[str] = field(default_factory=lambda: ["cem", "shooting", "random"])
    objective: str = choice("goal_image", "goal_image", "reward")
    horizon: int = number(7, least=1)
    num_candidates: int = number(32, least=2)
    num_elites: int = number(8, least=1)
    num_iterations: int = number(3, least=1)
    replan_every: int = number(3, least=1)
    num_steps: int = number(9, least=1)
    action_std: float = number(0.7, above=0)
    num_rounds: int = number(20, least=1)  # of mbpo, and of sac without imagination: real episodes to learn from

    def check(self) -> None:
        """Known planners; fewer elites than candidates; an action is executed before the plan ends."""
        for name in self.planners:
            if name not in PLANNERS:
                raise UserError(f"plan.planners={name}: {did_you_mean(name, PLANNERS)}one of {', '.join(PLANNERS)}")
        if self.num_elites > self.num_candidates:
            raise UserError(f"plan.num_elites={self.num_elites}: must be at most plan.num_candidates")
        if self.replan_every > self.horizon:
            raise UserError(f"plan.replan_every={self.replan_every}: must be at most plan.horizon={self.horizon}")


PLANNERS = ["cem", "shooting", "random", "oracle", "mbpo", "sac"]


@dataclass
class Measure:
    """Which measures to take on held-out clips, and on how much."""

    names: list[str] = field(
        default_factory=lambda: ["tokens", "tokenizer", "decoupling", "prediction", "actions", "reward"]
    )
    num_clips: int = number(256, least=2)
    num_counterfactual: int = number(64, least=2)  # starts from which every direction is imagined
    num_samples: int = number(1, least=1)  # of one clip; the best of them is reported beside the mean
    batch_size: int = number(32, least=1)

    def check(self) -> None:
        """The measures exist."""
        for name in self.names:
            if name not in MEASURES:
                raise UserError(f"measure.names={name}: {did_you_mean(name, MEASURES)}one of {', '.join(MEASURES)}")


@dataclass
class TrainIVideoGPT(Job):
    """``toolkit train-ivideogpt``."""

    command: str = "train-ivideogpt"
    stage: str = choice("all", "all", *STAGES, computes=False)
    model: str | None = None  # a trained world model: only rolled out, planned with, measured
    init: str | None = None  # a world model that training starts from; its networks replace those below
    init_parts: str = choice("both", "both", "tokenizer")  # tokenizer: the transformer starts afresh all the same
    context_length: int = number(1, least=1)  # T0
    num_frames: int = number(16, least=2)  # T, of a clip
    action_conditioned: bool = True
    goal_conditioned: bool = False  # the clip's last frame is put first in the context
    goal_order: str = choice("release_training", "release_training", "paper")  # which frames follow the goal
    reward_head: bool = False
    blind_context: bool = False  # the context is black: what n tokens a frame are worth alone (a baseline)
    data: EpisodeData = field(default_factory=EpisodeData)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    codebook: Codebook = field(default_factory=Codebook)
    tokenizer_loss: TokenizerLoss = field(default_factory=TokenizerLoss)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    optim: Optim = field(default_factory=Optim)
    rollout: Rollout = field(default_factory=Rollout)
    plan: Plan = field(default_factory=Plan)
    measure: Measure = field(default_factory=Measure)

    def stages(self) -> list[str]:
        """Everything up to the stage asked for; with ``model`` only what does not train."""
        wanted = STAGES if self.stage == "all" else STAGES[: STAGES.index(self.stage) + 1]
        if self.model:
            wanted = [name for name in wanted if name not in ("tokenizer", "transformer")]
        if not self.plan.num_episodes:
            wanted = [name for name in wanted if name != "plan"]
        return wanted

    def check(self) -> None:
        """What must fit together across groups."""
        if self.num_frames <= self.context_length:
            raise UserError(f"num_frames={self.num_frames}: must be more than context_length={self.context_length}")
        if self.goal_conditioned and self.blind_context:
            raise UserError("blind_context=true: leaves nothing of a goal; use goal_conditioned=false")
        if self.goal_conditioned and self.context_length < 2:
            raise UserError("goal_conditioned=true: context_length must be 2 or more, the goal and what is seen")
        if self.model and self.stage in ("tokenizer", "transformer"):
            raise UserError(
                f"model={self.model}: it is trained; use stage=rollout, plan or measure, or init={self.model}"
            )
        if self.stage == "plan" and not self.plan.num_episodes:
            raise UserError("stage=plan: plan.num_episodes=0 plans nothing; give the number of episodes")
        if self.plan.num_episodes and not self.action_conditioned:
            raise UserError("plan.num_episodes: planning needs action_conditioned=true")
        if self.plan.num_episodes and self.plan.objective == "reward" and not self.reward_head:
            raise UserError("plan.objective=reward: needs reward_head=true; or plan.objective=goal_image")
        learners = [name for name in self.plan.planners if name in ("mbpo", "sac")]
        if self.plan.num_episodes and learners and self.plan.objective != "reward":
            raise UserError(f"plan.planners={learners[0]}: learns from rewards; use plan.objective=reward")
        if self.optim.tokenizer.num_future >= self.num_frames:
            raise UserError(
                f"optim.tokenizer.num_future={self.optim.tokenizer.num_future}: must be at most num_frames - "
                f"context_length = {self.num_frames - self.context_length}"
            )
        for name in ("tokenizer", "transformer"):
            if getattr(self.optim, name).num_steps == 0 and not (self.init or self.model):
                raise UserError(f"optim.{name}.num_steps=0: keeps the {name} of init, and no init is given")


SCHEMAS = {(None, "train_ivideogpt_schema"): TrainIVideoGPT}
