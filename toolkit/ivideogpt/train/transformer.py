"""Stage two: the transformer learns to continue the tokens given the actions (section 3.2, eqs. 3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from toolkit.data.episodes.clips import Clip
from toolkit.ivideogpt.clips import Clips, arrange, spaced
from toolkit.ivideogpt.config import TrainIVideoGPT
from toolkit.runs import progress
from toolkit.runs.files import write_atomic
from toolkit.runs.loop import Loop
from toolkit.runs.passes import accumulate, own_part, scaler_of, update
from toolkit.runs.record import Run
from toolkit.runs.schedule import learning_rate_factor
from toolkit.runs.seeds import derive, generator
from toolkit.runs.states.sharding import fill, plain_copy, reshard, shard
from toolkit.zoo.checkpointing import checkpoint_activations
from toolkit.zoo.world.tokenizer import CompressiveVQModel
from toolkit.zoo.world.tokens import TokenLayout
from toolkit.zoo.world.transformer import VideoTransformer, reward_targets

NUM_VALID_CLIPS = 64
VALID_EVERY_LOGS = 4  # held-out loss once in so many log lines


@dataclass(frozen=True)
class TokenClips:
    """Tokens int64 (M, L) of clips; actions (M, T, A) in data units and rewards (M, T), or None.

    adjacent bool (M,): whether no frame was left out after the context; None: of no clip.
    """

    tokens: Tensor
    actions: Tensor | None
    rewards: Tensor | None
    adjacent: Tensor | None = None

    def rows(self, index: Tensor) -> TokenClips:
        """Some of the clips."""
        return TokenClips(*(None if part is None else part[index] for part in vars(self).values()))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> TokenClips:
        """The same on another device."""
        return TokenClips(*(None if part is None else part.to(device) for part in vars(self).values()))  # type: ignore[arg-type]

    @classmethod
    def joined(cls, parts: Sequence[TokenClips]) -> TokenClips:
        """The clips of all parts."""
        columns = zip(*(vars(one).values() for one in parts), strict=True)
        return cls(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


class TransformerObjective(nn.Module):
    """A transformer and its loss in one module, so that it can be trained on several processes."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        transformer: VideoTransformer,
        tokenizer: CompressiveVQModel,
        config: TrainIVideoGPT,
        statistics: dict[str, np.ndarray],
    ):
        super().__init__()
        self.transformer, self.config, self.layout = transformer, config, tokenizer.layout
        width = max(1, transformer.action_dim)
        self.register_buffer("mean", torch.from_numpy(statistics.get("mean", np.zeros(width, np.float32))))
        self.register_buffer("std", torch.from_numpy(statistics.get("std", np.ones(width, np.float32))))

    def forward(self, batch: TokenClips) -> dict[str, Tensor]:
        """Loss terms; "loss" is their weighted sum. Cross-entropy is per token; "frame_1": of the first frame.

        The first frame after a gap cannot be predicted and does not count in the loss; it does in the other terms.
        """
        actions = None
        if self.config.action_conditioned:
            assert batch.actions is not None
            actions = (batch.actions - self.mean) / self.std
        optim = self.config.optim.transformer
        noisy = self.training and optim.own_tokens > 0
        seen = own_tokens(self.transformer, batch.tokens, self.layout, actions, optim.own_tokens) if noisy else None
        out = self.transformer(batch.tokens, self.layout, actions, seen)
        frames = out.token_losses.mean((0, 2))  # [F]
        loss, first = out.loss, frames[0]
        if batch.adjacent is not None:
            firsts = out.token_losses[:, 0].mean(1)  # (B,)
            first = (firsts * batch.adjacent).mean()
            share = self.layout.tokens_per_frame / self.layout.num_targets(len(frames))
            loss = loss - share * (firsts.mean() - first)
        if optim.first_frame_weight != 1:  # eq. 3 with another weight on the frame that is hardest
            loss = loss + (optim.first_frame_weight - 1) * first / len(frames)
        terms = {"tokens": out.token_losses.mean(), "frame_1": frames[0]}
        if self.config.reward_head:
            assert batch.rewards is not None
            targets = reward_targets(batch.rewards, self.layout.context_length)
            terms["reward"] = (out.rewards - targets).square().mean()
            loss = loss + optim.reward_weight * terms["reward"]
        return {"loss": loss, **terms}


