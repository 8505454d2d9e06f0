"""The paper-size presets, made narrow: 2 processes of 4 passes on files as people have them, killed and resumed.

    python tests/rehearsal.py [--only imagenet64_zip ...] [--keep FOLDER] [--out record.json]

``train-disco experiment=disco_imagenet64`` from a zip of EDM's dataset tool and from WebDataset shards,
``ivideogpt_oxe256`` from Open X-Embodiment's TFRecords, ``grow_7b`` (sharded) from SlimPajama's jsonl, and
enhance-video's training from mp4. Presets keep their keys, precision and data path; overrides make networks, batches
and lengths small. The pictures are taken for a set that fits no memory, as ImageNet is one. Each job is killed
(all processes, SIGKILL) after a checkpoint and goes on by the same command; weights and logged numbers must equal
those of a job that nobody touched, byte by byte. Prints a table; exits with 1 where bytes differ.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.processes import REPO, outcome

PROCESSES, PASSES = 2, 4
PICTURES, CLASSES = 320, 5
LARGE = "large.py"  # the command line, for which no set of pictures is small
NARROW = ["device=cpu", "num_threads=1", "log_every_steps=1", "checkpoint_every_steps=2"]
IMAGENET = [
    "train-disco", "experiment=disco_imagenet64", "stage=prior", "num_workers=2",
    "network.width=8", "network.num_blocks=1", "network.channels_per_head=8",
    "latents.width=16", "latents.num_layers=1", "latents.num_heads=2",
    "latents.encoder.width=16", "latents.encoder.depth=1", "latents.encoder.num_heads=2",
    "optim.num_steps=8", "optim.batch_size=16", "optim.micro_batch_size=2", "optim.warmup_steps=4",
    "prior.width=16", "prior.depth=1", "prior.num_heads=2", "prior.num_steps=4", "prior.batch_size=16",
    "prior.micro_batch_size=2", "prior.eval_every_steps=2",
]  # fmt: skip
OXE = [
    "train-ivideogpt", "experiment=ivideogpt_oxe256", "data.path=oxe", "data.size_px=64", "stage=transformer",
    "num_frames=6", "tokenizer.block_out_channels=[8,8,8,8,8]", "tokenizer.norm_num_groups=4",
    "tokenizer.layers_per_block=1", "tokenizer.latent_channels=8", "tokenizer.num_vq_embeddings=32",
    "tokenizer.num_dyn_embeddings=32", "tokenizer.patch_size=2", "tokenizer_loss.perceptual=gradients",
    "transformer.hidden_size=32", "transformer.intermediate_size=64", "transformer.num_hidden_layers=2",
    "transformer.num_attention_heads=2", "optim.tokenizer.num_steps=4", "optim.tokenizer.batch_size=8",
    "optim.tokenizer.micro_batch_size=1", "optim.tokenizer.num_future=2", "optim.transformer.num_steps=4",
    "optim.transformer.batch_size=8", "optim.transformer.micro_batch_size=1",
]  # fmt: skip
GROW = [
    "grow-llm", "experiment=grow_7b", "optim.sharding=fsdp", "data.path=slimpajama", "tokenize.tokenizer=tokenizer",
    "network.hidden_size=32", "network.intermediate_size=48", "network.num_attention_heads=4",
    "network.num_key_value_heads=1", "network.context=32", "arms=[grown]", "budget.growth_tokens=2048",
    "budget.tokens=2048", "budget.grown_tokens=2048", "optim.batch_size=16", "optim.micro_batch_size=2",
    "optim.warmup_steps=2", "compare.eval_tokens=512", "compare.eval_every_steps=2", "measure=false",
]  # fmt: skip
VENHANCER = [
    "enhance-video", "stage=train", "init=base", "data=clips_folder", "data.path=clips", "network.vae=vae",
    "network.text_encoder=text", "network.asymmetric=false", "data.num_frames=5", "data.crop_px=32",
    "data.num_crops=24", "data.held_out=[clips_folder]", "data.held_out_crops=4", "optim.num_steps=4",
    "optim.batch_size=8", "optim.micro_batch_size=1", "optim.gradient_checkpointing=true", "optim.lr=1e-5",
    "precision=bf16",
]  # fmt: skip


class Case(NamedTuple):
    """What is trained, on what ``make`` writes, and the stage in which it is killed."""

    words: list[str]
    make: Callable[[], None]
    killed_in: str


# -- files as people have them ---------------------------------------------------------------------------------------


def pictures() -> list[tuple[Path, int]]:
    """JPEGs of several sizes in a folder for each class; (path, class)."""
    rng, found = np.random.default_rng(0), []
    for number in range(PICTURES):
        path = Path("photos", f"n{number % CLASSES:08d}", f"{number:05d}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (80 + number % 40, 72 + number % 24)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(size).save(path, quality=90)
        found.append((path, number % CLASSES))
    return found


def edm_zip() -> None:
    """As EDM's dataset_tool.py leaves ImageNet-64: square PNGs, not compressed again, and dataset.json."""
    labels = []
    with zipfile.ZipFile("imagenet64.zip", "w", zipfile.ZIP_STORED) as archive:
        for number, (path, label) in enumerate(pictures()):
            with Image.open(path) as image:
                square, stream = image.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS), io.BytesIO()
            square.save(stream, "PNG", compress_level=0)
            name = f"{number // 1000:05d}/img{number:08d}.png"
            archive.writestr(name, stream.getvalue())
            labels.append([name, label])
        archive.writestr("dataset.json", json.dumps({"labels": labels}))


