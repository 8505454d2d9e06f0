"""Configs of the networks that more than one command builds."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.schema import MISSING, choice, number


@dataclass
class NetworkConfig:
    """A denoiser network; the group ``network`` has one class per family.

    family: kind of network. ``network=`` sets it.
    """

    family: str = MISSING


@dataclass
class ADMConfig(NetworkConfig):
    """The ADM UNet of the EDM release.

    width: features at the highest resolution. width_multipliers: factors on the width, one per resolution from the
    highest down. num_blocks: residual blocks per resolution. attention_resolutions: resolutions with attention, as
    edges in pixels. channels_per_head: channels of an attention head. dropout: share of the features dropped in
    training.
    """

    family: str = "adm"
    width: int = number(192, least=8)
    width_multipliers: list[int] = number([1, 2, 3, 4], least=1)
    num_blocks: int = number(3, least=1)
    attention_resolutions: list[int] = number([32, 16, 8], least=1)
    channels_per_head: int = number(64, least=1)
    dropout: float = number(0.1, least=0, below=1)


@dataclass
class SongConfig(NetworkConfig):
    """The DDPM++ and NCSN++ UNets of the EDM release.

    width: features at the highest resolution. width_multipliers: factors on the width, one per resolution from the
    highest down. num_blocks: residual blocks per resolution. attention_resolutions: resolutions with attention, as
    edges in pixels. dropout: share of the features dropped in training. variant: DDPM++ or NCSN++.
    """

    family: str = "song"
    width: int = number(128, least=8)
    width_multipliers: list[int] = number([2, 2, 2], least=1)
    num_blocks: int = number(4, least=1)
    attention_resolutions: list[int] = number([16], least=1)
    dropout: float = number(0.13, least=0, below=1)
    variant: str = choice("ddpmpp", "ddpmpp", "ncsnpp")


@dataclass
class UViTConfig(NetworkConfig):
    """The U-ViT of the ImageNet-128 experiment.

    width: features at the highest resolution. width_multipliers: factors on the width, one per resolution from the
    highest down; the last is the Transformer's. num_blocks: residual blocks per resolution. depth: layers of the
    Transformer. dropout: share of the features dropped in training.
    """

    family: str = "uvit"
    width: int = number(128, least=8)
    width_multipliers: list[int] = number([1, 2, 4, 16], least=1)
    num_blocks: int = number(2, least=1)
    depth: int = number(36, least=1)
    dropout: float = number(0.1, least=0, below=1)


@dataclass
class MLPConfig(NetworkConfig):
    """Residual FiLM blocks on flattened samples: points, very small images, and small ones that are all aligned.

    width: features of a block. depth: number of blocks. layer_norm: whether each block normalises its input.
    input_gain: whether the input is added to the output, times a gain learned for each noise level. Samples of more
    numbers than the width need it.
    """

    family: str = "mlp"
    width: int = number(128, least=4)
    depth: int = number(4, least=1)
    layer_norm: bool = False
    input_gain: bool = False


@dataclass
class ToyScoreConfig(NetworkConfig):
    """The paper's own parameterisation of the 2-D toy (appendix F.2).

    width: features of a hidden layer. depth: number of layers. component_std: known standard deviation of one component
    of the mixture.
    """

    family: str = "toy_score"
    width: int = number(96, least=4)
    depth: int = number(4, least=1)
    component_std: float = number(0.2, above=0)


# What a command whose config has a ``network`` registers, beside its own.
NETWORK_SCHEMAS: dict[tuple[str | None, str], type] = {
    ("network", "adm_schema"): ADMConfig,
    ("network", "song_schema"): SongConfig,
    ("network", "uvit_schema"): UViTConfig,
    ("network", "mlp_schema"): MLPConfig,
    ("network", "toy_score_schema"): ToyScoreConfig,
}
