"""The world model of a run, rounded to half precision, as the one that ``toolkit play`` comes with.

toolkit train-ivideogpt hydra.run.dir=runs/push
python experiments/ivideogpt/ship.py runs/push toolkit/ivideogpt/weights/push
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from toolkit import zoo


def main(source: str, dest: str) -> None:
    """Round, bind the transformer to the rounded tokenizer, write, and store the tensors as float16."""
    world = zoo.load(source)
    for network in (world.tokenizer, world.transformer):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(parameter.half().float())
    world.transformer.bind(world.tokenizer)
    world.save_pretrained(dest)
    for path in Path(dest).glob("*/*.safetensors"):
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    zoo.load(dest)
    print(sum(path.stat().st_size for path in Path(dest).rglob("*") if path.is_file()), "bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
