"""Mistakes in claims.yaml."""

import pytest

from tests.claims.small import CLAIMS
from toolkit.claims.parse import load_claims
from toolkit.errors import UserError


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [0, 1, 2], minutes: 2", "seed: [0]", "run 'base': unknown key 'seed'; did you mean 'seeds'"),
        ("minutes: 2}", "minutes: soon}", "run 'base': minutes: expected a number, got 'soon'"),
        ("run: long", "run: lon", "claim 'wins': statistic.run=lon: no such run; did you mean 'long'"),
        ("level: open", "level: opne", "claim 'wins': level=opne: choose one of quick, safe, open"),
        ("metric: score", "metric: {sum: [a, b]}", "claim 'wins': statistic.metric={'sum'"),
        ("metric: score", "metric: {ratio: [a]}", "give a key, {ratio: [a, b]}"),
        ('{">=": 10}', '{">": 10}', "claim 'wins': holds: unknown key '>'"),
        ('{">=": 10}', '{">=": ten}', "expected a number, got 'ten'"),
        ('">=": -0.05, "<=": 0.05', '">=": 1, "<=": 0', "no number is both"),
        ("[experiment=icg_mnist]", "[seed=3]", "seed and hydra.* are set for you"),
        ("init=@base", "init=@long", "@long: only a run above it can be named"),
        ("statement: It wins", "", "claim 3: 'statement' is missing"),
        ("id: wins", "id: ratio", "claim 'ratio' stands there twice"),
        ('without: "base:loss.{x}"', "without: loss", "'loss' lacks {x}"),
        ("kind: bars", "kind: pie", "figure.kind=pie: choose one of curves, bars"),
        ("over: seed", "over: lr", "statistic.over=lr: must be seed"),
        ("minutes: 2}", "varies: luck}", "run 'base': varies=luck: choose one of training, sampling, clips"),
        ("minutes: 2}", "recipe: 0}", "run 'base': recipe=0: give a whole number from 1 up"),
        ("minutes: 2}", "each: [[data=ring]]}", "run 'base': each: 1 lists of words for 3 seeds"),
        ('{">=": 10}', '{">=": 10}\n    varies: luck', "claim 'wins': varies=luck: choose one of"),
        ('{">=": 10}', '{">=": 10}\n    resolution: fine', "claim 'wins': resolution: expected a number"),
        (
            "[experiment=icg_mnist], seeds: [0, 1, 2]",
            "[experiment=icg_mnist], seeds: [0, 0]",
            "give different whole numbers",
        ),
        ("runs:\n", "runs: 3\nx:\n", "the file: unknown key 'x'"),
        ("title: A", "title: [", ""),
        ("title: A small paper", "title: a\ntitle: b", "duplicate key"),
    ],
)
def test_mistakes_in_claims_are_told_in_one_line(tmp_path, old, new, message):
    assert old in CLAIMS
    path = tmp_path / "claims.yaml"
    path.write_text(CLAIMS.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        load_claims(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
