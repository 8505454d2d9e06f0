"""How the cost of each command grows with its main size: processor time, peak memory, and the exponent.

    python experiments/speed/growth.py OUT.json [PICTURE.png] [--curves NAME ...] [--rounds N]

A curve is one command at four sizes, each twice the one before, in a process of its own. Time is processor time of one
thread, memory the most that the process held; of several rounds the least, for other work on the machine only adds.
What every start costs stands in all of them, so the exponent is that of what is added: log2 of the last difference over
the one before it. 1 is linear, 2 quadratic. A command that fails is told and leaves its curve out; the others go on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from toolkit.data.video.write import Encoding, write_part
from toolkit.runs.files import write_json
from toolkit.runs.machine import git_commit, machine, package_versions


class Curve(NamedTuple):
    """``words(size)`` is the command line after ``toolkit``; ``prepare(folder, size)`` makes what it reads."""

    name: str
    size: str  # what is doubled
    sizes: tuple[int, int, int, int]
    words: Callable[[int], list[str]]
    prepare: Callable[[Path, int], None] = lambda folder, size: None


def make_runs(folder: Path, size: int) -> None:
    """``size`` finished runs of a small config under runs/."""
    config = {"command": "train-disco", "seed": 0, "optim": {"lr": 1e-3}, "network": {"width": 32}}
    record = {"command": "train-disco", "status": "done", "config": config, "metrics": {"fd": 1.0}, "overrides": []}
    for number in range(size):
        run = folder / "runs" / f"{number:06d}"
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps(record | {"seed": number}), encoding="utf-8")


def make_curves(folder: Path, size: int) -> None:
    """The same with a curve of 1,000 points each."""
    make_runs(folder, size)
    for run in (folder / "runs").iterdir():
        lines = [json.dumps({"stage": "denoiser", "step": step, "loss": 1 / step}) for step in range(1, 1001)]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_film(folder: Path, num_frames: int, num_pixels: int) -> None:
    """film.mp4: a texture that moves by some pixels a frame; about 16 to 9, both sides even."""
    height = 2 * round((num_pixels * 9 / 16) ** 0.5 / 2)
    width = 2 * round(num_pixels / height / 2)
    y, x = np.mgrid[:height, : width + 4 * num_frames].astype(np.float32)
    wide = 127.5 + 40 * (np.sin(x / 3) + np.cos(y / 4) + np.sin((x + 2 * y) / 7))
    texture = np.repeat(wide[..., None], 3, -1).clip(0, 255).astype(np.uint8)
    frames = (texture[:, left : left + width] for left in range(0, 4 * num_frames, 4))
    write_part(folder / "film.mp4", frames, Encoding(width, height, Fraction(24)))


MEASURED = ("time_s", "peak_mib")
DISCO = ["train-disco", "experiment=disco_smoke", "stage=denoiser", "optim.num_steps=40", "baseline=none"]
GROW = ["grow-llm", "experiment=grow_smoke", "stage=pretrain", "budget.tokens=12800"]
ENHANCE = ["enhance-video", "experiment=enhance_classic", "input=film.mp4", "scale=2", "fps=48", "num_threads=1"]
ICG = ["sample-icg", "experiment=icg_smoke", "compare=[none]", "measure.curve=[]", "sampling.num_steps=20"]
WORLD = ["train-ivideogpt", "experiment=ivideogpt_smoke", "stage=transformer", "data.num_frames=32"]
WORLD += ["transformer.max_position_embeddings=1024", "optim.transformer.num_steps=200"]
CURVES = (
    Curve("list", "runs", (1000, 2000, 4000, 8000), lambda size: ["runs", "list"], make_runs),
    Curve("report", "runs", (100, 200, 400, 800), lambda size: ["report", "runs"], make_curves),
    Curve(
        "frames",
        "frames",
        (32, 64, 128, 256),
        lambda size: ENHANCE,
        lambda folder, size: make_film(folder, size, 57_600),
    ),
    Curve(
        "pixels",
        "pixels a frame",
        (57_600, 115_200, 230_400, 460_800),
        lambda size: ENHANCE,
        lambda folder, size: make_film(folder, 32, size),
    ),
    Curve("images", "images a batch", (64, 128, 256, 512), lambda size: [*DISCO, f"optim.batch_size={size}"]),
    Curve("layers", "layers", (8, 16, 32, 64), lambda size: [*GROW, f"network.num_hidden_layers={size}"]),
    Curve(
        "tokens",
        "tokens of context",
        (64, 128, 256, 512),
        lambda size: [*GROW, f"network.context={size}", f"budget.tokens={200 * size}"],
    ),
    Curve("samples", "samples", (4000, 8000, 16_000, 32_000), lambda size: [*ICG, f"measure.num_samples={size}"]),
    Curve("world", "frames a clip", (4, 8, 16, 32), lambda size: [*WORLD, f"num_frames={size}"]),
)


def measure(curve: Curve, size: int) -> dict[str, float]:
    """Processor seconds and peak MiB of one command. Raises CalledProcessError where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        curve.prepare(Path(folder), size)
        command = [sys.executable, "-m", "toolkit.cli", *curve.words(size)]
        with open(os.devnull, "wb") as nowhere:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=nowhere, stderr=nowhere)
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    return {"size": size, "time_s": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / 1024}


