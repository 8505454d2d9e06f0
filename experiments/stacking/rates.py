"""A learning rate for each growth operator, swept on a seed that no claim reports.

    python experiments/stacking/rates.py OUT.json FOLDER

`grow_micro` with half its tokens (600k for 1.2M), for the time it takes. Operators of depth grow one base; width grows
a network that was as deep from the start and half as wide. Only the rate after growth differs: 1e-3, 2e-3 (at which all
of them ran before) and 4e-3. Where the best is at an end of these, one rate beyond it is tried, once. Reported runs
take the rate with the lowest last held-out loss. Runs that are done are not done again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import toolkit
from toolkit.runs.files import write_json

SEED, RATES = 100, (1e-3, 2e-3, 4e-3)
COMMON = ("experiment=grow_micro", "budget.tokens=600_000", "arms=[grown]", "num_threads=1", f"seed={SEED}")
NARROW = [
    *("network.num_hidden_layers=8", "network.hidden_size=16"),
    *("network.intermediate_size=44", "network.num_attention_heads=1"),
]
OPERATORS = {
    "stack": ["operator=stack"],
    "zero": ["operator=zero"],
    "interleave": ["operator=interleave"],
    "random": ["operator=random", "optim.mask_steps=200"],
    "learn": ["operator=learn", "learn.batch_size=8"],
    "width_direct": ["operator=direct", "direction=width", "factor=2", *NARROW],
}


def loss(operator: str, rate: float, folder: Path) -> float:
    """The last held-out loss of one operator at one rate; the first run of a base trains it for the others."""
    base = folder / ("width_direct" if operator == "width_direct" else "stack")
    mine = folder / operator / f"{rate:g}"
    first = base / f"{RATES[0]:g}"
    words = [*COMMON, *OPERATORS[operator], f"optim.lr={rate:g}"]
    run = toolkit.run("grow-llm", *words, *([] if mine == first else [f"model={first}", "part=base"]), folder=mine)
    return run.metrics["grown.loss"]


def sweep(operator: str, folder: Path) -> dict[str, float]:
    """``{rate: loss}``, with one rate more where the best is at an end."""
    found = {rate: loss(operator, rate, folder) for rate in RATES}
    best = min(found, key=found.__getitem__)
    if best in (RATES[0], RATES[-1]):
        beyond = best / 2 if best == RATES[0] else best * 2
        found[beyond] = loss(operator, beyond, folder)
    return {f"{rate:g}": found[rate] for rate in sorted(found)}


def main(out: str, folder: str) -> None:
    """Sweep every operator, and write what each rate ended at and which is best."""
    losses = {operator: sweep(operator, Path(folder).absolute()) for operator in OPERATORS}
    record = toolkit.read_run(Path(folder) / "stack" / f"{RATES[0]:g}").record
    made = {key: record[key] for key in ("git_commit", "machine", "versions", "num_threads")}
    best = {operator: float(min(found, key=found.__getitem__)) for operator, found in losses.items()}
    write_json(Path(out), {**made, "seed": SEED, "loss": losses, "best": best})


if __name__ == "__main__":
    main(*sys.argv[1:])
