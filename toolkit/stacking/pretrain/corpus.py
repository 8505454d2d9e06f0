"""From the config to token files: which text, which tokenizer (a byte-level BPE of our own unless one is given)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit import data
from toolkit.errors import UserError, brief
from toolkit.plain_files import read_object
from toolkit.runs.distributed import from_rank_zero
from toolkit.stacking.checkpoints.gguf_header import read_gguf_header
from toolkit.stacking.checkpoints.load import HISTORY_FILE, num_ids
from toolkit.stacking.checkpoints.open import find_network, open_checkpoint
from toolkit.stacking.config import GrowLLM
from toolkit.stacking.pretrain.networks import check_vocabulary
from toolkit.stacking.pretrain.tokens import (
    TokenStore,
    boundary_id,
    former_key,
    prepare,
    split_documents,
    store_key,
)

BOUNDARY = "<|endoftext|>"  # before every document; also what pads
TRAINING_CHARACTERS = 50_000_000  # merges barely change with more


def token_store(config: GrowLLM) -> TokenStore:
    """The corpus of ``config.data`` under its tokenizer; rank 0 makes the files. Raises UserError."""
    return from_rank_zero(lambda: _token_store(config))


def held_out_texts(config: GrowLLM) -> Iterator[str]:
    """The held-out documents of ``config.data``. Raises UserError."""
    documents = split_documents(_load(config), config.data.valid_fraction)
    return (text for split, text in documents if split == "valid")


def _token_store(config: GrowLLM) -> TokenStore:
    named = _named_tokenizer(config)  # a refusal comes before the corpus is fetched
    text = _load(config)
    fraction, own = config.data.valid_fraction, f"bpe {config.tokenize.vocab_size}"
    own_stores = (store_key(text, fraction, own), former_key(text, fraction, own))
    tokenizer = _source_tokenizer(config, own_stores) if named is None else named
    if tokenizer is not None:
        return prepare(text, fraction, lambda _: tokenizer, tokenizer_key(tokenizer))
    return prepare(text, fraction, lambda documents: train_bpe(documents, config.tokenize.vocab_size), own)


def _load(config: GrowLLM) -> data.Corpus:
    try:
        return data.load_text(config.data)
    except UserError as error:
        if "could not be fetched" in str(error):
            raise UserError(f"{error}; data=text_python needs no network") from None
        raise


def _source_tokenizer(config: GrowLLM, own_stores: tuple[str, ...]) -> Any | None:
    """The tokenizer of ``model``, to use instead of training one; None where a run trained it on these very files."""
    if config.model is None:
        return None
    source = find_network(config.model, config.part)
    history = Path(source) / HISTORY_FILE
    if history.is_file() and read_object(history).get("store") in own_stores:
        return None
    checkpoint = open_checkpoint(source)
    tokenizer, known = checkpoint.tokenizer, checkpoint.config.vocab_size
    if tokenizer is None:
        raise UserError(f"model={config.model}: has no tokenizer; give tokenize.tokenizer=FOLDER")
    if (needed := num_ids(tokenizer)) > known:
        raise UserError(
            f"model={config.model}: its tokenizer has {needed} tokens, and its network knows {known}; give one "
            "that fits, tokenize.tokenizer=FOLDER"
        )
    return tokenizer


def _named_tokenizer(config: GrowLLM) -> Any | None:
    """``tokenize.tokenizer``, None where none is named. Raises UserError, also where ``model`` knows fewer tokens."""
    if config.tokenize.tokenizer is None:
        return None
    tokenizer = load_tokenizer(config.tokenize.tokenizer)
    if config.model is not None:
        known = open_checkpoint(find_network(config.model, config.part)).config
        check_vocabulary(known, num_ids(tokenizer), config.model)
    return tokenizer


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a folder, hub id or ``.gguf`` file. Raises UserError."""
    from transformers import AutoTokenizer

    try:
        if source.endswith(".gguf"):
            path = Path(source)
            read_gguf_header(path)  # the library believes what a damaged one says
            return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # each tokenizer library raises its own
        raise UserError(f"tokenize.tokenizer={source}: cannot be loaded ({brief(error)})") from None


def train_bpe(documents: Iterator[str], vocab_size: int) -> Any:
    """A transformers tokenizer of at most ``vocab_size`` entries: 256 bytes, one boundary token, the rest merges.

    Equal documents give an equal tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOUNDARY],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first(documents, TRAINING_CHARACTERS), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOUNDARY,
        eos_token=BOUNDARY,
        pad_token=BOUNDARY,
        clean_up_tokenization_spaces=False,
    )


def _first(documents: Iterator[str], num_characters: int) -> Iterator[str]:
    for text in documents:
        yield text
        num_characters -= len(text)
        if num_characters <= 0:
            return


def tokenizer_key(tokenizer: Any) -> str:
    """Tells tokenizers apart that split text differently, or, behind a colon, put another token between documents."""
    splits = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]
    return f"{splits}:{boundary_id(tokenizer)}"
