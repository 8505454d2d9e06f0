"""Parameters and operations of networks, counted without memory for their weights.

Counting all named networks takes most of a minute, so ``counts.json`` keeps what was found; a test counts again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.zoo.catalogue import NAMED, PUBLISHED, resolve

if TYPE_CHECKING:
    from torch import Tensor, nn

COUNTS = Path(__file__).with_name("counts.json")


@functools.cache
def counts() -> dict[str, dict[str, Any]]:
    """What ``counts.json`` holds: ``count_named`` of each named network, ``count_published`` of each published one."""
    return json.loads(COUNTS.read_text(encoding="utf-8"))


def count_named(name: str) -> dict[str, Any]:
    """class, parameters, and the flops of one forward at batch 1."""
    import torch

    entry, network = NAMED[name], build_on_meta(name)
    if isinstance(entry.inputs, str):
        inputs = resolve(entry.inputs)()
    else:
        inputs = {
            key: torch.zeros(shape, dtype=getattr(torch, dtype), device="meta")
            for key, (dtype, shape) in entry.inputs.items()
        }
    parameters, flops = count_parameters(network), count_flops(network.eval(), inputs)
    return {"class": type(network).__name__, "parameters": parameters, "flops": flops}


def count_published(name: str) -> dict[str, Any]:
    """parts (tokenizer and transformer of a published world model): the parameters of each."""
    return {"parts": {part: count_parameters(network) for part, network in published_parts(name).items()}}


def published_parts(name: str) -> dict[str, nn.Module]:
    """Tokenizer and transformer of a published world model, on the meta device."""
    import torch

    one, actions = PUBLISHED[name], {"action_dim": PUBLISHED[name].action_dim or None}
    entry = NAMED[one.transformer]
    with torch.device("meta"):
        transformer = resolve(entry.target)(**entry.config, **actions)
    return {"tokenizer": build_on_meta(one.tokenizer), "transformer": transformer}


def build_on_meta(name: str) -> Any:
    """A named network without memory for its weights."""
    import torch

    with torch.device("meta"):
        return NAMED[name].build()


def count_parameters(*networks: nn.Module | None) -> int:
    """Numbers that training changes, of all networks together; buffers are not counted, None counts nothing."""
    return sum(parameter.numel() for network in networks if network is not None for parameter in network.parameters())


def count_flops(network: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Floating-point operations of one forward (a multiply-add is two) of matrix products, convolutions, attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        network(**inputs)
    return counter.get_total_flops()


def write_counts() -> None:
    """Count all of the catalogue anew: ``python -c "from toolkit.zoo import counting; counting.write_counts()"``."""
    found = {name: count_named(name) for name in NAMED} | {name: count_published(name) for name in PUBLISHED}
    COUNTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
