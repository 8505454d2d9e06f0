"""The typed config of ``toolkit grow-llm``. Defaults are the paper's: stack all blocks, no noise."""

from __future__ import annotations

from dataclasses import dataclass, fields

from toolkit.schema import Job, UserError, choice, number

ANY_DIRECTION = ("direct", "zero", "random", "learn")
DEPTH_ONLY = ("stack", "interleave", "gradual", "solar", "llama_pro", "pattern", "list")

_OWN_KEYS = {"pattern": "pattern", "list": "layers", "solar": "drop", "llama_pro": "insert"}
_SIZED_BY_THEMSELVES = ("pattern", "list")


@dataclass
class Growth:
    """One growth operator and its size.

    operator: the paper's atomic operators (appendix A.3-A.6) ``direct``, ``zero``, ``random``, ``learn`` in
        either direction, or a way to list layers: ``stack`` (G_stack, the same as direct in depth), ``interleave``,
        ``gradual`` (StackedBERT), ``solar``, ``llama_pro``, ``pattern`` (``6-12*2-6``) and ``list``.
    factor: target layers / source layers in depth, target hidden size / source hidden size in width. ``num_layers``
        says the same by the number of target layers.
    pattern: ``prefix-block*times-suffix``, each a number of layers (appendix H.3).
    layers: source layer of every target layer, counted from 0.
    drop: SOLAR's m, the layers left out at the end of the first copy and at the start of the second.
    insert: LLaMA-Pro's number of new layers, one after each of as many groups.
    split: ``direct`` in width, the share alpha of a column that stays with the first copy; 0.5 splits evenly (then the
        copies never part), appendix A.3 asks for alpha != 1/2.
    scale_eps: ``zero`` in width also scales the norms' epsilon by d/D, which makes it exact.
    noise: alpha of W <- (1 - alpha) W + alpha eps (appendix I.2; the paper: 0.2).
    """

    operator: str = choice("stack", *DEPTH_ONLY, *ANY_DIRECTION)
    direction: str = choice("depth", "depth", "width")
    factor: float | None = number(None, least=1)
    num_layers: int | None = number(None, least=1)
    intermediate_size: int | None = number(None, least=1)
    pattern: str | None = None
    layers: list[int] = number([], least=0)
    drop: int | None = number(None, least=0)
    insert: int | None = number(None, least=1)
    split: float = number(0.7, above=0, below=1)
    scale_eps: bool = True
    noise: float = number(0.0, least=0, most=1)

    def check(self) -> None:
        """Raises UserError where keys do not belong together or the size is not given."""
        if self.direction == "width" and self.operator in DEPTH_ONLY:
            raise UserError(
                f"direction=width: operator={self.operator} grows depth (width: {', '.join(ANY_DIRECTION)})"
            )
        for operator, key in _OWN_KEYS.items():
            if getattr(self, key) not in (None, []) and operator != self.operator:
                raise UserError(f"{key}={getattr(self, key)}: belongs to operator={operator}, not {self.operator}")
        own = _OWN_KEYS.get(self.operator)
        given = own is not None and getattr(self, own) not in (None, [])
        if self.operator in _SIZED_BY_THEMSELVES and not given:
            raise UserError(f"operator={self.operator}: {own}=... must be given")
        if given and (self.factor is not None or self.num_layers is not None):
            raise UserError(f"factor, num_layers: {own}={getattr(self, str(own))} already says the size")
        if not given and (self.factor is None) == (self.num_layers is None):
            raise UserError("factor: give either factor=... or num_layers=... (target layers)")
        if self.direction == "width" and self.num_layers is not None:
            raise UserError("num_layers: belongs to direction=depth; give factor=...")
        if self.direction == "depth" and self.intermediate_size is not None:
            raise UserError("intermediate_size: belongs to direction=width")


@dataclass
class GrowLLM(Growth, Job):
    """``toolkit grow-llm``: ``stage=grow`` grows ``source``, ``stage=advise`` says when and by how much to grow.

    source: checkpoint folder, hub id, ``.gguf`` file, or a zoo network's folder or run; part: which network of a run.
    out: the new folder, the run's ``model/grown`` unless given. text: file on which preservation is measured.
    params, tokens: the target's size and budget, for ``advise``.
    """

    command: str = "grow-llm"
    stage: str = choice("grow", "grow", "advise", computes=False)
    source: str | None = None
    part: str | None = None
    out: str | None = None
    text: str | None = None
    measure: bool = True
    max_shard_gb: float = number(5.0, above=0)
    params: float | None = number(None, above=0)
    tokens: float | None = number(None, above=0)

    def stages(self) -> list[str]:
        """The one stage asked for."""
        return [self.stage]

    def growth(self) -> Growth:
        """The operator alone."""
        return Growth(**{item.name: getattr(self, item.name) for item in fields(Growth)})

    def check(self) -> None:
        """What the stage needs is given."""
        needed = {"grow": ("source",), "advise": ("params", "tokens")}[self.stage]
        for key in needed:
            if getattr(self, key) is None:
                raise UserError(f"{key}: must be given with stage={self.stage}, as in {_EXAMPLES[key]}")
        if self.stage == "grow":
            super().check()


_EXAMPLES = {"source": "source=DIR", "params": "params=1.1e9", "tokens": "tokens=100e9"}

SCHEMAS = {(None, "grow_llm_schema"): GrowLLM}
