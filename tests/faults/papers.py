"""Faults of the five commands, on their smoke presets: small disks, little memory, several processes, odd names."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data import videos
from tests.faults.shared import TRIALS, Told, ending, mounted, trial

PRESETS = {
    "train-disco": "disco_smoke",
    "sample-icg": "icg_smoke",
    "train-ivideogpt": "ivideogpt_smoke",
    "grow-llm": "grow_smoke",
    "enhance-video": "enhance_smoke",
}
KEPT = ("*.safetensors", "metrics.jsonl", "*.mp4")  # what must not depend on faults
MOST_FILE_BYTES = 30_000
MOST_ADDRESSES = 2**31  # torch alone takes half of it


def paper(
    *words: str, start: Sequence[str] = (sys.executable, "-m", "toolkit.cli"), prepare: Callable[[], None] | None = None
) -> tuple[int, str]:
    """A command with the configs that it ships with: (exit code, what it printed)."""
    env = {name: value for name, value in os.environ.items() if name != "TOOLKIT_CONF"}
    done = subprocess.run(
        [*start, *words],
        capture_output=True, encoding="utf-8", errors="replace", timeout=1200, env=env, preexec_fn=prepare,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def kept(folder: str) -> dict[str, str]:
    """Digests of what a run made."""
    paths = (path for pattern in KEPT for path in Path(folder).rglob(pattern) if "checkpoints" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def goes_on(words: Sequence[str], folder: str = "one") -> str:
    """Give the command again, and compare with a run that nobody touched."""
    code, text = paper(*words, f"hydra.run.dir={folder}")
    if code:
        return f"it does not go on: {last_line(text)}"
    code, text = paper(*words, "hydra.run.dir=whole")
    assert code == 0, text[-500:]
    found, expected = kept(folder), kept("whole")
    other = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return ", ".join(other[:5]) or "nothing"


def last_line(text: str) -> str:
    """What was said last; whether there was a traceback."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("toolkit: error")]
    return ("TRACEBACK: " if "Traceback" in text else "") + (errors or lines or [""])[-1]


def limited(command: str, limit: int, most: int) -> Told:
    words = [command, f"experiment={PRESETS[command]}"]
    code, text = paper(*words, "hydra.run.dir=one", prepare=functools.partial(resource.setrlimit, limit, (most, most)))
    happened = f"{ending(code)}: {last_line(text)[:130]}"
    return Told(happened, "a traceback" if "Traceback" in text else goes_on(words))


for _command in PRESETS:
    TRIALS[f"{_command}: files may grow to 30 kB only"] = functools.partial(
        limited, _command, resource.RLIMIT_FSIZE, MOST_FILE_BYTES
    )
    TRIALS[f"{_command}: two gigabytes of addresses"] = functools.partial(
        limited, _command, resource.RLIMIT_AS, MOST_ADDRESSES
    )


@trial("grow-llm on a disk of 8 MB")
def small_disk() -> Told:
    with mounted("disk", "8m"):
        code, text = paper("grow-llm", "experiment=grow_smoke", "hydra.run.dir=disk/one")
        status = json.loads(Path("disk/one/run.json").read_text())["status"] if code == 0 else last_line(text)
        return Told(f"{ending(code)}: {status}", "nothing" if code == 0 else "it needs more than it writes")


def two_processes(command: str, start: Sequence[str]) -> Told:
    words = [command, f"experiment={PRESETS[command]}", "hydra.run.dir=one", "device=cpu"]
    code, text = paper(*words, start=start)
    again, _ = paper(*words)
    told = f"{ending(code)}, {len(list(Path().glob('*/run.json')))} folder; again on one: {ending(again)}"
    wrong = last_line(text) if code or again else ""
    return Told(told, wrong or "nothing", 2)


_TWO = ("--nproc_per_node=2", "-m", "toolkit.cli")
for _command in PRESETS:
    TRIALS[f"torchrun, two processes: {_command}"] = functools.partial(
        two_processes, _command, (sys.executable, "-m", "torch.distributed.run", *_TWO)
    )
TRIALS["accelerate launch, two processes: grow-llm"] = functools.partial(
    two_processes,
    "grow-llm",
    [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=2", "--cpu", "-m", "toolkit.cli"],
)


@trial("names that look like markup: clips, pictures, folders, models that are not there")
def markup() -> Told:
    bad = []
    videos.write(Path("[red] clip.mp4"), videos.moving(6, 48, 32))
    words = ["experiment=enhance_smoke", "backend=classic", "input='[red] clip.mp4'", "hydra.run.dir='[/] run'"]
    code, text = paper("enhance-video", *words)
    if code or "[red] clip" not in text or "[/] run" not in text.replace("\n", ""):
        bad.append(f"clip: {last_line(text)}")
    pictures = Path("[bold]pictures")
    pictures.mkdir()
    for number in range(12):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(pictures / f"{number}.png")
    (pictures / "[red]x[!red].png").write_bytes(b"none")
    asked = {
        "[red]x[!red].png": ["train-disco", "experiment=disco_smoke", "data=folder", f"data.path='{pictures}'"],
        "[/]": ["sample-icg", "experiment=icg_smoke", "model='[/]'"],
        "[green]": ["grow-llm", "experiment=grow_smoke", "model='[green]'", "stage=grow", "factor=2"],
        "[blue]": ["train-ivideogpt", "experiment=ivideogpt_smoke", "init='[blue]'"],
    }
    for name, words in asked.items():
        code, text = paper(*words, "hydra.run.dir=refused")
        if code != 2 or name not in last_line(text):
            bad.append(f"{name}: {ending(code)} {last_line(text)[:80]}")
    return Told("printed as they are", "; ".join(bad) or "nothing", 5)


@trial("what the five commands save names no folder of this machine")
def names_of_folders() -> Told:
    bad, here = [], os.getcwd()
    for command, preset in PRESETS.items():
        code, text = paper(command, f"experiment={preset}", f"hydra.run.dir={here}/{command}")
        assert code == 0, text[-500:]
        for path in Path(command, "model").rglob("*.json"):
            if here in path.read_text() or json.loads(path.read_text()).get("_name_or_path"):
                bad.append(str(path))
        shutil.rmtree(command)
    return Told("looked for in every JSON file under model/", ", ".join(bad) or "nothing", len(PRESETS))
