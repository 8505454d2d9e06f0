"""Guidance on our own denoisers: ``guided_denoiser(...)`` is a ``denoise(x, sigma)`` for the samplers of the zoo.

The condition is the class, the discrete latents of DisCo-Diff, or both: with ICG the independent condition may thus be
another class, another z, or another pair. (Sadat et al. 2025 guide on classes, text and images only.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.errors import UserError
from toolkit.icg.guiders.base import WeakBranchGuidance
from toolkit.icg.guiders.batching import can_batch, stack_arguments
from toolkit.icg.guiders.clock import NoiseLevels


class GuidedDenoiser:
    """A denoiser with its conditions fixed and a guider at work; call it with (x, sigma).

    Args:
        denoiser: called as denoiser(x, sigma, class_labels=..., latents=...) -> D; TSG needs an nn.Module.
        guider: one of ours, or of diffusers (classifier-free guidance and its variants, with ``null``).
        class_labels: int64 (B,) or one-hot (B, K). latents: as Denoiser takes them. None: not passed on.
        null: what the negative branch sees instead: field -> tensor, or None for "dropped".
        num_evaluations: calls of one run, needed for ``start`` and ``stop``.
        batched: all network calls of an evaluation in one forward of as many times the rows.

    ``num_calls`` counts network calls per sample since construction. One object is one run: for another run with the
    same random numbers build another, or call ``restart``.

    Raises:
        UserError: ``batched`` with a guider that changes the network itself.
    """

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        guider: Any,
        class_labels: Tensor | None = None,
        latents: Tensor | None = None,
        null: Mapping[str, Tensor | None] | None = None,
        num_evaluations: int | None = None,
        batched: bool = False,
    ) -> None:
        if batched and not can_batch(guider):
            raise UserError(f"batched: {type(guider).__name__} changes the network between its calls")
        self.denoiser, self.guider, self.batched = denoiser, guider, batched
        self.num_evaluations, self.num_calls, self.step = num_evaluations, 0, 0
        given = {"class_labels": class_labels, "latents": latents}
        self.conditions = {name: torch.as_tensor(value) for name, value in given.items() if value is not None}
        self.null = self._complete(null)
        if isinstance(guider, WeakBranchGuidance):
            guider.bind(denoiser)  # type: ignore[arg-type]
            self._for_annealing(guider)

    def restart(self) -> None:
        """Begin a run anew, with the same random numbers."""
        self.step = 0

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """D_hat (B, ...) at noise level ``sigma``. Raises UserError for conditions of another number of samples."""
        for name, value in self.conditions.items():
            if len(value) not in (1, len(x)):
                raise UserError(f"{name}: {len(value)} rows for {len(x)} samples; give one for each")
        ours = isinstance(self.guider, WeakBranchGuidance)
        if ours:
            self.guider.set_clock(NoiseLevels())
        self.guider.set_state(self.step, self.num_evaluations, sigma)
        self.step += 1
        states = self.guider.prepare_inputs(self._inputs())
        self.num_calls += len(states)
        try:
            evaluate = self._in_one_call if self.batched and len(states) > 1 else self._one_by_one
            evaluate(states, x, sigma)
            return self.guider(states).pred
        finally:
            self.guider.cleanup_models(self.denoiser)
            if ours:
                self.guider.set_clock(None)

    def _one_by_one(self, states: list[Any], x: Tensor, sigma: Tensor | float) -> None:
        for state in states:
            self.guider.prepare_models(self.denoiser)
            # noise in the time embedding is per sample, so that call needs a row of it per sample
            per_sample = state.__guidance_identifier__ == "pred_cond_tsg"
            level = _levels(sigma, x, len(x)) if per_sample else sigma
            state.noise_pred = self.denoiser(x, level, **self._arguments(state))
            self.guider.cleanup_models(self.denoiser)

    def _in_one_call(self, states: list[Any], x: Tensor, sigma: Tensor | float) -> None:
        if hasattr(self.guider, "prepare_models_batched"):
            self.guider.prepare_models_batched(self.denoiser, len(x))
        calls = [{"x": x, "sigma": _levels(sigma, x, len(x)), **self._arguments(state)} for state in states]
        predictions = self.denoiser(**stack_arguments(calls, len(x))).chunk(len(states))
        for state, prediction in zip(states, predictions, strict=True):
            state.noise_pred = prediction

    def _inputs(self) -> dict[str, Any]:
        if self.null is None:
            return dict(self.conditions)
        return {name: (value, self.null[name]) for name, value in self.conditions.items()}

    def _arguments(self, state: Any) -> dict[str, Tensor]:
        return {name: getattr(state, name) for name in self.conditions}

    def _complete(self, null: Mapping[str, Tensor | None] | None) -> dict[str, Tensor] | None:
        """The null condition of every field: as given, else the field's own "dropped" value."""
        if null is None:
            return None
        for name in null:
            if name not in self.conditions:
                raise UserError(f"null: {name!r} is not among the conditions ({', '.join(self.conditions) or 'none'})")
        return {
            name: self._dropped(name, value) if null.get(name, value) is None else null.get(name, value)  # type: ignore
            for name, value in self.conditions.items()
        }

    def _dropped(self, name: str, value: Tensor) -> Tensor:
        """All-zero labels and null codes, as the zoo's networks know them."""
        if name == "latents" and not value.is_floating_point():
            return torch.full_like(value, -1)
        if name == "class_labels" and not value.is_floating_point():
            return torch.zeros(len(value), self._num_classes(), device=value.device)
        return torch.zeros_like(value)

    def _for_annealing(self, guider: WeakBranchGuidance) -> None:
        """CADS adds noise to vectors: integer labels become one-hot."""
        parts = getattr(guider, "guiders", [guider])
        labels = self.conditions.get("class_labels")
        if labels is None or labels.is_floating_point() or not any(one.annealing.scale for one in parts):
            return
        self.conditions["class_labels"] = F.one_hot(labels, self._num_classes()).float()

    def _num_classes(self) -> int:
        num_classes = getattr(self.denoiser, "num_classes", 0)
        if not num_classes:
            raise UserError("class_labels: the denoiser does not say how many classes it has; pass one-hot vectors")
        return num_classes


def guided_denoiser(
    denoiser: Callable[..., Tensor],
    guider: Any,
    class_labels: Tensor | None = None,
    latents: Tensor | None = None,
    **options: Any,
) -> GuidedDenoiser:
    """``denoise(x, sigma)`` with guidance; see GuidedDenoiser for the arguments."""
    return GuidedDenoiser(denoiser, guider, class_labels, latents, **options)


def _levels(sigma: Tensor | float, x: Tensor, batch_size: int) -> Tensor:
    level = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1)
    return level.expand(batch_size)
