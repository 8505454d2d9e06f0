"""Skip-layer guidance (SLG): the weak branch leaves some transformer blocks out, under the same condition.

Of Stable Diffusion 3.5 (Stability AI 2024), and the spatio-temporal skip guidance of Hyung et al. 2024
(arXiv:2411.18664) with residual skips:  D_hat = D_skip + w (D_cond - D_skip).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.icg.guiders.base import Branch, Inputs, WeakBranchGuidance, check_scale
from toolkit.icg.guiders.hooks import OutputChange
from toolkit.icg.guiders.interval import Interval


class SkipLayerGuidance(WeakBranchGuidance):
    """Two network calls a step, three with classifier-free guidance; any network whose blocks diffusers can skip.

    Args:
        skip_scale: w, 1 is off. layers: numbers of the blocks that are skipped, counted from 0.
        guidance_scale: of classifier-free guidance beside it, which reads the negative prompt or ``null``; 1 is off.

    The rest as in IndependentConditionGuidance.

    Raises:
        UserError: a setting out of range; at the first step, a network that has no such blocks.
    """

    _input_predictions = ["pred_cond", "pred_cond_skip", "pred_uncond"]  # noqa: RUF012 (diffusers demands a list)
    purpose = "slg"

    @register_to_config
    def __init__(
        self,
        skip_scale: float = 2.8,
        layers: Sequence[int] = (7, 8, 9),
        t_min: float = 0.0,
        t_max: float = 1000.0,
        num_train_timesteps: float = 1000,
        guidance_scale: float = 1.0,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        guidance_rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        check_scale("skip_scale", skip_scale)
        check_scale("guidance_scale", guidance_scale)
        super().__init__(
            interval=Interval(start, stop, t_min, t_max, sigma_min, sigma_max),
            num_train_timesteps=num_train_timesteps,
            guidance_rescale=guidance_rescale,
            enabled=enabled,
        )
        self.skip_scale, self.guidance_scale, self.layers = skip_scale, guidance_scale, tuple(layers)

    def _num_branches(self) -> int:
        return (not self._is_off(self.skip_scale)) + self._needs_negative() if self.is_active() else 0

    def _needs_negative(self) -> bool:
        return self._enabled and not self._is_off(self.guidance_scale)

    def _branches(self, data: Inputs) -> list[Branch]:
        branches: list[Branch] = []
        if self._num_branches() and not self._is_off(self.skip_scale):
            skip = OutputChange(lambda network: find_blocks(network, self.layers), skips=passed_through)
            branches.append(Branch("pred_cond_skip", self, "slg", self.skip_scale, changes=(skip,)))
        if self._num_branches() and self._needs_negative():
            branches.append(Branch("pred_uncond", self, "cfg", self.guidance_scale, slot=1))
        return branches


def find_blocks(network: nn.Module, layers: Sequence[int]) -> list[tuple[str, nn.Module]]:
    """The transformer blocks of those numbers, in the first stack of ``network``.

    Raises UserError for numbers that are not there, and for a network without blocks that can be skipped.
    """
    stacks = [(name, one) for name, one in network.named_children() if isinstance(one, nn.ModuleList) and _known(one)]
    if not stacks:
        raise UserError(f"{type(network).__name__} has no transformer blocks that can be skipped")
    name, blocks = stacks[0]
    for layer in layers or (-1,):
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < len(blocks):
            raise UserError(f"layers={list(layers)}: {name} of {type(network).__name__} are 0 .. {len(blocks) - 1}")
    return [(f"{name}.{layer}", blocks[layer]) for layer in sorted(set(layers))]


def _known(blocks: nn.ModuleList) -> bool:
    return len(blocks) > 0 and all(_places(type(one)) is not None for one in blocks)


def _places(kind: type) -> Any:
    """What diffusers knows of a kind of block: where its output has what its arguments brought; None if nothing."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    try:
        return TransformerBlockRegistry.get(kind)
    except ValueError:
        return None


def passed_through(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """What ``block`` would give if it did nothing: its arguments, in the order of its output."""
    given = inspect.signature(type(block).forward).bind(block, *args, **kwargs).arguments
    known = _places(type(block))
    if isinstance(output, Tensor):
        return given[known.hidden_states_argument_name]
    made = list(output)
    made[known.return_hidden_states_index] = given[known.hidden_states_argument_name]
    if known.return_encoder_hidden_states_index is not None:
        made[known.return_encoder_hidden_states_index] = given[known.encoder_hidden_states_argument_name]
    return tuple(made)
