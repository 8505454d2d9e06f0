"""Packed tokens: nothing lost, nothing read twice, the same order for any number of processes."""

import json
from itertools import chain

import numpy as np
import pytest
import torch

from toolkit.data import Corpus
from toolkit.errors import JobError, UserError
from toolkit.stacking.pretrain import tokens
from toolkit.stacking.pretrain.corpus import BOUNDARY, tokenizer_key, train_bpe
from toolkit.stacking.pretrain.tokens import Sequences, TokenStore, held_out, prepare, shuffled, split_documents

TEXTS = [f"Document {i}: the mill by the river, the {i * i}th stone of the bridge.\n" * 3 for i in range(60)]


def corpus(texts=TEXTS, name="test"):
    return Corpus(name, "ours", "a test", name, lambda: iter(texts))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def make(texts=TEXTS, fraction=0.05, name="test"):
    return prepare(corpus(texts, name), fraction, lambda documents: train_bpe(documents, 300), "bpe 300")


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 65, 1000])
def test_shuffled_is_a_permutation(count):
    for key in (0, 1, 12345678901234567):
        assert sorted(shuffled(i, count, key) for i in range(count)) == list(range(count))
    if count > 6:
        assert [shuffled(i, count, 1) for i in range(count)] != [shuffled(i, count, 2) for i in range(count)]


def test_every_document_is_there_once_with_a_boundary_before_it(cache):
    store = make()
    tokenizer = store.tokenizer()
    for split in ("train", "valid"):
        expected = "".join(BOUNDARY + text for kind, text in split_documents(corpus(), 0.05) if kind == split)
        assert tokenizer.decode(getattr(store, split)) == expected
    assert store.vocab_size == len(tokenizer) <= 300
    assert store.bytes_per_token == pytest.approx(
        sum(len(text) for kind, text in split_documents(corpus(), 0.05) if kind == "valid") / len(store.valid)
    )


def test_the_name_of_a_special_token_in_a_text_is_plain_text_and_said(cache, caplog):
    texts = [*TEXTS, "Once upon a time.\n<|endoftext|>\nAnd once more. <|endoftext|>"]
    with caplog.at_level("INFO", logger="toolkit"):
        stores = [make(texts), make(texts)]
    said = [line for line in caplog.messages if line.startswith("data: <|endoftext|> (1 documents) is a special token")]
    assert len(said) == 2 and [one.plain for one in stores] == [{BOUNDARY: 1}] * 2  # made, and found in the cache
    tokenizer, ids = stores[0].tokenizer(), [*stores[0].train, *stores[0].valid]
    assert ids.count(tokenizer.bos_token_id) == len(texts)
    assert tokenizer.decode(stores[0].train).endswith(BOUNDARY + texts[-1])


def test_the_held_out_part_is_whole_documents_or_the_end_of_a_few():
    kinds = [kind for kind, _ in split_documents(corpus(), 0.05)]
    assert kinds.count("valid") == 3
    few = list(split_documents(corpus(["a\n" * 100, "b\n" * 50]), 0.1))
    assert few == [("train", "a\n" * 90), ("valid", "a\n" * 10), ("train", "b\n" * 45), ("valid", "b\n" * 5)]
    ragged = "seven..\n" * 10  # 85 % of it ends inside the ninth line, which is held out whole
    assert list(split_documents(corpus([ragged]), 0.15)) == [("train", ragged[:64]), ("valid", ragged[64:])]
    one_line = "x" * 100
    assert list(split_documents(corpus([one_line]), 0.2)) == [("train", "x" * 80), ("valid", "x" * 20)]


def test_the_second_time_comes_from_the_cache_and_equal_text_gives_equal_files(cache):
    first = make()
    stamp = (first.folder / "meta.json").stat().st_mtime_ns
    assert (make().folder / "meta.json").stat().st_mtime_ns == stamp
    assert make(fraction=0.2).folder != first.folder
    other = make(name="other")
    assert other.folder != first.folder
    assert np.array_equal(other.train, first.train) and tokenizer_key(other.tokenizer()) == tokenizer_key(
        first.tokenizer()
    )


