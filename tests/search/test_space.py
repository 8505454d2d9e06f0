"""Words that sweep become what Optuna draws from; others stay as they are."""

import pytest

from toolkit.errors import UserError
from toolkit.search.space import parse

pytest.importorskip("optuna")


def test_every_kind_of_sweep():
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    words = [
        "optim.num_steps=4", "optim.lr=tag(log,interval(1e-4,1e-2))", "a=interval(0.5,2.0)", "b=int(interval(1,8))",
        "c=range(2,8,3)", "d=x,'y z'", "e=choice(1,2)",
    ]  # fmt: skip
    space = parse(words)
    assert space.fixed == ["optim.num_steps=4"]
    assert space.distributions == {
        "optim.lr": FloatDistribution(1e-4, 1e-2, log=True), "a": FloatDistribution(0.5, 2.0),
        "b": IntDistribution(1, 8), "c": IntDistribution(2, 5, step=3), "d": CategoricalDistribution(["x", "'y z'"]),
        "e": CategoricalDistribution(["1", "2"]),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a=1"], "nothing to search"),
        (["-m", "a=1,2"], "-m: a search takes KEY=VALUE words alone"),
        (["hydra.run.dir=x", "a=1,2"], "has folders of its own"),
        (["a=1,2", "b=["], r"b=\[: "),
        (["a=interval(2.0,1.0)"], r"a=interval\(2\.0,1\.0\): "),
        (["a=tag(log,interval(0.0,1.0))"], "a=tag"),
        (["a=interval(0.0,nan)"], "both ends must be finite numbers"),
    ],
)
def test_refusals(words, said):
    with pytest.raises(UserError, match=said):
        parse(words)


def test_presets_of_ones_own_are_the_same_in_every_trial():
    space = parse(["hydra.searchpath=[mine]", "experiment=my_toy", "a=1,2"])
    assert space.fixed == ["hydra.searchpath=[mine]", "experiment=my_toy"] and list(space.distributions) == ["a"]
