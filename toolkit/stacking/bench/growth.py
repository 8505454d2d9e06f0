"""``toolkit bench stacking measure=growth``: growing a checkpoint against copying its bytes on the same disk.

Contenders, all of which end with their files flushed to the disk:
  ours          G_stack of a sharded bfloat16 Llama, tensors streamed from file to file
  copy          the grown checkpoint's files copied by shutil: what writing that many bytes costs
  transformers  what one does by hand: load the source, build the target, copy layer by layer, save_pretrained
  zero          our G_zero in depth, whose new outputs are written as zeros
  width         our G_direct in width, whose columns are computed
The speed of each is bytes of the grown checkpoint per second; peak memory is above what the process held before.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from toolkit.bench import BenchOptions, Contender, Makers
from toolkit.runs.files import sync
from toolkit.schema import number
from toolkit.stacking.checkpoints.open import Checkpoint, open_checkpoint
from toolkit.stacking.checkpoints.safetensors_io import total_bytes
from toolkit.stacking.checkpoints.write import write_checkpoint
from toolkit.stacking.config import Growth, Network
from toolkit.stacking.grow_folder import grow_checkpoint
from toolkit.stacking.operators.llama import FOUND_SHAPES
from toolkit.stacking.operators.tensors import Info
from toolkit.stacking.pretrain.networks import ARCHITECTURE, Fresh, llama_config

SHARD_BYTES = 64_000_000
VOCABULARY = 8000


@dataclass
class GrowthOptions(BenchOptions):
    """key=value options: size of the source, factor, and a folder on the disk in question."""

    source_layers: int = number(6, least=1)
    hidden_size: int = number(1024, least=64)
    factor: int = number(4, least=2)
    folder: str = "."


def contenders(options: GrowthOptions) -> Makers:
    """Name -> function that builds it."""
    place = Place(options)
    width = Growth(operator="direct", direction="width", factor=2)
    return {
        "ours": lambda: place.contender(lambda out: _grow(place, out, Growth(operator="stack", factor=options.factor))),
        "copy": lambda: place.contender(lambda out: _copy(place.grown, out)),
        "transformers": lambda: place.contender(lambda out: _by_hand(place.source, out, options.factor)),
        "zero": lambda: place.contender(lambda out: _grow(place, out, Growth(operator="zero", factor=options.factor))),
        "width": lambda: place.contender(lambda out: _grow(place, out, width)),
    }


class Place:
    """A folder for all files of one benchmark, removed at the end of the process; its source is made when asked for."""

    def __init__(self, options: GrowthOptions) -> None:
        self.options = options

    @cached_property
    def folder(self) -> Path:
        """Where everything is written."""
        folder = Path(tempfile.mkdtemp(prefix="bench-grow-", dir=self.options.folder))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder

    @cached_property
    def source(self) -> Path:
        """A sharded bfloat16 Llama with random weights, written tensor by tensor: none of it stays in memory."""
        width, heads = self.options.hidden_size, max(1, self.options.hidden_size // 64)
        network = Network(self.options.source_layers, width, width * 11 // 4, heads, context=2048)
        config = llama_config(network, VOCABULARY)
        config.dtype = "bfloat16"
        made = Checkpoint("random", ARCHITECTURE, config, _Halves(config, seed=0), None, None)
        folder = self.folder / "source"
        folder.mkdir()
        write_checkpoint(folder, made, config, made.tensors, SHARD_BYTES)
        return folder

    @cached_property
    def grown(self) -> Path:
        """What ``copy`` copies."""
        _grow(self, self.folder / "grown", Growth(operator="stack", factor=self.options.factor))
        return self.folder / "grown"

    def contender(self, action: Callable[[Path], None]) -> Contender:
        """Writes one folder, which is removed again before the next is written; counts its megabytes."""

        def work() -> float:
            out = self.folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            action(out)
            return _num_bytes(out) / 1e6

        return Contender({"grow": work}, parameters=self._parameters)

    @cached_property
    def _parameters(self) -> int:
        return total_bytes(open_checkpoint(self.source).tensors.infos) // torch.bfloat16.itemsize


class _Halves(Fresh):
    """The paper's initialisation in bfloat16."""

    def __init__(self, config: Any, seed: int) -> None:
        super().__init__(config, seed)
        self.infos = {name: Info(info.shape, torch.bfloat16) for name, info in self.infos.items()}

    def read(self, name: str) -> torch.Tensor:
        return super().read(name).to(torch.bfloat16)


def _grow(place: Place, out: Path, growth: Growth) -> None:
    FOUND_SHAPES.clear()  # a command finds them anew
    grow_checkpoint(place.source, out, growth, measure=False, max_shard_bytes=SHARD_BYTES)


def _copy(source: Path, out: Path) -> None:
    out.mkdir()
    for path in source.iterdir():
        shutil.copyfile(path, out / path.name)
    _flush(out)


def _by_hand(source: Path, out: Path, factor: int) -> None:
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    config = type(base.config).from_dict(base.config.to_dict())
    old_layers = config.num_hidden_layers
    config.num_hidden_layers = factor * old_layers
    target = AutoModelForCausalLM.from_config(config, dtype=base.dtype)
    target.model.embed_tokens.load_state_dict(base.model.embed_tokens.state_dict())
    target.model.norm.load_state_dict(base.model.norm.state_dict())
    target.lm_head.load_state_dict(base.lm_head.state_dict())
    for index, layer in enumerate(target.model.layers):
        layer.load_state_dict(base.model.layers[index % old_layers].state_dict())
    target.save_pretrained(out, max_shard_size=SHARD_BYTES)
    _flush(out)


def _flush(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        sync(path)


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
