"""Growing the zoo's own Transformers: DisCo-Diff's prior and encoder, iVideoGPT's world model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.runs.files import write_json
from toolkit.runs.seeds import generator
from toolkit.stacking.checkpoints.open import Checkpoint
from toolkit.stacking.checkpoints.write import refuse_used, whole_or_nothing
from toolkit.stacking.config import Growth
from toolkit.stacking.grow_folder import describe
from toolkit.stacking.operators.architecture import Architecture, Spaces, Spec
from toolkit.stacking.operators.grow import Grown, grow
from toolkit.stacking.operators.llama import Llama
from toolkit.stacking.operators.patterns import Layer
from toolkit.stacking.operators.tensors import InMemory
from toolkit.zoo import load

PROBES = 16  # random inputs of the prior and the encoder
PROBE_TOKENS = 256  # random tokens for the world model


class ZooArchitecture(Architecture):
    """A family of zoo networks: how one is built, and what it is asked before and after."""

    @abstractmethod
    def config_of(self, network: Any) -> Any:
        """What ``skeleton`` and ``rebuilt`` take."""

    @abstractmethod
    def rebuilt(self, network: Any, config: Any) -> Any:
        """A network of the class of ``network`` with another config, its weights not yet those that count."""

    @abstractmethod
    def probe(self, network: Any, seed: int) -> tuple[Any, ...]:
        """Random inputs."""

    @abstractmethod
    def logits(self, network: Any, probe: tuple[Any, ...]) -> Tensor:
        """What it says of them."""


class Blocks(ZooArchitecture):
    """Networks around ``body``, a toolkit.zoo.edm.transformer.Transformer: ``config`` holds their arguments.

    Its MLPs are four times as wide as the stream.
    """

    layer_norm = True
    layer_prefix = "body.blocks."
    final_norm = "body.norm.weight"
    around: ClassVar[Mapping[str, Spec]] = {
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
    home: str  # module and class

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
        module, _, name = self.home.partition(":")
        with torch.device("meta"):
            return getattr(import_module(module), name)(**config)

    def config_of(self, network: Any) -> Any:
        return {key: value for key, value in network.config.items() if not key.startswith("_")}

    def rebuilt(self, network: Any, config: Any) -> Any:
        return type(network)(**config)

    def logits(self, network: Any, probe: tuple[Any, ...]) -> Tensor:
        return network(*probe)


class Prior(Blocks):
    """DisCo-Diff's autoregressive prior of the latents."""

    home = "toolkit.zoo.disco.prior:AutoregressivePrior"
    tensors: ClassVar[Mapping[str, Spec]] = {
        **Blocks.around,
        "start": Spec("embedding", ("", "residual")),
        "tables": Spec("embedding", ("", "", "residual")),
    }

    def context(self, config: Any) -> int:
        return config["num_latents"]

    def probe(self, network: Any, seed: int) -> tuple[Any, ...]:
        """Random codes (B, m) and, where there are classes, labels (B,)."""
        draws, config = generator(seed, "probe"), network.config
        codes = torch.randint(config.codebook_size, (PROBES, config.num_latents), generator=draws)
        labels = torch.randint(config.num_classes, (PROBES,), generator=draws) if config.num_classes else None
        return codes, labels


