"""Token files and what lies beside weights: ids, boundaries, orders, keys, and whose tokenizer is used."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.stacking.models import make_model, make_tokenizer
from toolkit.data import Corpus
from toolkit.errors import UserError
from toolkit.stacking.config import GrowLLM
from toolkit.stacking.measure.curves import Spent
from toolkit.stacking.pretrain import corpus as corpora
from toolkit.stacking.pretrain import saving, tokens
from toolkit.stacking.pretrain.tokens import (
    Sequences,
    _dtype,
    boundary_id,
    former_key,
    held_out,
    shuffled,
    split_documents,
)


def test_ids_take_two_bytes_while_all_of_them_fit():
    assert (_dtype(2**16), _dtype(2**16 + 1)) == (np.uint16, np.uint32)


def test_a_document_begins_with_bos_where_there_is_one():
    ids = lambda bos, eos: SimpleNamespace(bos_token_id=bos, eos_token_id=eos)  # noqa: E731
    assert [boundary_id(ids(*pair)) for pair in ((0, 2), (None, 2), (None, None))] == [0, 2, None]


def corpus(texts, **more):
    return Corpus("test", "ours", "a test", "print", lambda: iter(texts), **more)


def test_twenty_documents_are_held_out_whole_and_nineteen_at_their_ends():
    for number, wanted in ((19, 38), (20, 20)):
        found = list(split_documents(corpus([f"{i}\n" * 10 for i in range(number)]), 0.3))
        assert len(found) == wanted
    kinds = [kind for kind, _ in found]
    assert [place for place, kind in enumerate(kinds) if kind == "valid"] == [1, 4, 7, 10, 13, 16, 19]  # of 1 / 0.3: 3


def test_the_last_block_and_window_have_their_next_token():
    """Of 33 tokens two blocks of 16 have a token to come; of 32 one."""
    for length, count in ((33, 2), (32, 1)):
        ids = np.arange(length, dtype=np.uint16)
        assert Sequences(ids, 16, 0).count == count
        inputs, targets = held_out(ids, 16, 10**6)
        assert len(inputs) == count and torch.equal(targets, inputs + 1)


def test_the_order_of_sequences_is_that_of_every_version():
    """A run that goes on with a newer version must not read what it has read: these places stay."""
    assert [shuffled(index, 10, 12345) for index in range(10)] == [9, 0, 7, 3, 4, 8, 6, 2, 5, 1]
    ids = np.arange(100 * 4 + 1, dtype=np.uint16)
    assert (Sequences(ids, 4, seed=3).batch(98, 4)[0][:, 0] // 4).tolist() == [86, 37, 27, 95]


def test_the_former_name_of_a_corpus_is_by_its_former_fingerprint():
    plain, known = corpus([]), corpus([], former="old")
    assert former_key(plain, 0.1, "a") != former_key(known, 0.1, "a")
    assert former_key(known, 0.1, "a") != former_key(known, 0.2, "a") != former_key(known, 0.2, "b")
    assert former_key(known, 0.1, "a:5") == former_key(known, 0.1, "a")


class Letters:
    """A tokenizer of letters that puts 9 before every text where special tokens are asked for."""

    bos_token_id, eos_token_id, added_tokens_decoder = 5, None, {}

    def __len__(self):
        return 10

    def get_vocab(self):
        return {str(one): one for one in range(10)}

    def save_pretrained(self, folder):
        folder.mkdir()

    def __call__(self, texts, add_special_tokens=True, split_special_tokens=False, verbose=True):
        return {"input_ids": [[9] * add_special_tokens + [int(one) for one in text] for text in texts]}


def test_a_documents_ids_follow_one_boundary_and_bytes_are_those_held_out(tmp_path):
    texts = ["12", "3", "344"] + ["4"] * 17
    tokens._write(tmp_path, corpus(texts), 0.5, lambda _: Letters(), "key")
    train, valid = (np.fromfile(tmp_path / f"{name}.bin", np.uint16).tolist() for name in ("train", "valid"))
    assert train == [5, 1, 2, 5, 3, 4, 4, *[5, 4] * 8] and valid == [5, 3, *[5, 4] * 9]  # every second one
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["bytes_per_token"] == 10 / 20 and meta["tokens"] == {"train": 23, "valid": 20}


def test_the_sources_tokenizer_is_used_unless_it_made_these_very_files(tmp_path, monkeypatch):
    config = GrowLLM(stage="pretrain", model="a")
    monkeypatch.setattr(corpora, "find_network", lambda model, part: str(tmp_path))
    twelve = make_tokenizer(12)
    found = SimpleNamespace(tokenizer=twelve, config=SimpleNamespace(vocab_size=12))
    monkeypatch.setattr(corpora, "open_checkpoint", lambda _: found)
    assert corpora._source_tokenizer(config, ("this",)) is twelve
    for store, wanted in (("this", None), ("another", twelve)):
        (tmp_path / corpora.HISTORY_FILE).write_text(json.dumps({"store": store}))
        assert corpora._source_tokenizer(config, ("this", "that")) is wanted
    found.config.vocab_size = 11
    with pytest.raises(
        UserError, match=r"^model=a: its tokenizer has 12 tokens, and its network knows 11; give one that"
    ):
        corpora._source_tokenizer(config, ())
    config.model = None
    assert corpora._source_tokenizer(config, ()) is None


def test_a_named_tokenizer_is_held_against_the_source_before_the_corpus_is_fetched(monkeypatch):
    def unfetched(_):
        raise AssertionError("the corpus was asked for")

    config = GrowLLM(stage="pretrain", model="a")
    config.tokenize.tokenizer = "b"
    monkeypatch.setattr(corpora, "_load", unfetched)
    monkeypatch.setattr(corpora, "load_tokenizer", lambda name: {"b": make_tokenizer(12)}[name])
    monkeypatch.setattr(corpora, "find_network", lambda model, part: model)
    known = SimpleNamespace(config=SimpleNamespace(vocab_size=11))
    monkeypatch.setattr(corpora, "open_checkpoint", lambda _: known)
    with pytest.raises(UserError, match=r"^model=a: its vocabulary has 11 tokens, the tokenizer has 12; leave"):
        corpora._token_store(config)
    known.config.vocab_size = 12
    with pytest.raises(AssertionError, match="asked for"):
        corpora._token_store(config)


def with_a_gap(last):
    """A tokenizer of five words whose last has another id than the fifth."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<bos>": 0, "<unk>": 1, "river": 2, "mill": 3, "bridge": last}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", unk_token="<unk>")


