"""Growing the zoo's own Transformers: DisCo-Diff's autoregressive prior (toolkit.zoo.prior)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from toolkit.runs.files import write_json
from toolkit.runs.seeds import generator
from toolkit.schema import UserError
from toolkit.stacking.architecture import Architecture, Spaces, Spec
from toolkit.stacking.config import Growth
from toolkit.stacking.growth import Grown, grow
from toolkit.stacking.patterns import Layer
from toolkit.stacking.safetensors_io import total_bytes
from toolkit.stacking.tensors import InMemory
from toolkit.stacking.writing import whole_or_nothing
from toolkit.zoo import count_parameters, load
from toolkit.zoo.prior import AutoregressivePrior


class Prior(Architecture):
    """``config`` holds the arguments of AutoregressivePrior; its MLPs are four times as wide as the stream."""

    layer_norm = True
    layer_prefix = "body.blocks."
    final_norm = "body.norm.weight"
    tensors: ClassVar[Mapping[str, Spec]] = {
        "start": Spec("embedding", ("", "residual")),
        "tables": Spec("embedding", ("", "", "residual")),
        "body.norm.weight": Spec("gain", ("residual",)),
        "body.norm.bias": Spec("bias", ("residual",)),
        "head.weight": Spec("head", ("", "residual", ""), reads=1),
        "head.bias": Spec("bias", ("", "")),
    }
    layer_tensors: ClassVar[Mapping[str, Spec]] = {
        "norm_attention.weight": Spec("gain", ("residual",)),
        "norm_attention.bias": Spec("bias", ("residual",)),
        "attention.qkv.weight": Spec("linear", ("qkv", "residual"), reads=1),
        "attention.qkv.bias": Spec("bias", ("qkv",)),
        "attention.out.weight": Spec("linear", ("residual", "attended"), reads=1, writes=True),
        "attention.out.bias": Spec("bias", ("residual",), writes=True),
        "norm_mlp.weight": Spec("gain", ("residual",)),
        "norm_mlp.bias": Spec("bias", ("residual",)),
        "mlp.0.weight": Spec("linear", ("mlp", "residual"), reads=1),
        "mlp.0.bias": Spec("bias", ("mlp",)),
        "mlp.2.weight": Spec("linear", ("residual", "mlp"), reads=1, writes=True),
        "mlp.2.bias": Spec("bias", ("residual",), writes=True),
    }

    def spaces(self, config: Any) -> Spaces:
        width, heads = config["width"], config["num_heads"]
        return Spaces(width, heads, heads, width // heads, 4 * width)

    def num_layers(self, config: Any) -> int:
        return config["depth"]

    def tied(self, config: Any) -> bool:
        return False

    def deepened(self, config: Any, plan: Sequence[Layer]) -> Any:
        return {**config, "depth": len(plan)}

    def widened(self, config: Any, spaces: Spaces, norm_eps_factor: float = 1.0) -> Any:
        if spaces.mlp != 4 * spaces.residual:
            raise UserError(f"intermediate_size={spaces.mlp}: this network's is always four times its width")
        return {**config, "width": spaces.residual, "num_heads": spaces.heads}

    def skeleton(self, config: Any) -> nn.Module:
        with torch.device("meta"):
            return AutoregressivePrior(**config)


ARCHITECTURES: dict[type[nn.Module], Architecture] = {AutoregressivePrior: Prior()}


def grow_saved_network(source: str, out: str | Path, growth: Growth, seed: int = 0, run_id: str = "") -> dict[str, Any]:
    """Grow a zoo network that ``toolkit.zoo.load`` reads into the new folder ``out``; returns the report.

    Preservation is measured on random codes. Raises UserError as ``load`` and ``grow_network`` do, and where ``out``
    is not empty; JobError where the disk fails.
    """
    network = load(source)
    target, grown = grow_network(network, growth, seed)
    change, spread = compare(network, target, seed)
    verdict = "exact" if change == 0 else "preserved" if change <= 1e-4 * max(1.0, spread) else "not preserved"
    report = {
        "source": source,
        "growth": dataclasses.asdict(growth),
        "seed": seed,
        "run": run_id,
        "source_layers": grown.sources,
        "new_layers": [i for i, layer in enumerate(grown.plan) if layer.new],
        "connection_rate": grown.connection_rate,
        "cost": {
            "source": {"parameters": count_parameters(network)},
            "target": {"parameters": count_parameters(target)},
        },
        "function": {
            "verdict": verdict,
            "measured_on": "random codes",
            "max_logit_change": change,
            "logit_std": spread,
        },
    }
    with whole_or_nothing(Path(out), total_bytes(grown.tensors.infos)) as folder:
        target.save_pretrained(folder)
        write_json(folder / "growth.json", report)
    return report


def compare(source: Any, target: Any, seed: int = 0) -> tuple[float, float]:
    """Largest change of a logit on 16 random code sequences, and the standard deviation of the source's logits."""
    draws, config = generator(seed, "probe"), source.config
    codes = torch.randint(config.codebook_size, (16, config.num_latents), generator=draws)
    labels = torch.randint(config.num_classes, (16,), generator=draws) if config.num_classes else None
    with torch.no_grad():
        before, after = source(codes, labels), target(codes, labels)
    return (after - before).abs().max().item(), before.std().item()


def grow_network(network: Any, growth: Growth, seed: int = 0) -> tuple[Any, Grown]:
    """A grown copy of a zoo network (in eval mode, on the CPU), and how it grew.

    Save it with ``save_pretrained`` as any zoo network. Raises UserError for a network that has no Transformer to grow
    or an operator that does not fit it.
    """
    architecture = ARCHITECTURES.get(type(network))
    if architecture is None:
        known = ", ".join(one.__name__ for one in ARCHITECTURES)
        raise UserError(f"{type(network).__name__}: not a Transformer that can grow (known: {known})")
    config = {key: value for key, value in network.config.items() if not key.startswith("_")}
    grown = grow(architecture, config, InMemory(network.state_dict()), growth, seed)
    target = type(network)(**grown.config)
    target.load_state_dict({name: grown.tensors.read(name) for name in grown.tensors.infos}, strict=True)
    return target.eval(), grown
