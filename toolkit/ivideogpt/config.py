"""The config of ``toolkit train-ivideogpt``. Network defaults are the release's 64x64 sizes (tables 2 and 3)."""

from __future__ import annotations

from dataclasses import dataclass, field

from toolkit.data.config import EpisodeData
from toolkit.errors import UserError, did_you_mean
from toolkit.schema import Job, choice, cosmetic, number

STAGES = ["tokenizer", "transformer", "rollout", "plan", "measure"]
MEASURES = ["tokens", "tokenizer", "decoupling", "prediction", "actions", "reward", "goal", "long"]


@dataclass
class TokenizerConfig:
    """The compressive tokenizer's network; keys as in the release's config.json, sizes of its 64x64 model.

    block_out_channels: widths of the levels; every level but the last halves the image. layers_per_block: residual
    blocks per level. latent_channels: channels of the latent map and of the codes. norm_num_groups: groups of the group
    norms. num_vq_embeddings: number of codes for context frames. num_dyn_embeddings: number of codes for future frames.
    patch_size: edge of a future frame's token in latents. max_att_resolution: largest map with cross-attention.
    dropout: dropout of the cross-attention in training. start_diagonal: how strongly cross-attention prefers its own
    position at the start of training (ours); 0 is random. start_from_plain: whether the conditional encoder and decoder
    start as a copy of those for the context (256x256, appendix A.1).
    """

    block_out_channels: list[int] = number([128, 256, 512], least=4)
    layers_per_block: int = number(2, least=1)
    latent_channels: int = number(64, least=1)
    norm_num_groups: int = number(32, least=1)
    num_vq_embeddings: int = number(8192, least=2)
    num_dyn_embeddings: int = number(8192, least=2)
    patch_size: int = number(4, least=1)
    max_att_resolution: int = number(16, least=1)
    dropout: float = number(0.1, least=0, below=1)
    start_diagonal: float = number(0.0, least=0)
    start_from_plain: bool = False

    def check(self) -> None:
        """Groups divide the channels."""
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                all_of = f"every one of tokenizer.block_out_channels={self.block_out_channels}"
                raise UserError(f"tokenizer.norm_num_groups={self.norm_num_groups}: must divide {all_of}")


@dataclass
class Codebook:
    """How the two codebooks learn. The release: by gradient, from +-1/8192, nothing else.

    kind: by gradient, or by moving averages of the encoded latents (``ema``). decay: decay of the moving averages.
    warmup_steps: steps without quantisation, after which the codebooks start from encoded latents. restart_below: a
    code used less often per batch than this starts anew (``kind=ema``). None: never. apart: whether codes start, and
    start anew, far from the others (k-means++) instead of at any latent (ours). restart_until: share of the training in
    which codes may start anew. frozen: whether to keep the codebooks of init (tokenizer-only adaptation).
    """

    kind: str = choice("gradient", "gradient", "ema")
    decay: float = number(0.99, above=0, below=1)
    warmup_steps: int = number(0, least=0)
    restart_below: float | None = number(None, least=0)
    apart: bool = False
    restart_until: float = number(0.7, least=0, most=1)
    frozen: bool = False


@dataclass
class TokenizerLoss:
    """Appendix A.2: reconstruction, perceptual and commitment with equal weights; optionally adversarial.

    reconstruction: absolute or squared difference. motion_weight: extra weight of pixels that differ from the last
    context frame (ours). contrast_weight: extra weight of pixels that differ from the median of their frame (ours).
    perceptual: LPIPS, a difference of image gradients instead, or none. perceptual_weight: weight of that distance.
    perceptual_path: folder or hub id of the weights of LPIPS. commitment: weight of the commitment loss. gan: whether
    to train with a discriminator. gan_start_step: step at which the discriminator starts. gan_weight: weight of the
    discriminator's loss. gan_depth: levels of the discriminator. gan_hidden: width of the discriminator.
    """

    reconstruction: str = choice("l1", "l1", "l2")
    motion_weight: float = number(0.0, least=0)
    contrast_weight: float = number(0.0, least=0)
    perceptual: str = choice("none", "none", "lpips", "gradients")
    perceptual_weight: float = number(1.0, least=0)
    perceptual_path: str | None = None
    commitment: float = number(1.0, least=0)
    gan: bool = False
    gan_start_step: int = number(100_000, least=0)
    gan_weight: float = number(0.8, least=0)
    gan_depth: int = number(4, least=1, most=10)
    gan_hidden: int = number(512, least=8)

    def check(self) -> None:
        """The discriminator's width can be halved at every level."""
        if self.gan_hidden % (step := 2 ** (self.gan_depth - 1)):
            needed = f"must be a multiple of {step} for tokenizer_loss.gan_depth={self.gan_depth}"
            raise UserError(f"tokenizer_loss.gan_hidden={self.gan_hidden}: {needed}")


