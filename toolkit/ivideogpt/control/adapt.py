"""The world model goes on learning from what the agent sees (section 4.3 of the paper, algorithm 1).

As in the release: the tokenizer by reconstruction with its codebooks kept, so that tokens keep their meaning, and the
transformer by the tokens, actions and rewards of real clips, with optimisers of their own that last for the whole loop.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from toolkit.data.episodes.clips import ClipSource
from toolkit.data.episodes.episode import Episode, memory_set
from toolkit.ivideogpt.clips import tokenizer_frames
from toolkit.ivideogpt.config import TrainIVideoGPT
from toolkit.ivideogpt.train.losses import TokenizerObjective
from toolkit.ivideogpt.train.perceptual import make_distance
from toolkit.ivideogpt.train.transformer import TransformerObjective, make_optimizer, tokenise
from toolkit.runs.seeds import derive
from toolkit.zoo.world.model import WorldModel


class ModelLearner:
    """A copy of ``world`` that learns from real episodes, as often a round as ``plan.*_updates`` say.

    Learning rates, batch sizes and losses are those of ``optim`` and ``tokenizer_loss``, without a discriminator.
    """

    def __init__(self, world: WorldModel, config: TrainIVideoGPT):
        self.world, self.config = copy.deepcopy(world), config
        tokenizer, transformer, loss = self.world.tokenizer, self.world.transformer, config.tokenizer_loss
        device = tokenizer.device
        self.tokenizer_loss = TokenizerObjective(
            tokenizer, loss, make_distance(loss.perceptual, loss.perceptual_path)
        ).to(device)
        self.token_loss = TransformerObjective(transformer, tokenizer, config, {}).to(device)
        codebooks = (tokenizer.quantize, tokenizer.dynamics_quantize)
        kept = {id(part) for codebook in codebooks for part in codebook.parameters()}
        self.learnt = [part for part in tokenizer.parameters() if id(part) not in kept]
        keys = config.optim.tokenizer
        self.optimizers = {
            "tokenizer": torch.optim.AdamW(self.learnt, lr=keys.lr, weight_decay=keys.weight_decay),
            "transformer": make_optimizer(transformer, config),
        }

    def learn(self, episodes: Sequence[Episode], number: int) -> None:
        """The updates of round ``number`` on clips of all ``episodes`` so far.

        The clips of an update are as long as an episode that is drawn for it, ``num_frames`` at most, so that those
        which ended early are learnt from too. Episodes without a frame after the context are left out.
        """
        longest, least = self.config.num_frames, self.config.context_length + 1
        lengths = [min(longest, len(one)) for one in episodes if len(one) >= least]
        if not lengths:
            return
        held = memory_set(list(episodes), [f"episode {index}" for index in range(len(episodes))])
        sources = {length: ClipSource(held, length) for length in set(lengths)}
        updates = {"tokenizer": self._tokenizer_update, "transformer": self._transformer_update}
        with torch.enable_grad():
            for name, update in updates.items():
                for step in range(getattr(self.config.plan, f"{name}_updates")):
                    drawn = derive(self.config.seed, "adapt", "length", name, number, step) % len(lengths)
                    update(sources[lengths[drawn]], number, step)

    def save(self, folder: Path) -> None:
        """Write the model as it is now, bound to its tokenizer."""
        self.world.transformer.bind(self.world.tokenizer)
        self.world.save_pretrained(folder)

    def _tokenizer_update(self, source: ClipSource, number: int, step: int) -> None:
        optim, device = self.config.optim.tokenizer, self.world.tokenizer.device
        clip = source.sample(optim.batch_size, self.config.seed, "adapt", "tokenizer", number, step)
        update = number * self.config.plan.tokenizer_updates + step  # every round sees other frames of its clips
        context, future = tokenizer_frames(clip, self.config, self.config.seed, update)
        self.world.tokenizer.train()
        for part in self.learnt:
            part.requires_grad_(True)
        terms, _ = self.tokenizer_loss(context.to(device), future.to(device), True)
        self._step("tokenizer", self.world.tokenizer, terms["loss"], optim.grad_clip)

    def _transformer_update(self, source: ClipSource, number: int, step: int) -> None:
        optim, tokenizer = self.config.optim.transformer, self.world.tokenizer
        clip = source.sample(optim.batch_size, self.config.seed, "adapt", "transformer", number, step)
        with torch.no_grad():
            batch = tokenise(tokenizer, clip, tokenizer.device).to(tokenizer.device)
        self.world.transformer.train().requires_grad_(True)
        self._step("transformer", self.world.transformer, self.token_loss(batch)["loss"], optim.grad_clip)

    def _step(self, name: str, network: Any, loss: torch.Tensor, grad_clip: float) -> None:
        """One update; the network is left as the world model has it."""
        optimizer = self.optimizers[name]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        network.eval().requires_grad_(False)
