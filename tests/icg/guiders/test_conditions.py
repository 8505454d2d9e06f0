"""What is drawn in the place of the condition (invariants U7 to U9, U15)."""

import pytest
import torch
from scipy.stats import chisquare

from toolkit.errors import UserError
from toolkit.icg.guiders.conditions import IndependentCondition, _is_one_hot, condition_sizes
from toolkit.icg.guiders.streams import Draws


def draw(mode="auto", num_draws=1, seed=0, bank=None, real=None, **settings):
    condition = IndependentCondition(mode, **settings)
    condition.set_bank(bank)
    return condition.draw(real, num_draws, Draws(seed, "test"))


def test_classes_are_uniform_and_never_null():
    labels = torch.randint(10, (50_000,), generator=torch.Generator().manual_seed(0))
    (drawn,) = draw(real={"class_labels": labels}, num_classes=10)
    counts = torch.bincount(drawn["class_labels"], minlength=10)
    assert len(counts) == 10 and chisquare(counts.numpy()).pvalue > 1e-3
    assert drawn["class_labels"].dtype == labels.dtype and drawn["class_labels"].shape == labels.shape
    own = float((drawn["class_labels"] == labels).double().mean())
    assert own == pytest.approx(0.1, abs=0.01), "the own class is drawn as often as any other"


def test_own_class_is_excluded_uniformly():
    labels = torch.full((50_000,), 3)
    for num_draws in (1, 2):
        drawn = draw(num_draws=num_draws, real={"class_labels": labels}, num_classes=10, exclude_own=True)
        for one in drawn:
            counts = torch.bincount(one["class_labels"], minlength=10)
            assert counts[3] == 0 and chisquare(counts[counts > 0].numpy()).pvalue > 1e-3


def test_several_draws_of_a_class_are_distinct():
    drawn = draw(num_draws=10, real={"class_labels": torch.arange(10)}, num_classes=10)
    every = torch.stack([one["class_labels"] for one in drawn])
    assert torch.equal(every.sort(0).values, torch.arange(10)[:, None].expand(10, 10))


def test_class_probabilities():
    real, weights = {"class_labels": torch.zeros(50_000, dtype=torch.long)}, [0.5, 0.3, 0.2]
    (drawn,) = draw(real=real, class_probabilities=weights)
    counts = torch.bincount(drawn["class_labels"]).double()
    assert chisquare(counts.numpy(), 50_000 * torch.tensor(weights).double().numpy()).pvalue > 1e-3
    (drawn,) = draw(real=real, class_probabilities=weights, exclude_own=True)
    shares = torch.bincount(drawn["class_labels"]).double() / 50_000
    assert shares[0] == 0 and float(shares[1]) == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gaussian_has_the_deviation_of_the_condition(dtype):
    real = (3 + 0.2 * torch.randn(8, 77, 64, generator=torch.Generator().manual_seed(0))).to(dtype)
    (drawn,) = draw(real={"prompt_embeds": real})
    noise, expected = drawn["prompt_embeds"], float(real.float().std())
    assert noise.dtype == dtype and noise.shape == real.shape
    assert float(noise.float().std()) == pytest.approx(expected, rel=0.02)
    assert abs(float(noise.float().mean())) < 4 * expected / real.numel() ** 0.5, "zero mean, unlike the condition"


def test_gaussian_per_sample_and_constant():
    real = torch.randn(4, 2000) * torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None]
    (drawn,) = draw(real={"prompt_embeds": real}, std="sample")
    torch.testing.assert_close(drawn["prompt_embeds"].std(1), real.std(1), rtol=0.06, atol=0)
    (drawn,) = draw(real={"prompt_embeds": real}, std=0.5)
    assert float(drawn["prompt_embeds"].std()) == pytest.approx(0.5, rel=0.03)


def test_half_precision_draws_are_those_of_float32():
    real = torch.randn(4, 16)
    (full,) = draw(real={"prompt_embeds": real}, std=1.0)
    (half,) = draw(real={"prompt_embeds": real.half()}, std=1.0)
    assert torch.equal(full["prompt_embeds"].half(), half["prompt_embeds"])


def test_shuffle_moves_all_fields_alike():
    real = {"class_labels": torch.arange(16), "latents": torch.arange(16)[:, None].repeat(1, 3)}
    (drawn,) = draw("shuffle", real=real)
    assert torch.equal(drawn["latents"][:, 0], drawn["class_labels"])
    assert torch.equal(drawn["class_labels"].sort().values, torch.arange(16))
    (drawn,) = draw("shuffle", real=real, exclude_own=True)
    assert not (drawn["class_labels"] == torch.arange(16)).any()


