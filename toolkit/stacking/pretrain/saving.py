"""A trained network as a checkpoint folder that goes on being one: weights, what came with its source, its cost."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from toolkit.errors import UserError
from toolkit.plain_files import read_object
from toolkit.runs import progress
from toolkit.runs.distributed import barrier, rank
from toolkit.runs.files import write_json
from toolkit.stacking.checkpoints.load import HISTORY_FILE, TOKENIZER_FILES
from toolkit.stacking.checkpoints.open import Checkpoint
from toolkit.stacking.checkpoints.safetensors_io import total_bytes
from toolkit.stacking.checkpoints.write import carried_bytes, whole_or_nothing, write_checkpoint
from toolkit.stacking.measure.curves import ACCOUNTINGS, Spent
from toolkit.stacking.operators.tensors import InMemory
from toolkit.stacking.pretrain.corpus import tokenizer_key
from toolkit.stacking.pretrain.networks import ARCHITECTURE
from toolkit.stacking.pretrain.states import whole
from toolkit.stacking.pretrain.tokens import TokenStore
from toolkit.stacking.pretrain.train import Trained


def save_trained(trained: Trained, out: Path, store: TokenStore, began_as: Checkpoint | None) -> None:
    """``out``, as transformers saves it, with its history; the earlier one is replaced. Rank 0 writes.

    A network that began as a checkpoint keeps the types of its weights and what came with it (tokenizer, generation
    config, licence, growth report); a fresh one is written in float32 with the corpus's tokenizer. Raises JobError.
    """
    state = dict(whole(trained.network))
    if rank() == 0:
        made = began_as or _fresh(trained.network, store, out.name)
        infos = began_as.tensors.infos if began_as else {}
        kinds = {key: infos[key].dtype if key in infos else torch.float32 for key in state}
        tensors = InMemory({key: value.to(kinds[key]) for key, value in state.items()})
        shutil.rmtree(out, ignore_errors=True)
        with whole_or_nothing(out, 2 * total_bytes(tensors.infos) + carried_bytes(made)) as folder:
            write_checkpoint(folder, made, made.config, tensors)
            if began_as is not None and not _same(began_as.tokenizer, store.tokenizer()):
                _replace_tokenizer(folder, store.tokenizer())
            write_json(folder / HISTORY_FILE, trained.spent.as_dict() | {"store": store.fingerprint})
    barrier()


def _fresh(network: Any, store: TokenStore, name: str) -> Checkpoint:
    """What is written beside the weights of a network that began here."""
    tokenizer = store.tokenizer()
    tokenizer.model_max_length = network.config.max_position_embeddings
    network.config.architectures = [type(network).__name__]
    network.config.dtype = "float32"
    return Checkpoint(name, ARCHITECTURE, network.config, InMemory({}), None, tokenizer, network.generation_config)


def _same(tokenizer: Any | None, other: Any) -> bool:
    return tokenizer is not None and tokenizer_key(tokenizer) == tokenizer_key(other)


def _replace_tokenizer(folder: Path, tokenizer: Any) -> None:
    """The tokenizer that made the tokens in the place of the source's."""
    for path in folder.iterdir():
        if any(fnmatch(path.name, pattern) for pattern in TOKENIZER_FILES):
            path.unlink()
    tokenizer.save_pretrained(folder)


def history(checkpoint: Checkpoint) -> Spent:
    """What a checkpoint has cost so far; nothing, with a line that says so, where that was not recorded."""
    spent = recorded_history(checkpoint)
    if spent is None:
        progress.say(f"note: {checkpoint.source} does not record the cost of its training; it is counted as 0")
    return spent or Spent()


def recorded_history(checkpoint: Checkpoint) -> Spent | None:
    """What a checkpoint records of its cost, None where it records nothing. Raises UserError for a damaged record."""
    path = checkpoint.folder / HISTORY_FILE if checkpoint.folder else None
    if path is None or not path.is_file():
        return None
    kept = read_object(path, tokens=int, sequences=int, flops=dict, time_s=float)
    if any(not isinstance(kept["flops"].get(name), (int, float)) for name in ACCOUNTINGS):
        raise UserError(f"{path}: 'flops' lacks a number for one of {', '.join(ACCOUNTINGS)}")
    return Spent(kept["tokens"], kept["sequences"], kept["flops"], kept["time_s"])