@dataclass
class TokenizerOptim:
    """AdamW (betas 0.9 and 0.999), counted in updates of the weights.

    num_steps: updates; 0 keeps the tokenizer of init. batch_size: clips per update, over all processes.
    micro_batch_size: clips per pass and process; gradients are accumulated. None: all at once. num_future: future
    frames of a clip that are encoded in one update. lr: learning rate. schedule: schedule of the learning rate after
    the warm-up. warmup_steps: steps over which the learning rate rises from 0. weight_decay: weight decay of AdamW.
    grad_clip: largest norm of the gradient.
    """

    num_steps: int = number(100_000, least=0, extends="tokenizer")
    batch_size: int = number(64, least=1)
    micro_batch_size: int | None = number(None, least=1, computes=False)
    num_future: int = number(7, least=1)
    lr: float = number(1e-4, above=0)
    schedule: str = choice("constant", "constant", "cosine")
    warmup_steps: int = number(500, least=0)
    weight_decay: float = number(0.0, least=0)
    grad_clip: float = number(1.0, above=0)


@dataclass
class TransformerConfig:
    """The Llama that models the tokens; keys as in its config.json, sizes of the small model.

    hidden_size: features of a token. intermediate_size: features inside the feed-forward part. num_hidden_layers:
    number of layers. num_attention_heads: query heads per layer. num_key_value_heads: key and value heads per layer.
    None: as many as query heads. max_position_embeddings: length of the longest sequence of tokens. attention_dropout:
    dropout of the attention in training. spatial_embedding: whether tokens get an embedding of their place in the
    picture (ours).
    """

    hidden_size: int = number(768, least=8)
    intermediate_size: int = number(3072, least=8)
    num_hidden_layers: int = number(12, least=1)
    num_attention_heads: int = number(12, least=1)
    num_key_value_heads: int | None = number(None, least=1)
    max_position_embeddings: int = number(1024, least=2)
    attention_dropout: float = number(0.1, least=0, below=1)
    spatial_embedding: bool = False

    def check(self) -> None:
        """Heads divide the width, in even parts; key-value heads divide the heads."""
        if self.hidden_size % (2 * self.num_attention_heads):
            width = f"transformer.hidden_size={self.hidden_size}"
            raise UserError(
                f"transformer.num_attention_heads={self.num_attention_heads}: must divide {width} into even parts"
            )
        if self.num_key_value_heads and self.num_attention_heads % self.num_key_value_heads:
            heads = f"transformer.num_attention_heads={self.num_attention_heads}"
            raise UserError(f"transformer.num_key_value_heads={self.num_key_value_heads}: must divide {heads}")


@dataclass
class TransformerOptim:
    """AdamW; weight decay on matrices only, not on embeddings (as the release).

    num_steps: updates; 0 keeps the transformer of init. batch_size: clips per update, over all processes.
    micro_batch_size: clips per pass and process; gradients are accumulated. None: all at once. gradient_checkpointing:
    whether blocks store only their inputs and are recomputed in the backward pass. lr: learning rate. betas: AdamW's
    two betas. schedule: schedule of the learning rate after the warm-up. warmup_steps: steps over which the learning
    rate rises from 0. weight_decay: weight decay of AdamW. grad_clip: largest norm of the gradient. first_frame_weight:
    weight of the loss of the first future frame (ours). own_tokens: share of the input tokens of future frames that are
    the network's own draws instead of the true ones (ours), as in roll-outs. reward_weight: weight of the loss of the
    rewards. cached_clips: number of clips that are tokenised once and trained on. None: new clips at every step.
    sharding: ``fsdp`` spreads weights, gradients and moments over the processes.
    """

    num_steps: int = number(100_000, least=0, extends="transformer")
    batch_size: int = number(64, least=1)
    micro_batch_size: int | None = number(None, least=1, computes=False)
    gradient_checkpointing: bool = cosmetic(False)
    lr: float = number(1e-4, above=0)
    betas: list[float] = number([0.9, 0.999], least=0, below=1)
    schedule: str = choice("cosine", "constant", "cosine")
    warmup_steps: int = number(5000, least=0)
    weight_decay: float = number(0.01, least=0)
    grad_clip: float = number(1.0, above=0)
    first_frame_weight: float = number(1.0, above=0)
    own_tokens: float = number(0.0, least=0, most=1)
    reward_weight: float = number(1.0, least=0)
    cached_clips: int | None = number(None, least=1)
    sharding: str = choice("none", "none", "fsdp", computes=False)

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
    """Imagined clips: truth, reconstruction, imagination and what other actions would do, side by side.

    num_clips: number of clips. num_frames: imagined frames. None: as many as a training clip has. on_overflow: what
    happens when the positions are used up: stop with an error, or renew the context. sampling: draw tokens, or take the
    most likely ones. temperature: temperature of the draws. top_k: draw among the so many most likely tokens. None:
    among all. A trained model stores sampling, temperature and top_k. as_trained: whether these three, if they have
    their defaults, are taken from the model that is read. With false they apply as set. scale: factor by which the
    video enlarges the frames. rate_fps: frame rate of the video.
    """

    num_clips: int = number(8, least=1)
    num_frames: int | None = number(None, least=1)
    on_overflow: str = choice("raise", "raise", "recontext")
    sampling: str = choice("sample", "sample", "greedy")
    temperature: float = number(1.0, above=0)
    top_k: int | None = number(100, least=1)
    as_trained: bool = True
    scale: int = number(4, least=1)
    rate_fps: float = number(6, least=0.01, most=1000)