def test_one_stream_per_sample():
    """Sample i is the same in any batch."""
    real = {"class_labels": torch.arange(8), "prompt_embeds": torch.randn(8, 5, 4)}
    (all_of_them,) = draw(real=real, num_classes=100, std="sample", seed=list(range(8)))
    for index in range(8):
        one = {name: value[index : index + 1] for name, value in real.items()}
        (alone,) = draw(real=one, num_classes=100, std="sample", seed=[index])
        for name in real:
            torch.testing.assert_close(alone[name][0], all_of_them[name][index])


def test_callers_generators_are_used_and_not_reseeded():
    draws = Draws(0, "test")
    first = draws.normal((2, 3), torch.device("cpu"))
    draws.restart()
    assert torch.equal(draws.normal((2, 3), torch.device("cpu")), first)
    mine = torch.Generator().manual_seed(5)
    draws.use(mine)
    expected = torch.randn(2, 3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(draws.normal((2, 3), torch.device("cpu")), expected)
    draws.restart()
    assert not torch.equal(draws.normal((2, 3), torch.device("cpu")), expected)
    draws.use(None)
    assert torch.equal(draws.normal((2, 3), torch.device("cpu")), first)
    unpredictable = Draws(None, "test").normal((4, 4), torch.device("cpu"))
    assert not torch.equal(unpredictable, Draws(None, "test").normal((4, 4), torch.device("cpu")))


def test_null_codes_have_nothing_to_exclude():
    codes = torch.full((2000, 2), -1)
    condition = IndependentCondition(exclude_own=True)
    condition.sizes = {"latents": 4}
    for num_draws in (1, 2):
        for one in condition.draw({"latents": codes}, num_draws, Draws(0, "test")):
            assert one["latents"].min() >= 0 and one["latents"].max() < 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "clas"}, "condition=clas: did you mean 'class'"),
        ({"std": "row"}, "std=row"),
        ({"std": 0.0}, "std=0.0"),
        ({"num_classes": 1}, "num_classes=1"),
        ({"class_probabilities": [0.5, -0.1]}, "class_probabilities"),
        ({"num_classes": 3, "class_probabilities": [0.5, 0.5]}, "must be 3 numbers"),
        ({"mode": "gaussian"}, "class_labels holds integers"),
        ({"mode": "bank"}, "set_condition_bank"),
        ({}, "num_classes: the number of classes"),
        ({"fields": ["prompt_embeds"]}, "no 'prompt_embeds' among the inputs"),
        ({"mode": "shuffle"}, "at least 2 samples"),
        ({"bank": {"class_labels": torch.zeros(2), "latents": torch.zeros(3)}}, "same number of rows"),
        ({"bank": {"class_labels": torch.zeros(0)}}, "at least one"),
        ({"bank": {"class_labels": torch.zeros(4, 2)}}, r"rows are \(2,\), needed \(\)"),
    ],
)
def test_errors_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        draw(real={"class_labels": torch.tensor([1])}, **settings)
    assert "\n" not in str(error.value)


def test_class_mode_refuses_embeddings_and_samplers_are_checked():
    with pytest.raises(UserError, match="prompt_embeds is an embedding"):
        draw("class", real={"prompt_embeds": torch.zeros(2, 3)})
    condition = IndependentCondition()
    for bad, message in (
        ({"text": torch.zeros(1)}, "'text' is not among"),
        ({"prompt_embeds": torch.zeros(1)}, "needed"),
    ):
        condition.sampler = lambda real, draws, bad=bad: bad
        with pytest.raises(UserError, match=message):
            condition.draw({"prompt_embeds": torch.zeros(2, 3)}, 1, Draws(0, "test"))


def test_sizes_are_read_where_they_are_certain():
    from tests.icg import tiny

    assert condition_sizes(tiny.network("dit")) == {"class_labels": tiny.NUM_CLASSES}
    assert condition_sizes(tiny.unet2d(num_class_embeds=11)) == {}, "the eleventh row may be the null class"


@pytest.mark.parametrize(
    ("rows", "is_one"),
    [([[0, 1, 0]], True), ([[0, 0.3, 0.7]], False), ([[0, 0, 0]], False), ([[1, 1, 0]], False), ([[0, -1, 2]], False)],
)
def test_one_hot_is_a_single_one_among_noughts(rows, is_one):
    """Shares of several classes add up to one, too, and are no code of a class."""
    assert _is_one_hot(torch.tensor(rows, dtype=torch.float32)) is is_one
