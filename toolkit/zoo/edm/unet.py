"""The two UNet families of the EDM release, with optional cross-attention to discrete-latent tokens.

ADMUNet: Dhariwal and Nichol 2021, ImageNet-64. SongUNet: Song et al. 2021, DDPM++ and NCSN++, CIFAR-10. Both as in
Karras et al. 2022, appendix F.3. Latents: Xu et al. 2024 (DisCo-Diff), section 4 (group hierarchy) and appendix D.1.

Shapes: B samples, C x H x W image or features, E embedding width, K classes, m tokens of width w.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.errors import UserError
from toolkit.zoo.edm.blocks import BOX, BlockOptions, NoiseEmbedding, ResidualBlock, SelfAttention
from toolkit.zoo.edm.unet_base import UNet


class ADMUNet(UNet):
    """ADM, the ImageNet-64 network of the EDM release; 295,899,267 parameters with the defaults and 1000 classes.

    Args:
        image_size: H = W in pixels, divisible by 2^(levels - 1).
        in_channels: C of the images. num_classes: K, 0 for none.
        augment_dim: width of the augmentation labels, 0 for none.
        model_channels, channel_mult: channels of a level are model_channels times its multiplier.
        channel_mult_emb: embedding width over model_channels. num_blocks: residual blocks per level.
        attn_resolutions: feature map sizes with self-attention (the middle always has it); others are ignored.
        dropout, label_dropout: probabilities; a dropped label is the zero vector.
        channels_per_head: a block with fewer channels has no self-attention, as in the release.
        num_latents ... latent_kind: see Denoiser. null_kv: a learned extra token in every cross-attention.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        in_channels: int = 3,
        num_classes: int = 0,
        sigma_data: float = 0.5,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.1,
        label_dropout: float = 0.0,
        channels_per_head: int = 64,
        num_latents: int = 0,
        codebook_size: int = 0,
        latent_width: int = 192,
        latent_layers: int = 0,
        latent_heads: int = 4,
        latent_groups: int = 1,
        latent_film: bool = False,
        latent_kind: str = "discrete",
        null_kv: bool = False,
    ) -> None:
        super().__init__()
        width = model_channels * channel_mult_emb
        self.noise_embedding = NoiseEmbedding(model_channels)
        self._build_embedding(model_channels, width, width, class_bias=False)
        options = BlockOptions(width, lambda channels: channels // channels_per_head, dropout)
        self._build(options, "standard", "standard", all_decoder_blocks_attend=True)
        self._zero_last_layers()
        self._add_latents(width, options.num_heads)

    def _first_width(self) -> int:
        return self.config["model_channels"] * self.config["channel_mult"][0]


class SongUNet(UNet):
    """DDPM++ (the defaults: 55,732,739 parameters) and NCSN++, the CIFAR-10 networks of the EDM release.

    NCSN++: embedding_type="fourier", channel_mult_noise=2, encoder_type="residual", resample_filter=(1, 3, 3, 1).

    Args (beside those of ADMUNet):
        channel_mult_noise: width of the sines and cosines of the noise level over model_channels.
        embedding_type: "positional" or "fourier". encoder_type: "standard", "skip" or "residual".
        decoder_type: "standard" or "skip". resample_filter: even number of taps of the separable filter.
        num_heads: heads of every attention. skip_scale: factor after every residual sum.
        adaptive_scale: let the embedding scale and shift the features instead of shifting them.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 32,
        in_channels: int = 3,
        num_classes: int = 0,
        sigma_data: float = 0.5,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        channel_mult_emb: int = 4,
        channel_mult_noise: int = 1,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = BOX,
        num_heads: int = 1,
        skip_scale: float = 0.5**0.5,
        adaptive_scale: bool = False,
        num_latents: int = 0,
        codebook_size: int = 0,
        latent_width: int = 192,
        latent_layers: int = 0,
        latent_heads: int = 4,
        latent_groups: int = 1,
        latent_film: bool = False,
        latent_kind: str = "discrete",
        null_kv: bool = False,
    ) -> None:
        super().__init__()
        _choose("embedding_type", embedding_type, "positional", "fourier")
        _choose("encoder_type", encoder_type, "standard", "skip", "residual")
        _choose("decoder_type", decoder_type, "standard", "skip")
        noise_width, width = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        self.noise_embedding = NoiseEmbedding(noise_width, embedding_type, endpoint=True, sine_first=True)
        self._build_embedding(noise_width, width, noise_width, class_bias=True)
        options = BlockOptions(
            width, lambda _: num_heads, dropout, skip_scale, 1e-6, tuple(resample_filter), adaptive_scale, True
        )
        self._build(options, encoder_type, decoder_type, all_decoder_blocks_attend=False)
        self._initialise()
        self._add_latents(width, options.num_heads)

    def _first_width(self) -> int:
        return self.config["model_channels"]

    def _initialise(self) -> None:
        """Xavier-uniform weights and zero biases, with a small gain in the last layer of every branch."""
        gains: dict[nn.Module, float] = {level.head.conv: 1e-5 for level in self.decoder if level.head is not None}
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                gains[module.conv_out] = 1e-5
            elif isinstance(module, SelfAttention):
                gains[module.qkv], gains[module.out] = 0.2**0.5, 1e-5
        latents = set() if self.latent_embedding is None else set(self.latent_embedding.modules())
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module not in latents:
                nn.init.xavier_uniform_(module.weight, gains.get(module, 1.0))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _embed(
        self, c_noise: Tensor, class_onehot: Tensor | None, tokens: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        embedding = self.noise_embedding(c_noise).to(self.map_in.weight.dtype)
        if self.map_class is not None:
            assert class_onehot is not None
            embedding = embedding + self.map_class(class_onehot * self.num_classes**0.5)
        embedding = F.silu(self.map_in(self._augmented(embedding, augment_labels)))
        return self._finish_embedding(self.map_out(embedding), tokens)


def _choose(key: str, value: str, *options: str) -> None:
    if value not in options:
        raise UserError(f"{key}={value}: choose one of {', '.join(options)}")
