"""Put a run's world model into the package in half precision, as ``toolkit play`` comes with it, and measure it.

python experiments/ivideogpt/ship.py runs/push
python experiments/ivideogpt/ship.py measure runs/other other

The first also writes the card; the second measures any world model. Measures and a picture of long roll-outs go to
``experiments/ivideogpt/shipped_world``.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import toolkit
from toolkit import zoo
from toolkit.paths import share
from toolkit.runs.files import write_json

RECORDS = Path(__file__).parent / "shipped_world"
POSITIONS = 256  # 11 frames, the longest clips that it was trained on
NAME = "push_world"  # in the zoo
KEPT = ("command", "seed", "git_commit", "versions", "machine", "metrics")
OF_THE_RUN = ["command", "seed", "config", "config_hash", "git_commit", "overrides", "splits", "data", "parameters"]
OF_THE_RUN = [*OF_THE_RUN, "machine", "versions"]
ROWS = {
    "PSNR of 11 imagined frames, dB": "prediction.psnr.predicted",
    "PSNR of the copied last frame, dB": "prediction.psnr.copy_last",
    "PSNR lost with other clips' actions, dB": "prediction.psnr.true_minus_other_actions",
    "PSNR of the tokenizer's future frames, dB": "tokenizer.psnr.future",
    "correlation of imagined and true displacement of the disc, lesser axis": "actions.r.least.agent",
    "correlation of imagined and true displacement of the block, lesser axis": "actions.r.least.block",
    "R² of the reward head": "reward.r2",
    "60 imagined frames: PSNR, dB": "long.psnr.imagined",
    "60 imagined frames: PSNR of the copied first frame, dB": "long.psnr.copied",
    "60 imagined frames: frames with the disc in its place, share": "long.near.agent",
    "60 imagined frames: frames with the block in its place, share": "long.near.block",
    "the 60th: PSNR, dB": "long.psnr.imagined.step_60",
    "the 60th: frames with the disc in its place, share": "long.near.agent.step_60",
    "the 60th: frames with the block in its place, share": "long.near.block.step_60",
    "60 imagined frames: error of the background's hue, grey levels": "long.hue",
    "60 imagined frames: error of a grey background, grey levels": "long.hue.gray",
}

CARD = """\
# push_world

The world model that `toolkit play` drives when no run is named: push-sprite at 32x32, one context frame of 64 tokens,
16 tokens for every later one, actions of 2 numbers, a reward head. {tokenizer} parameters in the tokenizer,
{transformer} in the transformer, float16: {size} MB.

Made on a CPU, from nothing but the toolkit's own simulator:

```
toolkit train-ivideogpt seed={seed} hydra.run.dir=runs/first
toolkit train-ivideogpt experiment=ivideogpt_shipped init=runs/first seed={seed} hydra.run.dir=runs/push
python experiments/ivideogpt/ship.py runs/push
```

Config {config_hash}, seed {seed}, commit {git_commit} of a branch, whose training code came
here with these weights. The first of the two runs is the one that shipped before (commit
0367d1b3566fb669d9ed2c0ded05a853e8aa8340, config 213a4d7a4d641fa7); the second began from its weights in 8 bits.

| held-out worlds | these weights | those before |
| --- | --- | --- |
{rows}

"In its place": seen, within 3 pixels of where the simulator has it. Records of both, and worlds pictured at steps 1 to
60: `experiments/ivideogpt/shipped_world`; the weights before are those of commit 813003f.

Made for roll-outs of any length in this one simulator: it is told that it holds 256 positions, {most} frames, the
longest clips of its training; then the context stays and the last {kept} frames follow it anew. Its tokens do not hold
the hue of the background: frames show the true context where nothing has changed (`composite`, ours). It says itself
how it is sampled, at temperature {temperature}. It knows nothing of real robots.

Licence: Apache-2.0, as the toolkit.
"""


def main(run: str) -> None:
    """The run's world in float16 with what its record says of it, measured as it ships, and ``README.md``."""
    world, record, folder = toolkit.load(run), toolkit.read_run(run).record, zoo.local(NAME)
    world.transformer.config.max_position_embeddings = POSITIONS
    world.config["composite"] = True
    world.transformer.bind(world.tokenizer.half().float())  # the codes' means, as they ship
    world.tokenizer.half()
    world.transformer.half()
    world.save_pretrained(folder / "model")
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # a folder of the machine that trained it
        path.write_text(json.dumps(config, indent=2) + "\n")
    done = {name: stage for name, stage in record["stages"].items() if stage["status"] == "done"}
    kept = {"status": "done", "stages": done} | {key: record[key] for key in OF_THE_RUN}
    write_json(folder / "run.json", kept)
    share(folder)
    after, before = measure(NAME, "after"), json.loads((RECORDS / "before.json").read_text())["metrics"]
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    (folder / "README.md").write_text(card(record, after, before, size, world))


def measure(model: str, name: str) -> dict:
    """``shipped_world/NAME.json`` and ``NAME.png`` of a world model; its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "toolkit.cli", "train-ivideogpt", "experiment=ivideogpt_shipped"]
        command += ["init=null", f"model={model}", "stage=measure", "data.num_train=16", "num_threads=1"]
        command += ["measure.names=[tokenizer,prediction,actions,reward,long]"]
        subprocess.run([*command, f"hydra.run.dir={folder}/measured"], check=True)
        record = json.loads((Path(folder) / "measured" / "run.json").read_text())
        RECORDS.mkdir(exist_ok=True)
        shutil.copy(Path(folder) / "measured" / "samples" / "long.png", RECORDS / f"{name}.png")
    kept = {key: record[key] for key in KEPT}
    (RECORDS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    return kept["metrics"]


def card(record: dict, after: dict, before: dict, size: int, world: toolkit.WorldModel) -> str:
    """The model card: what it is, how it was made, what it measures, its licence."""
    rows = [f"| {name} | {after[key]:.2f} | {before[key]:.2f} |" for name, key in ROWS.items()]
    return CARD.format(
        tokenizer=f"{record['parameters']['tokenizer']:,}",
        transformer=f"{record['parameters']['transformer']:,}",
        size=f"{size / 1e6:.1f}",
        temperature=world.sampling.temperature,
        most=world.spec.max_future,
        kept=world.config["kept_frames"],
        rows="\n".join(rows),
        **{key: record[key] for key in ("seed", "git_commit", "config_hash")},
    )


if __name__ == "__main__":
    measure(*sys.argv[2:]) if sys.argv[1] == "measure" else main(*sys.argv[1:])
