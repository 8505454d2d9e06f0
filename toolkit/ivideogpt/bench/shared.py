"""What several contenders of the benchmark use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.bench import BenchOptions, Contender
from toolkit.errors import UserError, did_you_mean
from toolkit.schema import choice, number

TASKS = ("rollout", "generate", "tokenize", "detokenize", "train")

ACTION_DIM = 4


@dataclass
class Options(BenchOptions):
    """key=value options of the benchmark.

    size: paper (114M + 138M parameters, random weights), shipped (the small trained model that comes along, on its own
    world: frames that look like the last are generated faster) or tiny (seconds, for tests).
    """

    size: str = choice("paper", "paper", "shipped", "tiny")
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
    """The world model, the same for every contender, with random weights but for ``size=shipped``.

    Raises UserError where the trained model was made for other lengths.
    """
    import torch

    from toolkit.zoo.world.model import WorldModel
    from toolkit.zoo.world.tokenizer import CompressiveVQModel
    from toolkit.zoo.world.transformer import VideoTransformer, llama_config

    if options.size == "shipped":
        from toolkit.ivideogpt.build import load_world

        world = load_world("push_world", "size=shipped")
        if options.context_length != world.spec.T0 or options.num_future > world.spec.max_future:
            raise UserError(
                f"size=shipped: context_length={world.spec.T0} and num_future={world.spec.max_future} at most "
                "are what the trained model holds"
            )
        return world.to(options.device)
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


def clips(options: Options, size_px: int = 64) -> tuple[Any, Any]:
    """Frames (B, T, 3, H, W) in [0, 1] and actions (B, T, A): of the trained model's world, else random."""
    import torch

    num_frames = options.context_length + options.num_future
    if options.size == "shipped":
        from toolkit.data.episodes.push_sprite import PushSprite, record

        found = record(PushSprite(size_px), range(options.batch_size), num_frames)
        frames, actions = torch.from_numpy(found.frames).movedim(-1, 2) / 255, torch.from_numpy(found.actions)
    else:
        generator = torch.Generator().manual_seed(1)
        frames = torch.rand((options.batch_size, num_frames, 3, size_px, size_px), generator=generator)
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
