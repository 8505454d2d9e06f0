"""Images a second and core of our data path, of torchvision's and of webdataset's loader, on the same files.

    python tests/loader.py [--num 2000] [--size 64] [--edge 500] [--seconds 10] [--out table.json]

Makes JPEG pictures of ``--edge`` pixels, as a folder and as tar shards. Each loader decodes, crops and resizes them to
``--size`` pixels and makes shuffled batches of 64 float tensors, in one process of one thread, for ``--seconds`` of its
processor time. Needs torchvision and webdataset, in an environment of their own; without them ours alone is timed.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import sys
import tarfile
import tempfile
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


def ours(path: Path, size: int, cache: bool) -> Iterator[Any]:
    """Of the toolkit: the folder or the shards, decoded anew or (``cache``) once."""
    from toolkit import data
    from toolkit.data.config import Data
    from toolkit.data.images import folder

    folder.FEW_PIXELS = 0  # a few thousand images stand for millions
    folder.IN_MEMORY_BYTES = folder.IN_MEMORY_BYTES if cache else 0
    dataset: Any = data.load(Data(name="folder", path=str(path), size_px=size, cache=cache), 0)
    dataset.prepare()
    return data.batches(dataset.train, BATCH, seed=0)


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
        rows = {}
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
