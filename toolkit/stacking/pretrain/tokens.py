"""A corpus as packed token ids in memory-mapped files, and the order in which training reads them.

Documents follow each other with a boundary token before each, cut into blocks of ``context`` + 1 tokens. Which block
comes n-th is a pure function of (seed, n): a resumed run, a grown network that goes on after its base and any number
of processes read the same sequences.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from toolkit.data import Corpus
from toolkit.data.fetching import cache_folder, cache_root
from toolkit.errors import JobError, UserError, few
from toolkit.plain_files import read_object
from toolkit.runs import progress
from toolkit.runs.files import into_place, write_json
from toolkit.runs.seeds import derive
from toolkit.show.table import Table
from toolkit.stacking.checkpoints.load import num_ids

FORMAT = 1
BATCH_DOCUMENTS = 256
FEW_DOCUMENTS = 20  # below, the end of each one is held out instead of whole documents
SPLITS = ("train", "valid")


@dataclass(frozen=True)
class TokenStore:
    """Packed tokens in ``folder``: ``train.bin``, ``valid.bin``, ``meta.json`` and the tokenizer.

    vocab_size: of the tokenizer, gaps between its ids included. bytes_per_token: on the held-out text, to turn nats per
    token into bits per byte. former: the fingerprint that version 0.1 gave it. plain: in how many documents the text of
    a special token stands, which was read as any other text.
    """

    folder: Path
    vocab_size: int
    bytes_per_token: float
    fingerprint: str
    former: str = ""
    plain: dict[str, int] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """Raises UserError where files are missing or shorter than they were written."""
        try:
            meta = read_object(folder / "meta.json", bytes=dict, vocab_size=int, bytes_per_token=float, fingerprint=str)
            sizes = {split: (folder / f"{split}.bin").stat().st_size for split in SPLITS}
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: damaged token files ({error}); remove the folder to make them again") from None
        if sizes != meta["bytes"]:
            raise UserError(f"{folder}: token files of another length than written; remove the folder to make it again")
        return cls(
            folder, meta["vocab_size"], meta["bytes_per_token"], meta["fingerprint"], plain=meta.get("plain", {})
        )

    def table(self) -> Table:
        """What was packed, for reports."""
        meta = read_object(self.folder / "meta.json", corpus=str, origin=str, licence=str)
        rows = [["training tokens", len(self.train)], ["held-out tokens", len(self.valid)]]
        rows += [["vocabulary", self.vocab_size], ["bytes per token", self.bytes_per_token]]
        return Table("Corpus", ["", meta["corpus"]], rows, f"{meta['origin']}; licence: {meta['licence']}")

    @cached_property
    def train(self) -> np.ndarray:
        """Token ids (N,), mapped into memory."""
        return self._map("train")

    @cached_property
    def valid(self) -> np.ndarray:
        """Held-out token ids (N,), mapped into memory."""
        return self._map("valid")

    def _map(self, split: str) -> np.ndarray:
        return np.memmap(self.folder / f"{split}.bin", dtype=_dtype(self.vocab_size), mode="r")

    def tokenizer(self) -> Any:
        """The transformers tokenizer that made the ids."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder / "tokenizer", trust_remote_code=False)


class Sequences:
    """Blocks of ``context`` + 1 training tokens in a seeded order, a new one for each pass over the data.

    Raises UserError where there is not one whole block.
    """

    def __init__(self, tokens: np.ndarray, context: int, seed: int) -> None:
        self.tokens, self.context, self.seed = tokens, context, seed
        self.count = (len(tokens) - 1) // context
        if self.count < 1:
            raise UserError(f"data: {len(tokens)} training tokens, network.context={context} needs more; add text")

    def batch(self, first: int, size: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Inputs and targets int64 (size / world_size, context) of this rank, from the ``first``-th sequence on."""
        numbers = np.arange(first + rank, first + size, world_size)
        rows = np.stack([self._block(int(number)) for number in numbers])
        ids = torch.from_numpy(rows.astype(np.int64))
        return ids[:, :-1], ids[:, 1:]

    def _block(self, number: int) -> np.ndarray:
        epoch, index = divmod(number, self.count)
        start = shuffled(index, self.count, derive(self.seed, "sequences", epoch)) * self.context
        return self.tokens[start : start + self.context + 1]


def held_out(tokens: np.ndarray, context: int, num_tokens: int) -> tuple[Tensor, Tensor]:
    """The fixed windows on which every network is measured: inputs and targets int64 (N, context), spread evenly.

    Raises UserError where there is not one whole window.
    """
    count = (len(tokens) - 1) // context
    if count < 1:
        raise UserError(
            f"data: {len(tokens)} held-out tokens, network.context={context} needs more; "
            "add text or raise data.valid_fraction"
        )
    wanted = min(count, max(1, num_tokens // context))
    starts = np.arange(wanted) * count // wanted * context
    ids = torch.from_numpy(np.stack([tokens[start : start + context + 1] for start in starts]).astype(np.int64))
    return ids[:, :-1], ids[:, 1:]


def shuffled(index: int, count: int, key: int) -> int:
    """The place of ``index`` in a permutation of ``range(count)`` that depends on ``key``, without storing it.

    A four-round Feistel network on the smallest even number of bits, walked until it lands inside.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            mixed = (right + (key >> (13 * turn))) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
            mixed = (mixed ^ (mixed >> 31)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed >> 29) & mask)
        index = left << half | right
        if index < count:
            return index


# -- making the files ------------------------------------------------------------------------------------------------