def shards() -> None:
    """Tar shards of WebDataset: the JPEGs as they are, each with its class."""
    found = pictures()
    Path("shards").mkdir()
    for shard in range(4):
        with tarfile.open(f"shards/{shard:06d}.tar", "w") as archive:
            for path, label in found[shard::4]:
                for suffix, content in ((".jpg", path.read_bytes()), (".cls", str(label).encode())):
                    info = tarfile.TarInfo(path.stem + suffix)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))


def _field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer that holds bytes."""
    length, head = len(content), [number << 3 | 2]
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    return bytes([*head, length]) + content


def tfrecords() -> None:
    """Episodes of ``bridge`` as RLDS stores them, then what ``toolkit data convert oxe`` makes of them."""
    rng = np.random.default_rng(0)
    Path("rlds").mkdir()
    with open("rlds/bridge-train.tfrecord-00000-of-00001", "wb") as file:
        for _ in range(12):
            scene = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            large, frames = np.asarray(Image.fromarray(scene).resize((160, 160))), []
            for shift in range(24):
                stream = io.BytesIO()
                Image.fromarray(large[shift : shift + 96, shift : shift + 96]).save(stream, "JPEG")
                frames.append(stream.getvalue())
            images = _field(1, b"".join(_field(1, frame) for frame in frames))
            actions = _field(2, _field(1, rng.normal(size=(24, 7)).astype("<f4").tobytes()))
            features = {"steps/observation/image": images, "steps/action": actions}
            entries = [_field(1, name.encode()) + _field(2, one) for name, one in features.items()]
            example = _field(1, b"".join(_field(1, entry) for entry in entries))
            file.write(struct.pack("<QI", len(example), 0) + example + bytes(4))
    toolkit("data", "convert", "oxe", "rlds", "oxe/bridge")


def jsonl() -> None:
    """Documents as SlimPajama has them, GitHub's among them, and a tokenizer in a folder."""
    from tests.stacking.models import make_bpe

    rng, words = np.random.default_rng(0), ["the", "river", "and", "bridge", "over", "where", "water", "falls", "in"]
    Path("slimpajama/chunk1").mkdir(parents=True)
    with gzip.open("slimpajama/chunk1/example_train_0.jsonl.gz", "wt", encoding="utf-8") as file:
        for number in range(400):
            source = "RedPajamaGithub" if number % 10 == 0 else "RedPajamaC4"
            record = {"text": " ".join(rng.choice(words, 60)), "meta": {"redpajama_set_name": source}}
            file.write(json.dumps(record) + "\n")
    make_bpe().save_pretrained("tokenizer")


def films() -> None:
    """mp4 films, an autoencoder, a text encoder, and a base that training starts from, in diffusers' folders."""
    from torch import nn

    from tests.processes import make_data
    from tests.venhancer.test_pipeline import text_folder, tiny_autoencoder
    from toolkit.zoo.video.unet import VideoUNet

    make_data()
    tiny_autoencoder(temporal=False).save_pretrained("vae")
    text_folder(Path("text"))
    base = VideoUNet(
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 16, 16, 16),
        attention_levels=(True, True, True, False),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        entry_heads=2,
        norm_num_groups=4,
        asymmetric=False,
    )
    for parameter in base.parameters():  # zeros at its end would let no gradient through
        nn.init.normal_(parameter, std=0.1)
    base.save_pretrained("base")


