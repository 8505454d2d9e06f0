"""What every denoiser of the zoo shares: EDM preconditioning, class labels and discrete-latent tokens.

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", section 5;
latents as in Xu et al. 2024 (DisCo-Diff), sections 3.1 and D.1.

Shapes: B samples, C x H x W image, d point dimension, K classes, m latent slots, k codes per slot, w token width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.zoo.edm.latents import LatentEmbedding


@contextmanager
def own_randomness() -> Iterator[None]:
    """What is initialised inside leaves the CPU generator as it was: latents do not change the other weights."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), device="cpu")))  # and no accelerator's
        yield


class Denoiser(ModelMixin, ConfigMixin):
    """D(x; sigma, c, z): predicts the clean sample from a noisy one (Karras et al. 2022, eq. 7).

    A subclass decorates its ``__init__`` with ``register_to_config``, takes ``sigma_data``, ``num_classes`` and the
    latent keys below, calls ``super().__init__()`` and implements ``shape`` and ``_network``.

    Latent keys (all optional; ``num_latents=0`` means no latents and not one extra parameter):
        num_latents: m, number of slots.
        codebook_size: k, codes per slot (``latent_kind="continuous"``: numbers per slot).
        latent_width: w, width of a token. latent_layers, latent_heads: Transformer that mixes the tokens (0: none).
        latent_groups: g equal, contiguous groups of slots; tokens of different groups are never mixed.
        latent_film: also add a projection of all tokens to the noise embedding (for small networks).
        latent_kind: "discrete" or "continuous".
    """

    config_name = "config.json"  # type: ignore[assignment]
    latent_keys: tuple[str, ...] = (
        "num_latents",
        "codebook_size",
        "latent_width",
        "latent_layers",
        "latent_heads",
        "latent_groups",
        "latent_film",
        "latent_kind",
    )

    def __init__(self) -> None:
        super().__init__()
        self.latent_embedding: nn.ModuleList | None = None
        if self.num_latents:
            with own_randomness():
                self.latent_embedding = self._build_latent_embedding()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) or (d,)."""
        raise NotImplementedError

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data the preconditioning assumes."""
        return self.config["sigma_data"]

    @property
    def num_classes(self) -> int:
        """K, 0 for a network without class labels."""
        return self.config["num_classes"]

    @property
    def num_latents(self) -> int:
        """m, 0 for a network without latents."""
        return self.config.get("num_latents", 0)

    @property
    def codebook_size(self) -> int:
        """k, codes (or numbers, for continuous latents) per slot."""
        return self.config.get("codebook_size", 0)

    @property
    def latent_kind(self) -> str:
        """ "discrete" or "continuous"."""
        return self.config.get("latent_kind", "discrete")

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        latents: Tensor | None = None,
        drop: Tensor | None = None,
        **conditions: Any,
    ) -> Tensor:
        """Denoise.

        Args:
            x: noisy samples (B, *shape): clean sample plus sigma times unit noise.
            sigma: noise level > 0, one number or (B,).
            class_labels: int64 (B,) or one-hot float (B, K); None is the all-zero vector of a dropped label.
            latents: int64 codes (B, m) (-1: null token), float (B, m, k) one-hot or relaxed; None is every slot null.
            drop: bool (B,), samples whose slots all become null tokens.
            conditions: what a particular network takes beside these.

        Returns:
            The denoised samples, like x, float32 (under autocast as well).

        Raises:
            ValueError: labels or latents of a wrong shape, or given to a network that has none.
        """
        x = x.float()
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1)
        one_hot = self._one_hot(class_labels, len(x), x.device)
        tokens = self._tokens(latents, len(x), drop)
        # Karras et al. 2022, table 1, last column.
        sigma_x = sigma.reshape(-1, *[1] * (x.dim() - 1))
        total = (sigma_x.square() + self.sigma_data**2).sqrt()
        c_skip, c_out, c_in = (self.sigma_data / total).square(), sigma_x * self.sigma_data / total, 1 / total
        c_noise = sigma.log() / 4
        output = self._network(c_in * x, c_noise, one_hot, tokens, **conditions)
        return torch.addcmul(c_skip * x, c_out, output.float())

    def _network(
        self, x_in: Tensor, c_noise: Tensor, class_onehot: Tensor | None, tokens: Tensor | None, **conditions: Any
    ) -> Tensor:
        """F(c_in x; c_noise, c, z): x_in like x, c_noise (B,) or (1,), class_onehot (B or 1, K), tokens (B, m, w)."""
        raise NotImplementedError

    @staticmethod
    def from_base(base: Denoiser, **latent_config: Any) -> Denoiser:
        """The same network with latents added: outputs equal the base's, bit for bit, until it is trained.

        Args:
            base: a denoiser without latents; it is not changed.
            latent_config: latent keys, ``num_latents`` and ``codebook_size`` at least.

        Raises:
            ValueError: the base has latents already, or a key is not a latent key.
        """
        if base.num_latents:
            raise ValueError(f"the base has {base.num_latents} latents already: start from a network without latents")
        if unknown := sorted(set(latent_config) - set(base.latent_keys)):
            raise ValueError(f"{', '.join(unknown)}: not a latent key, choose from {', '.join(base.latent_keys)}")
        config = {key: value for key, value in base.config.items() if not key.startswith("_")}
        model = type(base)(**config | latent_config).to(device=base.device, dtype=base.dtype)
        result = model.load_state_dict(base.state_dict(), strict=False)
        assert not result.unexpected_keys, result.unexpected_keys
        return model.train(base.training)

    def _build_latent_embedding(self) -> nn.ModuleList:
        """One LatentEmbedding per group, so that a group's tokens depend on that group's latents alone."""
        config, groups = self.config, self.config.get("latent_groups", 1)
        if self.num_latents % groups:
            raise ValueError(f"latent_groups={groups}: must divide num_latents={self.num_latents}")
        return nn.ModuleList(
            LatentEmbedding(
                self.num_latents // groups,
                self.codebook_size,
                config["latent_width"],
                num_layers=config["latent_layers"],
                num_heads=config["latent_heads"],
                kind=self.latent_kind,
            )
            for _ in range(groups)
        )

    def _one_hot(self, class_labels: Tensor | None, batch_size: int, device: torch.device) -> Tensor | None:
        if not self.num_classes:
            if class_labels is not None:
                raise ValueError("class_labels given to a network built with num_classes=0")
            return None
        if class_labels is None:
            return torch.zeros(1, self.num_classes, device=device)
        if class_labels.is_floating_point():
            one_hot = class_labels.float()
        elif class_labels.dim() == 1:
            one_hot = F.one_hot(class_labels, self.num_classes).float()
        else:
            one_hot = class_labels
        if one_hot.shape != (batch_size, self.num_classes):
            raise ValueError(
                f"class_labels of shape {tuple(class_labels.shape)}: expected int64 ({batch_size},) "
                f"or one-hot float ({batch_size}, {self.num_classes})"
            )
        return one_hot

    def _tokens(self, latents: Tensor | None, batch_size: int, drop: Tensor | None) -> Tensor | None:
        if self.latent_embedding is None:
            if latents is not None:
                raise ValueError("latents given to a network built with num_latents=0")
            return None
        if latents is not None and latents.shape[:2] != (batch_size, self.num_latents):
            raise ValueError(
                f"latents of shape {tuple(latents.shape)}: expected codes ({batch_size}, {self.num_latents}) "
                f"or one-hot ({batch_size}, {self.num_latents}, {self.codebook_size})"
            )
        groups = len(self.latent_embedding)
        parts = [None] * groups if latents is None else latents.chunk(groups, dim=1)
        tokens = [embed(part, batch_size, drop) for embed, part in zip(self.latent_embedding, parts, strict=True)]
        return torch.cat(tokens, dim=1) if groups > 1 else tokens[0]
