"""A byte-level BPE of our own, trained on the corpus: any text can be written in it and read back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.errors import UserError

BOUNDARY = "<|endoftext|>"  # before every document; also what pads
TRAINING_CHARACTERS = 50_000_000  # merges barely change with more


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


def load_bpe(source: str) -> Any:
    """The tokenizer of a folder, hub id or ``.gguf`` file. Raises UserError."""
    from transformers import AutoTokenizer

    try:
        if source.endswith(".gguf"):
            path = Path(source)
            return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # each tokenizer library raises its own
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"tokenize.tokenizer={source}: cannot be loaded ({reason})") from None


def boundary_id(tokenizer: Any) -> int | None:
    """What stands before every document: the BOS token, else EOS; None where the tokenizer has neither."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def identity(tokenizer: Any) -> str:
    """Tells tokenizers apart that split text differently."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]
