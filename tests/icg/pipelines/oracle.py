"""Guidance written once more: the network's ``forward`` is replaced, and nothing of ours is called."""

from __future__ import annotations

import inspect
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tests.icg.pipelines.parts import Case

SCALE, SIZE, SEED = 3.0, 1.5, 5


def other(name: str, real: Tensor, num_classes: int) -> Tensor:
    """What takes the place of a condition: noise of a seed that is the name's, or the next class."""
    if not real.is_floating_point():
        return (real + 1) % num_classes
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(real.shape[1:], generator=generator).expand(real.shape).to(real)


@contextmanager
def replaced(case: Case, weak: Callable[[Callable[..., Any], dict[str, Any]], Any]) -> Iterator[None]:
    """Within: the network answers with weak + w (own - weak), and its variance is its own."""
    network, forward = case.network, case.network.forward
    signature = inspect.signature(type(network).forward)

    def guided(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(network, *args, **kwargs).arguments
        given.pop("self")
        own, made = forward(**copied(given)), weak(forward, copied(given))
        first, second = own[0], made[0]
        if isinstance(first, list):
            return ([b + SCALE * (a - b) for a, b in zip(first, second, strict=True)], *own[1:])
        prediction = second + SCALE * (first - second)
        if case.learned:
            half = first.shape[1] // 2
            prediction = torch.cat([prediction[:, :half], first[:, half:]], 1)
        return (prediction,) if isinstance(own, tuple) else type(own)(prediction)

    network.forward = guided
    try:
        yield
    finally:
        del network.forward


def copied(value: Any) -> Any:
    """Containers of its own."""
    if isinstance(value, dict):
        return {name: copied(one) for name, one in value.items()}
    return [copied(one) for one in value] if isinstance(value, list) else value


def independent_condition(case: Case) -> Callable[[Callable[..., Any], dict[str, Any]], Any]:
    """The second branch of ICG."""

    def weak(forward: Callable[..., Any], given: dict[str, Any]) -> Any:
        for place in (given, given.get("added_cond_kwargs") or {}):
            for name in case.drawn:
                if isinstance(place.get(name), Tensor):
                    place[name] = other(name, place[name], case.num_classes)
        return forward(**given)

    return weak


def by_noise_level(scheduler: Any) -> bool:
    """Whether time is log sigma / 4: two ways to t then part by a rounding of powers and exponentials."""
    return scheduler.config.get("timestep_type") == "continuous" or "EDM" in type(scheduler).__name__


def share(scheduler: Any, time: float) -> float:
    """t in [0, 1]: steps over their number; IPNDM's own; where log sigma / 4 is counted, that of EDM's schedule."""
    if type(scheduler).__name__ == "IPNDMScheduler":
        return time
    if by_noise_level(scheduler):
        ends = [scheduler.config[name] ** (1 / 7) for name in ("sigma_min", "sigma_max")]
        return (2.718281828459045 ** (4 * time / 7) - ends[0]) / (ends[1] - ends[0])
    return time / scheduler.config.num_train_timesteps


def noisy_time(case: Case, num_calls: int) -> Callable[[Callable[..., Any], dict[str, Any]], Any]:
    """The second branch of TSG: s t std(t_emb) n on the time embedding, n from a generator of its own."""
    generator, step = torch.Generator().manual_seed(SEED), iter(range(num_calls))

    def weak(forward: Callable[..., Any], given: dict[str, Any]) -> Any:
        times = case.pipe.scheduler.timesteps
        t = share(case.pipe.scheduler, float(times[len(times) - num_calls + next(step)]))
        rows = len(next(iter(given.values())))
        noise: Tensor | None = None

        def change(module: Any, args: Any, output: Tensor) -> Tensor:
            nonlocal noise
            if noise is None:
                noise = torch.randn(min(rows, len(output)), output.shape[-1], generator=generator)
            spread = noise.repeat_interleave(len(output) // len(noise), 0)
            return output + SIZE * t * output.std(-1, keepdim=True) * spread

        handles = [
            part.register_forward_hook(change)
            for name, part in case.network.named_modules()
            if re.fullmatch(case.time, name)
        ]
        assert handles, f"no module {case.time}"
        try:
            return forward(**given)
        finally:
            for handle in handles:
                handle.remove()

    return weak
