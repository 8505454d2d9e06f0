"""The discriminator of the tokenizer's loss, over several passes and processes as over the whole batch at once."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from toolkit.ivideogpt.config import TokenizerLoss
from toolkit.ivideogpt.train.losses import TokenizerObjective, balance, fakes, hinge, last_gradients
from toolkit.runs.distributed import world_size
from toolkit.runs.passes import passes
from toolkit.zoo.world.discriminator import PatchDiscriminator
from toolkit.zoo.world.tokenizer import Reconstruction


class Adversary:
    """A discriminator, which calls reconstructed frames real or not, and its optimiser.

    Its spectral norms take one power iteration for the generator's loss and one each for fakes and reals of its own, a
    step, however many passes there are.
    """

    def __init__(self, config: TokenizerLoss, lr: float, device: torch.device) -> None:
        network = PatchDiscriminator(hidden_channels=config.gan_hidden, depth=config.gan_depth)
        self.discriminator = network.to(device).eval()
        fused = device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(self.discriminator.parameters(), lr=lr, fused=fused)

    def iterate_norms(self) -> None:
        """One power iteration of every spectral norm."""
        self.discriminator.train()
        with torch.no_grad():
            for part in self.discriminator.modules():
                if is_parametrized(part):
                    _ = part.weight
        self.discriminator.eval()

    def train(
        self,
        found: list[Reconstruction],
        batch: tuple[Tensor, Tensor],
        micro_batch_size: int | None,
        grad_clip: float,
        accelerator: Accelerator,
    ) -> Tensor:
        """One step on the reconstructions of each pass and on the real (context, future); the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=batch[0].device)
        cut = list(passes(self.discriminator, batch, micro_batch_size))
        made = [(fakes(one), share) for one, (_, share) in zip(found, cut, strict=True)]
        real = [(torch.cat([context.flatten(0, 1), future.flatten(0, 1)]), share) for (context, future), share in cut]
        for images, sign in ((made, -1), (real, 1)):
            self.iterate_norms()
            for part, share in images:
                loss = hinge(self.discriminator, part, sign)
                (loss * share).backward()
                total = total + loss.detach() * share
        if world_size() > 1:  # it is called several times in a step, which a wrapper for processes would not allow
            for parameter in self.discriminator.parameters():
                parameter.grad = accelerator.reduce(parameter.grad, "mean")
        torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), grad_clip)
        self.optimizer.step()
        return total


def whole_balance(
    adversary: Adversary,
    objective: TokenizerObjective,
    batch: tuple[Tensor, Tensor],
    quantize: bool,
    micro_batch_size: int | None,
    accelerator: Accelerator,
) -> Tensor:
    """lambda of ``generator_loss`` for the batch of all passes and processes, which costs a forward pass more."""
    sums: list[Tensor] = []
    for part, share in passes(objective, batch, micro_batch_size):
        with accelerator.autocast():
            terms, found = objective(*part, quantize)
        adversarial = -adversary.discriminator(fakes(found)).mean()
        gradients = last_gradients(adversarial, terms, objective.tokenizer)
        sums = [share * one + (sums[index] if sums else 0) for index, one in enumerate(gradients)]
    return balance(*(accelerator.reduce(one, "mean") for one in sums))
