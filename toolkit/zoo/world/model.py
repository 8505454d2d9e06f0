"""iVideoGPT as a world model with state: encode a context, then one frame per action (Wu et al. 2024, 2 and 3.3).

The context is encoded once, keys and values of all tokens are kept across frames, and only the newest frame is decoded.
The release passes the whole prefix again for every frame. Shapes: B worlds, K frames, A numbers of an action.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import PushToHubMixin
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.zoo.importing import read_config
from toolkit.zoo.world.composite import composite
from toolkit.zoo.world.dynamics import Dynamics
from toolkit.zoo.world.sampling import Sampling, as_sampling
from toolkit.zoo.world.state import Kept, Pred, Preds, Scores, State, WorldSpec, as_bytes, as_images
from toolkit.zoo.world.tokenizer import CompressiveVQModel, DecodedContext, read_tokenizer
from toolkit.zoo.world.tokenizer_blocks import KeyValue
from toolkit.zoo.world.transformer import VideoTransformer, read_transformer

Policy = Callable[[Tensor, int], Any]


class WorldModel(nn.Module, PushToHubMixin):
    """A tokenizer and the transformer that was trained with it.

    Args:
        tokenizer, transformer: see there. They are put into eval mode.
        action_low, action_high: range of every action dimension in the training data, for spaces and planners.
        goal_conditioned: the first context frame is the goal; a new context keeps it.
        sampling: how frames are drawn where ``step`` is not told otherwise; a ``Sampling``, its fields, "greedy", or
            None as the paper samples. It is kept in ``config.json``; folders without it mean None.
        discrete: an action is one-hot over so many choices (one after the other where frames are skipped); None: it is
            a vector of numbers.
        kept_frames: where the positions are used up, the context stays, and so many of the last frames are read after
            it as the transformer drew them (ours, for models trained with a gap after the context); 0: the last T0
            frames become the new context.
        composite: with kept_frames, whether frames show the true context where nothing has changed, see ``composite``
            (ours).

    Raises:
        UserError: the transformer has another vocabulary, or was bound to another tokenizer; a setting does not fit.
    """

    def __init__(
        self,
        tokenizer: CompressiveVQModel,
        transformer: VideoTransformer,
        action_low: Sequence[float] | None = None,
        action_high: Sequence[float] | None = None,
        goal_conditioned: bool = False,
        sampling: Sampling | dict[str, Any] | str | None = None,
        discrete: int | None = None,
        kept_frames: int = 0,
        composite: bool = False,
    ):
        super().__init__()
        _check_pair(tokenizer, transformer)
        for name, bound in (("action_low", action_low), ("action_high", action_high)):
            if bound is not None and len(bound) != transformer.action_dim:
                raise UserError(f"{name}: {len(bound)} numbers, the actions have {transformer.action_dim}")
        if discrete is not None and (discrete < 1 or transformer.action_dim % discrete):
            raise UserError(f"discrete={discrete}: does not divide the {transformer.action_dim} numbers of an action")
        self.sampling = as_sampling(Sampling(**sampling) if isinstance(sampling, dict) else sampling)
        self.tokenizer, self.transformer = tokenizer, transformer
        self.dynamics = Dynamics(transformer, tokenizer.layout)
        if kept_frames and not 0 < kept_frames < self.dynamics.max_future:
            raise UserError(f"kept_frames={kept_frames}: the positions hold {self.dynamics.max_future} future frames")
        self.config: dict[str, Any] = {
            "_class_name": "WorldModel",
            "action_low": None if action_low is None else [float(one) for one in action_low],
            "action_high": None if action_high is None else [float(one) for one in action_high],
            "goal_conditioned": goal_conditioned,
            "sampling": None if sampling is None else asdict(self.sampling),
            "discrete": discrete,
            "kept_frames": kept_frames,
            "composite": composite,
        }
        self.eval()
        self.requires_grad_(False)

    @property
    def spec(self) -> WorldSpec:
        """Sizes and abilities."""
        layout, config = self.tokenizer.layout, self.tokenizer.config
        return WorldSpec(
            config.resolution,
            layout.context_length,
            layout.tokens_per_context,
            layout.tokens_per_frame,
            self.transformer.action_dim,
            self.dynamics.max_future,
            self.transformer.has_reward,
            self.config["goal_conditioned"],
            self._dtype,
        )

    @torch.no_grad()
    def begin(self, context: Any, seeds: int | Sequence[int] | Tensor = 0, frames: int = 8) -> State:
        """Encode the context and let the transformer read it.

        Args:
            context: uint8 (B, T0, H, W, 3), or floating point in [0, 1], channels first or last; array or tensor.
            seeds: one per row; an int s stands for s, s+1, ... A row's future depends on its own seed alone.
            frames: future frames to make room for at first (the memory grows by itself).

        Raises:
            UserError: what does not fit.
        """
        images = as_images(context, self.spec.T0, self.tokenizer.config.resolution, "context").to(self._device)
        if isinstance(seeds, int):
            seeds = range(seeds, seeds + len(images))
        keys = torch.as_tensor(list(seeds) if not isinstance(seeds, Tensor) else seeds, dtype=torch.int64)
        if keys.shape != (len(images),):
            raise UserError(
                f"seeds of shape {tuple(keys.shape)}: expected one int, or one for each of {len(images)} rows"
            )
        return self._look(images, keys.to(self._device), 0, frames)

    @torch.no_grad()
    def step(
        self, state: State, action: Any = None, sampling: Sampling | str | None = None, on_overflow: str = "raise"
    ) -> tuple[State, Pred]:
        """Imagine the frame to which ``action`` (B, A), in the units of the data, leads.

        Args:
            state: stays valid; it can be stepped again with another action.
            action: None for an action-free model.
            sampling: None samples as the model says, "greedy", or a ``Sampling``.
            on_overflow: where ``max_future`` frames are exceeded: "raise", or "recontext" to begin anew with the last
                frames, see ``kept_frames`` (lossy; recorded in ``Pred.recontextualised``).

        Raises:
            UserError: an action of another shape or not finite, or no positions left.
        """
        actions = None if action is None else torch.as_tensor(action)[:, None]
        rows = self._check_actions(actions, len(state), 1)
        return self._step(state, None if rows is None else rows[:, 0], self._how(sampling), on_overflow)

    @torch.no_grad()
    def rollout(
        self,
        state: State,
        actions: Any = None,
        sampling: Sampling | str | None = None,
        on_overflow: str = "raise",
        num_frames: int | None = None,
    ) -> Preds:
        """K times ``step`` with ``actions`` (B, K, A); an action-free model takes ``num_frames`` K instead.

        The state after the last frame is ``Preds.state``. Raises UserError as ``step`` does, before the first frame.
        """
        num_frames = _num_frames(actions, num_frames)
        rows = self._check_actions(None if actions is None else torch.as_tensor(actions), len(state), num_frames)
        self._check_horizon(state, num_frames, on_overflow)
        return self.imagine(state, lambda _, t: None if rows is None else rows[:, t], num_frames, sampling, on_overflow)

    @torch.no_grad()
    def imagine(
        self,
        state: State,
        policy: Policy,
        num_frames: int,
        sampling: Sampling | str | None = None,
        on_overflow: str = "raise",
    ) -> Preds:
        """K frames under a policy: ``policy(observation u8 (B, H, W, 3), t)`` gives the action (B, A) at t = 0 .. K-1.

        Raises UserError as ``step`` does, the horizon before the first frame.
        """
        if num_frames < 1:
            raise UserError(f"num_frames={num_frames}: must be at least 1")
        self._check_horizon(state, num_frames, on_overflow)
        preds, actions, how = [], [], self._how(sampling)
        for t in range(num_frames):
            action = policy(state.observation, t)
            taken = self._check_actions(None if action is None else torch.as_tensor(action)[:, None], len(state), 1)
            actions.append(None if taken is None else taken[:, 0])
            state, pred = self._step(state, actions[-1], how, on_overflow)
            preds.append(pred)
        return Preds.stack(preds, actions, state)

    @torch.no_grad()
    def join(self, states: Sequence[State], rows: Sequence[Sequence[int] | Tensor] | None = None) -> State:
        """Worlds of several states, of any ages, as one batch: each continues as it would have alone.

        rows: where in the batch the worlds of each state stand, 0 .. B-1 in all; None: one state after the other.
        Raises UserError where they do not fill the batch.
        """
        total, device = sum(len(one) for one in states), self._device
        split = torch.arange(total).split([len(one) for one in states]) if rows is None else rows
        places = [torch.as_tensor(index, dtype=torch.int64, device=device) for index in split]
        order = torch.cat(places)
        if [len(one) for one in places] != [len(one) for one in states] or sorted(order.tolist()) != [*range(total)]:
            raise UserError(f"rows {[one.tolist() for one in places]}: expected 0..{total - 1}, one for each world")
        back = order.argsort()
        clocks = {
            name: torch.cat([torch.as_tensor(getattr(one, name)).cpu().expand(len(one)) for one in states])[back.cpu()]
            for name in ("frame", "used")
        }
        memory = zip(*(one.context.memory for one in states), strict=True)
        return State(
            self.dynamics.join([one.past for one in states], places),
            DecodedContext(
                torch.cat([one.context.frames for one in states])[back],
                [KeyValue.joined(parts, back) for parts in memory],
            ),
            torch.cat([one.recent for one in states])[back],
            torch.cat([one.seeds for one in states])[back],
            clocks["frame"].to(device),
            clocks["used"],
            None if states[0].kept is None else Kept.joined([one.kept for one in states], back),  # type: ignore[misc]
        )

    @torch.no_grad()
    def score(self, context: Any, frames: Any, actions: Any = None) -> Scores:
        """How likely are true frames (B, F, ...), and which rewards are read from them (teacher forcing)?

        context and frames as in ``begin``; actions (B, F, A): the one that leads to each frame. Raises UserError.
        """
        layout, size = self.tokenizer.layout, self.tokenizer.config.resolution
        past = as_images(context, layout.context_length, size, "context").to(self._device)
        future = as_images(frames, None, size, "frames").to(self._device)
        if len(future) != len(past):
            raise UserError(f"frames: {len(future)} rows, the context has {len(past)}")
        num_future = future.shape[1]
        self._check_length(num_future)
        rows = self._check_actions(None if actions is None else torch.as_tensor(actions), len(past), num_future)
        tokens = self.tokenizer.tokenize(torch.cat([past, future], dim=1).to(self._dtype))
        if rows is not None:  # rows before the last context frame and at the last frame are never read
            rows = torch.cat([rows[:, :1].expand(-1, layout.context_length - 1, -1), rows, rows[:, :1]], dim=1)
        logprobs, rewards = self.dynamics.score(tokens, rows)
        return Scores(logprobs.sum(dim=-1), rewards)

    def save_pretrained(self, folder: str | Path, **more: Any) -> None:
        """``config.json``, and ``tokenizer/`` and ``transformer/`` in the release's layout, always as safetensors.

        ``more`` is what ``push_to_hub`` passes; nothing in it applies here.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.transformer.save_pretrained(folder / "transformer")
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, source: str | Path) -> WorldModel:
        """Such a folder, or one of the release (without ``config.json``). Raises UserError naming what is wrong."""
        return read_world_model(Path(source))

    def _how(self, sampling: Sampling | str | None) -> Sampling:
        return self.sampling if sampling is None else as_sampling(sampling)

    # -- one frame ---------------------------------------------------------------------------------------------------

    def _look(self, images: Tensor, seeds: Tensor, number: int | Tensor, room: int) -> State:
        """Encode a context (B, T0, 3, H, W) and let the transformer read it."""
        images = images.to(self._dtype)
        codes = self.tokenizer.encode_context(images).codes
        context = self.tokenizer.decode_context(codes)
        kept = self._nothing_kept(codes, images[:, -1]) if self.config["kept_frames"] else None
        return State(self.dynamics.look(codes, room), context, as_bytes(images), seeds, number, kept=kept)

    def _nothing_kept(self, codes: Tensor, frame: Tensor) -> Kept:
        """The context's codes (B, T0, N) and last frame (B, 3, H, W), and no imagined one yet."""
        size, num, dim = len(codes), self.config["kept_frames"], self.transformer.action_dim
        weight = self.transformer.llm.lm_head.weight
        actions = weight.new_zeros(size, num, dim) if dim else None
        return Kept(codes, frame, codes.new_zeros(size, num, self.tokenizer.layout.tokens_per_frame), actions)

    def _step(self, state: State, action: Tensor | None, sampling: Sampling, on_overflow: str) -> tuple[State, Pred]:
        self._check_horizon(state, 1, on_overflow)
        state, again = self._renewed(state)
        past, drawn, reward = self.dynamics.frame(state.past, action, sampling, state.seeds, state.frame)
        codes = drawn.tokens - self.tokenizer.layout.num_context_codes
        decoded = self.tokenizer.decode_frames(codes[:, None], state.context)
        if state.kept is not None and self.config["composite"]:
            decoded = composite(decoded, state.context.frames[:, -1], state.kept.frame)
        frame = as_bytes(decoded)
        keep = int(self.config["goal_conditioned"])
        recent = torch.cat([state.recent[:, :keep], state.recent[:, keep + 1 :], frame], dim=1)
        kept = None if state.kept is None else state.kept.with_frame(drawn.tokens, action)
        state = replace(state, past=past, recent=recent, frame=state.frame + 1, used=state.used + 1, kept=kept)
        logprob, entropy = drawn.logprobs.sum(dim=1), drawn.entropies.mean(dim=1)
        return state, Pred(frame[:, 0], reward, drawn.tokens, logprob, entropy, again)

    def _renewed(self, state: State) -> tuple[State, bool]:
        """Rows whose positions are used up begin anew with their last frames; whether there were any."""
        full = torch.as_tensor(state.used) >= self.dynamics.max_future
        if not full.any():
            return state, False
        if full.all() and state.kept is not None:
            kept = state.kept
            past = self.dynamics.look(kept.codes, self.dynamics.max_future, kept.tokens, kept.actions)
            return replace(state, past=past, used=kept.tokens.shape[1]), True
        if full.all():
            images = as_images(state.recent, None, self.tokenizer.config.resolution, "context")
            return self._look(images, state.seeds, state.frame, 8), True
        rows = [one.nonzero().flatten() for one in (full, ~full)]
        return self.join([self._renewed(state.select(rows[0]))[0], state.select(rows[1])], rows), True

    # -- the border ----------------------------------------------------------------------------------------------------

    @property
    def _device(self) -> torch.device:
        return self.transformer.llm.lm_head.weight.device

    @property
    def _dtype(self) -> torch.dtype:
        return self.tokenizer.quant_linear.weight.dtype

    def _check_actions(self, actions: Tensor | None, num_rows: int, num_frames: int) -> Tensor | None:
        try:
            self.transformer.check_actions(actions, (num_rows, num_frames))
        except ValueError as error:
            raise UserError(str(error)) from None
        if actions is None:
            return None
        actions = actions.to(self._device, self.transformer.action_linear.weight.dtype)
        if not actions.isfinite().all():
            raise UserError(f"actions: hold values that are not finite in {str(actions.dtype).removeprefix('torch.')}")
        return actions

    def _check_horizon(self, state: State, num_frames: int, on_overflow: str) -> None:
        if on_overflow not in ("raise", "recontext"):
            raise UserError(f"on_overflow={on_overflow}: choose one of raise, recontext")
        if on_overflow == "raise":
            self._check_length(int(torch.as_tensor(state.used).max()) + num_frames)

    def _check_length(self, num_frames: int) -> None:
        if num_frames > self.dynamics.max_future:
            positions = self.transformer.config.max_position_embeddings
            raise UserError(
                f"{num_frames} future frames: {positions} positions hold {self.dynamics.max_future} after the context; "
                "on_overflow='recontext' goes on from the last frames"
            )