def test_another_token_between_documents_makes_other_files(cache):
    """As a base model and its instruct version have one tokenizer.json, and another EOS."""
    tokenizer = train_bpe(iter(TEXTS), 300)
    keys = [tokenizer_key(tokenizer)]
    first = prepare(corpus(), 0.05, lambda _: tokenizer, keys[0])
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(7)
    keys.append(tokenizer_key(tokenizer))
    second = prepare(corpus(), 0.05, lambda _: tokenizer, keys[1])
    assert keys[0].partition(":")[2] == "0" and keys[1].partition(":")[2] == "7"
    assert (first.train[0], second.train[0]) == (0, 7) and first.former == second.former


def test_nothing_is_left_of_an_attempt_that_failed(cache):
    def broken():
        yield from TEXTS
        raise OSError(28, "No space left on device")

    with pytest.raises(JobError, match="No space left"):
        prepare(Corpus("b", "", "", "b", broken), 0.05, lambda documents: train_bpe(iter(TEXTS), 300), "x")
    assert list(cache.iterdir()) == []


def test_empty_short_and_damaged(cache):
    with pytest.raises(UserError, match=r"data\.name=test: no text in a test"):
        make([])
    store = make()
    with pytest.raises(UserError, match=r"training tokens, network\.context=100000 needs more"):
        Sequences(store.train, 100_000, 0)
    with pytest.raises(UserError, match=r"held-out tokens, network\.context=100000 needs more"):
        held_out(store.valid, 100_000, 1)
    (store.folder / "train.bin").write_bytes(b"12")
    with pytest.raises(UserError, match="token files of another length"):
        TokenStore.open(store.folder)
    (store.folder / "valid.bin").unlink()
    with pytest.raises(UserError, match="damaged token files"):
        TokenStore.open(store.folder)


def test_an_epoch_reads_every_block_once_and_targets_are_the_next_tokens():
    ids = np.arange(1000, dtype=np.uint16)
    sequences = Sequences(ids, 16, seed=3)
    inputs, targets = sequences.batch(0, sequences.count)
    assert torch.equal(targets, inputs + 1)
    assert sorted(inputs[:, 0].tolist()) == list(range(0, 16 * sequences.count, 16))
    again, _ = sequences.batch(sequences.count, sequences.count)  # the next epoch: all of them in another order
    assert not torch.equal(again, inputs) and torch.equal(again.sort(0)[0], inputs.sort(0)[0])


def test_order_depends_on_the_seed_and_not_on_the_processes():
    ids = np.arange(5000, dtype=np.uint16)
    one, other = Sequences(ids, 8, 0), Sequences(ids, 8, 1)
    whole, _ = one.batch(40, 12)
    assert not torch.equal(whole, other.batch(40, 12)[0])
    ranks = [one.batch(40, 12, rank, 3)[0] for rank in range(3)]
    assert torch.equal(torch.stack(list(chain(*zip(*ranks, strict=True)))), whole)


def test_held_out_windows_are_spread_and_fixed():
    ids = np.arange(1001, dtype=np.uint16)
    inputs, targets = held_out(ids, 10, 50)
    assert inputs[:, 0].tolist() == [0, 200, 400, 600, 800] and torch.equal(targets, inputs + 1)
    assert len(held_out(ids, 10, 10**9)[0]) == 100


def test_large_vocabularies_take_four_bytes(cache, monkeypatch):
    monkeypatch.setattr(tokens, "_dtype", lambda size: np.uint16 if size <= 280 else np.uint32)
    store = make()
    assert store.train.dtype == np.uint32
    assert json.loads((store.folder / "meta.json").read_text())["bytes"]["train"] == 4 * len(store.train)
