"""DisCo-Diff's prior over latents, stacked to four times its layers after a third of its budget, against scratch.

    python experiments/together/grown_prior.py OUT.json FOLDER [SEED ...]

The codes are those of one small DisCo-Diff of MNIST at 8x8 (``toolkit train-disco``, its encoder alone is used). Of
every seed four priors end at the same compute: scratch has 8 layers; base has 2 and a third of the compute; grown is
the base stacked to 8 (G_stack) and trained on; continued is the base trained on. One constant rate for all, swept for
none. Read: the lowest held-out nats on the way, which is what
``toolkit train-disco`` keeps.
"""

from __future__ import annotations

import copy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import toolkit
from toolkit import data
from toolkit.disco.artefact import load_parts
from toolkit.disco.stage2 import Latents
from toolkit.metrics.stats import difference, summary
from toolkit.runs.files import write_json
from toolkit.stacking.config import Growth
from toolkit.stacking.zoo_networks import grow_network
from toolkit.zoo.disco.prior import AutoregressivePrior

SEEDS, NUM_STEPS, LR = (0, 1, 2, 3, 4), 300, 1e-3
DEEP, SHALLOW, WIDTH, BATCH = 8, 2, 64, 64
EVERY, NUM_HELD_OUT = 20, 2000  # steps between two looks at the held-out codes, and how many are looked at
MODEL = [
    "experiment=disco_mnist8",
    "stage=denoiser",
    "baseline=none",
    "optim.num_steps=1500",
    "num_threads=1",
    "seed=0",
]


def codes(folder: Path) -> tuple[Latents, Tensor, int, int]:
    """Latents of the training images, one draw of those held out, and their sizes m and k."""
    run = toolkit.run("train-disco", *MODEL, folder=folder)
    config = toolkit.compose("train-disco", *MODEL)
    parts = load_parts(run.folder, ("denoiser", "encoder"))
    dataset: Any = data.load(config.data, config.seed)
    dataset.prepare()
    temperature = config.latents.extraction_temperature
    held_out, _ = Latents(parts, dataset.valid, temperature).draw(torch.Generator().manual_seed(0))
    return (
        Latents(parts, dataset.train, temperature),
        held_out,
        config.latents.num_latents,
        config.latents.codebook_size,
    )


class Training:
    """A prior while it trains: batches by ``seed``, held-out nats by step of this network."""

    def __init__(self, prior: Any, latents: Latents, held_out: Tensor, seed: int, lr: float = LR):
        self.prior, self.latents, self.held_out = prior.train(), latents, held_out
        self.rng = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.AdamW(prior.parameters(), lr=lr, weight_decay=0.01)
        self.nats: list[float] = []

    def run(self, num_steps: int) -> Training:
        """Train on for ``num_steps``."""
        for step in range(num_steps):
            if step % 50 == 0:
                drawn, _ = self.latents.draw(self.rng)
            batch = drawn[torch.randint(len(drawn), (BATCH,), generator=self.rng)]
            loss = self.prior.nll(batch).mean()
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.prior.parameters(), 1.0)
            self.optimizer.step()
            if (step + 1) % EVERY == 0 or step + 1 == num_steps:
                self.nats.append(self.evaluate())
        return self

    @torch.no_grad()
    def evaluate(self) -> float:
        """Held-out nats of z."""
        self.prior.eval()
        nats = float(self.prior.nll(self.held_out).mean())
        self.prior.train()
        return nats


def build(sizes: tuple[int, int], depth: int, seed: int) -> AutoregressivePrior:
    torch.manual_seed(seed)
    return AutoregressivePrior(*sizes, width=WIDTH, depth=depth, num_heads=4)


def arms(latents: Latents, held_out: Tensor, sizes: tuple[int, int], seed: int) -> dict[str, Any]:
    """Four priors of a seed: their lowest held-out nats, and their compute in units of scratch's."""
    scratch = Training(build(sizes, DEEP, seed), latents, held_out, seed).run(NUM_STEPS)
    base = Training(build(sizes, SHALLOW, seed), latents, held_out, seed)
    large, small = (sum(one.numel() for one in t.prior.parameters()) for t in (scratch, base))
    first = round(NUM_STEPS * large / small / 3)
    rest_large, rest_small = NUM_STEPS - round(first * small / large), round(NUM_STEPS * large / small) - first
    base.run(first)
    grown, _ = grow_network(copy.deepcopy(base.prior).eval(), Growth(operator="stack", factor=DEEP // SHALLOW), seed)
    trained = Training(grown, latents, held_out, seed + 1000).run(rest_large)
    found = {"scratch": min(scratch.nats), "base": min(base.nats), "grown": min(trained.nats)}
    base.run(rest_small)
    found["continued"] = min(base.nats)
    steps = {"scratch": NUM_STEPS, "base": first, "grown": rest_large, "continued": rest_small}
    return {
        "nats": found,
        "steps": steps,
        "curves": {"scratch": scratch.nats, "base": base.nats, "grown": trained.nats},
    }


def main(out: str, work: str, *only: str) -> None:
    torch.set_num_threads(1)
    started = time.process_time()
    latents, held_out, *sizes = codes(Path(work).resolve() / "disco")
    seeds: dict[int, Any] = {}
    for seed in map(int, only or SEEDS):
        seeds[seed] = arms(latents, held_out, (sizes[0], sizes[1]), seed)
        write_json(Path(out), record(seeds, sizes, time.process_time() - started))


def record(seeds: dict[int, Any], sizes: list[int], cpu_s: float) -> dict[str, Any]:
    """What the page reads: every seed, and the paired differences of grown to its rivals."""
    from toolkit.runs.machine import git_commit, machine, package_versions

    found: dict[str, Any] = {
        "command": "python experiments/together/grown_prior.py OUT.json FOLDER",
        "settings": {"model": MODEL, "lr": LR, "layers": [SHALLOW, DEEP], "steps": NUM_STEPS, "latents": sizes},
        "cpu_s": cpu_s,
        "git_commit": git_commit(),
        "versions": package_versions(),
        "machine": machine(),
        "seeds": seeds,
    }
    values = {arm: [one["nats"][arm] for one in seeds.values()] for arm in ("scratch", "base", "grown", "continued")}
    found["nats"] = {arm: summary(of_arm).mean for arm, of_arm in values.items()}
    for rival in ("scratch", "continued"):
        gap = difference(values["grown"], values[rival])
        found["nats"][f"grown_minus_{rival}"] = {"mean": gap.mean, "interval_95": [gap.low, gap.high], "n": gap.n}
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
