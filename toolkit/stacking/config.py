"""The typed config of ``toolkit grow-llm``. Defaults are the paper's where it states them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from toolkit.data.config import TextData
from toolkit.errors import UserError, did_you_mean
from toolkit.schema import Job, choice, cosmetic, number

ANY_DIRECTION = ("direct", "zero", "random", "learn")
DEPTH_ONLY = ("stack", "interleave", "gradual", "solar", "llama_pro", "pattern", "list", "slices")
ARMS = ("grown", "scratch", "continued")
PAPER_FACTOR = 4  # g, when the testbed is not told another

_OWN_KEYS = {"pattern": "pattern", "list": "layers", "solar": "drop", "llama_pro": "insert"}
_SIZED_BY_THEMSELVES = ("pattern", "list")


@dataclass
class Growth:
    """One growth operator and its size.

    operator: the paper's atomic operators (appendix A.3-A.6) ``direct``, ``zero``, ``random``, ``learn``, in either
    direction, or a way to list layers. ``stack`` is G_stack, the same as direct in depth. The others are
    ``interleave``, ``gradual`` (StackedBERT), ``solar``, ``llama_pro``, ``pattern`` (``6-12*2-6``) and ``list``. With
    ``slices``, ``model`` is one of mergekit's YAML files, which names ranges of layers of one or several checkpoints.
    direction: whether to add layers (``depth``) or make them wider (``width``). factor: target layers / source layers
    in depth, target hidden size / source hidden size in width. The testbed uses 4 unless another size is given.
    num_layers: number of target layers, instead of a factor. intermediate_size: intermediate size of the target in
    width. None: grows by the factor. pattern: ``prefix-block*times-suffix``, each a number of layers (appendix H.3).
    layers: source layer of every target layer, counted from 0. drop: SOLAR's m, the number of layers left out at the
    end of the first copy and at the start of the second. insert: LLaMA-Pro's number of new layers, one after each of as
    many groups. split: for ``direct`` in width, the share alpha of a column that stays with the first copy. At 0.5 the
    split is even and the copies stay equal forever; appendix A.3 asks for alpha != 1/2. scale_eps: whether ``zero`` in
    width also scales the epsilon of the norms by d/D, which makes it exact. noise: alpha of W <- (1 - alpha) W + alpha
    eps (appendix I.2; the paper: 0.2).
    """

    operator: str = choice("stack", *DEPTH_ONLY, *ANY_DIRECTION)
    direction: str = choice("depth", "depth", "width")
    factor: float | None = number(None, least=1)
    num_layers: int | None = number(None, least=1)
    intermediate_size: int | None = number(None, least=1)
    pattern: str | None = None
    layers: list[int] = number([], least=0)
    drop: int | None = number(None, least=0)
    insert: int | None = number(None, least=1)
    split: float = number(0.7, above=0, below=1)
    scale_eps: bool = True
    noise: float = number(0.0, least=0, most=1)

    def sized(self) -> bool:
        """Whether the size of the target is given."""
        own = _OWN_KEYS.get(self.operator)
        return (own is not None and getattr(self, own) not in (None, [])) or (
            self.factor or self.num_layers
        ) is not None

    def check(self) -> None:
        """Raises UserError where keys do not belong together or the size is not given."""
        if self.direction == "width" and self.operator in DEPTH_ONLY:
            raise UserError(
                f"direction=width: operator={self.operator} grows depth (width: {', '.join(ANY_DIRECTION)})"
            )
        for operator, key in _OWN_KEYS.items():
            if getattr(self, key) not in (None, []) and operator != self.operator:
                raise UserError(f"{key}={getattr(self, key)}: belongs to operator={operator}, not {self.operator}")
        for key, operator in (("split", "direct"), ("scale_eps", "zero")):
            if getattr(self, key) != getattr(Growth, key) and (self.operator, self.direction) != (operator, "width"):
                raise UserError(f"{key}={getattr(self, key)}: belongs to operator={operator} direction=width")
        if self.operator == "slices":
            if self.factor is not None or self.num_layers is not None or self.noise:
                raise UserError("operator=slices: the file says it all; leave factor, num_layers and noise out")
            return
        own = _OWN_KEYS.get(self.operator)
        given = own is not None and getattr(self, own) not in (None, [])
        if self.operator in _SIZED_BY_THEMSELVES and not given:
            raise UserError(f"operator={self.operator}: {own}=... must be given")
        if given and (self.factor is not None or self.num_layers is not None):
            raise UserError(f"factor, num_layers: {own}={getattr(self, str(own))} already says the size")
        if not given and (self.factor is None) == (self.num_layers is None):
            raise UserError("factor: give either factor=... or num_layers=... (target layers)")
        if self.direction == "width" and self.num_layers is not None:
            raise UserError("num_layers: belongs to direction=depth; give factor=...")
        if self.direction == "depth" and self.intermediate_size is not None:
            raise UserError("intermediate_size: belongs to direction=width")


@dataclass
class Network:
    """A Llama: the base in the testbed, the only network of stage=pretrain. Keys as in transformers' LlamaConfig.

    num_hidden_layers: number of layers, in the testbed those of the base. hidden_size: features of a token.
    intermediate_size: features inside the feed-forward part. num_attention_heads: query heads per layer.
    num_key_value_heads: key and value heads per layer. None: as many as query heads. tie_word_embeddings: whether
    embedding and head share one matrix. rms_norm_eps: epsilon of the norms. rope_theta: base of the rotary embedding.
    context: tokens of a training sequence, and the longest sequence that the model is configured for.
    """

    num_hidden_layers: int = number(3, least=1)
    hidden_size: int = number(64, least=2)
    intermediate_size: int = number(176, least=1)
    num_attention_heads: int = number(2, least=1)
    num_key_value_heads: int | None = number(None, least=1)
    tie_word_embeddings: bool = False
    rms_norm_eps: float = number(1e-5, above=0)
    rope_theta: float = number(10000.0, above=0)
    context: int = number(64, least=2)

    def check(self) -> None:
        """Heads divide the width into even sizes, key/value heads divide the heads."""
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads
        if self.hidden_size % (2 * heads):
            raise UserError(
                f"network.hidden_size={self.hidden_size}: must be an even multiple of "
                f"network.num_attention_heads={heads} (rotary embeddings turn pairs of features)"
            )
        if heads % kv_heads:
            raise UserError(f"network.num_key_value_heads={kv_heads}: must divide network.num_attention_heads={heads}")


@dataclass
class Tokens:
    """Text into token ids.

    tokenizer: folder, hub id or ``.gguf`` file of a tokenizer. None: a byte-level BPE is trained on the training part
    of the corpus. With ``model``, its own tokenizer is used. vocab_size: number of entries of the tokenizer that is
    trained.
    """

    tokenizer: str | None = None
    vocab_size: int = number(1024, least=260)


@dataclass
class Budget:
    """How long each network trains, in tokens (section 4).

    growth_tokens: d, the training tokens of the base; 0 grows an untrained one. tokens: D, the budget of the target
    trained from scratch, or of stage=pretrain. grown_tokens: training tokens of the grown network after growth. None:
    as many as cost, together with the base, the compute of the target from scratch. continued_tokens: training tokens
    of the base that is trained further instead. None: as for grown_tokens. accounting: how compute is counted, both
    where it must be equal and on the axis of the figures: 6 x all parameters (the paper's figures), 6 x those without
    embedding and head, or every matrix product.
    """

    growth_tokens: float = number(600_000, least=0)
    tokens: float = number(2_000_000, above=0, extends="grown,scratch,continued,pretrain")
    grown_tokens: float | None = number(None, above=0)
    continued_tokens: float | None = number(None, above=0)
    accounting: str = choice("total", "total", "non_embedding", "matmul")


@dataclass
class Optim:
    """AdamW as in the paper's table 1 and released scripts; learning rates and batch are per preset.

    lr: learning rate of the target, grown and from scratch. base_lr: learning rate of the base. None: lr. scratch_lrs:
    learning rates of a sweep of the scratch run, each to the end of the budget. Empty: lr alone. batch_size: sequences
    per optimiser step. micro_batch_size: sequences per pass and process; gradients are accumulated. None: all at once.
    gradient_checkpointing: whether blocks store only their inputs and are recomputed in the backward pass.
    warmup_steps: steps over which the learning rate rises from 0. schedule: schedule of the learning rate after the
    warm-up; cosine falls to min_lr_ratio of it. schedule_tokens: tokens at which the fall ends. None: the run's own
    budget (the paper's horizon is longer than its runs). min_lr_ratio: share of the learning rate that is left at the
    end. betas: AdamW's two betas. weight_decay: weight decay of AdamW. decay_norms: whether norm gains decay too, as in
    the released code. grad_clip: largest norm of the gradient. after_growth: start with fresh moments and step count
    (the paper), or copy the base's moments along with their tensors. mask_steps: optimiser steps until the new parts
    are fully open (operator=random). sharding: ``fsdp`` spreads parameters, gradients and moments over the processes.
    """

    lr: float = number(2e-3, above=0)
    base_lr: float | None = number(None, above=0)
    scratch_lrs: list[float] = number([], above=0)
    batch_size: int = number(16, least=1)
    micro_batch_size: int | None = number(None, least=1, computes=False)
    gradient_checkpointing: bool = cosmetic(False)
    warmup_steps: int = number(100, least=0)
    schedule: str = choice("constant", "constant", "cosine")
    schedule_tokens: float | None = number(None, above=0)
    min_lr_ratio: float = number(0.1, least=0, most=1)
    betas: list[float] = number([0.9, 0.95], least=0, below=1)
    weight_decay: float = number(0.1, least=0)
    decay_norms: bool = False
    grad_clip: float = number(1.0, above=0)
    after_growth: str = choice("reset", "reset", "tile")
    mask_steps: int = number(5000, least=1)
    sharding: str = choice("none", "none", "fsdp", computes=False)

    def check(self) -> None:
        """Two betas; no learning rate twice."""
        if len(self.betas) != 2:
            raise UserError(f"optim.betas={self.betas}: must be two numbers, as in [0.9,0.95]")
        if len(set(self.scratch_lrs)) < len(self.scratch_lrs):
            raise UserError(f"optim.scratch_lrs={self.scratch_lrs}: holds a rate twice")


@dataclass
class Learn:
    """Training of G_learn's map (appendix A.6; the authors' script): the source is frozen, its mapping learns.

    num_steps: optimiser steps. warmup_steps: steps over which the learning rate rises. lr: highest learning rate.
    min_lr: last learning rate. batch_size: sequences per step.
    """

    num_steps: int = number(100, least=0)
    warmup_steps: int = number(50, least=0)
    lr: float = number(7e-5, above=0)
    min_lr: float = number(7e-6, above=0)
    batch_size: int = number(1024, least=1)


@dataclass
class Compare:
    """Where curves are read (eq. 48).

    runs: run folders to compare instead of this run's own arms. Several seeds give confidence bands. losses: held-out
    losses at which the speedup is read, fixed before the runs. Empty: at the last loss of scratch. eval_every_steps:
    optimiser steps between measurements of the held-out loss. With 0 every curve gets 40 measurements. eval_tokens:
    held-out tokens that the loss is measured on (the same ones every time).
    """

    runs: list[str] = field(default_factory=list)
    losses: list[float] = number([], above=0)
    eval_every_steps: int = number(0, least=0)
    eval_tokens: int = number(8192, least=1)


@dataclass
class Evaluation:
    """stage=evaluate: perplexity on the held-out part of ``data`` (or the file ``text``), and tasks (extra ``eval``).

    text_kb: how much text to use, in 10^3 bytes. tasks: names of lm-evaluation-harness, ``paper`` for the paper's
    eight, or your own ``.jsonl`` files. task_data: folder of local exports, one ``TASK.jsonl`` each. None: the hub.
    route: the harness scores the loaded model (``memory``), loads the checkpoint itself (``folder``), or asks our own
    log-likelihoods (``own``). All three give the same numbers. num_fewshot: solved examples before each question.
    limit: rows of each task. None: all. batch_size: sequences at a time.
    """

    text_kb: float = number(100.0, above=0)
    tasks: list[str] = field(default_factory=list)
    task_data: str | None = None
    route: str = choice("memory", "memory", "folder", "own")
    num_fewshot: int = number(0, least=0)
    limit: int | None = number(None, least=1)
    batch_size: int = number(8, least=1)


@dataclass
class GrowLLM(Growth, Job):
    """``toolkit grow-llm``.

    stage: ``all`` is the testbed: corpus, base, growth, further training, the other arms, comparison. ``corpus`` stops
    after tokenising. ``pretrain`` trains one network. ``grow`` grows the checkpoint ``model``. ``compare`` reads
    finished runs. ``evaluate`` measures ``model``. ``advise`` says when and by how much to grow. model: checkpoint
    folder, hub id, ``.gguf`` file, or a run. In the testbed it replaces the trained base; with stage=pretrain it is the
    network to train further. part: which network of a run to use (base, grown, scratch, ...). arms: networks that the
    testbed trains after the base: the grown one, the target from scratch, the base continued. data: name of a text
    corpus; ``toolkit data list`` shows them. out: new folder for stage=grow. None: the run's ``model/grown``. text:
    file on which preservation is measured. measure: whether stage=grow measures how well the function is preserved.
    max_shard_gb: largest file of a grown checkpoint, in 10^9 bytes. params: size of the target in parameters, for
    ``advise``. tokens: token budget of the target, for ``advise``.
    """

    command: str = "grow-llm"
    stage: str = choice("all", "all", "corpus", "pretrain", "grow", "compare", "evaluate", "advise", computes=False)
    model: str | None = None
    part: str | None = None
    arms: list[str] = field(default_factory=lambda: list(ARMS))
    data: TextData = field(default_factory=TextData)
    tokenize: Tokens = field(default_factory=Tokens)
    network: Network = field(default_factory=Network)
    budget: Budget = field(default_factory=Budget)
    optim: Optim = field(default_factory=Optim)
    learn: Learn = field(default_factory=Learn)
    compare: Compare = field(default_factory=Compare)
    evaluation: Evaluation = field(default_factory=Evaluation)
    out: str | None = None
    text: str | None = None
    measure: bool = True
    max_shard_gb: float = number(5.0, above=0)
    params: float | None = number(None, above=0)
    tokens: float | None = number(None, above=0)

    def stages(self) -> list[str]:
        """The testbed's in order, or what the stage asked for needs."""
        if self.stage == "all":
            return self._testbed()
        return {"pretrain": ["corpus", "pretrain", "compare"]}.get(self.stage, [self.stage])

    def _testbed(self) -> list[str]:
        names = ["corpus"] if self.model else ["corpus", "base"]
        scratch = [scratch_stage(lr, self.optim) for lr in self.scratch_lrs()]
        for arm in self.arms:
            names += {"scratch": scratch, "grown": ["grow", "grown"]}.get(arm, [arm])
        return [*names, "compare"]

    def scratch_lrs(self) -> list[float]:
        """Learning rates of the scratch arm; the first one is the stage ``scratch``."""
        return self.optim.scratch_lrs or [self.optim.lr]

    def growth(self) -> Growth:
        """The operator alone; in the testbed g = 4 unless a size is given."""
        growth = Growth(**{item.name: getattr(self, item.name) for item in fields(Growth)})
        if self.stage == "all" and growth.factor is None and not growth.sized():
            growth.factor = float(PAPER_FACTOR)
        return growth

    def idle(self) -> dict[str, tuple[str, ...]]:
        """What the stage does not read."""
        unread = _UNREAD[self.stage]
        if self.stage == "grow" and self.operator != "learn":
            unread += ("data", "tokenize", "network")
        return {f"stage={self.stage} does not read it": unread}

    def check(self) -> None:
        """What the stage needs is given, and the arms exist."""
        for key in _NEEDED.get(self.stage, ()):
            if getattr(self, key) is None:
                raise UserError(f"{key}: must be given with stage={self.stage}, as in {_EXAMPLES[key]}")
        for arm in self.arms:
            if arm not in ARMS:
                raise UserError(f"arms={arm}: {did_you_mean(arm, ARMS)}choose among {', '.join(ARMS)}")
        if len(set(self.arms)) < len(self.arms):
            raise UserError(f"arms={self.arms}: names one twice")
        if self.stage in ("all", "grow"):
            Growth.check(self.growth())
            if self.operator != "learn" and self.learn != Learn():
                raise UserError(f"learn: belongs to operator=learn, not {self.operator}")
            if self.operator != "random" and self.optim.mask_steps != Optim.mask_steps:
                raise UserError(f"optim.mask_steps={self.optim.mask_steps}: belongs to operator=random")
        if self.operator == "slices" and self.stage != "grow":
            raise UserError(f"operator=slices: belongs to stage=grow, not {self.stage}")
        if self.direction == "width" and self.optim.after_growth == "tile":
            raise UserError("optim.after_growth=tile: moments follow their tensors in depth only; use reset")


def scratch_stage(lr: float, optim: Optim) -> str:
    """The stage that trains from scratch at one rate of the sweep: ``scratch``, or ``scratch-0.004``."""
    return "scratch" if lr == (optim.scratch_lrs or [lr])[0] else f"scratch-{lr:g}"


_GROWTH = (*(item.name for item in fields(Growth)), "arms", "learn")
_WRITING, _ADVICE = ("out", "text", "measure", "max_shard_gb"), ("params", "tokens")
_TRAINING = ("tokenize", "network", "optim")
_UNREAD: dict[str, tuple[str, ...]] = {
    "all": ("evaluation", *_WRITING, *_ADVICE),
    "corpus": (*_GROWTH, "evaluation", *_WRITING, *_ADVICE),
    "pretrain": (*_GROWTH, "evaluation", *_WRITING, *_ADVICE),
    "grow": ("arms", "budget", "optim", "compare", "evaluation", *_ADVICE),
    "compare": ("model", "part", "data", *_TRAINING, *_GROWTH, "evaluation", *_WRITING, *_ADVICE),
    "evaluate": (*_TRAINING, *_GROWTH, "budget", "compare", "out", "measure", "max_shard_gb", *_ADVICE),
    "advise": ("model", "part", "data", *_TRAINING, *_GROWTH, "budget", "compare", "evaluation", *_WRITING),
}

_NEEDED = {"grow": ("model",), "evaluate": ("model",), "advise": ("params", "tokens")}
_EXAMPLES = {"model": "model=DIR", "params": "params=1.1e9", "tokens": "tokens=100e9"}

SCHEMAS: dict[Any, type] = {(None, "grow_llm_schema"): GrowLLM}
