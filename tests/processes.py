"""The four trainings under torchrun and accelerate: the losses of one process, and what a killed rank leaves.

    python tests/processes.py [--commands train-disco ...] [--parts copies sharding] [--out table.json]

Each command trains a tiny network on one global batch: in one process, in 2 and 4, in 2 with four passes a step. Their
curves must be those of the one process up to rounding (``TOLERANCE``, relative). Then rank 1 of 2 is killed: the job
must end within a minute and leave a checkpoint from which 4 processes go on to the end; and a job whose processes are
all killed, resumed, must equal one that nobody touched, byte by byte. ``--parts sharding``: 2 processes that share
weights, gradients, moments and averages (FSDP), and one process that goes on from what they left. Prints a table; exits
with 1 where one fails. In a file of ``--out`` that is there, rows that were not asked for stay.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

REPO = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-3  # a difference over max(|value|, 1e-2)
PATIENCE_S = 60
GLOBAL_BATCH = 16
TRAINING = ["log_every_steps=1", "checkpoint_every_steps=2", "device=cpu"]
WORDS = {
    "train-disco": [
        "experiment=disco_imagenet64", "data.path=photos", "stage=prior", "baseline=none", "precision=fp32",
        "network.width=8", "network.width_multipliers=[1,1]", "network.num_blocks=1", "network.dropout=0",
        "network.attention_resolutions=[]", "network.channels_per_head=8", "latents.num_latents=2",
        "latents.codebook_size=4", "latents.width=16", "latents.num_layers=0", "latents.num_heads=2",
        "latents.usage_bonus=0.5", "loss.label_drop=0.2", "latents.encoder.width=16", "latents.encoder.depth=1",
        "latents.encoder.num_heads=2", "optim.num_steps=8", f"optim.batch_size={GLOBAL_BATCH}", "optim.lr=1e-3",
        "optim.warmup_steps=0", "prior.width=16", "prior.depth=1", "prior.num_heads=2", "prior.num_steps=4",
        f"prior.batch_size={GLOBAL_BATCH}", "prior.dropout=0", "prior.eval_every_steps=2", "num_workers=0",
    ],
    "train-ivideogpt": [
        "experiment=ivideogpt_smoke", "stage=transformer", "tokenizer.dropout=0", "codebook.warmup_steps=1",
        "tokenizer_loss.gan_start_step=2", "optim.tokenizer.num_steps=4", "optim.transformer.num_steps=6",
        "optim.tokenizer.lr=1e-4", "optim.transformer.lr=1e-3", f"optim.tokenizer.batch_size={GLOBAL_BATCH}",
        f"optim.transformer.batch_size={GLOBAL_BATCH}", "optim.transformer.cached_clips=null",
    ],
    "grow-llm": [
        "experiment=grow_smoke", "stage=pretrain", f"optim.batch_size={GLOBAL_BATCH}", "budget.tokens=4096",
        "compare.eval_tokens=1000", "compare.eval_every_steps=2",
    ],
    "enhance-video": [
        "experiment=enhance_train_small", "data=clips_folder", "data.path=clips", "data.num_frames=5",
        "data.crop_px=16", "data.num_crops=24", "data.held_out=[clips_folder]", "data.held_out_crops=8",
        "network.block_out_channels=[16,16]", "network.norm_num_groups=4", "optim.num_steps=8",
        f"optim.batch_size={GLOBAL_BATCH}", "optim.warmup_steps=0",
    ],
}  # fmt: skip
MICRO = {
    "train-disco": ["optim.micro_batch_size=2", "prior.micro_batch_size=4"],
    "train-ivideogpt": ["optim.tokenizer.micro_batch_size=2", "optim.transformer.micro_batch_size=2"],
    "grow-llm": ["optim.micro_batch_size=2"],
    "enhance-video": ["optim.micro_batch_size=2"],
}
SHARDED_STAGE = {"train-ivideogpt": "transformer"}
SHARDED = {command: ["optim.sharding=fsdp"] for command in WORDS} | {
    "train-ivideogpt": ["optim.transformer.sharding=fsdp"]
}


def make_data() -> None:
    """photos/ with two classes of pictures, clips/ with two films."""
    import av

    rng = np.random.default_rng(0)
    for number in range(60):
        path = Path("photos", ("left", "right")[number % 2], f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)).save(path)
    Path("clips").mkdir()
    for number in range(2):
        picture = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((96, 72)))
        with av.open(f"clips/{number}.mp4", "w") as file:
            stream = file.add_stream("libx264", rate=24, options={"crf": "10"})
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            for shift in range(20):
                frame = np.ascontiguousarray(picture[shift : shift + 48, shift : shift + 64])
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            file.mux(stream.encode())


def start(launcher: str, processes: int, command: str, *words: str) -> subprocess.Popen:
    """A training in the folder that its words name; what it prints goes to ``output.txt``."""
    prefix = {
        "python": [sys.executable],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"],
        "accelerate": [
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}",
        ],
    }[launcher]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    output = open("output.txt", "ab")  # noqa: SIM115 - the child's
    line = [*prefix, "-m", "toolkit.cli", command, *WORDS[command], *TRAINING, *words]
    return subprocess.Popen(line, stdout=output, stderr=output, env=environment)


def train(launcher: str, processes: int, command: str, folder: str, *words: str) -> str:
    """Run to the end; returns the folder. Raises RuntimeError with the last lines of output otherwise."""
    code = start(launcher, processes, command, *words, f"hydra.run.dir={folder}").wait()
    if code:
        raise RuntimeError("\n".join(Path("output.txt").read_text(errors="replace").splitlines()[-30:]))
    newest = sorted(Path(folder).glob("checkpoints/*/step-*.pt"), key=lambda path: path.stat().st_mtime)[-1]
    assert torch.load(newest, weights_only=True)["world_size"] == processes  # else one process did it all
    return folder


def curves(folder: str) -> dict[tuple[str, int, str], float]:
    """Every scalar of a run, by stage, step and name; the held-out loss that enhance-video takes at its end too."""
    found = {}
    for line in Path(folder, "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        place = (row.pop("stage"), row.pop("step"))
        found |= {(*place, name): value for name, value in row.items()}
    metrics = json.loads(Path(folder, "run.json").read_text())["metrics"]
    return found | {("end", 0, name): value for name, value in metrics.items() if name == "held_out.loss"}


def is_held_out(name: str) -> bool:
    """Whether a scalar is of data that training does not see."""
    return name.startswith(("valid_", "held_out"))


def difference(folder: str, reference: str) -> dict[str, float]:
    """The largest relative difference of the training's and of the held-out scalars."""
    mine, theirs = curves(folder), curves(reference)
    assert mine.keys() == theirs.keys(), mine.keys() ^ theirs.keys()
    assert any(is_held_out(name) for *_, name in mine)
    worst = {"training": 0.0, "held-out": 0.0}
    for place, value in theirs.items():
        kind = "held-out" if is_held_out(place[2]) else "training"
        if place[2].endswith(("_usage", "_perplexity", "dead_codes")):  # counts, which a rounding may move by one
            continue
        worst[kind] = max(worst[kind], abs(mine[place] - value) / max(abs(value), 1e-2))
    return worst


