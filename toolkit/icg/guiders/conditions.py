"""The independent condition of ICG: what to draw in the place of the real one (Sadat et al. 2025, sec. 4, fig. 11).

Fields are named as a network or a modular pipeline names its inputs. The text fields go by two names of ours,
``prompt_embeds`` and ``pooled_prompt_embeds``, whatever the network calls them.

Shapes: B samples, K classes, m latent slots of k codes, N rows of a bank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.errors import UserError, did_you_mean
from toolkit.icg.guiders.streams import Draws

MODES = ("auto", "class", "gaussian", "bank", "shuffle")
CANONICAL = {
    "encoder_hidden_states": "prompt_embeds",
    "cap_feats": "prompt_embeds",
    "text_embeds": "pooled_prompt_embeds",
    "pooled_projections": "pooled_prompt_embeds",
}
CODED_FIELDS = ("class_labels", "latents")
TEXT_FIELDS = ("prompt_embeds", "pooled_prompt_embeds")

Fields = dict[str, Tensor]
Sampler = Callable[[Fields, Draws], Fields]
"""(the real condition, the guider's draws) -> what takes the place of some of its fields, each like the real one."""


def carries_text(name: str) -> bool:
    """Whether an input of a network carries the prompt, by its name: also the second and third text streams."""
    streams = name.startswith(("encoder_hidden_states", "prompt_embeds")) and not re.search("mask|image|len|ids", name)
    return streams or canonical(name) in TEXT_FIELDS


def canonical(name: str) -> str:
    """Our name of a field."""
    return CANONICAL.get(name, name)


class IndependentCondition:
    """Draws conditions that are independent of the sample.

    mode:
        class: uniform over the K classes, or over the k codes of every latent slot; integers or one-hot vectors.
        gaussian: standard normal times the deviation of the real embedding (``std``), zero mean.
        bank: a row of the bank per sample, the same for all fields (random prompts, latents from a prior).
        shuffle: the conditions of other samples of the batch, the same permutation for all fields.
        auto: bank where it has the field, else class for integers and one-hot vectors, else gaussian.
    fields: which fields to draw; None is every one of class_labels, latents and the text embeddings that is there, the
        second and third text streams (encoder_hidden_states_t5 and the like) included.
    std: "tensor" is the paper's (one number), "sample" one per sample, a number that constant.
    class_probabilities: K weights for the class, None for uniform.
    exclude_own: never draw the sample's own class, codes or (shuffle) condition.
    """

    def __init__(
        self,
        mode: str = "auto",
        fields: Sequence[str] | None = None,
        num_classes: int | None = None,
        exclude_own: bool = False,
        std: str | float = "tensor",
        class_probabilities: Sequence[float] | None = None,
    ) -> None:
        if mode not in MODES:
            raise UserError(f"condition={mode}: {did_you_mean(mode, MODES)}choose one of {', '.join(MODES)}")
        if (isinstance(std, str) and std not in ("tensor", "sample")) or (not isinstance(std, str) and std <= 0):
            raise UserError(f"std={std}: must be tensor, sample or a positive number")
        self.mode, self.exclude_own, self.std = mode, exclude_own, std
        self.fields = None if fields is None else tuple(canonical(name) for name in fields)
        self.given: dict[str, int] = {} if num_classes is None else {"class_labels": num_classes}
        self.class_probabilities = None if class_probabilities is None else torch.tensor(class_probabilities)
        if self.class_probabilities is not None:
            size = self.given.setdefault("class_labels", len(self.class_probabilities))
            if len(self.class_probabilities) != size or self.class_probabilities.min() < 0:
                raise UserError(f"class_probabilities: must be {size} numbers of at least 0")
        _check_size("num_classes", self.given.get("class_labels", 2))
        self.sizes = dict(self.given)
        self.bank: Fields = {}
        self.sampler: Sampler | None = None

    def bind(self, network: object) -> None:
        """Take the numbers of classes and codes from the network, where they were not given."""
        self.sizes = condition_sizes(network) | self.given

    def set_bank(self, bank: Mapping[str, Tensor] | None) -> None:
        """Rows to draw from, by field: tensors (N, ...) with one N. Raises UserError where N differs or is 0."""
        bank = {canonical(name): rows for name, rows in (bank or {}).items()}
        if len({len(rows) for rows in bank.values()}) > 1 or any(len(rows) == 0 for rows in bank.values()):
            sizes = ", ".join(f"{name} {len(rows)}" for name, rows in bank.items())
            raise UserError(f"condition bank: every field needs the same number of rows, at least one ({sizes})")
        self.bank = bank

    def chosen(self, real: Fields) -> list[str]:
        """Names of the fields that are drawn. Raises UserError when there is none, or one asked for is missing."""
        present = [canonical(name) for name in real]
        for name in self.fields or ():
            if name not in present:
                choices = ", ".join(present) or "none"
                raise UserError(
                    f"fields: no {name!r} among the inputs; {did_you_mean(name, present)}there are {choices}"
                )
        if self.fields is None:
            names = [name for name in real if canonical(name) in CODED_FIELDS or carries_text(name)]
        else:
            names = [name for name in real if canonical(name) in self.fields]
        if not names:
            others = [name for name, value in real.items() if value.is_floating_point() and value.dim() > 1]
            hint = f"; or name what is the condition, fields=, of {', '.join(others)}" if others else ""
            raise UserError(
                "independent condition guidance needs a conditional model and its condition (class_labels, latents "
                f"or text); for an unconditional model take time-step guidance{hint}"
            )
        return names

    def draw(self, real: Fields, num_draws: int, draws: Draws) -> list[Fields]:
        """``num_draws`` independent conditions, each a tensor like the real one per chosen field."""
        names = self.chosen(real)
        real = {name: real[name] for name in names}
        if self.sampler is not None:
            drawn = [self.sampler(real, draws) for _ in range(num_draws)]
            return [{name: _like(real, name, value) for name, value in one.items()} for one in drawn]
        modes = {name: self._mode_of(name, real[name]) for name in names}
        batch_size, device = len(real[names[0]]), real[names[0]].device
        times = range(num_draws)
        rows = [self._bank_rows(batch_size, device, draws) for _ in times] if "bank" in modes.values() else []
        orders = [self._order(batch_size, device, draws) for _ in times] if "shuffle" in modes.values() else []
        drawn = [{} for _ in times]
        for name, mode in modes.items():
            if mode == "bank":
                values = [self._bank_values(name, real[name])[index].to(real[name]) for index in rows]
            elif mode == "shuffle":
                values = [real[name][order] for order in orders]
            elif mode == "class":
                values = self._codes(canonical(name), real[name], num_draws, draws)
            else:
                values = [self._gaussian(real[name], draws) for _ in times]
            for fields, value in zip(drawn, values, strict=True):
                fields[name] = value
        return drawn

    def _mode_of(self, name: str, real: Tensor) -> str:
        if self.mode == "gaussian" and not real.is_floating_point():
            raise UserError(f"condition=gaussian: {name} holds integers; take condition=class")
        if self.mode == "class" and canonical(name) not in CODED_FIELDS:
            raise UserError(f"condition=class: {name} is an embedding; take bank, gaussian or shuffle")
        if self.mode == "bank" and canonical(name) not in self.bank:
            raise UserError(f"condition=bank: no rows for {name}; call set_condition_bank first")
        if self.mode != "auto":
            return self.mode
        if canonical(name) in self.bank:
            return "bank"
        if self.bank and carries_text(name):
            raise UserError(f"condition bank: no rows for {name}, which carries the prompt too; give them, or fields=")
        coded = not real.is_floating_point() or (canonical(name) in CODED_FIELDS and _is_one_hot(real))
        return "class" if coded else "gaussian"

    # --- embeddings ---

    def _gaussian(self, real: Tensor, draws: Draws) -> Tensor:
        noise = draws.normal(real.shape, real.device)
        if self.std == "tensor":
            return (noise * real.float().std()).to(real.dtype)
        if self.std == "sample":
            return (noise * real.float().std(tuple(range(1, real.dim())), keepdim=True)).to(real.dtype)
        return (noise * float(self.std)).to(real.dtype)

    def _bank_rows(self, batch_size: int, device: torch.device, draws: Draws) -> Tensor:
        return draws.integers(len(next(iter(self.bank.values()))), (batch_size,), device)

    def _bank_values(self, name: str, real: Tensor) -> Tensor:
        self.bank[canonical(name)] = bank = self.bank[canonical(name)].to(real.device)
        if real.dim() == bank.dim() == 3 and bank.shape[1] > real.shape[1]:
            bank = bank[:, : real.shape[1]]  # of text that is not padded, as long as the real one
        if bank.shape[1:] != real.shape[1:]:
            raise UserError(f"condition bank: {name} rows are {tuple(bank.shape[1:])}, needed {tuple(real.shape[1:])}")
        return bank

    def _order(self, batch_size: int, device: torch.device, draws: Draws) -> Tensor:
        if batch_size < 2 or draws.per_sample:
            raise UserError("condition=shuffle: needs a batch of at least 2 samples and one seed for all of them")
        if self.exclude_own:
            shift = 1 + draws.integers(batch_size - 1, (1,), device)
            return (torch.arange(batch_size, device=device) + shift) % batch_size
        return draws.uniform((batch_size,), device).argsort()

    # --- classes and codes ---

    def _codes(self, name: str, real: Tensor, num_draws: int, draws: Draws) -> list[Tensor]:
        one_hot = real.is_floating_point()
        size = real.shape[-1] if one_hot else self._size(name)
        _check_size("num_classes" if name == "class_labels" else name, size)
        own = real.argmax(-1) if one_hot else real
        least, most = (int(end) for end in own.aminmax())
        if least < (-1 if name == "latents" else 0) or most >= size:
            raise UserError(f"{name}: must be in [0, {size}), got {least} to {most}")
        codes = self._distinct(own, size, num_draws, draws) if num_draws > 1 else [self._single(own, size, draws)]
        return [F.one_hot(one, size).to(real.dtype) for one in codes] if one_hot else codes

    def _size(self, name: str) -> int:
        if name not in self.sizes:
            raise UserError(f"num_classes: the number of classes ({name}, without the null class) must be given")
        return self.sizes[name]

    def _single(self, own: Tensor, size: int, draws: Draws) -> Tensor:
        if self.class_probabilities is not None and own.dim() == 1:
            return self._weighted(own, 1, draws)[0]
        if not self.exclude_own:
            return draws.integers(size, own.shape, own.device).to(own.dtype)
        drawn = draws.integers(size - 1, own.shape, own.device).to(own.dtype)
        return drawn + (drawn >= own).to(own.dtype) * (own >= 0)  # a null code (-1) has nothing to exclude

    def _distinct(self, own: Tensor, size: int, num_draws: int, draws: Draws) -> list[Tensor]:
        """Without replacement: the mean keeps its expectation, with less variance, and all K of them have none.

        With replacement where classes have probabilities: without, their shares would no longer be those.
        """
        if self.class_probabilities is not None and own.dim() == 1:
            return self._weighted(own, num_draws, draws)
        if num_draws > size - self.exclude_own:
            raise UserError(f"num_draws={num_draws}: there are {size - self.exclude_own} different conditions to draw")
        keys = draws.uniform((*own.shape, size), own.device)
        if self.exclude_own:
            keys = keys + 2 * F.one_hot(own.clamp_min(0), size) * (own >= 0)[..., None]
        return [one.to(own.dtype) for one in keys.argsort(-1)[..., :num_draws].unbind(-1)]

    def _weighted(self, own: Tensor, num_draws: int, draws: Draws) -> list[Tensor]:
        assert self.class_probabilities is not None
        weights = self.class_probabilities.to(own.device).repeat(len(own), 1)
        if self.exclude_own:
            weights[torch.arange(len(own), device=own.device), own.long()] = 0
        if bool((weights.sum(-1) == 0).any()):
            raise UserError("class_probabilities: no class is left to draw")
        return [one.to(own.dtype) for one in draws.choices(weights, num_draws).unbind(-1)]


def _check_size(name: str, size: int) -> None:
    if size < 2:
        raise UserError(f"{name}={size}: with one class there is no other condition to draw")


def _is_one_hot(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all() and (values.sum(-1) == 1).all())


def _like(real: Fields, name: str, value: Tensor) -> Tensor:
    if name not in real:
        raise UserError(f"condition sampler: {name!r} is not among the drawn fields ({', '.join(real)})")
    if value.shape != real[name].shape:
        raise UserError(f"condition sampler: {name} is {tuple(value.shape)}, needed {tuple(real[name].shape)}")
    return value.to(real[name])


def condition_sizes(network: object) -> dict[str, int]:
    """How many classes and latent codes a network knows, the null class excluded; {} where it does not say.

    UNets of diffusers are not asked: their ``num_class_embeds`` may or may not hold a null class.
    """
    sizes: dict[str, int] = {}
    num_classes = getattr(network, "num_classes", None) or _config(network).get("num_embeds_ada_norm")
    if num_classes:
        sizes["class_labels"] = num_classes
    if getattr(network, "num_latents", 0) and getattr(network, "latent_kind", "") == "discrete":
        sizes["latents"] = getattr(network, "codebook_size", 0)
    return sizes


def _config(network: object) -> Mapping[str, int]:
    return getattr(network, "config", {})
