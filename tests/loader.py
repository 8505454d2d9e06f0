"""Images a second and core of our data path, of torchvision's and of webdataset's loader, on the same files.

    python tests/loader.py [--num 2000] [--size 64] [--edge 500] [--seconds 10] [--out table.json]
    python tests/loader.py --workers 2 [--rounds 3] ...

Makes JPEG pictures of ``--edge`` pixels, as a folder and as tar shards. Each loader decodes, crops and resizes them to
``--size`` pixels and makes shuffled batches of 64 float tensors, in one process of one thread, for ``--seconds`` of its
processor time. Needs torchvision and webdataset, in an environment of their own; without them ours alone is timed.

``--workers`` times ours alone, by 1 and by so many threads that read ahead (``num_workers``) and, on the same files, by
1 and by so many processes that each read by themselves and hand nothing over: whatever a pool of processes might give
is no more. Time that a worker was ready and had no core, which Linux counts for each thread, is taken off, so that
other work on the machine counts for little; waiting for Python's lock stays in.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

BATCH, PER_SHARD, CLASSES = 64, 500, 10


def make_files(folder: Path, num: int, edge: int) -> None:
    """``images/`` with a folder per class, ``shards/`` with the same bytes in tars of WebDataset."""
    rng = np.random.default_rng(0)
    (folder / "shards").mkdir(parents=True)
    for start in range(0, num, PER_SHARD):
        with tarfile.open(folder / "shards" / f"{start // PER_SHARD:05d}.tar", "w") as shard:
            for number in range(start, min(start + PER_SHARD, num)):
                content = picture(rng, edge)
                path = folder / "images" / f"{number % CLASSES}" / f"{number:06d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                for ending, part in (("jpg", content), ("cls", str(number % CLASSES).encode())):
                    entry = tarfile.TarInfo(f"{number:06d}.{ending}")
                    entry.size = len(part)
                    shard.addfile(entry, io.BytesIO(part))


def picture(rng: np.random.Generator, edge: int) -> bytes:
    """A JPEG of soft colours and some grain, 4:3."""
    rough = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).resize((edge, edge * 3 // 4))
    grain = rng.integers(-12, 12, (edge * 3 // 4, edge, 3))
    pixels = (np.asarray(rough, dtype=np.int64) + grain).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def ours(path: Path, size: int, cache: bool, workers: int = 0) -> Any:
    """Of the toolkit: the folder or the shards, decoded anew or (``cache``) once."""
    from toolkit import data
    from toolkit.data.config import Data
    from toolkit.data.images import folder

    folder.FEW_PIXELS = 0  # a few thousand images stand for millions
    folder.IN_MEMORY_BYTES = folder.IN_MEMORY_BYTES if cache else 0
    dataset: Any = data.load(Data(name="folder", path=str(path), size_px=size, cache=cache), 0)
    dataset.prepare()
    return data.batches(dataset.train, BATCH, seed=0, num_workers=workers)


def torchvisions(path: Path, size: int) -> Iterator[Any]:
    """``ImageFolder`` in torch's ``DataLoader``."""
    from torchvision.datasets import ImageFolder

    loader = torch.utils.data.DataLoader(ImageFolder(str(path), transform=_transform(size)), BATCH, shuffle=True)
    return itertools.chain.from_iterable(itertools.repeat(loader))


def webdatasets(path: Path, size: int) -> Iterator[Any]:
    """``WebDataset`` of the shards, with a buffer of 1,000 that is shuffled."""
    import webdataset

    urls = sorted(str(one) for one in path.glob("*.tar"))
    pipeline = webdataset.WebDataset(urls, shardshuffle=False, resampled=True).shuffle(1000).decode("pil")
    pipeline = pipeline.to_tuple("jpg", "cls").map_tuple(_transform(size), int).batched(BATCH)
    return iter(pipeline)


def _transform(size: int) -> Callable[[Any], torch.Tensor]:
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC, antialias=True),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(0.5, 0.5),
        ]
    )


def by_threads(path: Path, size: int, workers: int, seconds: float) -> dict[str, float]:
    """``workers`` threads of one process, as ``num_workers`` has them, for ``seconds`` of the clock."""
    stream = ours(path, size, cache=False, workers=workers)
    next(stream)
    threads = [one.native_id for one in threading.enumerate() if one.name.startswith("data")]
    assert len(threads) == workers
    begin, clock, images = [_scheduled(one) for one in threads], time.perf_counter(), 0
    while time.perf_counter() - clock < seconds:
        images += len(next(stream)[0])
    taken = time.perf_counter() - clock
    parts = [np.subtract(_scheduled(one), start) for one, start in zip(threads, begin, strict=True)]
    stream.close()
    return _of_workers(images, [(taken, *part) for part in parts])