def test_ids_with_a_gap_between_them_are_all_stored_and_need_a_network_that_knows_the_last(tmp_path, monkeypatch):
    gap = with_a_gap(70_000)
    assert len(gap) == 5
    tokens._write(tmp_path, corpus(["bridge", "mill"] * 15), 0.5, lambda _: gap, "key")
    assert json.loads((tmp_path / "meta.json").read_text())["vocab_size"] == 70_001
    stored = [np.fromfile(tmp_path / f"{name}.bin", np.uint32).tolist() for name in ("train", "valid")]
    assert {*stored[0], *stored[1]} == {0, 3, 70_000}
    monkeypatch.setattr(corpora, "find_network", lambda model, part: str(tmp_path))
    found = SimpleNamespace(tokenizer=gap, config=SimpleNamespace(vocab_size=70_000))
    monkeypatch.setattr(corpora, "open_checkpoint", lambda _: found)
    with pytest.raises(UserError, match="has 70001 tokens, and its network knows 70000"):
        corpora._source_tokenizer(GrowLLM(stage="pretrain", model="a"), ())


def test_files_are_kept_by_what_made_their_ids(monkeypatch):
    made = []
    monkeypatch.setattr(corpora, "_load", lambda _: corpus([]))
    monkeypatch.setattr(corpora, "prepare", lambda text, fraction, make, key: made.append((fraction, key)))
    monkeypatch.setattr(corpora, "tokenizer_key", lambda tokenizer: f"key of {tokenizer}")
    config = GrowLLM()
    for size in (300, 400):
        config.tokenize.vocab_size = size
        corpora._token_store(config)
    monkeypatch.setattr(corpora, "_named_tokenizer", lambda *_: "given")
    corpora._token_store(config)
    fraction = config.data.valid_fraction
    assert made == [(fraction, "bpe 300"), (fraction, "bpe 400"), (fraction, "key of given")]


def test_what_training_cost_lies_beside_the_weights_and_is_read_back(tmp_path, monkeypatch):
    """So that what grows from it, or goes on, begins where it ended."""
    written = []
    monkeypatch.setattr(saving, "write_checkpoint", lambda folder, *_: written.append(folder))
    spent = Spent(7, 3, {"total": 1.5, "non_embedding": 2.5, "matmul": 3.5}, 4.25)
    network = make_model()
    trained = SimpleNamespace(network=network, spent=spent)
    store = SimpleNamespace(fingerprint="abc", tokenizer=make_tokenizer)
    saving.save_trained(trained, tmp_path / "out", store, None)
    assert len(written) == 1 and json.loads((tmp_path / "out" / saving.HISTORY_FILE).read_text())["store"] == "abc"
    tensors = SimpleNamespace(infos=dict.fromkeys(network.state_dict(), SimpleNamespace(dtype=torch.bfloat16)))
    began_as = SimpleNamespace(tokenizer=make_tokenizer(), tensors=tensors, config=None, folder=None)
    for mine, replaced in ((make_tokenizer, False), (lambda: make_tokenizer(90), True)):
        saving.save_trained(trained, tmp_path / "on", SimpleNamespace(fingerprint="", tokenizer=mine), began_as)
        assert (tmp_path / "on" / "tokenizer.json").exists() == replaced
    checkpoint = SimpleNamespace(folder=tmp_path / "out", source="a")
    assert saving.history(checkpoint) == spent
    assert saving.history(SimpleNamespace(folder=tmp_path, source="a")) == Spent()
    made = saving._fresh(network, store, "out")
    assert made.tokenizer.model_max_length == 64 and network.config.architectures == ["LlamaForCausalLM"]
    assert saving._same(make_tokenizer(), make_tokenizer()) and not saving._same(None, make_tokenizer())
    assert not saving._same(make_tokenizer(90), make_tokenizer())