@dataclass
class Plan:
    """Model-predictive control in the true simulator, the plan made in the model (appendix A.4).

    num_episodes: episodes of control; 0 plans nothing. planners: the cross-entropy method (cem), random shooting,
    random actions, a plan in the true simulator (oracle), or learning a policy with imagination (mbpo) or without
    (sac). objective: distance to an image of the goal, or the rewards. horizon: actions of a plan. num_candidates:
    plans that are imagined at a time. num_elites: number of best plans from which the next ones are drawn.
    num_iterations: how often new plans are drawn. replan_every: actions that are executed before the next plan.
    num_steps: steps of an episode. action_std: standard deviation of the actions of the first candidates. num_rounds:
    number of real episodes that mbpo and sac learn from. tokenizer_updates: updates of the tokenizer after each of
    mbpo's real episodes (the release: one per twenty steps); 0 keeps it as trained. transformer_updates: updates of the
    transformer after each of mbpo's real episodes (the release: four per twenty steps); 0 keeps it as trained.
    """

    num_episodes: int = number(0, least=0)
    planners: list[str] = field(default_factory=lambda: ["cem", "shooting", "random"])
    objective: str = choice("goal_image", "goal_image", "reward")
    horizon: int = number(7, least=1)
    num_candidates: int = number(32, least=2)
    num_elites: int = number(8, least=1)
    num_iterations: int = number(3, least=1)
    replan_every: int = number(3, least=1)
    num_steps: int = number(9, least=1)
    action_std: float = number(0.7, above=0)
    num_rounds: int = number(20, least=1)
    tokenizer_updates: int = number(0, least=0)
    transformer_updates: int = number(0, least=0)

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
    """Which measures to take on held-out clips, and on how much.

    names: names of the measures; ``docs/ivideogpt.md`` says what each is. num_clips: number of clips.
    num_counterfactual: number of starts from which every direction is imagined. num_samples: samples of each clip. The
    best one is reported beside the mean. num_long_clips: number of roll-outs for the measure ``long``. num_long_frames:
    imagined frames of each of these. batch_size: clips at a time. perceptual: whether to measure PLIPS beside PSNR. It
    is our own perceptual distance and cannot be compared with published LPIPS. Its weights (6 MB) are downloaded once.
    """

    names: list[str] = field(
        default_factory=lambda: ["tokens", "tokenizer", "decoupling", "prediction", "actions", "reward"]
    )
    num_clips: int = number(256, least=2)
    num_counterfactual: int = number(64, least=2)
    num_samples: int = number(1, least=1)
    num_long_clips: int = number(64, least=1)
    num_long_frames: int = number(60, least=1)
    batch_size: int = number(32, least=1)
    perceptual: bool = False

    def check(self) -> None:
        """The measures exist."""
        for name in self.names:
            if name not in MEASURES:
                raise UserError(f"measure.names={name}: {did_you_mean(name, MEASURES)}one of {', '.join(MEASURES)}")