@torch.no_grad()
def own_tokens(
    transformer: VideoTransformer, tokens: Tensor, layout: TokenLayout, actions: Tensor | None, share: float
) -> Tensor:
    """Tokens (B, L) in which the network's own draws stand for ``share`` of those of the future frames.

    Drawn after the true ones before them (scheduled sampling, Bengio et al. 2015, in one pass), at temperature 1; pass
    by pass, as dropout's masks are, so that the number of passes and processes changes the draws.
    """
    start, first = layout.prompt_length, layout.num_context_codes
    logits = transformer.logits(tokens, layout, actions)[:, start - 1 : -1, first : layout.context_slot].float()
    noise = -torch.empty_like(logits).exponential_().log()
    drawn = first + (logits + noise).argmax(-1)
    true = tokens[:, start:]
    taken = (torch.rand(true.shape, device=true.device) < share) & (true != layout.frame_slot)
    return torch.cat([tokens[:, :start], torch.where(taken, drawn, true)], dim=1)


def train_transformer(
    transformer: VideoTransformer,
    tokenizer: CompressiveVQModel,
    run: Run,
    config: TrainIVideoGPT,
    clips: Clips,
    accelerator: Accelerator,
    normalised: bool = True,
) -> VideoTransformer:
    """Train for ``optim.transformer.num_steps`` updates, resuming where the run stopped; returns it in eval mode.

    ``normalised``: actions enter with mean 0 and deviation 1; afterwards the network takes them in the data's units.
    """
    optim, device = config.optim.transformer, accelerator.device
    tokenizer.to(device).eval()
    transformer.to(device).train()
    objective = TransformerObjective(transformer, tokenizer, config, clips.statistics if normalised else {}).to(device)
    plain = plain_copy(transformer, optim.sharding)
    if optim.gradient_checkpointing:
        checkpoint_activations(transformer)
    trained = _prepared(objective, config, accelerator)
    optimizer = make_optimizer(transformer, config)
    batches = _batches(tokenizer, run, config, clips, device)
    valid = tokenise(tokenizer, arrange(clips.valid.fixed(NUM_VALID_CLIPS), config), device).to(device)
    state: dict[str, Any] = {"model": transformer, "optimizer": optimizer} | scaler_of(accelerator)
    loop = Loop(run, "transformer", optim.num_steps, state)
    for step in loop:
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * learning_rate_factor(step, optim.num_steps, optim.schedule, optim.warmup_steps)
        terms = accumulate(trained, (batches(step).to(device),), optim.micro_batch_size, accelerator)
        grad_norm = update(optimizer, transformer.parameters(), optim.grad_clip, accelerator)
        loop.log(**terms, grad_norm=grad_norm)
        if (step + 1) % (VALID_EVERY_LOGS * config.log_every_steps) == 0:
            with accelerator.autocast():
                loop.log(**held_out(objective, valid))
    fill(plain, transformer)
    if plain.action_dim:
        plain.absorb_normaliser(objective.mean, objective.std)
    return plain.eval()


def _prepared(objective: TransformerObjective, config: TrainIVideoGPT, accelerator: Accelerator) -> Any:
    """The objective shared among processes as asked."""
    if config.optim.transformer.sharding == "fsdp":
        return shard(objective, objective.transformer.llm.model.layers)
    if config.compile:
        objective.transformer.compile()
    return accelerator.prepare_model(objective)


@torch.no_grad()
def held_out(objective: TransformerObjective, valid: TokenClips) -> dict[str, Tensor]:
    """Cross-entropy per token of held-out clips, and how much it rises with another clip's actions.

    The rise shows early and cheaply that the model uses the actions: both losses look fine for one that ignores them.
    """
    objective.eval()
    found = objective(valid)
    terms = {"valid_tokens": found["tokens"], "valid_frame_1": found["frame_1"]}
    if valid.actions is not None and objective.config.action_conditioned:
        exchanged = replace(valid, actions=valid.actions.roll(1, 0))
        terms["valid_rise_with_other_actions"] = objective(exchanged)["tokens"] - terms["valid_tokens"]
    objective.train()
    reshard(objective)
    return terms


