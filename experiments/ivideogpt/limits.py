"""Where the time of a roll-out at the paper's size goes, and the least that each part could take on this processor.

    python experiments/ivideogpt/limits.py OUT.json

One clip, one context frame, 5 future ones, float32, one thread, random weights; medians of 3 roll-outs, processor time.
A part's least time is its floating-point operations at the speed of a large product of float32 matrices, or its bytes
of weights at the speed at which this processor reads memory, whichever is longer. The operations are those of the code
as it is: tiles of 4x4 in the decoder, nothing computed twice.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from toolkit.ivideogpt.bench.shared import Options, build_world, clips
from toolkit.runs.files import write_json
from toolkit.runs.machine import git_commit, machine
from toolkit.zoo.counting import count_parameters
from toolkit.zoo.world.draft import Draft

NUM_FUTURE, ROUNDS = 5, 3
Parts = dict[str, list[float]]


def fastest(action: Callable[[], Any], repeats: int = 5) -> float:
    """Processor seconds."""
    found = []
    for _ in range(repeats):
        began = time.process_time()
        action()
        found.append(time.process_time() - began)
    return min(found)


def peaks() -> dict[str, float]:
    """Floating-point operations of a product, and bytes read, a second."""
    a, b, long = torch.randn(1024, 1024), torch.randn(1024, 1024), torch.randn(2**28)
    product = fastest(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    return {"flops_per_s": 2 * 1024**3 / product, "bytes_per_s": 4 * 2**28 / fastest(long.sum)}


def watch(world: Any, parts: Parts) -> None:
    """Let the world note the seconds of each of its parts in ``parts``."""

    def timed(name: Callable[[tuple[Any, ...]], str], action: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            made = action(*args, **kwargs)
            parts[name(args)].append(time.process_time() - began)
            return made

        return call

    tokenizer, dynamics = world.tokenizer, world.dynamics
    tokenizer.encode_context = timed(lambda _: "encode", tokenizer.encode_context)
    tokenizer.decode_frames = timed(lambda _: "decode", tokenizer.decode_frames)
    dynamics.look = timed(lambda _: "look", dynamics.look)
    dynamics._pass = timed(lambda args: "draft" if isinstance(args[0], Draft) else "check", dynamics._pass)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    options = Options(num_future=NUM_FUTURE)
    world = build_world(options).eval()
    world.tokenizer.to(memory_format=torch.channels_last)
    frames, actions = clips(options, world.spec.resolution)
    parts: Parts = defaultdict(list)
    watch(world, parts)
    rounds, wholes = [], []
    with torch.no_grad():
        for number in range(ROUNDS + 1):  # the first makes the draft and the tiles' kernels
            parts.clear()
            began = time.process_time()
            state = world.begin(frames[:, :1], frames=NUM_FUTURE)
            begun = time.process_time() - began
            world.rollout(state, actions[:, :-1])
            if number:
                wholes.append(time.process_time() - began)
                sums = {name: sum(seconds) for name, seconds in parts.items()}
                rounds.append(sums | {"begin": begun - sums["encode"] - sums["look"]})
        counts = {name: len(seconds) for name, seconds in parts.items()}
        spent = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        operations = flops(world, frames, actions)
    layers, head = world.transformer.llm.model.layers, world.transformer.llm.lm_head.weight
    weights = count_parameters(layers) + world.tokenizer.layout.num_dynamics_codes * head.shape[1]
    num_tokens = world.tokenizer.layout.tokens_per_frame + 1
    operations["look"] = 2 * count_parameters(layers) * world.tokenizer.layout.prompt_length
    operations["check"] = 2 * weights * num_tokens * counts["check"]
    read = {"draft": 2 * weights * counts["draft"], "check": 4 * weights * counts["check"]}
    peak = peaks()
    least = {
        name: max(operations.get(name, 0) / peak["flops_per_s"], read.get(name, 0) / peak["bytes_per_s"])
        for name in spent
    }
    found = {
        "command": "python experiments/ivideogpt/limits.py",
        "commit": git_commit(),
        "machine": machine(),
        "peaks": peak,
        "rollout_s": statistics.median(wholes),
        "frames_per_s": NUM_FUTURE / statistics.median(wholes),
        "parts": {
            name: {
                "share": spent[name] / statistics.median(wholes),
                "s": spent[name],
                "least_s": least[name],
                "calls": counts.get(name, 1),
                "gflop": operations.get(name, 0) / 1e9,
                "mib_read": read.get(name, 0) / 2**20,
            }
            for name in spent
        },
        "least_rollout_s": sum(least.values()),
        "most_frames_per_s": NUM_FUTURE / sum(least.values()),
    }
    write_json(out, found)
    print(found)


def flops(world: Any, frames: torch.Tensor, actions: torch.Tensor) -> dict[str, float]:
    """Of the convolutions and products of the tokenizer's parts, as it computes them."""
    found = {}
    with FlopCounterMode(display=False) as counter:
        world.tokenizer.encode_context(frames[:, :1])
    found["encode"] = float(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter:
        state = world.begin(frames[:, :1], frames=NUM_FUTURE)
    found["begin"] = float(counter.get_total_flops()) - found["encode"]
    with FlopCounterMode(display=False) as counter:
        world.rollout(state, actions[:, :-1])
    found["decode"] = float(counter.get_total_flops())
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
