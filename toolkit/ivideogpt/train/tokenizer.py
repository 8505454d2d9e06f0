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
from toolkit.ivideogpt.train.losses import TokenizerObjective, discriminator_loss, generator_loss
from toolkit.ivideogpt.train.perceptual import make_distance
from toolkit.runs import progress
from toolkit.runs.distributed import rank, world_size
from toolkit.runs.loop import Loop
from toolkit.runs.record import Run
from toolkit.runs.schedule import learning_rate_factor, share_of_batch
from toolkit.runs.seeds import generator
from toolkit.zoo.world.codebook import CodebookEMA, perplexity, usage
from toolkit.zoo.world.discriminator import PatchDiscriminator
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
    discriminator: Any = None
    discriminator_optimizer: Any = None

    @property
    def tokenizer(self) -> CompressiveVQModel:
        """The network itself."""
        return self.objective.tokenizer

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint holds."""
        parts = {"model": self.tokenizer, "optimizer": self.optimizer}
        parts |= {f"codebook_{name}": ema for name, ema in self.codebooks.items()}
        if self.discriminator is not None:
            parts |= {"discriminator": self.discriminator, "discriminator_optimizer": self.discriminator_optimizer}
        return parts


def train_tokenizer(
    tokenizer: CompressiveVQModel, run: Run, config: TrainIVideoGPT, clips: Clips, accelerator: Accelerator
) -> CompressiveVQModel:
    """Train for ``optim.tokenizer.num_steps`` updates, resuming where the run stopped; returns it in eval mode."""
    optim = config.optim.tokenizer
    training = prepare(tokenizer, config, accelerator)
    run.record["perceptual_distance"] = getattr(training.objective.perceptual, "name", "none")
    batch_size = share_of_batch(optim.batch_size, "optim.tokenizer.batch_size")
    loop = Loop(run, "tokenizer", optim.num_steps, state=training.state())
    for step in loop:
        clip = clips.train.sample(batch_size, config.seed, "tokenizer", step, rank())
        context, future = tokenizer_frames(clip, config, config.seed, step)
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
        training.discriminator = PatchDiscriminator(hidden_channels=loss.gan_hidden, depth=loss.gan_depth).to(device)
        training.discriminator_optimizer = torch.optim.AdamW(
            training.discriminator.parameters(), lr=optim.lr, fused=fused
        )
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
    terms, found = training.trained(*batch, quantize)
    loss = terms["loss"]
    adversarial = training.discriminator is not None and step >= config.tokenizer_loss.gan_start_step
    if adversarial:
        terms["adversarial"] = generator_loss(training.discriminator, found, terms, training.tokenizer)
        loss = loss + config.tokenizer_loss.gan_weight * terms["adversarial"]
    accelerator.backward(loss)
    grad_norm = torch.nn.utils.clip_grad_norm_(training.tokenizer.parameters(), optim.grad_clip)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    if adversarial:
        terms["discriminator"] = _train_discriminator(training, found, batch, optim.grad_clip, accelerator)
    if quantize:
        _move_codebooks(step, training, found, config, accelerator)
    loop.log(**terms, grad_norm=grad_norm)


def start_codebooks(
    training: Training, batch: tuple[Tensor, Tensor], config: TrainIVideoGPT, accelerator: Accelerator
) -> None:
    """After a warm-up without quantising: every code starts at something that the encoders say (ours)."""
    tokenizer = training.tokenizer
    with torch.no_grad():
        found = tokenizer(*batch, False)
    quantizers = {"context": tokenizer.quantize, "dynamics": tokenizer.dynamics_quantize}
    for name, (latents, _) in _encoded(found, accelerator).items():
        quantizers[name].initialise(latents, generator(config.seed, "codebook", name), apart=config.codebook.apart)
        if name in training.codebooks:
            table = quantizers[name].embedding.weight.detach()
            fresh = {"counts": torch.ones(len(table)), "sums": table, "num_restarted": 0}
            training.codebooks[name].load_state_dict(fresh)


def _move_codebooks(
    step: int, training: Training, found: Reconstruction, config: TrainIVideoGPT, accelerator: Accelerator
) -> None:
    """EMA of the codes; codes that nothing uses start anew in the first part of the training."""
    if not training.codebooks:
        return
    may_restart = step < config.codebook.restart_until * config.optim.tokenizer.num_steps
    encoded = _encoded(found, accelerator)
    for name, ema in training.codebooks.items():
        ema.restart_below = (config.codebook.restart_below or 0.0) if may_restart else 0.0
        ema.update(*encoded[name], generator(config.seed, "restart", name, step))


def _encoded(found: Reconstruction, accelerator: Accelerator) -> dict[str, tuple[Tensor, Tensor]]:
    """Latents (M, D) and codes [M] of both kinds of frames, of all processes."""
    pairs = {
        "context": (found.context_latents.detach().flatten(0, -2), found.context_codes.flatten()),
        "dynamics": (found.dynamics_latents.detach().flatten(0, -2), found.dynamics_codes.flatten()),
    }
    if world_size() == 1:
        return pairs
    return {name: tuple(accelerator.gather(one) for one in pair) for name, pair in pairs.items()}  # type: ignore[misc]


def _train_discriminator(
    training: Training, found: Reconstruction, batch: tuple[Tensor, Tensor], clip: float, accelerator: Accelerator
) -> Tensor:
    optimizer = training.discriminator_optimizer
    optimizer.zero_grad(set_to_none=True)
    loss = discriminator_loss(training.discriminator, found, *batch)
    loss.backward()
    if world_size() > 1:  # it is called twice in a step, which a wrapper for several processes would not allow
        for parameter in training.discriminator.parameters():
            parameter.grad = accelerator.reduce(parameter.grad, "mean")
    torch.nn.utils.clip_grad_norm_(training.discriminator.parameters(), clip)
    optimizer.step()
    return loss


def _watch(step: int, tokenizer: CompressiveVQModel, clip: Clip, loop: Loop, config: TrainIVideoGPT) -> None:
    """Usage and perplexity of both codebooks on held-out clips (a running counter would count restarted codes)."""
    layout = tokenizer.layout
    tokens = tokenizer.tokenize(clip.frames.to(tokenizer.device))
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