def least(curve: Curve, size: int, num_rounds: int) -> dict[str, float]:
    """Of each of :func:`measure`'s numbers the least."""
    rounds = [measure(curve, size) for _ in range(num_rounds)]
    return {key: min(one[key] for one in rounds) for key in rounds[0]}


def exponent(values: list[float]) -> float | None:
    """Of what is added when the size doubles; None where that is less than a tenth of the smallest, twice running."""
    before, last = values[-2] - values[-3], values[-1] - values[-2]
    return math.log2(last / before) if min(before, last) > 0.1 * values[0] else None


def exponents(points: list[dict[str, float]]) -> dict[str, float | None]:
    """Of each number of a curve."""
    return {key: exponent([point[key] for point in points]) for key in MEASURED}


def table(found: dict[str, list[dict[str, float]]]) -> list[str]:
    """Lines of a Markdown table: a row for each curve."""
    lines = ["| curve | doubled | sizes | seconds | exponent | MiB | exponent |", "|---|---|---|---|---:|---|---:|"]
    for curve in (one for one in CURVES if one.name in found):
        points = found[curve.name]
        cells = [curve.name, curve.size, " ".join(str(point["size"]) for point in points)]
        for key in MEASURED:
            values, grows = [point[key] for point in points], exponents(points)[key]
            cells += [" ".join(f"{value:.3g}" for value in values), "flat" if grows is None else f"{grows:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw(found: dict[str, list[dict[str, float]]], path: str) -> None:
    """Time and memory over the size, of each curve relative to its smallest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, key, title in zip(axes, ("time_s", "peak_mib"), ("processor time", "peak memory"), strict=True):
        for (name, points), marker in zip(found.items(), itertools.cycle("os^vDP*X"), strict=False):
            first = points[0]
            sizes = [point["size"] / first["size"] for point in points]
            axis.loglog(sizes, [point[key] / first[key] for point in points], marker=marker, label=name)
        axis.loglog(sizes, sizes, color="grey", linestyle=":", label="linear")
        axis.set(title=title, xlabel="size, of the smallest", ylabel="of the smallest")
        for side in (axis.xaxis, axis.yaxis):
            side.set_ticks([1, 2, 4, 8], ["1", "2", "4", "8"])
            side.set_ticks([], minor=True)
    axes[0].legend(ncols=2)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("picture", nargs="?")
    parser.add_argument("--curves", nargs="+", default=[curve.name for curve in CURVES])
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    failed = []
    for curve in (one for one in CURVES if one.name in options.curves):
        try:
            found[curve.name] = [least(curve, size, options.rounds) for size in curve.sizes]
            print(table({curve.name: found[curve.name]})[-1], flush=True)
        except subprocess.CalledProcessError as error:
            failed.append(curve.name)
            print(f"{curve.name}: {error}", file=sys.stderr)
    command = " ".join(["python experiments/speed/growth.py", *sys.argv[1:]])
    made_by = {"command": command, "commit": git_commit(), "machine": machine()}
    grows = {name: exponents(points) for name, points in found.items()}
    write_json(options.out, made_by | {"versions": package_versions(), "curves": found, "exponents": grows})
    print("\n".join(table(found)))
    if options.picture:
        draw(found, options.picture)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