def by_processes(path: Path, size: int, workers: int, seconds: float) -> dict[str, float]:
    """``workers`` processes that start together, each with a stream of its own that it reads in one thread."""
    context = multiprocessing.get_context("spawn")
    together, results = context.Barrier(workers), context.SimpleQueue()
    group = [
        context.Process(target=_one_process, args=(path, size, seconds, together, results), daemon=True)
        for _ in range(workers)
    ]
    for process in group:
        process.start()
    found = [results.get() for _ in group]
    for process in group:
        process.join()
    return _of_workers(sum(images for images, _ in found), [part for _, part in found])


def _one_process(path: Path, size: int, seconds: float, together: Any, results: Any) -> None:
    torch.set_num_threads(1)
    stream = ours(path, size, cache=False)
    next(stream)
    together.wait()
    begin, clock, images = _scheduled(os.getpid()), time.perf_counter(), 0
    while time.perf_counter() - clock < seconds:
        images += len(next(stream)[0])
    taken = time.perf_counter() - clock
    results.put((images, (taken, *np.subtract(_scheduled(os.getpid()), begin))))


def _scheduled(thread: int) -> tuple[float, float]:
    """Seconds that a thread ran, and that it was ready and had no core."""
    ran, waited, _ = Path(f"/proc/self/task/{thread}/schedstat").read_text().split()
    return int(ran) / 1e9, int(waited) / 1e9


def _of_workers(images: int, parts: list[tuple[float, ...]]) -> dict[str, float]:
    """parts: of each worker the seconds of the clock, those that it ran, those that it had no core."""
    clock, ran, waited = np.mean(parts, axis=0).tolist()
    return {
        "images_per_second": images / (clock - waited),
        "images_per_second_by_the_clock": images / clock,
        "ran_share": ran / clock,
        "no_core_share": waited / clock,
    }


def compare_workers(path: Path, size: int, workers: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Medians of ``rounds`` in which the four take turns, and how much more ``workers`` give than one."""
    kinds = {"thread": by_threads, "process": by_processes}
    cases = [(kind, number) for kind in kinds for number in (1, workers)]
    found = [[kinds[kind](path, size, number, seconds) for kind, number in cases] for _ in range(rounds)]
    rows = {
        f"{kind} x {number}": {key: statistics.median(turn[place][key] for turn in found) for key in found[0][place]}
        for place, (kind, number) in enumerate(cases)
    }
    for kind in kinds:
        few, many = (rows[f"{kind} x {number}"]["images_per_second"] for number in (1, workers))
        rows[f"{kind} x {workers}"]["times_one"] = many / few
    return rows


def rate(batches: Iterator[Any], seconds: float) -> dict[str, float]:
    """Images a second of processor time, after two batches that do not count; so long, and by the clock."""
    for _ in range(2):
        next(batches)
    cpu, clock, images = time.process_time(), time.perf_counter(), 0
    while (used := time.process_time() - cpu) < seconds:
        images += len(next(batches)[0])
    taken = time.perf_counter() - clock
    return {"images_per_core_second": images / used, "images": images, "processor_s": used, "clock_s": taken}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("num", 2000), ("size", 64), ("edge", 500)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="loader-") as made:
        folder = Path(made)
        os.environ["TOOLKIT_CACHE"] = str(folder / "cache")
        make_files(folder, asked.num, asked.edge)
        images, shards = folder / "images", folder / "shards"
        cases: dict[str, Callable[[], Iterator[Any]]] = {
            "ours, folder": lambda: ours(images, asked.size, cache=False),
            "torchvision, folder": lambda: torchvisions(images, asked.size),
            "ours, shards": lambda: ours(shards, asked.size, cache=False),
            "webdataset, shards": lambda: webdatasets(shards, asked.size),
            "ours, decoded once": lambda: ours(images, asked.size, cache=True),
        }
        rows: dict[str, Any] = {}
        if asked.workers:
            rows, cases = compare_workers(images, asked.size, asked.workers, asked.seconds, asked.rounds), {}
            for name, row in rows.items():
                print(name, *(f"{key}={value:.2f}" for key, value in row.items()), sep="  ")
        for name, make in cases.items():
            try:
                rows[name] = rate(make(), asked.seconds)
            except ImportError as error:
                print(f"{name}: left out ({error})")
                continue
            print(name, *(f"{key}={value:.0f}" for key, value in rows[name].items()), sep="  ", flush=True)
    if asked.out:
        settings = {key: value for key, value in vars(asked).items() if key != "out"}
        asked.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
