"""``toolkit bench ivideogpt``: the world model against the official code and against per-frame 16x16 tokens.

Contenders, all with the same random weights, shapes, threads and dtype (float32):
  ours       WorldModel: a cache that lasts, the context encoded once
  official   the networks and the generation of thuml/iVideoGPT, from a checkout that the user names (checkout=PATH)
  full       our transformer over N tokens for every frame, as if each were a context frame: what is saved
Tasks:
  rollout    context images and actions in, images out, frame after frame (official: as its inference script does)
  generate   the transformer's part of it alone: prompt tokens and actions in, tokens out
  tokenize, detokenize   whole clips
  train      a step of the transformer on given tokens: forward, backward, clipping, AdamW
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.runs.bench import BenchOptions, Contender, Makers, parse_options, run_bench
from toolkit.schema import UserError, choice, did_you_mean, number

TASKS = ("rollout", "generate", "tokenize", "detokenize", "train")
ACTION_DIM = 4


@dataclass
class Options(BenchOptions):
    """key=value options of the benchmark. size: paper (114M + 138M parameters) or tiny (seconds, for tests)."""

    size: str = choice("paper", "paper", "tiny")
    batch_size: int = number(1, least=1)
    context_length: int = number(1, least=1)
    num_future: int = number(15, least=1)
    tasks: str = ",".join(TASKS)
    checkout: str | None = None

    def check(self) -> None:
        """``checkout`` is one, ``tasks`` are known."""
        if self.checkout and not (Path(self.checkout) / "ivideogpt" / "transformer" / "action_model.py").exists():
            raise UserError(f"checkout={self.checkout}: no checkout of thuml/iVideoGPT there (ivideogpt/ is missing)")
        for task in self.tasks.split(","):
            if task not in TASKS:
                raise UserError(f"tasks={task}: {did_you_mean(task, TASKS)}choose some of {', '.join(TASKS)}")


def main(words: list[str]) -> int:
    """Time every contender and print the table; ``out=FILE`` also writes it as JSON. Returns the exit code."""
    options = parse_options(Options, words)
    shape = f"{options.context_length} context and {options.num_future} future frames, batch {options.batch_size}"
    return run_bench("ivideogpt", options, contenders(options), "frames", f"{options.size} size, {shape}")


def contenders(options: Options) -> Makers:
    """Name -> function that builds it."""
    makers: dict[str, Callable[[], Contender]] = {"ours": lambda: _ours(options)}
    if "generate" in options.tasks.split(","):  # all that it can do
        makers["full"] = lambda: _full(options)
    if options.checkout:
        from toolkit.ivideogpt.bench_official import official

        makers["official"] = lambda: official(options)
    return makers


def contender(options: Options, parameters: int, **tasks: Callable[[], Any]) -> Contender:
    """Those of ``tasks`` that were asked for, in the order asked; each is worth batch_size x num_future frames."""

    def counted(action: Callable[[], Any]) -> Callable[[], float]:
        def timed() -> float:
            action()
            return options.batch_size * options.num_future

        return timed

    asked = [task for task in options.tasks.split(",") if task in tasks]
    return Contender({task: counted(tasks[task]) for task in asked}, parameters)


def build_world(options: Options) -> Any:
    """A world model with random weights, the same for every contender."""
    import torch

    from toolkit.zoo.video_transformer import VideoTransformer, llama_config
    from toolkit.zoo.vq_tokenizer import CompressiveVQModel
    from toolkit.zoo.world_model import WorldModel

    torch.manual_seed(0)
    tiny = options.size == "tiny"
    widths = {"block_out_channels": (32, 32, 64), "latent_channels": 8, "layers_per_block": 1} if tiny else {}
    codes = {"num_vq_embeddings": 64, "num_dyn_embeddings": 64} if tiny else {}
    tokenizer = CompressiveVQModel(context_length=options.context_length, **widths, **codes)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = llama_config(tokenizer.layout, action_dim=ACTION_DIM, **(sizes if tiny else {}))
    transformer = VideoTransformer(config)
    torch.nn.init.normal_(transformer.action_linear.weight, std=0.02)
    return WorldModel(tokenizer, transformer).to(options.device)


def clips(options: Options) -> tuple[Any, Any]:
    """Random frames (B,T,3,64,64) in [0,1] and actions (B,T,A): speed does not depend on what they show."""
    import torch

    generator = torch.Generator().manual_seed(1)
    num_frames = options.context_length + options.num_future
    frames = torch.rand((options.batch_size, num_frames, 3, 64, 64), generator=generator)
    actions = torch.randn((options.batch_size, num_frames, ACTION_DIM), generator=generator)
    return frames.to(options.device), actions.to(options.device)


def training(parameters: Any, loss: Callable[[], Any], optimizer: Any) -> Callable[[], None]:
    """One step: forward, backward, clipping to 1, update."""
    import torch

    parameters = list(parameters)

    def step() -> None:
        for parameter in parameters:
            parameter.requires_grad_(True)
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _ours(options: Options) -> Contender:
    import torch

    from toolkit.ivideogpt.config import TrainIVideoGPT
    from toolkit.ivideogpt.stage_transformer import make_optimizer
    from toolkit.zoo.registry import count_parameters
    from toolkit.zoo.world_sampling import SAMPLED

    world = build_world(options)
    world.tokenizer.to(memory_format=torch.channels_last)  # as one that is loaded
    frames, actions = clips(options)
    first, num_future = options.context_length, options.num_future
    tokens, taken = world.tokenizer.tokenize(frames), actions[:, first - 1 : -1]
    codes = world.tokenizer.layout.split(tokens)[0]
    transformer = world.transformer.train()
    optimizer = make_optimizer(transformer, TrainIVideoGPT()) if "train" in options.tasks else None

    @torch.no_grad()
    def generate() -> None:
        past = world.dynamics.look(codes, num_future)
        seeds = torch.arange(options.batch_size, device=frames.device)
        for t in range(num_future):
            past, _, _ = world.dynamics.frame(past, taken[:, t], SAMPLED, seeds, t)

    def rollout() -> None:
        transformer.eval()
        world.rollout(world.begin(frames[:, :first], frames=num_future), taken)

    def loss() -> Any:
        transformer.train()
        return transformer(tokens, world.tokenizer.layout, actions).loss

    return contender(
        options,
        count_parameters(world),
        rollout=rollout,
        generate=lambda: (transformer.eval(), generate()),
        tokenize=lambda: world.tokenizer.tokenize(frames),
        detokenize=lambda: world.tokenizer.detokenize(tokens),
        train=training(transformer.parameters(), loss, optimizer),
    )


def _full(options: Options) -> Contender:
    """Only "generate", and only one future frame: every further one takes longer, so this favours it."""
    import torch

    from toolkit.zoo.registry import count_parameters
    from toolkit.zoo.world_dynamics import Dynamics
    from toolkit.zoo.world_sampling import SAMPLED

    world = build_world(options)
    layout = world.tokenizer.layout
    per_frame = type(layout)(layout.context_length, *[layout.tokens_per_context] * 2, *[layout.num_context_codes] * 2)
    dynamics = Dynamics(world.transformer, per_frame)
    frames, actions = clips(options)
    codes = world.tokenizer.encode_context(frames[:, : options.context_length]).codes

    @torch.no_grad()
    def generate() -> float:
        seeds = torch.arange(options.batch_size, device=frames.device)
        dynamics.frame(dynamics.look(codes, 1), actions[:, 0], SAMPLED, seeds, 0)
        return options.batch_size

    return Contender({"generate": generate}, count_parameters(world.transformer))
