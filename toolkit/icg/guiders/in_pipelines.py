"""Guiders in ordinary diffusers pipelines, which have no guider component: ``with guided(pipe, guider): pipe(...)``.

The network's call is answered with the guided prediction. Only PyTorch's own hooks and two wrapped methods of the
scheduler are used, and all are gone when the block ends, with an exception too.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.icg.guiders.base import WeakBranchGuidance
from toolkit.icg.guiders.batching import can_batch, stack_arguments
from toolkit.icg.guiders.clock import SchedulerClock
from toolkit.icg.guiders.conditions import carries_text
from toolkit.icg.guiders.pipeline_loop import Loop, flattened, networks_of, uncompiled

_MARK = "_guided"


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
        denoiser: name of the network's attribute, where a pipeline has several that are not experts of one another.
        time_unit: steps of the scheduler per unit of the time that the network sees; only for a pipeline that begins in
            the middle of its schedule and does not tell the scheduler so.
        batched: one forward of twice the rows (thrice with ICG and TSG) instead of as many calls.

    Raises:
        UserError: no network or scheduler; the pipeline's own guidance is on; the time is not the scheduler's; no
            condition for ICG, or one that can be drawn only in part; the pipe is guided already; ``batched`` with a
            guider that changes the network between its calls.
    """
    networks = networks_of(pipe, denoiser)
    if hasattr(pipe.scheduler.__dict__.get("set_timesteps"), _MARK):
        raise UserError(f"{type(pipe).__name__} is guided already: give both guiders to CombinedGuidance")
    if batched and not can_batch(guider):
        raise UserError(f"batched: {type(guider).__name__} changes the network between its calls")
    loop = Loop(pipe, time_unit or 1.0)
    control = _Control.of(pipe, guider, networks)
    calls = [_GuidedCall(network, guider, loop, null or {}, batched, control) for network in networks]
    with ExitStack() as stack:
        if isinstance(guider, WeakBranchGuidance):
            guider.set_clock(SchedulerClock(pipe.scheduler))
            stack.callback(guider.set_clock, None)
            stack.callback(guider.end_run)
        for network in networks:
            stack.callback(guider.cleanup_models, network)
        stack.enter_context(_replaced(pipe.scheduler, "set_timesteps", loop.begins))
        stack.enter_context(_replaced(pipe.scheduler, "step", loop.steps))
        if hasattr(pipe, "encode_prompt"):
            stack.enter_context(_replaced(pipe, "encode_prompt", _warn_of_negative_prompt))
        for hooked in (*calls, *([control] if control else ())):
            stack.enter_context(hooked.hooked())
        yield pipe


