"""``toolkit bench stacking``: ``measure=training`` (training.py) or ``measure=growth`` (growth.py).

Options of both kinds may be given together; those of the other kind are not used.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.bench import parse_options, run_bench
from toolkit.schema import choice
from toolkit.stacking.bench import growth as bench_growth
from toolkit.stacking.bench import training as bench_training
from toolkit.stacking.bench.growth import GrowthOptions
from toolkit.stacking.bench.training import TrainingOptions


@dataclass
class Options(TrainingOptions, GrowthOptions):
    """key=value options of the benchmark."""

    measure: str = choice("training", "training", "growth")


def main(words: list[str]) -> int:
    """Time every contender and print the table; ``out=FILE`` also writes it as JSON. Returns the exit code."""
    options = parse_options(Options, words)
    if options.measure == "growth":
        note = (
            f"{options.source_layers} layers of width {options.hidden_size} in bfloat16, grown {options.factor} times"
        )
        return run_bench("stacking", options, bench_growth.contenders(options), "MB", note)
    shape = f"{options.layers} layers of width {options.width}, {options.batch_size} x {options.context} tokens a step"
    return run_bench("stacking", options, bench_training.contenders(options), "tokens", shape)
