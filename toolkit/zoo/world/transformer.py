"""iVideoGPT's transformer: a Llama over the tokens of a clip, with actions at the slots and rewards at frame ends.

Wu et al. 2024, section 3.2 and appendix A.2. Action row t is taken at frame t and leads to frame t+1: its linear
projection is added to the embedding of the slot token that opens frame t+1. The reward of that move is read at the last
token of frame t+1. Files are the release's ``transformer/`` folders. Shapes: B clips, T = T0 + F frames, L tokens,
n tokens of a future frame, A numbers of an action, W width.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from toolkit.errors import UserError
from toolkit.zoo.importing import read_config, read_tensors
from toolkit.zoo.sizes import build_on_meta
from toolkit.zoo.world.linear import linear
from toolkit.zoo.world.llama import llama_pass
from toolkit.zoo.world.tokens import TokenLayout
from toolkit.zoo.world.weights import TRANSFORMER_WEIGHTS, fill, write_tensors


def llama_config(
    layout: TokenLayout,
    hidden_size: int = 768,
    intermediate_size: int = 3072,
    num_hidden_layers: int = 12,
    num_attention_heads: int = 12,
    num_key_value_heads: int | None = None,
    max_position_embeddings: int = 1024,
    attention_dropout: float = 0.0,
    action_dim: int | None = None,
    has_reward: bool = False,
    has_action_recon: bool = False,
    spatial_embedding: bool = False,
    **more: Any,
) -> LlamaConfig:
    """The config of a ``VideoTransformer`` for a tokenizer's layout; the defaults are the small model (138M).

    spatial_embedding: see ``SpatialEmbedding``; the release has none.
    """
    return LlamaConfig(
        vocab_size=layout.vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads or num_attention_heads,
        max_position_embeddings=max_position_embeddings,
        attention_dropout=attention_dropout,
        action_dim=action_dim,
        has_reward=has_reward,
        has_action_recon=has_action_recon,
        spatial_embedding=[layout.tokens_per_context, layout.tokens_per_frame] if spatial_embedding else None,
        bos_token_id=None,  # every id is a picture's: nothing opens or ends a sequence
        eos_token_id=None,
        **{"rms_norm_eps": 1e-6, "tie_word_embeddings": False, **more},
    )


RELEASED_LAYOUT = TokenLayout(2, 256, 16, 8192, 8192)  # of all published tokenizers, 64x64 and 256x256


def build_video_transformer(layout: TokenLayout = RELEASED_LAYOUT, **sizes: Any) -> VideoTransformer:
    """A ``VideoTransformer`` with random weights, from the arguments of ``llama_config``."""
    return VideoTransformer(llama_config(layout, **sizes))


def build_video_transformer_inputs() -> dict[str, Any]:
    """One clip of 16 frames on the meta device, for counting FLOPs."""
    tokens = torch.zeros(1, RELEASED_LAYOUT.length(14), dtype=torch.int64, device="meta")
    return {"tokens": tokens, "layout": RELEASED_LAYOUT}


class SpatialEmbedding(nn.Module):
    """Where in the picture a token lies, and where the one after it will (ours; neither paper nor release has it).

    A transformer that sees only the order of tokens must find out which of the N context tokens show the place whose
    code it is about to predict. Here every token is told the cell of the (h/p) x (h/p) grid of dynamics tokens that it
    covers, context tokens also their place within the cell, slots and dynamics tokens also the cell that comes next.

    ``num_context`` N and ``num_dynamics`` n tokens of a frame, both square grids.
    """

    def __init__(self, num_context: int, num_dynamics: int, width: int):
        super().__init__()
        self.grid = math.isqrt(num_dynamics)
        self.patch = math.isqrt(num_context) // self.grid
        self.own = nn.Embedding(num_dynamics, width)
        self.next = nn.Embedding(num_dynamics, width)
        self.within = nn.Embedding(self.patch**2, width)

    def context_rows(self) -> Tensor:
        """(N+1, W): nothing for the slot, then the tokens."""
        own = self.own.weight.view(self.grid, 1, self.grid, 1, -1)
        within = self.within.weight.view(1, self.patch, 1, self.patch, -1)
        return F.pad((own + within).flatten(0, 3), (0, 0, 1, 0))

    def frame_rows(self) -> Tensor:
        """(n+1, W): the slot, then the tokens."""
        return F.pad(self.own.weight, (0, 0, 1, 0)) + F.pad(self.next.weight, (0, 0, 0, 1))

    def forward(self, context_length: int, num_future: int) -> Tensor:
        """(L, W) for a whole clip."""
        context, frame = self.context_rows(), self.frame_rows()
        return torch.cat([context.repeat(context_length, 1)[1:], frame.repeat(num_future, 1)])


@dataclass
class VideoTransformerOutput:
    """The training forward.

    loss: mean cross-entropy over the (n+1)F - 1 supervised tokens (eq. 3; the slots of later frames are among them).
    token_losses (B, F, n), slot_losses (B,F-1): its terms, apart.
    rewards (B, F): symlog of the predicted reward of the move into each future frame, or None without a reward head.
    recon_actions (B, F, n+1, A): the action read back from every position of a future frame, or None.
    """

    loss: Tensor
    token_losses: Tensor
    slot_losses: Tensor
    rewards: Tensor | None
    recon_actions: Tensor | None


class VideoTransformer(PreTrainedModel):
    """A ``LlamaForCausalLM`` (as ``llm``), ``action_linear`` (A -> W, starts at zero), ``reward_linear`` (W -> 1).

    ``config`` comes from ``llama_config``: besides Llama's own keys it holds action_dim (None: no actions), has_reward,
    has_action_recon, and tokenizer_fingerprint once ``bind`` has tied the network to its tokenizer.
    """

    config_class = LlamaConfig
    base_model_prefix = "llm"
    _supports_sdpa = True

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        self.llm = LlamaForCausalLM(config)
        width = config.hidden_size
        if self.action_dim:
            self.action_linear = nn.Linear(self.action_dim, width)
        if self.has_reward:
            self.reward_linear = nn.Linear(width, 1)
        if getattr(config, "has_action_recon", False):
            self.action_recon_linear = nn.Linear(width, self.action_dim)
        sizes: Any = getattr(config, "spatial_embedding", None)
        self.spatial = SpatialEmbedding(sizes[0], sizes[1], width) if sizes else None
        self._start_heads()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: ``llm`` has started itself, the heads in ``_start_heads``."""

    @property
    def action_dim(self) -> int:
        """Numbers of an action; 0 for an action-free network."""
        return getattr(self.config, "action_dim", None) or 0

    @property
    def has_reward(self) -> bool:
        """Whether it predicts rewards."""
        return bool(getattr(self.config, "has_reward", False))

    def forward(
        self, tokens: Tensor, layout: TokenLayout, actions: Tensor | None = None, seen: Tensor | None = None
    ) -> VideoTransformerOutput:
        """Losses of clips.

        Args:
            tokens: int64 (B, L).
            layout: of the tokenizer that made them.
            actions: (B, T, A), given exactly where the network takes actions; rows before T0-1 and the last are unused.
            seen: what is read in the place of ``tokens``, which stay the targets; None: the same.

        Raises:
            ValueError: shapes that do not fit, or more tokens than positions.
        """
        num_future = layout.num_future(tokens.shape[1])
        embeds = self.embed(tokens if seen is None else seen, layout, actions)
        hidden = llama_pass(self.llm, embeds, first=layout.prompt_length - 1)  # from the first slot on
        logits = linear(hidden[:, :-1], self.llm.lm_head.weight).float()
        targets = tokens[:, layout.prompt_length :]
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        frames = torch.cat([losses, losses[:, :1]], dim=1).unflatten(1, (num_future, -1))  # the last slot is no target
        return VideoTransformerOutput(
            loss=losses.mean(),
            token_losses=frames[..., :-1],
            slot_losses=frames[:, :-1, -1],
            rewards=self.reward_linear(self._frame_ends(hidden, num_future)).squeeze(-1) if self.has_reward else None,
            recon_actions=self._recon_actions(hidden, num_future),
        )

    def logits(self, tokens: Tensor, layout: TokenLayout, actions: Tensor | None = None) -> Tensor:
        """Next-token logits (B, L, vocabulary) at every position."""
        return linear(llama_pass(self.llm, self.embed(tokens, layout, actions)), self.llm.lm_head.weight)

    def embed(self, tokens: Tensor, layout: TokenLayout, actions: Tensor | None) -> Tensor:
        """Embeddings (B, L, W) with the actions added at the slots of the future frames."""
        length, num_future = tokens.shape[1], layout.num_future(tokens.shape[1])
        if length > self.config.max_position_embeddings:
            raise ValueError(f"{length} tokens: the network has {self.config.max_position_embeddings} positions")
        embeds = self.llm.model.embed_tokens(tokens)
        self.check_actions(actions, (len(tokens), layout.context_length + num_future))
        if self.spatial is not None:
            embeds = embeds + self.spatial(layout.context_length, num_future)
        if actions is None:
            return embeds
        used = actions[:, layout.context_length - 1 : layout.context_length - 1 + num_future]
        slots = torch.tensor(layout.slot_indices(num_future), device=tokens.device)
        return embeds.index_add(1, slots, self.action_linear(used).to(embeds.dtype))

    def check_actions(self, actions: Tensor | None, leading: tuple[int, ...]) -> None:
        """Raises ValueError unless ``actions`` has shape (*leading, A), or is None for an action-free network."""
        if actions is None and not self.action_dim:
            return
        if actions is None:
            raise ValueError(f"actions: missing, the network takes {self.action_dim} numbers a frame")
        if not self.action_dim:
            raise ValueError("actions: given, but the network is action-free")
        if tuple(actions.shape) != (*leading, self.action_dim):
            raise ValueError(f"actions of shape {tuple(actions.shape)}: expected {(*leading, self.action_dim)}")

    def with_actions(
        self, action_dim: int, has_reward: bool = False, has_action_recon: bool = False
    ) -> VideoTransformer:
        """A copy that takes actions: the same function until the zero-initialised projection is trained."""
        config = copy.deepcopy(self.config)
        config.update({"action_dim": action_dim, "has_reward": has_reward, "has_action_recon": has_action_recon})
        network = type(self)(config).to(self.llm.lm_head.weight)
        network.load_state_dict(self.state_dict(), strict=False)
        return network

    @torch.no_grad()
    def absorb_normaliser(self, mean: Tensor, std: Tensor) -> None:
        """Fold (a - mean) / std, with which the network was trained, into ``action_linear``: it then takes raw actions.

        So the files need no normaliser beside them, as the release's have none.
        """
        layer = self.action_linear
        layer.weight.div_(std.to(layer.weight))
        layer.bias.sub_(layer.weight @ mean.to(layer.weight))

    def bind(self, tokenizer: Any) -> None:
        """Note whose ids this network speaks; ``WorldModel`` refuses it with any other tokenizer.

        Call it when training starts, and again after the tokenizer alone was adapted with frozen codebooks.
        """
        if self.config.vocab_size != tokenizer.layout.vocab_size:
            raise ValueError(
                f"vocabulary of {self.config.vocab_size}: the tokenizer's is {tokenizer.layout.vocab_size}"
            )
        self.config.tokenizer_fingerprint = tokenizer.fingerprint()

    def save_pretrained(self, folder: str | Path, **more: Any) -> None:  # type: ignore[override]
        """A ``transformer/`` folder of the release's layout."""
        write_transformer(self, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path, **more: Any) -> VideoTransformer:  # type: ignore[override]
        """Such a folder, read strictly. Raises UserError naming the file and what is wrong."""
        return read_transformer(Path(folder))

    def _start_heads(self) -> None:
        if self.action_dim:
            nn.init.zeros_(self.action_linear.weight)
            nn.init.zeros_(self.action_linear.bias)
        if self.spatial is not None:
            for table in self.spatial.children():
                nn.init.normal_(table.weight, std=self.config.initializer_range)  # type: ignore[arg-type]

    def _frame_ends(self, hidden: Tensor, num_future: int) -> Tensor:
        """States (B, F, W) at the last token of every future frame, of states (B,(n+1)F,W) from the first slot on."""
        return hidden.unflatten(1, (num_future, -1))[:, :, -1]

    def _recon_actions(self, hidden: Tensor, num_future: int) -> Tensor | None:
        if not hasattr(self, "action_recon_linear"):
            return None
        return self.action_recon_linear(hidden).unflatten(1, (num_future, -1))


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of ``symlog``."""
    return x.sign() * x.abs().expm1()


def reward_targets(rewards: Tensor, context_length: int) -> Tensor:
    """Rewards (B, T), row t of the move from frame t to t+1 -> what the head learns, (B, F) in symlog.

    The release compares the head with the next row, the reward of the move after; here they are aligned.
    """
    return symlog(rewards[:, context_length - 1 : -1])


# Of a file's config: what it was written with, and generation defaults that no picture needs.
_DROPPED = ("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "max_length")

_OURS = ("action_dim", "has_reward", "has_action_recon", "spatial_embedding")  # told by the tensors

_WRITTEN = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "initializer_range",
    "attention_bias",
    "mlp_bias",
    "attention_dropout",
    "tie_word_embeddings",
    "rope_parameters",
    "tokenizer_fingerprint",
)

_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_transformer(folder: Path) -> VideoTransformer:
    """The transformer of ``folder`` in float32, whatever dtype its config names. Raises UserError as above."""
    path, weights_path = folder / "config.json", folder / TRANSFORMER_WEIGHTS
    config = read_config(path)
    if config.get("model_type") != "llama":
        raise UserError(f"{path}: model_type={config.get('model_type')}: only llama is known")
    weights = read_tensors(weights_path)
    if not any(name.startswith("llm.") for name in weights):
        weights = {f"llm.{name}": tensor for name, tensor in weights.items()}
    network: VideoTransformer = build_on_meta(lambda: VideoTransformer(_llama_config(config, weights)), weights, path)
    network.llm.model.rotary_emb = type(network.llm.model.rotary_emb)(network.config)  # its table is no weight
    fill(network, weights, weights_path)
    return network.eval()


def write_transformer(network: VideoTransformer, folder: Path) -> None:
    """The release's files: bare Llama tensors without actions, under "llm." beside the heads with them."""
    folder.mkdir(parents=True, exist_ok=True)
    has_heads = any(name != "llm" for name, _ in network.named_children())
    source: nn.Module = network if has_heads else network.llm
    ours = network.config.to_dict()
    config = {key: ours[key] for key in _WRITTEN if ours.get(key) is not None}
    rope = ours.get("rope_parameters") or ours  # where transformers 5 keeps it, and 4
    config |= {"architectures": ["LlamaForCausalLM"], "rope_theta": rope["rope_theta"], "torch_dtype": "float32"}
    write_tensors(source, folder / TRANSFORMER_WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _llama_config(config: dict[str, Any], weights: dict[str, Tensor]) -> LlamaConfig:
    """Their keys, with what only the tensors tell."""
    kept = {key: one for key, one in config.items() if key not in (*_DROPPED, *_OURS)}
    action, recon = weights.get("action_linear.weight"), weights.get("action_recon_linear.weight")
    width = action.shape[1] if action is not None else recon.shape[0] if recon is not None else None
    heads: dict[str, Any] = {"has_reward": "reward_linear.weight" in weights, "has_action_recon": recon is not None}
    own, within = weights.get("spatial.own.weight"), weights.get("spatial.within.weight")
    if own is not None and within is not None:
        heads["spatial_embedding"] = [len(own) * len(within), len(own)]
    return LlamaConfig(**(kept | dict.fromkeys(_SPECIAL_TOKENS) | heads), action_dim=width)
