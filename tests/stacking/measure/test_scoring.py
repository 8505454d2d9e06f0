"""Log-likelihoods of text against sums over a plain forward pass."""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, BloomConfig

from tests.stacking.models import logits, make_bpe, make_model, make_tokenizer
from toolkit.errors import UserError
from toolkit.stacking.measure import scoring
from toolkit.stacking.measure.scoring import Pair, Scorer

TEXT = "the river and the mill: 12 wheels, and winter\n\nover the bridge, where 345 lamps burn"


@pytest.fixture(scope="module")
def scorer():
    return Scorer(make_model(vocab_size=320), make_bpe(), context=16, batch_size=3)


def nats(scorer, ids):
    """-log p of every id but the first."""
    ids = torch.tensor([ids])
    return F.cross_entropy(logits(scorer.model, ids)[0, :-1], ids[0, 1:], reduction="none")


def test_text_in_one_window_is_one_forward_pass(scorer):
    whole = Scorer(scorer.model, scorer.tokenizer)
    assert whole.context == 64  # the model's maximum
    ids = [1, *whole.encode(TEXT)]
    expected = nats(whole, ids).double()
    loss = whole.text_loss([TEXT])
    assert loss.num_tokens == len(ids) - 1
    assert (loss.num_words, loss.num_bytes) == (16, len(TEXT))
    assert loss.loss == pytest.approx(expected.mean().item(), rel=1e-6)
    assert loss.perplexity == pytest.approx(math.exp(expected.mean()), rel=1e-5)
    assert loss.word_perplexity == pytest.approx(math.exp(expected.sum() / 16), rel=1e-5)
    assert loss.bits_per_byte == pytest.approx(expected.sum().item() / len(TEXT) / math.log(2), rel=1e-6)


def test_windows_score_every_token_once_and_fill_the_last_context(scorer):
    ids = scorer.encode(TEXT)
    windows = scorer.windows(TEXT)
    assert len(ids) > 32
    assert [token for pair in windows for token in pair.continuation] == ids
    assert [len(pair.context) for pair in windows[:2]] == [1, 1]
    assert windows[0].context == [scorer.prefix] == [1]
    last = windows[-1]
    assert len(last.context) + len(last.continuation) == scorer.context + 1
    assert [*last.context, *last.continuation] == ids[-17:]


def test_a_batch_gives_what_single_sequences_give(scorer):
    pairs = [scorer.pair("the river", word) for word in (" and", " over the bridge", " in winter it", "")]
    pairs += scorer.windows(TEXT)
    together = scorer.loglikelihoods(pairs)
    for pair, (score, greedy) in zip(pairs, together, strict=True):
        ids = [*pair.context, *pair.continuation]
        expected = nats(scorer, ids)[len(pair.context) - 1 :]
        assert score == pytest.approx(-expected.sum().item(), rel=1e-5, abs=1e-6)
        best = logits(scorer.model, torch.tensor([ids]))[0, len(pair.context) - 1 : -1].argmax(-1).tolist()
        assert greedy == (best == list(pair.continuation))


def test_the_border_between_context_and_continuation(scorer):
    assert scorer.pair("the river ", "and") == scorer.pair("the river", " and")
    empty = scorer.pair("", "and")
    assert empty.context == [1]
    assert empty.continuation == scorer.encode("and")
    assert scorer.pair("", "<bos>and").context == [1]
    assert scorer.encode("<bos>and")[0] == 1


def test_a_context_of_spaces_is_none():
    """With a tokenizer that puts no token of its own before a text, nothing would come before what is scored."""
    bare = make_bpe()
    bare.add_bos_token = False
    scorer = Scorer(make_model(vocab_size=320), bare, context=16)
    pair = scorer.pair("  ", "and")
    assert pair == Pair([scorer.prefix], scorer.encode("  and"))
    assert scorer.loglikelihoods([pair])[0][0] < 0


def test_long_contexts_lose_their_beginning(scorer):
    ids = scorer.encode(TEXT)
    long, short = Pair(ids[:30], ids[30:32]), Pair(ids[15:30], ids[30:32])
    assert scorer.loglikelihoods([long]) == scorer.loglikelihoods([short])
    with pytest.raises(UserError, match="17 tokens exceeds the context of 16"):
        scorer.loglikelihoods([Pair([1], ids[:17])])


def test_few_logits_at_a_time(scorer, monkeypatch):
    pairs = scorer.windows(TEXT)
    expected, calls = scorer.loglikelihoods(pairs), []
    monkeypatch.setattr(scoring, "MAX_LOGITS", 320 * 16 * 2)
    told = Scorer(scorer.model, scorer.tokenizer, 16, 8, lambda done, total: calls.append((done, total)))
    assert [score for score, _ in told.loglikelihoods(pairs)] == pytest.approx([score for score, _ in expected])
    assert calls[0] == (2, len(pairs))
    assert calls[-1][0] == len(pairs)


def test_refusals(scorer):
    with pytest.raises(UserError, match="no text"):
        scorer.text_loss(["", " \n"])
    bare = make_bpe()
    bare.bos_token = bare.eos_token = None
    with pytest.raises(UserError, match="neither a BOS nor an EOS"):
        Scorer(scorer.model, bare)


def test_a_token_that_the_network_does_not_know_is_refused_before_anything_is_computed(monkeypatch):
    """Of 300 tokens the last is 299; begin and end of a text count too."""
    model = make_model(vocab_size=299)
    monkeypatch.setattr(model, "forward", lambda *_, **__: pytest.fail("was computed"))
    scorer = Scorer(model, make_tokenizer(300), context=16)
    with pytest.raises(UserError, match=r"the tokenizer gives the id 299, and the network knows 299, from 0 on"):
        scorer.text_loss(["the river", "the w290"])
    begins = make_tokenizer(300)
    begins.bos_token = "w290"
    with pytest.raises(UserError, match="gives the id 299"):
        Scorer(model, begins)


def test_a_network_without_a_longest_sequence_is_measured_on_ordinary_windows():
    sizes = {"n_layer": 1, "hidden_size": 8, "n_head": 2, "vocab_size": 97}
    scorer = Scorer(AutoModelForCausalLM.from_config(BloomConfig(**sizes)).eval(), make_tokenizer())
    assert scorer.context == scoring.MAX_CONTEXT and scorer.text_loss(["the river"]).num_tokens == 2
