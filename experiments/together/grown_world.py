"""A world model whose transformer is stacked to four times its layers after a third of its budget, against scratch.

    python experiments/together/grown_world.py OUT.json FOLDER [SEED ...]

Four arms of one seed share the shipped tokenizer and end at the same compute: scratch trains 8 layers; base trains 2
layers for a third of that; grown stacks the base to 8 (``toolkit grow-llm stage=grow operator=stack``) and trains on
with the rest; continued trains the base on with the rest, from where it was, which a grown network should beat.
Compute is 6 x parameters of the transformer x tokens, as the paper counts it. All train at the preset's rate, constant,
which was swept for none. Read at the end: cross-entropy of held-out tokens, PSNR of imagined frames, how far actions
are obeyed. Rewards are trained and not read.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import toolkit
from toolkit.metrics.stats import difference, summary
from toolkit.runs.files import write_json

SEEDS, NUM_STEPS, LR = (0, 1, 2), 120, 2e-3
DEEP, SHALLOW, WIDTH = 8, 2, 64
Source = str | Path  # of a model: its name in the zoo, or its run
EVERY = 20  # steps between two readings of the held-out loss
COMMON = (
    "experiment=ivideogpt_push optim.tokenizer.num_steps=0 data.num_train=800 optim.transformer.cached_clips=800 "
    f"transformer.hidden_size={WIDTH} transformer.intermediate_size={2 * WIDTH} optim.transformer.schedule=constant "
    "plan.num_episodes=0 measure.names=[prediction,actions] measure.num_clips=32 measure.num_counterfactual=12 "
    "log_every_steps=5 num_threads=1"
).split()
READ = {"psnr": "prediction.psnr.predicted", "obeyed": "actions.r.least.agent"}


def train(folder: Path, seed: int, layers: int, steps: int, init: Source, parts: str = "both", lr: float = LR) -> Any:
    """One training of the transformer, measured; done before, it is read."""
    own = [f"init={init}", f"init_parts={parts}", f"seed={seed}", f"transformer.num_hidden_layers={layers}"]
    own += [f"optim.transformer.num_steps={steps}", f"optim.transformer.lr={lr}"]
    return toolkit.run("train-ivideogpt", *COMMON, *own, folder=folder)


def read(run: Any) -> dict[str, float]:
    """The last held-out loss, and what was measured."""
    tokens = run.curves["transformer"]["valid_tokens"].values[-1]
    return {"tokens": tokens, **{name: run.metrics[key] for name, key in READ.items()}}


def parameters(run: Any) -> int:
    return sum(one.numel() for one in run.load().transformer.parameters())


def whole(num_steps: float) -> int:
    """The nearest step at which the held-out loss is read."""
    return EVERY * round(num_steps / EVERY)


def arms(seed: int, folder: Path) -> dict[str, Any]:
    """All four trainings of a seed, and their compute in units of scratch's."""
    scratch = train(folder / "scratch", seed, DEEP, NUM_STEPS, "push_world", "tokenizer")
    probe = train(folder / "probe", seed, SHALLOW, 1, "push_world", "tokenizer")
    large, small = parameters(scratch), parameters(probe)
    first = whole(NUM_STEPS * large / small / 3)
    rest_small, rest_large = whole(NUM_STEPS * large / small - first), whole(NUM_STEPS - first * small / large)
    base = train(folder / "base", seed, SHALLOW, first, "push_world", "tokenizer")
    grown = folder / "grown_model"
    if not grown.exists():
        words = (f"model={base.folder}", "operator=stack", f"factor={DEEP // SHALLOW}", f"out={grown}")
        toolkit.run("grow-llm", "stage=grow", *words, folder=folder / "growth")
    runs = {
        "scratch": scratch,
        "base": base,
        "grown": train(folder / "grown", seed, DEEP, rest_large, grown),
        "continued": train(folder / "continued", seed, SHALLOW, rest_small, base.folder),
    }
    compute = {"scratch": large * NUM_STEPS, "base": small * first}
    compute["grown"] = compute["base"] + large * rest_large
    compute["continued"] = compute["base"] + small * rest_small
    told = {name: round(value / compute["scratch"], 4) for name, value in compute.items()}
    steps = {"scratch": NUM_STEPS, "base": first, "grown": rest_large, "continued": rest_small}
    return {"compute": told, "steps": steps, "arms": {name: read(run) for name, run in runs.items()}}


def main(out: str, work: str, *only: str) -> None:
    started, folder = time.process_time(), Path(work).resolve()
    seeds: dict[int, Any] = {}
    for seed in map(int, only or SEEDS):
        seeds[seed] = arms(seed, folder / str(seed))
        write_json(Path(out), record(seeds, time.process_time() - started))


def record(seeds: dict[int, Any], cpu_s: float) -> dict[str, Any]:
    """What the page reads: every seed, and the paired differences of grown to its rivals."""
    from toolkit.runs.machine import git_commit, machine, package_versions

    found: dict[str, Any] = {
        "command": "python experiments/together/grown_world.py OUT.json FOLDER",
        "settings": {"common": list(COMMON), "lr": LR, "layers": [SHALLOW, DEEP], "steps": NUM_STEPS},
        "cpu_s": cpu_s,
        "git_commit": git_commit(),
        "versions": package_versions(),
        "machine": machine(),
        "seeds": seeds,
    }
    measures = next(iter(seeds.values()))["arms"]["scratch"]
    for measure in measures:
        values = {
            arm: [one["arms"][arm][measure] for one in seeds.values()] for arm in ("scratch", "grown", "continued")
        }
        found[measure] = {arm: summary(of_arm).mean for arm, of_arm in values.items()}
        for rival in ("scratch", "continued"):
            gap = difference(values["grown"], values[rival])
            found[measure][f"grown_minus_{rival}"] = {"mean": gap.mean, "interval_95": [gap.low, gap.high], "n": gap.n}
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
