"""Layer lists and connection rates against the paper's printed ones (section 5.1, appendix H)."""

from fractions import Fraction

import pytest

from toolkit.errors import UserError
from toolkit.schema import check
from toolkit.stacking.config import Growth
from toolkit.stacking.operators.patterns import Layer, connection_rate, gradual, layer_plan, parse_pattern


def sources(source_layers=6, **keys):
    growth = Growth(**keys)
    check(growth)
    return [layer.source for layer in layer_plan(growth, source_layers)]


def test_stack_and_direct_repeat_the_whole_list():
    expected = [0, 1, 2, 3, 4, 5] * 4
    assert sources(operator="stack", factor=4) == sources(operator="direct", num_layers=24) == expected


def test_interleave_repeats_each_layer():
    assert sources(3, operator="interleave", factor=2) == [0, 0, 1, 1, 2, 2]


# pattern in numbers of layers, the paper's spelling, connected neighbours of the 23 pairs
PARTIAL = [
    ("6*4", "123456*4", 20),
    ("2-4*5-2", "12-3456*5-56", 18),
    ("2-3*7-1", "12-345*7-6", 17),
    ("3-3*7", "123-456*7", 17),
    ("4-2*10", "1234-56*10", 14),
    ("2-2*10-2", "12-34*10-56", 14),
    ("1-3*7-2", "1-234*7-56", 17),
    ("3*7-3", "123*7-456", 17),
]


@pytest.mark.parametrize(("pattern", "spelling", "connected"), PARTIAL)
def test_partial_patterns_of_the_paper(pattern, spelling, connected):
    expected = []
    for part in spelling.split("-"):
        digits, _, times = part.partition("*")
        expected += [int(digit) - 1 for digit in digits] * int(times or 1)
    assert parse_pattern(pattern, 6) == expected
    assert len(expected) == 24
    rate = connection_rate([Layer(source) for source in expected])
    assert Fraction(rate).limit_denominator(23) == Fraction(connected, 23)


def test_pattern_of_a_24_layer_source():
    middle = list(range(6, 18))
    assert sources(24, operator="pattern", pattern="6-12*2-6") == [*range(6), *middle, *middle, *range(18, 24)]


@pytest.mark.parametrize(("layers", "target", "stacked", "interleaved"), [(3, 6, 80.0, 40.0), (8, 24, 91.3, 30.4)])
def test_connection_rates_of_the_paper(layers, target, stacked, interleaved):
    for operator, rate in (("stack", stacked), ("interleave", interleaved)):
        plan = layer_plan(Growth(operator=operator, num_layers=target), layers)
        assert round(100 * connection_rate(plan), 1) == rate


def test_solar_takes_two_overlapping_copies():
    assert sources(32, operator="solar", drop=8) == [*range(24), *range(8, 32)]
    assert sources(32, operator="solar", num_layers=48) == [*range(24), *range(8, 32)]


def test_gradual_doubles_then_appends_the_last_layers():
    assert gradual(6, 24) == [0, 1, 2, 3, 4, 5] * 4
    assert gradual(4, 6) == [0, 1, 2, 3, 2, 3]


def test_zero_silences_later_copies_only():
    plan = layer_plan(Growth(operator="zero", factor=3), 2)
    assert [layer.source for layer in plan] == [0, 0, 0, 1, 1, 1]
    assert [layer.zeroed for layer in plan] == [False, True, True] * 2
    assert [layer.new for layer in plan] == [False, True, True] * 2


def test_llama_pro_adds_one_silent_copy_per_group():
    plan = layer_plan(Growth(operator="llama_pro", insert=2), 6)
    assert [layer.source for layer in plan] == [0, 1, 2, 2, 3, 4, 5, 5]
    assert [i for i, layer in enumerate(plan) if layer.zeroed] == [3, 7]


def test_random_keeps_the_old_layers_first():
    plan = layer_plan(Growth(operator="random", factor=2), 3)
    assert [layer.fresh for layer in plan] == [False] * 3 + [True] * 3
    assert connection_rate(plan) == 2 / 5


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"operator": "stack", "factor": 1.3}, "factor=1.3: 6 layers times it is 7.8"),
        ({"operator": "stack", "num_layers": 4}, "already has 6 layers"),
        ({"operator": "stack"}, "give either factor"),
        ({"operator": "stack", "factor": 2, "num_layers": 12}, "give either factor"),
        ({"operator": "stack", "factor": 2, "pattern": "6*2"}, "belongs to operator=pattern"),
        ({"operator": "stack", "direction": "width", "factor": 2}, "grows depth"),
        ({"operator": "pattern", "pattern": "2-3*2"}, "leaves out layers 5-5"),
        ({"operator": "pattern", "pattern": "4-3*2"}, "does not fit"),
        ({"operator": "pattern", "pattern": "a*2"}, "expected prefix-block*times-suffix"),
        ({"operator": "pattern"}, "must be given"),
        ({"operator": "list", "layers": [0, 6]}, "layers: 6 is not there; the source has layers 0 to 5"),
        ({"operator": "solar", "drop": 6}, "drop=6"),
        ({"operator": "solar", "num_layers": 13}, "even number"),
        ({"operator": "solar", "num_layers": 14}, "an even number of at most 12"),
        ({"operator": "llama_pro", "insert": 4}, "do not divide"),
        ({"operator": "stak", "factor": 2}, "did you mean 'stack'"),
        ({"operator": "zero", "direction": "width", "num_layers": 4}, "belongs to direction=depth"),
        ({"operator": "direct", "factor": 2, "split": 0.5}, "split=0.5: belongs to operator=direct direction=width"),
        ({"operator": "zero", "direction": "width", "factor": 2, "split": 0.5}, "split=0.5: belongs to operator=dir"),
        ({"operator": "zero", "factor": 2, "scale_eps": False}, "scale_eps=False: belongs to operator=zero direction"),
        ({"operator": "slices", "scale_eps": False}, "scale_eps=False: belongs to operator=zero direction=width"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(keys, words):
    with pytest.raises(UserError) as error:
        sources(**keys)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