def outcome(folder: str) -> dict[str, bytes]:
    """What an interruption must not change."""
    root = Path(folder)
    files = [root / "metrics.jsonl", *sorted(root.glob("model/**/*.safetensors"))]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def ranks_of(job: subprocess.Popen) -> dict[int, psutil.Process]:
    """The processes of a job by their rank."""
    found = {}
    for child in psutil.Process(job.pid).children(recursive=True):
        try:
            number = child.environ().get("RANK")
        except psutil.Error:
            continue
        if number is not None and "toolkit.cli" in " ".join(child.cmdline()):
            found[int(number)] = child
    return found


def wait_for_checkpoint(job: subprocess.Popen, folder: str, stage: str = "*") -> None:
    """Return when the job has written one."""
    while not list(Path(folder).glob(f"checkpoints/{stage}/step-*.pt")):
        assert job.poll() is None, "the job ended before its first checkpoint"
        time.sleep(0.005)


def kill_one_rank(command: str) -> dict[str, Any]:
    """kill -9 of rank 1 of 2 after a checkpoint; then 4 processes go on."""
    job = start("torchrun", 2, command, "hydra.run.dir=killed")
    wait_for_checkpoint(job, "killed")
    ranks_of(job)[1].kill()
    before = time.monotonic()
    try:
        job.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        for process in [*ranks_of(job).values(), job]:
            process.kill()
    ended_s = time.monotonic() - before
    train("torchrun", 4, command, "killed")
    status = json.loads(Path("killed", "run.json").read_text())["status"]
    return {"ended_s": round(ended_s, 1), "resumed on 4": status, **difference("killed", "one")}