@dataclass
class TrainIVideoGPT(Job):
    """``toolkit train-ivideogpt``.

    stage: last stage to run: tokenizer, transformer, rollout, plan, measure; ``all`` runs every one. model: a trained
    world model. It is only rolled out, planned with and measured. init: world model that training starts from. Its
    networks replace those set below. init_parts: which part of init to use; with ``tokenizer`` the transformer starts
    from scratch. context_length: T0, the number of given frames. num_frames: T, the number of frames of a clip.
    context_gap: in training, up to so many frames are left out between the context and the rest of a clip (ours).
    kept_frames: when the positions are used up, the context stays and so many of the last frames follow it (ours, for
    models trained with a gap). With 0 the last frames become the new context. action_conditioned: whether the model is
    given the actions. goal_conditioned: whether the clip's last frame is put first in the context. goal_order: which
    frames follow the goal. reward_head: whether the model predicts rewards. blind_context: whether the context is
    black, a baseline that shows what n tokens per frame are worth alone. data: name of the episodes; ``toolkit data
    list`` shows them.
    """

    command: str = "train-ivideogpt"
    stage: str = choice("all", "all", *STAGES, computes=False)
    model: str | None = None
    init: str | None = None
    init_parts: str = choice("both", "both", "tokenizer")
    context_length: int = number(1, least=1)
    num_frames: int = number(16, least=2)
    context_gap: int = number(0, least=0)
    kept_frames: int = number(0, least=0)
    action_conditioned: bool = True
    goal_conditioned: bool = False
    goal_order: str = choice("release_training", "release_training", "paper")
    reward_head: bool = False
    blind_context: bool = False
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

    def idle(self) -> dict[str, tuple[str, ...]]:
        """What is of training, with a trained ``model``; mbpo trains while it plans."""
        learns = self.plan.num_episodes and "mbpo" in self.plan.planners
        trains = () if learns else ("optim", "tokenizer_loss")
        unread = ("tokenizer", "codebook", "transformer", "init", "init_parts", *trains)
        return {f"model={self.model} is trained already": unread} if self.model else {}

    def check(self) -> None:
        """What must fit together across groups."""
        if self.optim.transformer.sharding == "fsdp" and self.compile:
            raise UserError(
                "compile=true: not with optim.transformer.sharding=fsdp, whose layers go by code of their own"
            )
        if self.num_frames <= self.context_length:
            raise UserError(f"num_frames={self.num_frames}: must be more than context_length={self.context_length}")
        if self.goal_conditioned and self.blind_context:
            raise UserError("blind_context=true: leaves nothing of a goal; use goal_conditioned=false")
        if self.goal_conditioned and self.context_gap:
            raise UserError("context_gap: a goal-conditioned clip has none; use goal_conditioned=false")
        if self.kept_frames and self.kept_frames >= (made := self.num_frames - self.context_length):
            fewer = f"must be fewer than a clip's num_frames - context_length = {made}"
            raise UserError(f"kept_frames={self.kept_frames}: {fewer}")
        if self.goal_conditioned and self.context_length < 2:
            raise UserError("goal_conditioned=true: context_length must be 2 or more, the goal and what is seen")
        if self.model and self.stage in ("tokenizer", "transformer"):
            instead = f"use stage=rollout, plan or measure, or init={self.model}"
            raise UserError(f"model={self.model}: it is trained; {instead}")
        if self.stage == "plan" and not self.plan.num_episodes:
            raise UserError("stage=plan: plan.num_episodes=0 plans nothing; give the number of episodes")
        if self.plan.num_episodes and not self.action_conditioned:
            raise UserError("plan.num_episodes: planning needs action_conditioned=true")
        if self.plan.num_episodes and self.plan.objective == "reward" and not self.reward_head:
            raise UserError("plan.objective=reward: needs reward_head=true; or plan.objective=goal_image")
        if self.plan.num_episodes and self.plan.objective == "reward" and self.goal_conditioned:
            raise UserError("plan.objective=reward: goal_conditioned=true plans to a goal: plan.objective=goal_image")
        learners = [name for name in self.plan.planners if name in ("mbpo", "sac")]
        if self.plan.num_episodes and learners and self.plan.objective != "reward":
            raise UserError(f"plan.planners={learners[0]}: learns from rewards; use plan.objective=reward")
        self._check_num_future()
        for name in ("tokenizer", "transformer"):
            if getattr(self.optim, name).num_steps == 0 and not (self.init or self.model):
                raise UserError(f"optim.{name}.num_steps=0: keeps the {name} of init, and no init is given")

    def _check_num_future(self) -> None:
        """A clip has the frames that a step of the tokenizer draws. Raises UserError."""
        has_goal_twice = self.goal_conditioned and self.goal_order == "release_training"
        most, said = self.num_frames - self.context_length, "num_frames - context_length"
        if has_goal_twice:  # the goal is the clip's last frame, which is there once
            most, said = most - 1, f"{said} - 1, with a goal,"
        optim = self.optim.tokenizer
        if "tokenizer" in self.stages() and optim.num_steps and optim.num_future > most:
            raise UserError(f"optim.tokenizer.num_future={optim.num_future}: must be at most {said} = {most}")


SCHEMAS = {(None, "train_ivideogpt_schema"): TrainIVideoGPT}