CASES = {
    "imagenet64_zip": Case([*IMAGENET, "data.path=imagenet64.zip", "data.cache=false"], edm_zip, "denoiser"),
    "imagenet64_shards": Case([*IMAGENET, "data.path=shards"], shards, "prior"),
    "ivideogpt_oxe256": Case(OXE, tfrecords, "transformer"),
    "grow_7b": Case(GROW, jsonl, "grown"),
    "venhancer": Case(VENHANCER, films, "train"),
}


# -- jobs ------------------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    own = {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "TOOLKIT_CACHE": str(Path("cache").resolve())}
    return os.environ | own | {"HF_HUB_OFFLINE": "1"}


def toolkit(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "toolkit.cli", *words], check=True, env=environment(), capture_output=True)


def start(case: Case, folder: str) -> subprocess.Popen[bytes]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}", LARGE]
    with open("output.txt", "ab") as output:
        line = [sys.executable, *launch, *case.words, *NARROW, f"hydra.run.dir={folder}"]
        return subprocess.Popen(line, stdout=output, stderr=output, env=environment())


def finish(job: subprocess.Popen[bytes]) -> None:
    """Wait for its end. Raises RuntimeError with the last lines of output where it ends with an error."""
    if job.wait():
        raise RuntimeError("\n".join(Path("output.txt").read_text(errors="replace").splitlines()[-40:]))


def kill_in(case: Case, folder: str) -> int:
    """Start; SIGKILL to all processes after the stage's first checkpoint. The last step that was logged."""
    job = start(case, folder)
    while not list(Path(folder).glob(f"checkpoints/{case.killed_in}/step-*.pt")):
        if job.poll() is not None:
            finish(job)
            raise RuntimeError(f"{folder} ended before a checkpoint of {case.killed_in}")
        time.sleep(0.005)
    for process in [*psutil.Process(job.pid).children(recursive=True), job]:
        process.send_signal(signal.SIGKILL)
    job.wait()
    status = json.loads(Path(folder, "run.json").read_text())["status"]
    assert status != "done", f"{folder} was done before it was killed"
    rows = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines() if line[-1:] == "}"]
    return max((row["step"] for row in rows if row["stage"] == case.killed_in), default=0)


def world_sizes(folder: str) -> set[int]:
    """How many processes wrote the checkpoints that are there."""
    import torch

    files = Path(folder).glob("checkpoints/*/step-*.pt")
    return {torch.load(file, weights_only=True)["world_size"] for file in files}


def rehearse(case: Case) -> dict[str, Any]:
    """The row of one preset, in the current folder."""
    shape = "import toolkit.data.images.folder as one\none.FEW_PIXELS = one.IN_MEMORY_BYTES = 0\n"
    Path(LARGE).write_text(f"import runpy\n{shape}runpy.run_module('toolkit.cli', run_name='__main__')\n")
    case.make()
    finish(start(case, "untouched"))
    assert world_sizes("untouched") == {PROCESSES}
    at = kill_in(case, "killed")
    finish(start(case, "killed"))
    mine, theirs = outcome("killed"), outcome("untouched")
    differ = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    weights = hashlib.sha256(b"".join(theirs[name] for name in sorted(theirs) if name.endswith(".safetensors")))
    steps = sum(1 for line in theirs["metrics.jsonl"].splitlines() if b'"loss"' in line)
    return {
        "command": " ".join(["toolkit", *case.words]),
        "processes": PROCESSES,
        "passes": PASSES,
        "steps": steps,
        "killed in": case.killed_in,
        "killed at step": at,
        "files": len(theirs),
        "differ": differ,
        "digest": weights.hexdigest()[:16],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--keep", type=Path, help="a folder for everything that is written")
    parser.add_argument("--out", type=Path, help="the record; rows of presets that are not run stay")
    asked = parser.parse_args()
    out = asked.out and asked.out.resolve()
    root = (asked.keep or Path(tempfile.mkdtemp(prefix="rehearsal-"))).resolve()
    rows = json.loads(out.read_text(encoding="utf-8")) if out and out.exists() else {}
    for name in asked.only:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir(parents=True)
        os.chdir(root / name)
        rows[name] = rehearse(CASES[name])
        told = {key: value for key, value in rows[name].items() if key != "command"}
        print(name, *(f"{key}={value}" for key, value in told.items()), sep="  ", flush=True)
    os.chdir(REPO)
    if not asked.keep:
        shutil.rmtree(root)
    if out:
        out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if any(rows[name]["differ"] for name in asked.only) else 0


if __name__ == "__main__":
    sys.exit(main())