def kill_all(command: str, words: list[str], untouched: str, stage: str = "*") -> bool:
    """Kill both ranks of a job with ``words``, resume it; whether it equals the one that nobody touched."""
    shutil.rmtree("again", ignore_errors=True)
    job = start("torchrun", 2, command, *words, "hydra.run.dir=again")
    wait_for_checkpoint(job, "again", stage)
    for process in [job, *ranks_of(job).values()]:
        process.send_signal(signal.SIGKILL)
    job.wait()
    train("torchrun", 2, command, "again", *words)
    return outcome("again") == outcome(untouched)


def stop_sharding(command: str) -> dict[str, float]:
    """Kill both ranks of a sharded job after a checkpoint; one process, which shares nothing, goes on."""
    job = start("torchrun", 2, command, *SHARDED[command], "hydra.run.dir=unsharded")
    wait_for_checkpoint(job, "unsharded", SHARDED_STAGE.get(command, "*"))
    for process in [job, *ranks_of(job).values()]:
        process.send_signal(signal.SIGKILL)
    job.wait()
    train("python", 1, command, "unsharded")
    return difference("unsharded", "one")


def check_sharding(command: str) -> list[dict[str, Any]]:
    """The rows of weights, gradients, moments and averages that are spread over two processes."""
    train("torchrun", 2, command, "sharded", *SHARDED[command])
    rows = []
    cases = {"2, fsdp": difference("sharded", "one"), "2, fsdp, killed, 1 goes on": stop_sharding(command)}
    for case, found in cases.items():
        rows.append({"case": case, **found, "holds": max(found.values()) <= TOLERANCE})
        show(command, rows[-1])
    same = kill_all(command, SHARDED[command], "sharded", SHARDED_STAGE.get(command, "*"))
    rows.append({"case": "2, fsdp, all killed, resumed to the bit", "holds": same})
    show(command, rows[-1])
    return rows


def check(command: str) -> list[dict[str, Any]]:
    """The rows of one command's table."""
    rows = []
    cases: list[tuple[str, int, list[str]]] = [
        ("torchrun", 2, []), ("torchrun", 4, []), ("accelerate", 2, []), ("torchrun", 2, MICRO[command]),
    ]  # fmt: skip
    for launcher, processes, micro in cases:
        folder = train(launcher, processes, command, f"{launcher}_{processes}{'_micro' if micro else ''}", *micro)
        found = difference(folder, "one")
        rows.append({"case": folder, **found, "holds": max(found.values()) <= TOLERANCE})
        show(command, rows[-1])
    killed = kill_one_rank(command)
    holds = killed["ended_s"] < PATIENCE_S and killed["resumed on 4"] == "done"
    rows.append({"case": "rank 1 of 2 killed, 4 go on", **killed, "holds": holds})
    show(command, rows[-1])
    rows.append(
        {
            "case": "2 x 4 passes, all killed, resumed to the bit",
            "holds": kill_all(command, MICRO[command], "torchrun_2_micro"),
        }
    )
    show(command, rows[-1])
    return rows


def merge(table: dict[str, Any], command: str, rows: list[dict[str, Any]]) -> None:
    """Put ``rows`` into a table, each in the place of the one of its case; those of sharding come last."""
    cases = {row["case"]: row for row in [*table.get(command, []), *rows]}
    table[command] = sorted(cases.values(), key=lambda row: "fsdp" in row["case"])


def show(command: str, row: dict[str, Any]) -> None:
    told = {name: f"{value:.1e}" if isinstance(value, float) else value for name, value in row.items()}
    print(command, *(f"{name}={value}" for name, value in told.items()), sep="  ", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", default=list(WORDS), choices=list(WORDS))
    parser.add_argument("--parts", nargs="+", default=["copies", "sharding"], choices=["copies", "sharding"])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    out = asked.out and asked.out.resolve()
    table = json.loads(out.read_text()) if out and out.exists() else {}
    found = []
    for command in asked.commands:
        folder = tempfile.mkdtemp(prefix="processes-")
        os.chdir(folder)
        make_data()
        train("python", 1, command, "one")
        rows = check(command) if "copies" in asked.parts else []
        rows += check_sharding(command) if "sharding" in asked.parts else []
        os.chdir(REPO)
        shutil.rmtree(folder)
        found += rows
        merge(table, command, rows)
        if out:
            out.write_text(json.dumps(table, indent=1) + "\n")
    return 0 if all(row["holds"] for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
