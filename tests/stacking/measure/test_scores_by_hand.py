"""What texts and tasks are scored by: sums of log probabilities, what is counted, how much text is read."""

import math
from types import SimpleNamespace

import pytest
import torch

from toolkit.stacking.config import GrowLLM
from toolkit.stacking.measure import evaluate
from toolkit.stacking.measure.scoring import Pair, Scorer


class Told:
    """A model whose logits are told, and a tokenizer of letters."""

    def __init__(self, vocab=8, positions=64):
        self.config = SimpleNamespace(max_position_embeddings=positions, vocab_size=vocab)
        self.device, self.shapes = "cpu", []

    def __call__(self, ids, use_cache):
        self.shapes.append(tuple(ids.shape))
        logits = torch.zeros(*ids.shape, self.config.vocab_size, dtype=torch.float64)
        logits.scatter_(2, ((ids + 1) % self.config.vocab_size)[..., None], 3.0)  # the next number is the likeliest
        return SimpleNamespace(logits=logits)


def tokenizer_of(bos=5, eos=6):
    words = SimpleNamespace(bos_token_id=bos, eos_token_id=eos)
    words.decode = lambda number: "<s>"
    words.encode = lambda text, add_special_tokens: (
        ([bos] if add_special_tokens else []) + [int(c) for c in text if c.isdigit()]
    )
    return words


def test_scores_are_summed_log_probabilities_of_each_token_after_those_before_it():
    scorer = Scorer(Told(), tokenizer_of())
    high, low = 3 - math.log(math.exp(3) + 7), -math.log(math.exp(3) + 7)
    pairs = [Pair([0], [1, 2, 3]), Pair([0, 1], [2, 7]), Pair([3], []), Pair([1], [3])]
    found = scorer.loglikelihoods(pairs)
    assert [score for score, _ in found] == pytest.approx([3 * high, high + low, 0, low], rel=1e-6)
    assert [greedy for _, greedy in found] == [True, False, True, False]


def test_scores_of_a_model_of_16_bits_are_summed_in_32():
    class Half(Told):
        def __call__(self, ids, use_cache):
            return SimpleNamespace(logits=super().__call__(ids, use_cache).logits.bfloat16())

    scorer = Scorer(Half(), tokenizer_of())
    ((score, _),) = scorer.loglikelihoods([Pair([0], [1, 2, 7])])
    assert score == pytest.approx(2 * (3 - math.log(math.exp(3) + 7)) - math.log(math.exp(3) + 7), rel=1e-5)


def test_what_begins_a_text_and_how_much_is_seen_at_once():
    assert Scorer(Told(), tokenizer_of()).prefix == 5 and Scorer(Told(), tokenizer_of(bos=None)).prefix == 6
    assert Scorer(Told(positions=16), tokenizer_of(), context=99).context == 16
    assert Scorer(Told(positions=9999), tokenizer_of()).context == 2048
    scorer = Scorer(Told(), tokenizer_of(), context=4)
    assert scorer._input(Pair([1, 2, 3, 4], [5, 6])) == [2, 3, 4, 5]  # the last four that lead to something
    assert scorer.pair("", "12") == Pair([5], [1, 2]) and scorer.pair("", "512") == Pair([5], [1, 2])
    assert scorer.pair("1  ", "2") == Pair([5, 1], [2]) and scorer.encode("<s>12") == [1, 2]
    assert [(list(one.context), list(one.continuation)) for one in scorer.windows("<s>123456")] == [
        ([5], [1, 2, 3, 4]),
        ([2, 3, 4], [5, 6]),
    ]


def test_a_text_is_counted_in_tokens_words_and_bytes():
    found = Scorer(Told(), tokenizer_of(), batch_size=2).text_loss(["12 3\n4 ", "ä7", "  "])
    assert (found.num_tokens, found.num_words, found.num_bytes) == (7, 5, 10)  # a space at an end is a word, as there
    nats = found.loss * 7
    assert found.word_perplexity == pytest.approx(math.exp(nats / 5)) and found.bits_per_byte == pytest.approx(
        nats / 10 / math.log(2)
    )
    model = Told(vocab=8)
    scorer = Scorer(model, tokenizer_of(), batch_size=3)
    scorer.loglikelihoods([Pair([1], [2])] * 7)
    assert model.shapes == [(3, 1), (3, 1), (1, 1)]


def test_tables_of_tasks_say_of_how_many_rows_and_in_per_cent():
    metric = {
        name: {evaluate.BENCHMARKS[name].metric: 0.1 * (place + 1)} for place, name in enumerate(evaluate.ACCURACIES)
    }
    scores = {
        name: SimpleNamespace(metrics=one, num_rows=100, standard_error=lambda _: 0.02) for name, one in metric.items()
    }
    rows = {row[0]: row[1:] for row in evaluate.task_table(scores).rows}
    assert rows["Avg. (7)"][0] == "40.00"
    label = evaluate.BENCHMARKS["lambada_openai"].label
    assert rows[label][0] == f"{100 * metric['lambada_openai']['acc']:.2f} ± 2.0"
    assert rows[label][3] == f"100 of {evaluate.BENCHMARKS['lambada_openai'].num_rows}"
    whole = evaluate.BENCHMARKS["sciq"].num_rows
    assert evaluate._rows("sciq", whole) == whole and evaluate._rows("mine", 3) == 3


def test_so_much_text_is_measured_in_thousands_of_bytes(monkeypatch):
    config = GrowLLM(stage="evaluate", model="a")
    config.evaluation.text_kb = 0.5
    monkeypatch.setattr(evaluate, "held_out_texts", lambda _: iter(["a" * 300, "b" * 300, "c" * 300]))
    assert list(map(len, evaluate._texts(config))) == [300, 200]