class Encoder(Blocks):
    """DisCo-Diff's encoder, a Vision Transformer."""

    home = "toolkit.zoo.disco.encoders:ViTEncoder"
    tensors: ClassVar[Mapping[str, Spec]] = {
        **Blocks.around,
        "patches.weight": Spec("embedding", ("residual", "", "", "")),
        "patches.bias": Spec("bias", ("residual",)),
        "position": Spec("embedding", ("", "residual")),
        "class_tokens": Spec("embedding", ("", "residual")),
    }

    def context(self, config: Any) -> int:
        return (config["image_size"] // config["patch_size"]) ** 2 + config["num_latents"]

    def probe(self, network: Any, seed: int) -> tuple[Any, ...]:
        """Random images (B, C, H, W) of unit variance."""
        return (torch.randn(PROBES, *network.shape, generator=generator(seed, "probe")),)


class VideoLlama(Llama, ZooArchitecture):
    """iVideoGPT's transformer: a Llama under ``llm.``, with heads for actions and rewards; ``config`` a LlamaConfig."""

    layer_prefix = "llm.model.layers."
    final_norm = "llm.model.norm.weight"
    embedding, head = "llm.model.embed_tokens.weight", "llm.lm_head.weight"
    tensors: ClassVar[Mapping[str, Spec]] = {
        **{f"llm.{name}": spec for name, spec in Llama.tensors.items()},
        "action_linear.weight": Spec("embedding", ("residual", "")),  # added to the tokens' embeddings
        "action_linear.bias": Spec("bias", ("residual",)),
        "reward_linear.weight": Spec("head", ("", "residual"), reads=1),
        "reward_linear.bias": Spec("bias", ("",)),
        "action_recon_linear.weight": Spec("head", ("", "residual"), reads=1),
        "action_recon_linear.bias": Spec("bias", ("",)),
        **{f"spatial.{table}.weight": Spec("embedding", ("", "residual")) for table in ("own", "next", "within")},
    }

    def skeleton(self, config: Any) -> nn.Module:
        from toolkit.zoo.world.transformer import VideoTransformer

        with torch.device("meta"):
            return VideoTransformer(config)

    def config_of(self, network: Any) -> Any:
        return network.config

    def rebuilt(self, network: Any, config: Any) -> Any:
        return type(network)(config)

    def probe(self, network: Any, seed: int) -> tuple[Any, ...]:
        """One token sequence (1, L) of any ids as long as the network reads, embedded without actions."""
        length = min(PROBE_TOKENS, network.config.max_position_embeddings)
        return (torch.randint(network.config.vocab_size, (1, length), generator=generator(seed, "probe")),)

    def logits(self, network: Any, probe: tuple[Any, ...]) -> Tensor:
        return network.llm(probe[0], use_cache=False).logits


ARCHITECTURES: dict[str, ZooArchitecture] = {
    "AutoregressivePrior": Prior(),
    "ViTEncoder": Encoder(),
    "VideoTransformer": VideoLlama(),
}


def grow_saved_network(
    source: str, out: str | Path, growth: Growth, seed: int = 0, run_id: str = "", measure: bool = True
) -> dict[str, Any]:
    """Grow a zoo network that ``toolkit.zoo.load`` reads into the new folder ``out``; returns the report.

    Of a world model the transformer grows; its tokenizer comes along. Preservation is measured on random inputs;
    ``measure=False`` skips that. Raises UserError as ``load`` and ``grow_network`` do, and where ``out`` is not empty;
    JobError where the disk fails.
    """
    refuse_used(Path(out))
    network = load(source)
    inner = growing_part(network)
    target, grown = grow_network(inner, growth, seed)
    report = describe(as_checkpoint(source, inner), grown, growth) | {"seed": seed, "run": run_id}
    if measure:
        report["function"] = _preservation(inner, target, seed)
    if inner is not network:
        network.transformer = target
        target = network
    with whole_or_nothing(Path(out), 2 * sum(tensor.nbytes for tensor in target.state_dict().values())) as folder:
        target.save_pretrained(folder)
        write_json(folder / "growth.json", report)
    return report


def _preservation(source: Any, target: Any, seed: int) -> dict[str, Any]:
    """The report's "function": whether the target computes what the source does."""
    change, spread = compare(source, target, seed)
    verdict = "exact" if change == 0 else "preserved" if change <= 1e-4 * max(1.0, spread) else "not preserved"
    return {"verdict": verdict, "measured_on": "random inputs", "max_logit_change": change, "logit_std": spread}


def growing_part(network: Any) -> Any:
    """The Transformer of a world model; of another network the network itself."""
    return network.transformer if type(network).__name__ == "WorldModel" else network


def as_checkpoint(source: str, network: Any) -> Checkpoint:
    """A zoo network in the form that growth and its report take. Raises UserError where it is none that can grow."""
    architecture = ARCHITECTURES.get(type(network).__name__)
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{type(network).__name__}: not a Transformer that can grow (known: {known})")
    config, state = architecture.config_of(network), network.state_dict()
    tensors = InMemory({name: state[name] for name in architecture.shapes(config)})
    return Checkpoint(source, architecture, config, tensors, Path(source), None)


def compare(source: Any, target: Any, seed: int = 0) -> tuple[float, float]:
    """Largest change of a logit on random inputs, and the standard deviation of the source's logits."""
    architecture = ARCHITECTURES[type(source).__name__]
    probe = architecture.probe(source, seed)
    probe = tuple(one.to(_dtype(source)) if one is not None and one.is_floating_point() else one for one in probe)
    with torch.no_grad():
        before, after = architecture.logits(source, probe), architecture.logits(target, probe)
    return (after - before).abs().max().item(), before.std().item()


def grow_network(network: Any, growth: Growth, seed: int = 0) -> tuple[Any, Grown]:
    """A grown copy of a zoo network (in eval mode, on the CPU), and how it grew.

    Save it with ``save_pretrained`` as any zoo network. Raises UserError for a network that has no Transformer to grow
    or an operator that does not fit it.
    """
    before = as_checkpoint("", network)
    grown = grow(before.architecture, before.config, before.tensors, growth, seed)
    target = ARCHITECTURES[type(network).__name__].rebuilt(network, grown.config).to(_dtype(network))
    weights = {name: grown.tensors.read(name) for name in grown.tensors.infos}
    missing, unexpected = target.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"llm.lm_head.weight"}, "a tied head is the embedding, all else is read"
    return target.eval(), grown


def _dtype(network: Any) -> torch.dtype:
    return next(network.parameters()).dtype
