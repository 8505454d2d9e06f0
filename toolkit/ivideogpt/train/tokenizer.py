"""Stage one: the compressive tokenizer learns to reconstruct (appendix A.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from toolkit.data.episodes.clips import Clip
from toolkit.ivideogpt.clips import Clips, tokenizer_frames
from toolkit.ivideogpt.config import TrainIVideoGPT
from toolkit.ivideogpt.train.adversarial import Adversary, whole_balance
from toolkit.ivideogpt.train.losses import TokenizerObjective, generator_loss
from toolkit.ivideogpt.train.perceptual import make_distance
from toolkit.runs import progress
from toolkit.runs.distributed import world_size
from toolkit.runs.loop import Loop
from toolkit.runs.passes import add_terms, own_part, passes, scaler_of, update
from toolkit.runs.record import Run
from toolkit.runs.schedule import learning_rate_factor
from toolkit.runs.seeds import generator
from toolkit.zoo.world.codebook import CodebookEMA, perplexity, usage
from toolkit.zoo.world.tokenizer import CompressiveVQModel, Reconstruction

LEAST_USAGE = 0.1  # of a codebook, over held-out clips; below it a run warns
NUM_HEALTH_CLIPS = 64


@dataclass
class Training:
    """What one tokenizer update needs."""

    objective: TokenizerObjective
    trained: Any  # the objective, wrapped for several processes
    optimizer: torch.optim.Optimizer
    codebooks: dict[str, CodebookEMA]
    adversary: Adversary | None = None

    @property
    def tokenizer(self) -> CompressiveVQModel:
        """The network itself."""
        return self.objective.tokenizer

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint holds."""
        parts = {"model": self.tokenizer, "optimizer": self.optimizer}
        parts |= {f"codebook_{name}": ema for name, ema in self.codebooks.items()}
        if self.adversary is not None:
            parts["discriminator"] = self.adversary.discriminator
            parts["discriminator_optimizer"] = self.adversary.optimizer
        return parts


def train_tokenizer(
    tokenizer: CompressiveVQModel, run: Run, config: TrainIVideoGPT, clips: Clips, accelerator: Accelerator
) -> CompressiveVQModel:
    """Train for ``optim.tokenizer.num_steps`` updates, resuming where the run stopped; returns it in eval mode."""
    optim = config.optim.tokenizer
    training = prepare(tokenizer, config, accelerator)
    run.record["perceptual_distance"] = getattr(training.objective.perceptual, "name", "none")
    part = own_part(optim.batch_size, "optim.tokenizer.batch_size")
    loop = Loop(run, "tokenizer", optim.num_steps, state=training.state() | scaler_of(accelerator))
    for step in loop:
        clip = clips.train.sample(optim.batch_size, config.seed, "tokenizer", step, 0, part=part)
        context, future = tokenizer_frames(clip, config, config.seed, step, optim.batch_size, part)
        batch = (context.to(accelerator.device), future.to(accelerator.device))
        train_step(step, training, batch, loop, config, accelerator)
        if (step + 1) % config.log_every_steps == 0 and step + 1 > config.codebook.warmup_steps:
            _watch(step, training.tokenizer, clips.valid.fixed(NUM_HEALTH_CLIPS), loop, config)
    return training.tokenizer.eval()


def prepare(tokenizer: CompressiveVQModel, config: TrainIVideoGPT, accelerator: Accelerator) -> Training:
    """Optimisers, codebook averages and discriminator on the job's device."""
    loss, optim, device = config.tokenizer_loss, config.optim.tokenizer, accelerator.device
    tokenizer.to(device).train()
    objective = TokenizerObjective(tokenizer, loss, make_distance(loss.perceptual, loss.perceptual_path)).to(device)
    quantizers = {"context": tokenizer.quantize, "dynamics": tokenizer.dynamics_quantize}
    codebooks: dict[str, CodebookEMA] = {}
    if config.codebook.frozen:
        for quantizer in quantizers.values():
            quantizer.requires_grad_(False)
    elif config.codebook.kind == "ema":
        below = config.codebook.restart_below or 0.0
        codebooks = {
            name: CodebookEMA(one, config.codebook.decay, below, config.codebook.apart)
            for name, one in quantizers.items()
        }
    learnt = [parameter for parameter in tokenizer.parameters() if parameter.requires_grad]
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(learnt, lr=optim.lr, weight_decay=optim.weight_decay, fused=fused)
    training = Training(objective, accelerator.prepare_model(objective), optimizer, codebooks)
    if loss.gan:
        training.adversary = Adversary(loss, optim.lr, device)
    return training


def train_step(
    step: int,
    training: Training,
    batch: tuple[Tensor, Tensor],
    loop: Loop,
    config: TrainIVideoGPT,
    accelerator: Accelerator,
) -> None:
    """One update of the tokenizer, of its codebooks, and, once it has begun, of the discriminator."""
    optim = config.optim.tokenizer
    quantize = step >= config.codebook.warmup_steps
    if step == config.codebook.warmup_steps and step > 0:
        start_codebooks(training, batch, config, accelerator)
    for group in training.optimizer.param_groups:
        group["lr"] = optim.lr * learning_rate_factor(step, optim.num_steps, optim.schedule, optim.warmup_steps)
    adversary = training.adversary if step >= config.tokenizer_loss.gan_start_step else None
    terms, found = backward(training, adversary, batch, quantize, config, accelerator)
    grad_norm = update(training.optimizer, training.tokenizer.parameters(), optim.grad_clip, accelerator)
    if adversary is not None:
        micro = optim.micro_batch_size
        terms["discriminator"] = adversary.train(found, batch, micro, optim.grad_clip, accelerator)
    if quantize:
        _move_codebooks(step, training, found, config, accelerator)
    loop.log(**terms, grad_norm=grad_norm)


