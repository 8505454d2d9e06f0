"""Guiders in ordinary diffusers pipelines, which have no place for one: ``with guided(pipe, guider): pipe(...)``.

The network's call is answered with the guided prediction. Only PyTorch's own hooks and two wrapped methods of the
scheduler are used, and all are gone when the block ends, with an exception too.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.icg.guiders.base import WeakBranchGuidance
from toolkit.icg.guiders.batching import can_batch, stack_arguments
from toolkit.icg.guiders.clock import SchedulerClock

NATIVE_OFF = "switch the pipeline's own guidance off (guidance_scale=1.0; true_cfg_scale=1.0 for Flux)"


@contextmanager
def guided(
    pipe: Any,
    guider: Any,
    *,
    null: Mapping[str, Tensor | int] | None = None,
    denoiser: str | None = None,
    time_unit: float | None = None,
    batched: bool = False,
) -> Iterator[Any]:
    """Inside the block ``pipe(...)`` samples with ``guider``; call it with its own guidance switched off.

    Args:
        pipe: a diffusers pipeline with a scheduler and a UNet or transformer. Modular pipelines take the guider as
            their component instead.
        guider: ours, or one of diffusers (those that read a negative prompt need ``null``).
        null: the negative condition by field: a tensor (1 or B, ...), or an int for ``class_labels``.
        denoiser: name of the network's attribute, where a pipeline has several.
        time_unit: steps of the scheduler per unit of the time that the network sees, where this is not known.
        batched: one forward of twice the rows (thrice with ICG and TSG) instead of as many calls.

    Yields:
        the pipeline.

    Raises:
        UserError: no network or scheduler; the pipeline's own guidance is on; the network's time is not the
            scheduler's; no condition for ICG; ``batched`` with a guider that changes the network between its calls.
    """
    network = _network_of(pipe, denoiser)
    if batched and not can_batch(guider):
        raise UserError(f"batched: {type(guider).__name__} changes the network between its calls")
    loop = _Loop(pipe, network, time_unit)
    call = _GuidedCall(network, guider, loop, null or {}, batched)
    with ExitStack() as stack:
        if isinstance(guider, WeakBranchGuidance):
            guider.bind(_uncompiled(network))
            guider.set_clock(SchedulerClock(pipe.scheduler))
            stack.callback(guider.set_clock, None)
            stack.callback(guider.end_run)
        stack.callback(lambda: guider.cleanup_models(network))
        stack.enter_context(_replaced(pipe.scheduler, "set_timesteps", loop.begins))
        stack.enter_context(_replaced(pipe.scheduler, "step", loop.steps))
        if hasattr(pipe, "encode_prompt"):
            stack.enter_context(_replaced(pipe, "encode_prompt", _warn_of_negative_prompt))
        for handle in call.hook():
            stack.callback(handle.remove)
        yield pipe


class _Loop:
    """Where a pipeline's denoising loop is, told by its scheduler."""

    def __init__(self, pipe: Any, network: nn.Module, time_unit: float | None) -> None:
        self.pipe, self.scheduler = pipe, pipe.scheduler
        self.time_unit = _time_unit(network, pipe.scheduler) if time_unit is None else time_unit
        self.times = np.zeros(0)
        self.first: int | None = None
        self.step = self.rows = 0
        self.called = False

    def begins(self, set_timesteps: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = set_timesteps(*args, **kwargs)
            self.times = self.scheduler.timesteps.detach().cpu().double().numpy()
            self.first, self.step, self.called = None, 0, False
            return result

        return wrapper

    def steps(self, step: Callable[..., Any]) -> Callable[..., Any]:
        parameters = inspect.signature(step)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            sample = parameters.bind_partial(*args, **kwargs).arguments.get("sample")
            if self.called and isinstance(sample, Tensor) and self.rows > len(sample):
                raise UserError(f"{type(self.pipe).__name__} doubles its batch: {NATIVE_OFF}")
            result = step(*args, **kwargs)
            self.step, self.called = self.step + 1, False
            return result

        return wrapper

    def enter(self, time: Any, rows: int) -> tuple[int, int, float]:
        """(step, number of steps, the scheduler's time) of a call at the network's ``time``."""
        if self.called:
            raise UserError(f"{type(self.pipe).__name__} calls its network twice in a step: {NATIVE_OFF}")
        if getattr(self.pipe, "do_classifier_free_guidance", False):
            raise UserError(f"{type(self.pipe).__name__} has guidance of its own switched on: {NATIVE_OFF}")
        if self.first is None:
            self.first = self._find(float(torch.as_tensor(time).flatten()[0]) * self.time_unit)
        self.called, self.rows = True, rows
        index = min(self.first + self.step, len(self.times) - 1)
        return self.step, len(self.times) - self.first, float(self.times[index])

    def _find(self, time: float) -> int:
        """Position in the schedule of a run's first time; image-to-image pipelines begin in the middle."""
        if not len(self.times):
            raise UserError(f"{type(self.pipe).__name__} did not call its scheduler's set_timesteps inside guided()")
        distances = np.abs(self.times - time)
        nearest = int(distances.argmin())
        if distances[nearest] > 0.01 * np.abs(self.times).max():  # bfloat16 times are 0.4% off
            raise UserError(
                f"time_unit: the network's time {time / self.time_unit:g} times {self.time_unit:g} is none of the "
                f"scheduler's ({self.times.max():g} to {self.times.min():g}); pass the right time_unit"
            )
        return nearest


class _GuidedCall:
    """Answers the network's calls with the guider's prediction.

    The first of the guider's calls is the one that the pipeline makes, with its arguments exchanged before it; the
    others follow when it returns.
    """

    def __init__(
        self, network: nn.Module, guider: Any, loop: _Loop, null: Mapping[str, Tensor | int], batched: bool
    ) -> None:
        self.network, self.guider, self.loop, self.null, self.batched = network, guider, loop, null, batched
        self.parameters = inspect.signature(type(_uncompiled(network)).forward)
        if "timestep" not in self.parameters.parameters:
            raise UserError(f"{type(network).__name__} takes no timestep: guided() does not know how it is called")
        self.inner = False
        self.states: list[Any] = []
        self.arguments: dict[str, Any] = {}

    def hook(self) -> list[Any]:
        """Attach to the network; returns the handles that detach."""
        before = self.network.register_forward_pre_hook(self._before, with_kwargs=True)
        return [before, self.network.register_forward_hook(self._after)]

    def _before(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.inner:
            return None
        bound = self.parameters.bind(network, *args, **kwargs).arguments
        self.arguments = {name: value for name, value in bound.items() if name != "self"}
        self.sample = next(iter(self.arguments.values()))
        self.guider.set_state(*self.loop.enter(self.arguments["timestep"], len(self.sample)))
        self.states = self.guider.prepare_inputs(self._inputs())
        if self.batched and len(self.states) > 1:
            return (), self._prepare_batch()
        self.guider.prepare_models(network)
        return (), self._call_arguments(self.states[0])

    def _after(self, network: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.inner:
            return None
        self.guider.cleanup_models(network)
        first = _prediction(output)
        predictions = [first]
        if len(first) > len(self.sample):
            predictions = list(first.chunk(len(self.states)))
        else:
            predictions += [self._call(state) for state in self.states[1:]]
        return _with_prediction(output, self._guide(predictions))

    def _call(self, state: Any) -> Tensor:
        self.inner = True
        try:
            self.guider.prepare_models(self.network)
            return _prediction(self.network(**self._call_arguments(state)))
        finally:
            self.inner = False
            self.guider.cleanup_models(self.network)

    def _prepare_batch(self) -> dict[str, Any]:
        if hasattr(self.guider, "prepare_models_batched"):
            self.guider.prepare_models_batched(self.network, len(self.sample))
        return stack_arguments([self._call_arguments(state) for state in self.states], len(self.sample))

    def _guide(self, predictions: list[Tensor]) -> Tensor:
        """Learned variances (DiT) are the conditional branch's; only the prediction itself is guided."""
        channels = self.sample.shape[1]
        split = self.sample.dim() == 4 and predictions[0].shape[1] == 2 * channels
        for state, prediction in zip(self.states, predictions, strict=True):
            state.noise_pred = prediction[:, :channels] if split else prediction
        pred = self.guider(self.states)[0]
        return torch.cat([pred, predictions[0][:, channels:]], dim=1) if split else pred

    def _inputs(self) -> dict[str, Any]:
        """Every tensor argument as a field; those inside ``added_cond_kwargs`` under their own names."""
        flat = {**self.arguments, **(self.arguments.get("added_cond_kwargs") or {})}
        first = next(iter(self.arguments))
        fields = {name: value for name, value in flat.items() if isinstance(value, Tensor)}
        fields = {name: value for name, value in fields.items() if name not in (first, "timestep")}
        for name in self.null:
            if name not in fields:
                raise UserError(f"null: {name!r} is not an input of the network; there are {', '.join(fields)}")
        return {name: (value, self._null(name, value)) if self.null else value for name, value in fields.items()}

    def _null(self, name: str, value: Tensor) -> Tensor:
        null = self.null.get(name, value)
        if not isinstance(null, Tensor):
            return torch.full_like(value, null)
        return null.to(value).expand_as(value)

    def _call_arguments(self, state: Any) -> dict[str, Any]:
        arguments = {name: getattr(state, name, value) for name, value in self.arguments.items()}
        added = arguments.get("added_cond_kwargs")
        if added:
            arguments["added_cond_kwargs"] = {name: getattr(state, name, value) for name, value in added.items()}
        return arguments


def _network_of(pipe: Any, name: str | None) -> nn.Module:
    kind = type(pipe).__name__
    if hasattr(pipe, "blocks") and hasattr(pipe, "update_components"):
        raise UserError(f"{kind} is modular: give it the guider with update_components(guider=...)")
    if getattr(pipe, "scheduler", None) is None:
        raise UserError(f"{kind} has no scheduler: guided() works on diffusers pipelines")
    names = [name] if name else ["transformer", "transformer_2", "unet"]
    networks = [part for one in names if isinstance(part := getattr(pipe, one, None), nn.Module)]
    if len(networks) != 1:
        modules = [one for one, part in pipe.components.items() if isinstance(part, nn.Module)]
        raise UserError(f"denoiser: cannot tell the network of {kind}; name one of {', '.join(modules)}")
    if getattr(networks[0], "_compiled_call_impl", None) is not None:
        raise UserError(
            f"{type(networks[0]).__name__} was compiled in place, hooks and all: use torch.compile(network)"
        )
    return networks[0]


def _uncompiled(network: nn.Module) -> Any:
    """What ``torch.compile`` wrapped."""
    return getattr(network, "_orig_mod", network)


def _time_unit(network: nn.Module, scheduler: Any) -> float:
    """Scheduler steps per unit of the network's time: Flux sees t / 1000, Sana t times a factor of its config."""
    kind = type(_uncompiled(network)).__name__
    if kind.startswith("Flux"):
        return scheduler.config.num_train_timesteps
    return 1 / _uncompiled(network).config.get("timestep_scale", 1.0) if kind.startswith("Sana") else 1.0


@contextmanager
def _replaced(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Wrap a method of one object, keeping its signature, which pipelines inspect."""
    method = getattr(owner, name)
    shadowed = owner.__dict__.get(name)
    owner.__dict__[name] = functools.wraps(method)(wrap(method))
    try:
        yield
    finally:
        if shadowed is None:
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = shadowed


def _warn_of_negative_prompt(encode_prompt: Callable[..., Any]) -> Callable[..., Any]:
    parameters = inspect.signature(encode_prompt)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = parameters.bind_partial(*args, **kwargs).arguments
        negatives = [value for name, value in given.items() if name.startswith("negative_prompt")]
        if any(isinstance(value, Tensor) or value for value in negatives):
            warnings.warn(
                "guided: the negative prompt is ignored; the guider makes its own second branch", stacklevel=3
            )
        return encode_prompt(*args, **kwargs)

    return wrapper


def _prediction(output: Any) -> Tensor:
    return output[0]


def _with_prediction(output: Any, prediction: Tensor) -> Any:
    if isinstance(output, tuple):
        return (prediction, *output[1:])
    return type(output)(**{**output, next(iter(output)): prediction})
