"""A learning rate for each growth operator, swept on a seed that no claim reports.

    python experiments/stacking/rates.py OUT.json FOLDER [OPERATOR ...]
    python experiments/stacking/rates.py OUT.json FOLDER --whole stack

`grow_micro` with half its tokens (600k for 1.2M), for the time it takes; all operators grow one base. Only the rate
after growth differs: 2e-3, at which all of them ran before, and 4e-3, then the better of the two doubled or halved
until that is worse. Reported runs take the rate with the lowest last held-out loss. With --whole all tokens are trained
on, which says whether that rate is the best at the end, too. Runs that are done are not done again: several calls that
name an operator each, with an OUT.json of their own, can share the work.
"""

from __future__ import annotations

import sys
from pathlib import Path

import toolkit
from toolkit.runs.files import write_json

SEED, FIRST = 100, (2e-3, 4e-3)
HALF, WHOLE = 600_000, 1_200_000  # tokens
COMMON = ("experiment=grow_micro", "arms=[grown]", "num_threads=1", f"seed={SEED}")
OPERATORS = {
    "stack": ["operator=stack"],
    "zero": ["operator=zero"],
    "interleave": ["operator=interleave"],
    "random": ["operator=random", "optim.mask_steps=200"],
    "learn": ["operator=learn", "learn.batch_size=8"],
}


def loss(operator: str, rate: float, folder: Path, tokens: int) -> float:
    """The last held-out loss of one operator at one rate, from the base that the run of ``base`` trained."""
    first, mine = base(folder), folder / ("" if tokens == HALF else "whole") / operator / f"{rate:g}"
    if mine != first:
        words = [*COMMON, f"budget.tokens={tokens}", *OPERATORS[operator], f"optim.lr={rate:g}"]
        toolkit.run("grow-llm", *words, f"model={first}", "part=base", folder=mine)
    return toolkit.read_run(mine).metrics["grown.loss"]


def base(folder: Path) -> Path:
    """The run whose base all operators grow: it stacks it at 1e-3."""
    words = [*COMMON, f"budget.tokens={HALF}", *OPERATORS["stack"], "optim.lr=0.001"]
    toolkit.run("grow-llm", *words, folder=folder / "stack" / "0.001")
    return folder / "stack" / "0.001"


def sweep(operator: str, folder: Path, tokens: int) -> dict[str, float]:
    """``{rate: loss}`` of all rates that were tried."""
    found = {rate: loss(operator, rate, folder, tokens) for rate in FIRST}
    best = min(found, key=found.__getitem__)
    factor = 2 if best == FIRST[-1] else 0.5
    while best * factor not in found:
        found[best * factor] = loss(operator, best * factor, folder, tokens)
        best = min(found, key=found.__getitem__)
    return {f"{rate:g}": found[rate] for rate in sorted(found)}


def main(out: str, folder: str, *operators: str) -> None:
    """Sweep the operators, and write what each rate ended at and which is best."""
    tokens, named = WHOLE if "--whole" in operators else HALF, [name for name in operators if name != "--whole"]
    losses = {operator: sweep(operator, Path(folder).absolute(), tokens) for operator in named or OPERATORS}
    record = toolkit.read_run(base(Path(folder).absolute())).record
    made = {key: record[key] for key in ("git_commit", "machine", "versions", "num_threads")}
    best = {operator: float(min(found, key=found.__getitem__)) for operator, found in losses.items()}
    write_json(Path(out), {**made, "seed": SEED, "tokens": tokens, "loss": losses, "best": best})


if __name__ == "__main__":
    main(*sys.argv[1:])