def backward(
    training: Training,
    adversary: Adversary | None,
    batch: tuple[Tensor, Tensor],
    quantize: bool,
    config: TrainIVideoGPT,
    accelerator: Accelerator,
) -> tuple[dict[str, Tensor], list[Reconstruction]]:
    """Leave the gradients of this process's (context, future); the mean terms, and what each pass reconstructed."""
    micro, weight = config.optim.tokenizer.micro_batch_size, None
    if adversary is not None:
        adversary.iterate_norms()
        if world_size() > 1 or (micro or len(batch[0])) < len(batch[0]):
            weight = whole_balance(adversary, training.objective, batch, quantize, micro, accelerator)
    means: dict[str, Tensor] = {}
    seen = []
    for part, share in passes(training.trained, batch, micro):
        terms, found = training.trained(*part, quantize)
        loss = terms["loss"]
        if adversary is not None:
            terms["adversarial"] = generator_loss(adversary.discriminator, found, terms, training.tokenizer, weight)
            loss = loss + config.tokenizer_loss.gan_weight * terms["adversarial"]
        accelerator.backward(loss * share)
        add_terms(means, terms, share)
        seen.append(Reconstruction(*(one.detach() for one in found)))
    return means, seen


def start_codebooks(
    training: Training, batch: tuple[Tensor, Tensor], config: TrainIVideoGPT, accelerator: Accelerator
) -> None:
    """After a warm-up without quantising: every code starts at an output of the encoders (ours)."""
    tokenizer = training.tokenizer
    with torch.no_grad():
        cut = passes(tokenizer, batch, config.optim.tokenizer.micro_batch_size)
        found = [tokenizer(*part, False) for part, _ in cut]
    quantizers = {"context": tokenizer.quantize, "dynamics": tokenizer.dynamics_quantize}
    for name, (latents, _) in _encoded(found, accelerator).items():
        quantizers[name].initialise(latents, generator(config.seed, "codebook", name), apart=config.codebook.apart)
        if name in training.codebooks:
            table = quantizers[name].embedding.weight.detach()
            fresh = {"counts": torch.ones(len(table)), "sums": table, "num_restarted": 0}
            training.codebooks[name].load_state_dict(fresh)


def _move_codebooks(
    step: int, training: Training, found: list[Reconstruction], config: TrainIVideoGPT, accelerator: Accelerator
) -> None:
    """EMA of the codes; codes that nothing uses start anew in the first part of the training."""
    if not training.codebooks:
        return
    may_restart = step < config.codebook.restart_until * config.optim.tokenizer.num_steps
    encoded = _encoded(found, accelerator)
    for name, ema in training.codebooks.items():
        ema.restart_below = (config.codebook.restart_below or 0.0) if may_restart else 0.0
        ema.update(*encoded[name], generator(config.seed, "restart", name, step))


def _encoded(found: list[Reconstruction], accelerator: Accelerator) -> dict[str, tuple[Tensor, Tensor]]:
    """Latents (M, D) and codes [M] of both kinds of frames, of all passes and processes."""
    pairs = {
        "context": ([one.context_latents for one in found], [one.context_codes for one in found]),
        "dynamics": ([one.dynamics_latents for one in found], [one.dynamics_codes for one in found]),
    }
    whole = {name: (torch.cat(one).flatten(0, -2), torch.cat(codes).flatten()) for name, (one, codes) in pairs.items()}
    if world_size() == 1:
        return whole
    return {name: tuple(accelerator.gather(one) for one in pair) for name, pair in whole.items()}  # type: ignore[misc]


def _watch(step: int, tokenizer: CompressiveVQModel, clip: Clip, loop: Loop, config: TrainIVideoGPT) -> None:
    """Usage and perplexity of both codebooks on held-out clips (a running counter would count restarted codes)."""
    layout = tokenizer.layout
    size = config.optim.tokenizer.micro_batch_size or NUM_HEALTH_CLIPS // 2  # at 256x256 they do not fit all at once
    tokens = torch.cat([tokenizer.tokenize(part.frames.to(tokenizer.device)) for part in clip.split(size)])
    context, dynamics = layout.split(tokens)
    sizes = {"context": (context, layout.num_context_codes), "dynamics": (dynamics, layout.num_dynamics_codes)}
    for name, (codes, size) in sizes.items():
        shares = {f"{name}_usage": usage(codes, size), f"{name}_perplexity": perplexity(codes, size)}
        loop.log(**shares)
        last = step + config.log_every_steps >= config.optim.tokenizer.num_steps
        if last and shares[f"{name}_usage"] < LEAST_USAGE:
            progress.say(
                f"warning: {shares[f'{name}_usage']:.0%} of the {name} codes are used on held-out clips; fewer codes, "
                "codebook.kind=ema, codebook.warmup_steps or codebook.restart_below keep more of them alive"
            )