class _Control:
    """A pipeline's ControlNet, called again with a random picture for the branches of the random condition."""

    RESIDUALS = ("down_block_additional_residuals", "mid_block_additional_residual")

    def __init__(self, network: nn.Module, icg: Any) -> None:
        self.network, self.icg = network, icg
        self.given: dict[str, Any] = {}
        self.inner = False

    @classmethod
    def of(cls, pipe: Any, guider: Any, networks: list[nn.Module]) -> _Control | None:
        """None where the guider keeps the picture. Raises UserError where there is none that it could draw."""
        icgs = [one for one in getattr(guider, "guiders", [guider]) if getattr(one, "control_std", None) is not None]
        if not icgs:
            return None
        takes = inspect.signature(type(uncompiled(networks[0])).forward).parameters
        if not isinstance(getattr(pipe, "controlnet", None), nn.Module) or cls.RESIDUALS[0] not in takes:
            raise UserError(f"control_std: {type(pipe).__name__} has no ControlNet beside a UNet")
        return cls(pipe.controlnet, icgs[0])

    def hooked(self) -> Any:
        """A context within which it is remembered how the pipeline calls the ControlNet."""
        return self.network.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.inner:
            bound = inspect.signature(type(network).forward).bind(network, *args, **kwargs).arguments
            self.given = {name: value for name, value in bound.items() if name != "self"}

    def residuals(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """The UNet's arguments for a random picture and the ``drawn`` arguments."""
        real = self.given["controlnet_cond"]
        draw = self.icg.random_control
        picture = [draw(one) for one in real] if isinstance(real, list) else draw(real)
        shared = {name: drawn[name] for name in ("encoder_hidden_states", "added_cond_kwargs") if name in self.given}
        self.inner = True
        try:
            made = self.network(**self.given | shared | {"controlnet_cond": picture, "return_dict": False})
        finally:
            self.inner = False
        return dict(zip(self.RESIDUALS, made, strict=True))


class _GuidedCall:
    """Answers the network's calls with the guider's prediction.

    The first of the guider's calls is the one that the pipeline makes, with its arguments exchanged before it; the
    others follow when it returns.
    """

    def __init__(
        self,
        network: nn.Module,
        guider: Any,
        loop: Loop,
        null: Mapping[str, Tensor | int],
        batched: bool,
        control: _Control | None,
    ) -> None:
        self.network, self.guider, self.loop, self.null, self.batched = network, guider, loop, null, batched
        self.control = control
        self.names = list(inspect.signature(type(uncompiled(network)).forward).parameters)[1:]
        if "timestep" not in self.names:
            raise UserError(f"{type(network).__name__} takes no timestep: guided() does not know how it is called")
        self.takes_level = "noise_level" in inspect.signature(type(loop.pipe).__call__).parameters
        self.inner = False
        self.states: list[Any] = []
        self.arguments: dict[str, Any] = {}
        self.repeats: dict[str, int] = {}

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """A context within which the network's calls are answered."""
        with (
            self.network.register_forward_pre_hook(self._before, with_kwargs=True),
            self.network.register_forward_hook(self._after),
        ):
            yield

    def _before(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.inner:
            return None
        given = dict(zip(self.names, args, strict=False)) | kwargs  # Signature.bind takes as long as a small layer
        self.sample = given.pop(self.names[0])
        self.arguments = {self.names[0]: self.sample, **given}
        if self.loop.network is not network and isinstance(self.guider, WeakBranchGuidance):
            self.guider.bind(uncompiled(network))
        self.loop.network = network
        self.num_samples = len(self.sample)
        self.guider.set_state(*self.loop.enter(self.arguments["timestep"], self.num_samples))
        self.states = self.guider.prepare_inputs(self._inputs())
        if self.batched and len(self.states) > 1:
            return (), self._prepare_batch()
        self.guider.prepare_models(network)
        return (), self._call_arguments(self.states[0])

    def _after(self, network: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.inner:
            return None
        self.guider.cleanup_models(network)
        self._refuse_more(output)
        first = _prediction(output)
        predictions = [first]
        if len(first) > self.num_samples:
            predictions = list(first.chunk(len(self.states)))
        else:
            predictions += [self._call(state) for state in self.states[1:]]
        return _with_prediction(output, self._guide(predictions))

    def _refuse_more(self, output: Any) -> None:
        """A picture and its sound: one would be guided, the other not."""
        made = output if isinstance(output, tuple) else tuple(output.values())
        if sum(isinstance(one, Tensor) for one in made) > 1:
            raise UserError(f"{type(self.network).__name__} makes {len(made)} predictions at once: one can be guided")

    def _call(self, state: Any) -> Tensor:
        self.inner = True
        try:
            self.guider.prepare_models(self.network)
            with self._own_cache(state):
                return _prediction(self.network(**self._call_arguments(state)))
        finally:
            self.inner = False
            self.guider.cleanup_models(self.network)

    def _own_cache(self, state: Any) -> AbstractContextManager[Any]:
        """A cache of blocks keeps this branch's features apart from those of the pipeline's own branch."""
        if not getattr(self.network, "is_cache_enabled", False):
            return nullcontext()
        return self.network.cache_context(_branch(state))  # type: ignore[operator]

    def _prepare_batch(self) -> dict[str, Any]:
        if hasattr(self.guider, "prepare_models_batched"):
            self.guider.prepare_models_batched(self.network, self.num_samples)
        return stack_arguments([self._call_arguments(state) for state in self.states], self.num_samples)

    def _guide(self, predictions: list[Tensor]) -> Tensor:
        """Learned variances (DiT, IF) are the conditional branch's; only the prediction itself is guided."""
        channels = self._guided_channels(predictions[0])
        for state, prediction in zip(self.states, predictions, strict=True):
            state.noise_pred = prediction if channels is None else prediction[:, :channels]
        pred = self.guider(self.states)[0]
        return pred if channels is None else torch.cat([pred, predictions[0][:, channels:]], dim=1)

    def _guided_channels(self, prediction: Tensor) -> int | None:
        """How many channels are the prediction; None where all are."""
        if prediction.dim() < 4:
            return None  # (B, tokens, C)
        if str(self.loop.scheduler.config.get("variance_type")).startswith("learned"):
            return prediction.shape[1] // 2
        return self.sample.shape[1] if prediction.shape[1] == 2 * self.sample.shape[1] else None

    def _inputs(self) -> dict[str, Any]:
        """Every tensor argument as a field; those inside ``added_cond_kwargs`` under their own names."""
        flat = flattened(self.arguments)
        first = next(iter(self.arguments))
        fields = {name: value for name, value in flat.items() if isinstance(value, Tensor)}
        labels = fields.get("class_labels")
        kept = {first, "timestep"}
        if self.takes_level and labels is not None and not labels.is_floating_point():
            kept.add("class_labels")  # of upscalers: how noisy their picture is, no condition
        fields = {name: value for name, value in fields.items() if name not in kept}
        self._refuse_lists(flat)
        counts = {name: _repeats(value, self.num_samples) for name, value in fields.items()}
        self.repeats = {name: count for name, count in counts.items() if count > 1}
        fields |= {name: fields[name][::count] for name, count in self.repeats.items()}
        for name in self.null:
            if name not in fields:
                raise UserError(f"null: {name!r} is not an input of the network; there are {', '.join(fields)}")
        return {name: (value, self._null(name, value)) if self.null else value for name, value in fields.items()}

    def _refuse_lists(self, flat: Mapping[str, Any]) -> None:
        """A prompt in a list of tensors cannot be drawn, and must not be kept beside one that is."""
        if not getattr(self.guider, "draws_all_text", False):
            return
        for name, value in flat.items():
            listed = isinstance(value, (list, tuple)) and any(isinstance(one, Tensor) for one in value)
            if listed and carries_text(name):
                raise UserError(
                    f"{name}: a list of embeddings, which cannot be drawn; name the fields to draw, fields="
                )

    def _null(self, name: str, value: Tensor) -> Tensor:
        null = self.null.get(name, value)
        if not isinstance(null, Tensor):
            return torch.full_like(value, null)
        if null.shape[1:] != value.shape[1:] or len(null) not in (1, len(value)):
            raise UserError(f"null: {name} is {tuple(null.shape)}, needed {tuple(value.shape)}, or one row of it")
        return null.to(value).expand_as(value).contiguous()

    def _call_arguments(self, state: Any) -> dict[str, Any]:
        """Of one branch. Lists and dictionaries are its own: some networks take things out of those that they get."""
        arguments = {name: self._of(state, name, value) for name, value in self.arguments.items()}
        added = self.arguments.get("added_cond_kwargs")
        if added:
            arguments["added_cond_kwargs"] = {name: self._of(state, name, value) for name, value in added.items()}
        if self.control is not None and _branch(state).startswith("pred_uncond"):
            arguments |= self.control.residuals(arguments)
        return arguments

    def _of(self, state: Any, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or not hasattr(state, name):
            return _own_containers(value)
        drawn = getattr(state, name)
        return drawn.repeat_interleave(self.repeats[name], 0) if name in self.repeats else drawn


def _branch(state: Any) -> str:
    """Its name among the guider's predictions."""
    return getattr(state, "__guidance_identifier__", "weak")


def _own_containers(value: Any) -> Any:
    """The same tensors in lists, tuples and dictionaries of their own."""
    if isinstance(value, dict):
        return {key: _own_containers(one) for key, one in value.items()}
    return type(value)(map(_own_containers, value)) if type(value) in (list, tuple) else value


def _repeats(value: Tensor, num_samples: int) -> int:
    """n where each sample's row stands there n times in turn, as text does for the frames of a video; else 1."""
    count, rest = divmod(len(value) if value.dim() else 0, num_samples)
    if rest or count < 2:
        return 1
    grouped = value.unflatten(0, (num_samples, count))
    return count if torch.equal(grouped, grouped[:, :1].expand_as(grouped)) else 1


@contextmanager
def _replaced(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Wrap a method of one object, keeping its signature, which pipelines inspect."""
    method = getattr(owner, name)
    shadowed = owner.__dict__.get(name)
    replaced = functools.wraps(method)(wrap(method))
    setattr(replaced, _MARK, True)
    owner.__dict__[name] = replaced
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