def store_key(corpus: Corpus, valid_fraction: float, tokenizer_key: str) -> str:
    """16 hex digits that name the token files of a corpus under a tokenizer."""
    parts = [str(FORMAT), corpus.fingerprint, tokenizer_key, repr(valid_fraction)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def former_key(corpus: Corpus, valid_fraction: float, tokenizer_key: str) -> str:
    """``store_key`` as version 0.1 gave it, to which the token between documents was one and the same."""
    tokenizer_key = tokenizer_key.partition(":")[0]
    return store_key(replace(corpus, fingerprint=corpus.former or corpus.fingerprint), valid_fraction, tokenizer_key)


def prepare(corpus: Corpus, valid_fraction: float, make_tokenizer: Any, tokenizer_key: str) -> TokenStore:
    """The token files of ``corpus``, from the cache where they were made before.

    make_tokenizer: a function of an iterator over the training documents that returns a transformers tokenizer;
    tokenizer_key: what tells its result from others. Built aside and renamed: no half-made files are left behind.
    Raises UserError for an empty corpus, JobError where the disk fails.
    """
    key = store_key(corpus, valid_fraction, tokenizer_key)
    folder = cache_root() / "tokens" / key
    former = former_key(corpus, valid_fraction, tokenizer_key)
    if (folder / "meta.json").is_file():
        return _told(replace(TokenStore.open(folder), former=former))
    aside = cache_folder("tokens") / f".{key}.{os.getpid()}.partial"
    try:
        aside.mkdir()
        _write(aside, corpus, valid_fraction, make_tokenizer, key)
        into_place(aside, folder, "meta.json")
    except OSError as error:
        raise JobError(f"{folder}: the token files could not be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return _told(replace(TokenStore.open(folder), former=former))


def _told(store: TokenStore) -> TokenStore:
    """Says where documents were perhaps meant to end and do not."""
    if store.plain:
        found = few([f"{token} ({count} documents)" for token, count in store.plain.items()], 3)
        progress.say(
            f"data: {found} is a special token's name in the text, and read as plain text; what is to be a document of "
            "its own needs a file, or a line of JSON, of its own"
        )
    return store


def _write(folder: Path, corpus: Corpus, valid_fraction: float, make_tokenizer: Any, key: str) -> None:
    tokenizer = make_tokenizer(text for split, text in split_documents(corpus, valid_fraction) if split == "train")
    tokenizer.save_pretrained(folder / "tokenizer")
    vocab_size, boundary = num_ids(tokenizer), boundary_id(tokenizer)
    valid_bytes, counts = 0, dict.fromkeys(SPLITS, 0)
    special, plain = _special_names(tokenizer), Counter[str]()
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(open(folder / f"{split}.bin", "wb")) for split in SPLITS}
        documents = split_documents(corpus, valid_fraction)
        while batch := list(islice(documents, BATCH_DOCUMENTS)):
            encoded = tokenizer(
                [text for _, text in batch], add_special_tokens=False, split_special_tokens=True, verbose=False
            )["input_ids"]
            for (split, text), ids in zip(batch, encoded, strict=True):
                counts[split] += _append(files[split], ids, boundary, vocab_size)
                valid_bytes += len(text.encode()) if split == "valid" else 0
                plain.update(set(special.findall(text)))
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    meta = {
        "corpus": corpus.name,
        "origin": corpus.origin,
        "licence": corpus.licence,
        "tokens": counts,
        "bytes": {split: (folder / f"{split}.bin").stat().st_size for split in SPLITS},
        "vocab_size": vocab_size,
        "bytes_per_token": valid_bytes / max(1, counts["valid"]),
        "fingerprint": key,
        "plain": dict(plain.most_common()),
    }
    write_json(folder / "meta.json", meta)


def _special_names(tokenizer: Any) -> re.Pattern[str]:
    """Finds the names of special tokens in a text: they are what the tokenizer says of itself, not what text says."""
    names = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special} - {""}
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def _append(file: IO[bytes], ids: list[int], boundary: int | None, vocab_size: int) -> int:
    row = ids if boundary is None else [boundary, *ids]
    file.write(np.asarray(row, dtype=_dtype(vocab_size)).tobytes())
    return len(row)


def boundary_id(tokenizer: Any) -> int | None:
    """What stands before every document: the BOS token, else EOS; None where the tokenizer has neither."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def split_documents(corpus: Corpus, valid_fraction: float) -> Iterator[tuple[str, str]]:
    """("train" or "valid", text) for every document; which ones are held out depends on nothing but their number.

    Of a corpus of a few long documents the end of each is held out, from a line's start on. Raises UserError where
    there is no document.
    """
    documents = corpus.documents()
    first = list(islice(documents, FEW_DOCUMENTS))
    if not first:
        raise UserError(f"data.name={corpus.name}: no text in {corpus.origin}")
    if len(first) < FEW_DOCUMENTS:
        for text in first:
            cut = text.rfind("\n", 0, int(len(text) * (1 - valid_fraction))) + 1
            cut = cut or int(len(text) * (1 - valid_fraction))
            yield "train", text[:cut]
            yield "valid", text[cut:]
        return
    period = max(2, round(1 / valid_fraction))
    for number, text in enumerate(_chain(first, documents)):
        yield ("valid" if number % period == period // 2 else "train"), text


def _chain(first: list[str], rest: Iterator[str]) -> Iterator[str]:
    yield from first
    yield from rest


def _dtype(vocab_size: int) -> type:
    return np.uint16 if vocab_size <= 2**16 else np.uint32