def make_optimizer(transformer: VideoTransformer, config: TrainIVideoGPT) -> torch.optim.Optimizer:
    """AdamW; no decay on biases, norms and embeddings."""
    optim = config.optim.transformer
    embeddings = {id(part.weight) for part in transformer.modules() if isinstance(part, nn.Embedding)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in transformer.parameters():
        groups[parameter.dim() > 1 and id(parameter) not in embeddings].append(parameter)
    rows = [
        {"params": groups[True], "weight_decay": optim.weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]
    fused = next(transformer.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(rows, lr=optim.lr, betas=(optim.betas[0], optim.betas[1]), fused=fused)


def tokenise(tokenizer: CompressiveVQModel, clip: Clip, device: torch.device, batch_size: int = 32) -> TokenClips:
    """The tokens of clips, by the tokenizer in eval mode."""
    tokens = [tokenizer.tokenize(part.frames.to(device)).cpu() for part in clip.split(batch_size)]
    return TokenClips(torch.cat(tokens), clip.actions, clip.rewards)


def tokenise_spaced(
    tokenizer: CompressiveVQModel, clip: Clip, config: TrainIVideoGPT, rng: torch.Generator, device: torch.device
) -> TokenClips:
    """The tokens of training clips, with gaps after the context where the config asks for them."""
    clip, adjacent = spaced(clip, config, rng)
    return replace(tokenise(tokenizer, arrange(clip, config), device), adjacent=adjacent)


def _batches(
    tokenizer: CompressiveVQModel, run: Run, config: TrainIVideoGPT, clips: Clips, device: torch.device
) -> Any:
    """``batches(step)``: this process's clips as tokens, a pure function of (seed, step)."""
    optim = config.optim.transformer
    part = own_part(optim.batch_size, "optim.transformer.batch_size")
    if optim.cached_clips is None:

        def fresh(step: int) -> TokenClips:
            clip = clips.train.sample(optim.batch_size, config.seed, "transformer", step, 0, part=part)
            rng = generator(config.seed, "gap", step)
            return tokenise_spaced(tokenizer, clip, config, rng, device)

        return fresh
    cache = cached_tokens(tokenizer, run, config, clips, device)

    def batches(step: int) -> TokenClips:
        rng = torch.Generator().manual_seed(derive(config.seed, "cached", step, 0))
        chosen = torch.randint(len(cache.tokens), (optim.batch_size,), generator=rng)
        return cache.rows(chosen[part])

    return batches


def cached_tokens(
    tokenizer: CompressiveVQModel, run: Run, config: TrainIVideoGPT, clips: Clips, device: torch.device
) -> TokenClips:
    """``optim.transformer.cached_clips`` random clips as tokens, made once and kept beside the checkpoints.

    They are made again where the file is damaged or another tokenizer made it.
    """
    path = run.path("checkpoints", "tokens.safetensors")
    fingerprint = tokenizer.fingerprint()
    found = _read_tokens(path, fingerprint)
    if found is None:
        found = _tokenise_many(tokenizer, config, clips, device)
        if run.is_main:
            kept = {name: value.contiguous() for name, value in vars(found).items() if value is not None}
            write_atomic(path, save(kept, {"tokenizer": fingerprint}))
    return found


def _read_tokens(path: Path, fingerprint: str) -> TokenClips | None:
    """The tokens at ``path``; None where there are none, the file is damaged, or another tokenizer made them."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("tokenizer") != fingerprint:
                return None
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return None
    return TokenClips(*(tensors.get(one.name) for one in fields(TokenClips)))  # type: ignore[arg-type]


def _tokenise_many(
    tokenizer: CompressiveVQModel, config: TrainIVideoGPT, clips: Clips, device: torch.device
) -> TokenClips:
    num = config.optim.transformer.cached_clips
    assert num is not None
    progress.say(f"transformer: tokenising {num} clips once")
    parts = []
    for start in range(0, num, 256):
        drawn = clips.train.sample(min(256, num - start), config.seed, "cache", start)
        parts.append(tokenise_spaced(tokenizer, drawn, config, generator(config.seed, "gap", start), device))
    return TokenClips.joined(parts)
