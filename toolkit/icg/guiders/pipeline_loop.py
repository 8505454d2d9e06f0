"""What guidance needs of a pipeline: its networks, its own guidance, and its loop's position (from the scheduler)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from toolkit.errors import UserError

EXPERTS = ("transformer", "transformer_2")
NETWORKS = (*EXPERTS, "unet")


def networks_of(pipe: Any, name: str | None) -> list[nn.Module]:
    """The network that is guided, or the experts that share the steps among them (Wan 2.2)."""
    kind = type(pipe).__name__
    if hasattr(pipe, "blocks") and hasattr(pipe, "update_components"):
        raise UserError(f"{kind} is modular: give it the guider with update_components(guider=...)")
    if getattr(pipe, "scheduler", None) is None:
        raise UserError(f"{kind} has no scheduler: guided() works on diffusers pipelines")
    there = _networks_there(pipe)
    experts = [there[one] for one in EXPERTS if one in there] if pipe.config.get("boundary_ratio") is not None else []
    if name in EXPERTS and len(experts) > 1:
        raise UserError(f"denoiser={name}: the two transformers of {kind} share the steps; leave denoiser out")
    named = getattr(pipe, name, None) if name else None
    chosen = experts or ([named] if isinstance(named, nn.Module) else [] if name else list(there.values()))
    if len(chosen) != 1 and chosen is not experts:
        modules = [one for one, part in pipe.components.items() if isinstance(part, nn.Module)]
        raise UserError(f"denoiser: cannot tell the network of {kind}; name one of {', '.join(modules)}")
    for network in chosen:
        if getattr(network, "_compiled_call_impl", None) is not None:
            raise UserError(
                f"{type(network).__name__} was compiled in place, hooks and all: use torch.compile(network)"
            )
    return chosen


def _networks_there(pipe: Any) -> dict[str, nn.Module]:
    return {one: part for one in NETWORKS if isinstance(part := getattr(pipe, one, None), nn.Module)}


def uncompiled(network: nn.Module) -> Any:
    """What ``torch.compile`` wrapped."""
    return getattr(network, "_orig_mod", network)


def flattened(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A network's arguments, those inside ``added_cond_kwargs`` under their own names."""
    return {**arguments, **(arguments.get("added_cond_kwargs") or {})}


class _AtScale:
    """A pipeline as it is while called with this guidance scale, to be asked whether it guides."""

    def __init__(self, pipe: Any, scale: float) -> None:
        self._pipe, self._scale = pipe, scale

    def __getattr__(self, name: str) -> Any:
        return self._scale if name.endswith("guidance_scale") else getattr(self._pipe, name)


def own_guidance_off(pipe: Any) -> dict[str, float]:
    """The arguments of its call that switch a pipeline's own guidance off; {} where it has none, or no such argument.

    A network that embeds the scale it was distilled for (Flux) keeps it.
    """
    taken = inspect.signature(type(pipe).__call__).parameters
    for names in (("true_cfg_scale",), ("min_guidance_scale", "max_guidance_scale")):
        if all(name in taken for name in names):
            return dict.fromkeys(names, 1.0)
    if "guidance_scale" not in taken:
        return {}
    guides = getattr(type(pipe), "do_classifier_free_guidance", None)
    if isinstance(guides, property):
        is_on = {scale: guides.fget(_AtScale(pipe, scale)) for scale in (1.0, 5.0)}  # type: ignore[misc]
        return {"guidance_scale": 0.0 if is_on[1.0] else 1.0} if is_on[5.0] else {}
    there = _networks_there(pipe).values()
    embedded = any("guidance" in inspect.signature(type(one).forward).parameters for one in there)
    return {} if embedded else {"guidance_scale": 1.0}


def how_to_switch_off(pipe: Any) -> str:
    """For error messages: what switches the pipeline's own guidance off."""
    if getattr(pipe, "guider", None) is not None:
        return "it guides by a component: pipe.guider = guider takes ours, and guided() is not needed"
    off = own_guidance_off(pipe)
    if not off:
        return "it has no argument that switches its own guidance off"
    return f"switch its own guidance off ({', '.join(f'{name}={value}' for name, value in off.items())})"


class Loop:
    """Step and time of every call of the network, which itself may see t / 1000, 1 - t, log sigma and more."""

    def __init__(self, pipe: Any, time_unit: float) -> None:
        self.pipe, self.scheduler, self.time_unit = pipe, pipe.scheduler, time_unit
        self.kind, self.times = type(pipe).__name__, np.zeros(0)
        self.near = 0.0  # tolerance for equal times: those in bfloat16 are off by up to 0.4 %
        self.first: int | None = None
        self.step = self.rows = 0
        self.called = False
        self.network: nn.Module | None = None  # that the guider was bound to last: experts take turns

    def begins(self, set_timesteps: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = set_timesteps(*args, **kwargs)
            self.times = self.scheduler.timesteps.detach().cpu().double().numpy()
            self.near = 0.01 * float(np.abs(self.times).max(initial=0))
            self.first, self.step, self.called, self.network = None, 0, False, None
            return result

        return wrapper

    def steps(self, step: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(step).parameters)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            given = dict(zip(names, args, strict=False)) | kwargs
            sample = given.get("sample")
            if self.called and isinstance(sample, Tensor) and self.rows > len(sample):
                raise UserError(f"{self.kind} doubles its batch: {how_to_switch_off(self.pipe)}")
            self._verify(given.get("timestep"))
            result = step(*args, **kwargs)
            self.step, self.called = self.step + 1, False
            return result

        return wrapper

    def enter(self, time: Any, rows: int) -> tuple[int, int, float]:
        """(step, number of steps, the scheduler's time) of a call at the network's ``time``."""
        if self.called:
            raise UserError(f"{self.kind} calls its network twice in a step: {how_to_switch_off(self.pipe)}")
        if getattr(self.pipe, "do_classifier_free_guidance", False):
            raise UserError(f"{self.kind} has guidance of its own switched on: {how_to_switch_off(self.pipe)}")
        if self.first is None:
            self.first = self._find(_latest(time) * self.time_unit)
        self.called, self.rows = True, rows
        return self.step, len(self.times) - self.first, self._time()

    def _time(self) -> float:
        assert self.first is not None
        return float(self.times[min(self.first + self.step, len(self.times) - 1)])

    def _find(self, time: float) -> int:
        """Position in the schedule of a run's first call; image-to-image pipelines begin in the middle.

        They set the scheduler's begin_index, where it has one. Else the network's time is looked up in the schedule, if
        it is in the scheduler's unit.
        """
        if not len(self.times):
            raise UserError(f"{self.kind} did not call its scheduler's set_timesteps inside guided()")
        begin = getattr(self.scheduler, "begin_index", None)
        if begin is not None:
            return int(begin)
        distances = np.abs(self.times - time)
        in_unit = abs(time) > 1 and distances.min() <= self.near
        return int(distances.argmin()) if in_unit else 0

    def _verify(self, time: Any) -> None:
        """Check the position against the time that the pipeline passes to its scheduler after the network's call."""
        if not self.called or isinstance(time, int) or time is None:  # some pipelines pass the number of the step
            return
        at = _latest(time)
        if abs(at - self._time()) > self.near and np.abs(self.times - at).min() <= self.near:
            raise UserError(
                f"{self.kind} begins at time {at:g} of its schedule, its network was guided as at "
                f"{self._time():g}: pass time_unit, the scheduler's time over the network's"
            )


def _latest(time: Any) -> float:
    """The largest time of a batch, given as a number or a tensor."""
    return float(time.max()) if isinstance(time, Tensor) else float(np.max(time))
