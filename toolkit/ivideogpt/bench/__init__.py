"""``toolkit bench ivideogpt``: the world model against the official code and against per-frame 16x16 tokens.

Contenders, all with the same weights, shapes, threads and dtype (float32):
  ours       WorldModel: a cache that lasts, the context encoded once, tokens of a frame guessed and passed together
  in_turn    the same token after token: what guessing saves. It is timed only where its frames and tokens are ours
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
from typing import Any

from toolkit.bench import Contender, Makers, parse_options, run_bench
from toolkit.ivideogpt.bench.shared import Options, build_world, clips, contender, training


def main(words: list[str]) -> int:
    """Time every contender and print the table; ``out=FILE`` also writes it as JSON. Returns the exit code."""
    options = parse_options(Options, words)
    shape = f"{options.context_length} context and {options.num_future} future frames, batch {options.batch_size}"
    return run_bench("ivideogpt", options, contenders(options), "frames", f"{options.size} size, {shape}")


def contenders(options: Options) -> Makers:
    """Name -> function that builds it."""
    makers: dict[str, Callable[[], Contender]] = {"ours": lambda: _ours(options)}
    tasks = options.tasks.split(",")
    if "rollout" in tasks or "generate" in tasks:
        makers["in_turn"] = lambda: _in_turn(options)
    if "generate" in tasks and options.size != "shipped":  # all that it can do; the trained model knows few places
        makers["full"] = lambda: _full(options)
    if options.checkout:
        from toolkit.ivideogpt.bench.official import official

        makers["official"] = lambda: official(options)
    return makers


def _ours(options: Options) -> Contender:
    import torch

    from toolkit.ivideogpt.config import TrainIVideoGPT
    from toolkit.ivideogpt.train.transformer import make_optimizer
    from toolkit.zoo.counting import count_parameters

    world = build_world(options)
    world.tokenizer.to(memory_format=torch.channels_last)  # as one that is loaded
    frames, actions = clips(options, world.spec.resolution)
    tokens = world.tokenizer.tokenize(frames)
    # a network of its own: a step makes the weights others, and a roll-out would make its draft of them anew
    learner = build_world(options) if "train" in options.tasks else world
    transformer = learner.transformer.train()
    optimizer = make_optimizer(transformer, TrainIVideoGPT()) if "train" in options.tasks else None

    def loss() -> Any:
        transformer.train()
        return transformer(tokens, world.tokenizer.layout, actions).loss

    return contender(
        options,
        count_parameters(world),
        **_imagining(world, frames, actions, options),
        tokenize=lambda: world.tokenizer.tokenize(frames),
        detokenize=lambda: world.tokenizer.detokenize(tokens),
        train=training(transformer.parameters(), loss, optimizer),
    )


def _imagining(world: Any, frames: Any, actions: Any, options: Options) -> dict[str, Callable[[], Any]]:
    """The tasks ``rollout`` and ``generate``."""
    import torch

    first, num_future = options.context_length, options.num_future
    taken, codes = actions[:, first - 1 : -1], world.tokenizer.encode_context(frames[:, :first]).codes

    @torch.no_grad()
    def generate() -> None:
        world.eval()
        past = world.dynamics.look(codes, num_future)
        seeds = torch.arange(options.batch_size, device=frames.device)
        for t in range(num_future):
            past, _, _ = world.dynamics.frame(past, taken[:, t], world.sampling, seeds, t)

    def rollout() -> Any:
        world.eval()
        return world.rollout(world.begin(frames[:, :first], frames=num_future), taken)

    return {"rollout": rollout, "generate": generate}


def _in_turn(options: Options) -> Contender:
    """Raises RuntimeError where its tokens or frames are not ours: they would not be comparable."""
    import torch

    from toolkit.zoo.counting import count_parameters

    world = build_world(options)
    world.tokenizer.to(memory_format=torch.channels_last)
    frames, actions = clips(options, world.spec.resolution)
    tasks = _imagining(world, frames, actions, options)
    ours = tasks["rollout"]()
    world.dynamics.guesses = False
    plain = tasks["rollout"]()
    if not torch.equal(ours.tokens, plain.tokens) or not torch.equal(ours.frames, plain.frames):
        raise RuntimeError("in_turn: other tokens or frames than ours")
    return contender(options, count_parameters(world), **tasks)


def _full(options: Options) -> Contender:
    """Only "generate", and only one future frame: every further one takes longer, so this favours it."""
    import torch

    from toolkit.zoo.counting import count_parameters
    from toolkit.zoo.world.dynamics import Dynamics

    world = build_world(options)
    layout = world.tokenizer.layout
    per_frame = type(layout)(layout.context_length, *[layout.tokens_per_context] * 2, *[layout.num_context_codes] * 2)
    dynamics = Dynamics(world.transformer, per_frame)
    frames, actions = clips(options, world.spec.resolution)
    codes = world.tokenizer.encode_context(frames[:, : options.context_length]).codes

    @torch.no_grad()
    def generate() -> float:
        seeds = torch.arange(options.batch_size, device=frames.device)
        dynamics.frame(dynamics.look(codes, 1), actions[:, 0], world.sampling, seeds, 0)
        return options.batch_size

    return Contender({"generate": generate}, count_parameters(world.transformer))