def _num_frames(actions: Any, num_frames: int | None) -> int:
    if actions is None and num_frames is None:
        raise UserError("rollout: give actions (B,K,A), or num_frames for an action-free model")
    if actions is None:
        return int(num_frames or 0)
    shape = tuple(torch.as_tensor(actions).shape)
    if len(shape) != 3 or num_frames not in (None, shape[1]):
        raise UserError(f"actions of shape {shape}: expected (rows, {num_frames or 'frames'}, numbers)")
    return shape[1]


def _check_pair(tokenizer: CompressiveVQModel, transformer: VideoTransformer) -> None:
    """Raises UserError unless the two belong together."""
    expected, found = tokenizer.layout.vocab_size, transformer.config.vocab_size
    if found != expected:
        raise UserError(f"transformer: vocabulary of {found}, but the tokenizer's codes and slots make {expected}")
    known = getattr(transformer.config, "tokenizer_fingerprint", None)
    if known and known != tokenizer.fingerprint():
        raise UserError(
            "transformer: trained with another tokenizer, whose ids mean other pictures "
            "(after adapting only the tokenizer, with frozen codebooks, call transformer.bind(tokenizer))"
        )


def read_world_model(folder: Path) -> WorldModel:
    """Both networks and, where there is one, the ``config.json`` beside them. Raises UserError naming the file."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not found (expected a folder with tokenizer/ and transformer/)")
    for part in ("tokenizer", "transformer"):
        if not (folder / part).is_dir():
            raise UserError(f"{folder}: no {part}/ there (expected a folder with tokenizer/ and transformer/)")
    tokenizer = read_tokenizer(folder / "tokenizer")
    transformer = read_transformer(folder / "transformer")
    path = folder / "config.json"
    extras = {key: one for key, one in read_config(path).items() if key != "_class_name"} if path.exists() else {}
    try:
        return WorldModel(tokenizer, transformer, **extras)
    except TypeError as error:
        raise UserError(f"{path}: not the config of a world model: {error}") from None
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
