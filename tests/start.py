"""From typing a command to its first step: processor seconds of each part, beside what the libraries alone take.

    python tests/start.py [--rounds 3] [--out start.json] [--commands train-disco grow-llm ...]

The five commands with their smoke presets and an empty cache, each in a new process that ends where its first step
would begin: the first step of training, of enhance-video the first denoising step. Parts: ``compose`` until the config
is composed and checked, ``import`` until the job's module is loaded, ``build`` until the first step, with data,
networks and optimiser. ``bound`` is what a process takes that only imports the libraries' classes that the job is built
from. Medians of the rounds; processor time of one thread, so a busy machine changes it little.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from toolkit.runs.files import write_json
from toolkit.runs.machine import git_commit, machine, package_versions

TRAINED = "import torch, accelerate; torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])"  # loads torch._dynamo
LLAMA, MODEL = "from transformers import LlamaForCausalLM", "from diffusers import ModelMixin"
BLOCKS = "from diffusers.models.unets import unet_2d_blocks"  # loads all of diffusers.models.transformers, scipy.stats
COMMANDS = {  # -> its preset, and the libraries' classes that it is built from
    "train-disco": ("disco_smoke", f"{TRAINED}; {MODEL}"),
    "sample-icg": ("icg_smoke", f"{TRAINED}; {MODEL}; import diffusers.guiders.guider_utils"),
    "grow-llm": ("grow_smoke", f"{TRAINED}; {LLAMA}; import tokenizers"),
    "train-ivideogpt": ("ivideogpt_smoke", f"{TRAINED}; {LLAMA}; {MODEL}; {BLOCKS}"),
    "enhance-video": ("enhance_smoke", f"import torch, accelerate, av; {MODEL}; from diffusers import AutoencoderKL"),
}
PARTS = ("compose", "import", "build")


def child(words: list[str]) -> None:
    """Run one command until its first step begins; the parts' times go to standard output, and the process ends."""
    times = [0.0]

    def reached(*_: Any) -> None:
        times.append(time.process_time())
        parts = [end - start for start, end in itertools.pairwise(times)]
        print("\n" + json.dumps(dict(zip(PARTS, parts, strict=True))), flush=True)
        os._exit(0)

    from toolkit import one_job

    load = one_job.job_module

    def loaded(command: Any) -> Any:
        times.append(time.process_time())  # composed
        module = load(command)
        times.append(time.process_time())  # imported
        if command.name == "enhance-video":
            from toolkit.venhancer.engine.window_steps import WindowSteps

            WindowSteps.run = reached
        else:
            from toolkit.runs.loop import Loop

            Loop.__iter__ = reached
        return module

    one_job.job_module = loaded
    from toolkit.launch import launch

    launch(words[0], words[1:])


def timed(command: str) -> dict[str, float]:
    """Processor seconds of the parts of one start, and of the libraries alone."""
    preset, libraries = COMMANDS[command]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOOLKIT_CACHE": f"{folder}/cache"}
        words = [command, f"experiment={preset}", f"hydra.run.dir={folder}/run"]
        ours = [sys.executable, __file__, "--child", *words]
        bound = [sys.executable, "-c", f"{libraries}; import time; print(time.process_time())"]
        last = [
            subprocess.run(one, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            for one in (ours, bound)
        ]
    return {**json.loads(last[0]), "bound": float(last[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--out", help="a JSON file for the record")
    options = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {command: [] for command in options.commands}
    for _ in range(options.rounds):
        for command, found in rounds.items():
            found.append(timed(command))
    results = {}
    for command, found in rounds.items():
        results[command] = {part: statistics.median(one[part] for one in found) for part in (*PARTS, "bound")}
        results[command]["total"] = statistics.median(sum(one[part] for part in PARTS) for one in found)
        print(
            f"{command:16s}", "  ".join(f"{part} {value:.2f} s" for part, value in results[command].items()), flush=True
        )
    if options.out:
        made_by = {"command": "python tests/start.py", "commit": git_commit(), "machine": machine()}
        write_json(
            options.out, made_by | {"versions": package_versions(), "rounds": options.rounds, "results": results}
        )


if __name__ == "__main__":
    child(sys.argv[2:]) if sys.argv[1:2] == ["--child"] else main()
