"""What is compared: one column per method, scale and model, all from the same noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from toolkit.icg.config import SampleICG
from toolkit.icg.methods import CFG, METHODS, Guidance, NoGuidance
from toolkit.icg.sources.base import Source
from toolkit.show.table import number_in_key

CONTROLS = {"none_dropping": "none", "null": "untrained null"}
GIVEN, PLAIN, DROPPING = "given", "plain", "dropping"
MODELS = {GIVEN: "", PLAIN: "", DROPPING: "drop"}


@dataclass(frozen=True)
class Column:
    """One way to sample: ``name`` is the method (or a control), ``shown`` whether it is in the grid and the table."""

    name: str
    guidance: Guidance
    scale: float
    model: str
    source: Source
    shown: bool

    @property
    def key(self) -> str:
        """The prefix of its metrics: ``icg.w_1p5``, ``none``."""
        return self.name if not self.guidance.guides else f"{self.name}.{scale_key(self.scale)}"

    @property
    def label(self) -> str:
        """The name in tables and figures: method, scales, and which of two models."""
        label = label_of(self.name)
        if self.guidance.guides:
            first, *other = label.split(" + ")
            label = " + ".join([f"{first} {self.scale:g}", *(f"{one} {self._second_scale:g}" for one in other)])
        return label + (f" ({MODELS[self.model]})" if MODELS[self.model] else "")

    @property
    def _second_scale(self) -> float:
        """The scale of the second of two combined methods."""
        assert self.guidance.second is not None
        return self.guidance.second.scales[0]


def scale_key(scale: float) -> str:
    """1.5 as a part of a metric's name: ``w_1p5``."""
    return f"w_{number_in_key(scale)}"


def label_of(name: str) -> str:
    """The name of a method or a control in tables and figures."""
    return METHODS[name].label if name in METHODS else CONTROLS[name]


def columns(config: SampleICG, sources: Mapping[str, Source], measured: bool) -> list[Column]:
    """Every column of the run, those without guidance first, each key once; the curve's only where it is ``measured``.

    Raises UserError where a model cannot do what is asked.
    """
    found: dict[str, Column] = {}
    for column in _all(config, sources, measured):
        if column.key not in found or column.shown:
            found[column.key] = column
    for column in found.values():
        column.source.refuse(column.guidance)
    return list(found.values())


def _all(config: SampleICG, sources: Mapping[str, Source], measured: bool) -> Iterator[Column]:
    methods = config.methods()
    for guidance in methods:
        model = _model_for(guidance, sources)
        if not guidance.guides:
            yield Column("none", guidance, 1.0, model, sources[model], True)
            if DROPPING in sources:
                yield Column("none_dropping", NoGuidance(), 1.0, DROPPING, sources[DROPPING], True)
        else:
            yield from _over_scales(config, guidance.method, guidance, model, sources, measured)
    if config.measure.untrained_null:
        plain = PLAIN if PLAIN in sources else GIVEN
        control = next((one for one in methods if type(one) is CFG), CFG(scale=config.guidance.scale))
        yield from _over_scales(config, "null", control, plain, sources, measured)


def _over_scales(
    config: SampleICG, name: str, guidance: Guidance, model: str, sources: Mapping[str, Source], measured: bool
) -> Iterator[Column]:
    """The scales asked for, and those of the curve; 1 is no guidance, which is there, unless a second method guides."""
    for scale in guidance.scales:
        yield Column(name, guidance, float(scale), model, sources[model], True)
    for scale in config.curve_of(guidance) if measured else []:
        if scale not in guidance.scales and (scale != 1 or guidance.second is not None):
            yield Column(name, guidance, float(scale), model, sources[model], False)


def _model_for(guidance: Guidance, sources: Mapping[str, Source]) -> str:
    if GIVEN in sources:
        return GIVEN
    return DROPPING if guidance.needs_null else PLAIN
