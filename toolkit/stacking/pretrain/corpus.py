"""From the config to token files: which text, which tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit import data
from toolkit.errors import UserError
from toolkit.runs.distributed import from_rank_zero
from toolkit.stacking.checkpoints.load import HISTORY_FILE
from toolkit.stacking.checkpoints.open import find_network, open_checkpoint
from toolkit.stacking.config import GrowLLM
from toolkit.stacking.pretrain.bpe import identity, load_bpe, train_bpe
from toolkit.stacking.pretrain.tokens import TokenStore, prepare, split_documents, store_key


def token_store(config: GrowLLM) -> TokenStore:
    """The corpus of ``config.data`` under its tokenizer; rank 0 makes the files. Raises UserError."""
    return from_rank_zero(lambda: _token_store(config))


def held_out_texts(config: GrowLLM) -> Iterator[str]:
    """The held-out documents of ``config.data``. Raises UserError."""
    documents = split_documents(_load(config), config.data.valid_fraction)
    return (text for split, text in documents if split == "valid")


def _token_store(config: GrowLLM) -> TokenStore:
    text = _load(config)
    fraction, own = config.data.valid_fraction, f"bpe {config.tokenize.vocab_size}"
    tokenizer = _given_tokenizer(config, store_key(text, fraction, own))
    if tokenizer is not None:
        return prepare(text, fraction, lambda _: tokenizer, identity(tokenizer))
    return prepare(text, fraction, lambda documents: train_bpe(documents, config.tokenize.vocab_size), own)


def _load(config: GrowLLM) -> data.Corpus:
    try:
        return data.load_text(config.data)
    except UserError as error:
        if "could not be fetched" in str(error):
            raise UserError(f"{error}; data=text_python needs no network") from None
        raise


def _given_tokenizer(config: GrowLLM, own_store: str) -> Any | None:
    """The tokenizer to use instead of training one: the one named, or the source's unless it made these very files."""
    if config.tokenize.tokenizer is not None:
        return load_bpe(config.tokenize.tokenizer)
    if config.source is None:
        return None
    source = find_network(config.source, config.part)
    history = Path(source) / HISTORY_FILE
    if history.is_file() and json.loads(history.read_text()).get("store") == own_store:
        return None
    tokenizer = open_checkpoint(source).tokenizer
    if tokenizer is None:
        raise UserError(f"source={config.source}: has no tokenizer; give tokenize.tokenizer=FOLDER")
    return tokenizer
