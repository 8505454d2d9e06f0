"""``toolkit bench grow``: growing a checkpoint (bench_growth.py)."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.runs.bench import parse_options, run_bench
from toolkit.schema import choice
from toolkit.stacking import bench_growth
from toolkit.stacking.bench_growth import GrowthOptions


@dataclass
class Options(GrowthOptions):
    """key=value options of the benchmark."""

    measure: str = choice("growth", "growth")


def main(words: list[str]) -> int:
    """Time every contender and print the table; ``out=FILE`` also writes it as JSON. Returns the exit code."""
    options = parse_options(Options, words)
    note = f"{options.source_layers} layers of width {options.hidden_size} in bfloat16, grown {options.factor} times"
    return run_bench("grow", options, bench_growth.contenders(options), "MB", note)
