"""The world model of a run in 8-bit weights, as the one that ``toolkit play`` comes with, and its model card.

toolkit train-ivideogpt hydra.run.dir=runs/push
python experiments/ivideogpt/ship.py runs/push toolkit/ivideogpt/weights

The card's numbers are measured on the packed weights, by ``toolkit train-ivideogpt model=... stage=measure``.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import toolkit
from toolkit.ivideogpt.control.packed import pack, unpack

POSITIONS = 256  # 11 frames, little more than it was trained on: then play renews the context, before it drifts
ROWS = {
    "PSNR of imagined frames, dB": "prediction.psnr.predicted",
    "PSNR of the copied last frame, dB": "prediction.psnr.copy_last",
    "PSNR lost with other clips' actions, dB": "prediction.psnr.true_minus_other_actions",
    "PSNR of the tokenizer's future frames, dB": "tokenizer.psnr.future",
    "correlation of imagined and true displacement, lesser axis": "actions.r.least.agent",
    "R² of the reward head": "reward.r2",
}

CARD = """\
# push.safetensors

The world model that `toolkit play` drives when no run is named: push-sprite at 32x32, one context frame of 64 tokens,
16 tokens for every later one, actions of 2 numbers, a reward head. {tokenizer} parameters in the tokenizer,
{transformer} in the transformer, 8 bits each (int8 with a float32 scale per row; vectors are float16): {size} MB.

Made on a CPU, in one run, from nothing but the toolkit's own simulator:

```
toolkit train-ivideogpt seed={seed} hydra.run.dir=runs/push
python experiments/ivideogpt/ship.py runs/push toolkit/ivideogpt/weights
```

Commit {git_commit}, config {config_hash}, seed {seed}.

| held-out worlds | these weights | the run |
| --- | --- | --- |
{rows}

Made for clips of 8 frames of this one simulator. It is told that it holds 256 positions, 11 frames, where the run says
512, so that `toolkit play` renews its context before it drifts. It says itself how it is sampled, at temperature
{temperature}. It knows nothing of real robots.

Licence: Apache-2.0, as the toolkit.
"""


def main(run: str, dest: str) -> None:
    """Pack, measure what was packed, write ``push.safetensors`` and ``README.md``."""
    record = toolkit.read_run(run).record
    world = toolkit.load(run)
    world.transformer.config.max_position_embeddings = POSITIONS
    path = pack(world, Path(dest) / "push.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        unpack(path).save_pretrained(Path(folder) / "world")
        command = [sys.executable, "-m", "toolkit.cli", "train-ivideogpt", f"model={folder}/world", "stage=measure"]
        command += ["plan.num_episodes=0", "data.num_train=16", "num_threads=1", f"hydra.run.dir={folder}/measured"]
        subprocess.run(command, check=True)
        measured = json.loads((Path(folder) / "measured" / "run.json").read_text())["metrics"]
    (Path(dest) / "README.md").write_text(card(record, measured, path.stat().st_size, world.sampling.temperature))


def card(record: dict, measured: dict, size: int, temperature: float) -> str:
    """The model card: what it is, how it was made, what it measures, its licence."""
    rows = [f"| {name} | {measured[key]:.2f} | {record['metrics'][key]:.2f} |" for name, key in ROWS.items()]
    return CARD.format(
        tokenizer=f"{record['parameters']['tokenizer']:,}",
        transformer=f"{record['parameters']['transformer']:,}",
        size=f"{size / 1e6:.1f}",
        temperature=temperature,
        rows="\n".join(rows),
        **{key: record[key] for key in ("seed", "git_commit", "config_hash")},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
