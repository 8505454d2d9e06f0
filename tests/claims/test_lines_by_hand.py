"""Words, runs, seeds, commits and bytes of a verdict, where every number and name differs from its neighbours."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from tests.claims.small import CLAIMS
from toolkit.claims import history, identity, results
from toolkit.claims import reproduce as module
from toolkit.claims.claims import Claim, Claims, RunSpec, Statistic
from toolkit.claims.identity import Identity
from toolkit.claims.parse import parse_claims
from toolkit.claims.reproduce import choose_claims, plan
from toolkit.errors import UserError
from toolkit.zoo.catalogue import local


def run(name, overrides=(), seeds=(4, 5, 9), **more):
    return RunSpec(name, "train-disco", list(overrides), list(seeds), **more)


def claim(name, *runs, seeds=(5, 9), level="quick", **more):
    terms = [(one, "loss") for one in runs]
    return Claim(name, level, "", "", "", None, "", Statistic("value", terms), list(seeds), {"<=": 1.0}, **more)


CHAIN = {"a": run("a"), "b": run("b", ["init=@a"]), "other": run("other"), "c": run("c", ["model=@b"])}


def test_each_seed_has_its_own_words_and_quick_ones_only_where_it_is_quick():
    one = run("a", ["x=1"], each=[["y=1"], ["y=2"], ["y=3"]], quick_overrides=["z=@b"])
    assert one.words(5) == ["x=1", "y=2", "seed=5"] and one.words(9, quick=True) == ["x=1", "y=3", "z=@b", "seed=9"]
    assert one.references() == ["b"]


def test_runs_are_needed_with_all_they_are_made_from_and_not_for_a_withdrawn_claim():
    spec = Claims("", CHAIN, {})
    assert spec.needed_runs([claim("one", "c")]) == ["a", "b", "c"] and spec.needed_runs([claim("one", "b")]) == [
        "a",
        "b",
    ]
    assert spec.needed_runs([claim("one", "c", withdrawn="why"), claim("two", "other")]) == ["other"]


def test_the_quick_level_takes_the_first_seed_of_the_claim_in_all_its_runs_at_the_quick_cost(tmp_path):
    runs = {name: replace(one, minutes=30.0, quick_minutes=0.5) for name, one in CHAIN.items()}
    chosen = claim("one", "c", "other")
    spec = Claims("", runs | {"c": replace(runs["c"], seeds=[5, 9])}, {"one": chosen})
    made = plan(spec, [chosen], tmp_path, quick=True)
    assert [(job.spec.name, job.seed, job.minutes) for job in made] == [(name, 5, 0.5) for name in CHAIN]
    assert [job.seed for job in plan(spec, [chosen], tmp_path, quick=False)] == [4, 5, 9] * 3 + [5, 9]
    assert chosen.seeds_at(True) == [5] and chosen.seeds_at(False) == [5, 9]


def test_a_statistic_names_its_runs_where_there_are_several():
    assert str(Statistic("value", [("a", "loss")])) == "loss"
    assert str(Statistic("ratio", [("a", "x"), ("a", "y")])) == "x / y"
    assert str(Statistic("difference", [("a", "x"), ("b", "x")])) == "a:x − b:x"


def test_a_level_includes_the_ones_below_it():
    spec = Claims("", CHAIN, {level: claim(level, "a", level=level) for level in ("quick", "safe", "open")})
    found = {level: [one.id for one in choose_claims(spec, None, level)] for level in ("quick", "safe", "full")}
    assert found == {"quick": ["quick"], "safe": ["quick", "safe"], "full": ["quick", "safe", "open"]}


def test_all_papers_fail_where_one_does(monkeypatch, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "claims.yaml").touch()
    codes = {"one": 1, "two": 0}
    monkeypatch.setattr(module, "experiments_dir", lambda: tmp_path)
    monkeypatch.setattr(module, "paper_folder", lambda paper: tmp_path / paper)
    monkeypatch.setattr(module, "_cost_of", lambda *_: 0.0)
    monkeypatch.setattr(module, "reproduce", lambda paper, **_: codes[paper])
    assert module.reproduce_all(level="safe", root=tmp_path, dry_run=False, launch=pytest.fail) == 1


def test_what_was_overtaken_stays_stale_until_it_is_decided_again():
    spec = Claims("", CHAIN, {"one": claim("one", "c")})
    entry = {"verdict": "holds", "values": {"5": 1.0}, "definition": spec.definition(spec.claims["one"])}
    carry = lambda more, changed: history.carry_over(spec, {"one": entry | more}, changed)["one"].get("stale")  # noqa: E731
    assert carry({"stale": "then"}, {}) is None and carry({"stale": "then"}, {"b": "lr"}) == "b: lr"
    assert carry({"overtaken": "a: lr", "stale": "a: lr"}, {}) == "a: lr"
    assert carry({}, {"other": "lr"}) is None


def test_the_commits_of_a_verdict_are_those_of_every_run_and_of_every_time_it_went_on():
    spec, one = Claims("", CHAIN, {}), claim("one", "b")
    runs = {
        "a": {"seeds": {"4": {"git_commit": "1", "continued_at": ["2", "3"]}}},
        "b": {"seeds": {"4": {"git_commit": "3"}, "5": {"git_commit": "4"}}},
        "other": {"seeds": {"4": {"git_commit": "5"}}},
    }
    assert history.commits_of(spec, one, runs) == ["1", "2", "3", "4"]


def changes(monkeypatch, then=None, **now):
    monkeypatch.setattr(identity, "config_now", lambda command, config: config)
    monkeypatch.setattr(identity, "differing_keys", lambda before, job: [])
    given = {"reads": {"x": "1"}, "versions": {"torch": "2.13.0+cpu"}} | now
    before = {"recipe": 1, "each": [], "config": {}, "reads": {"x": "1"}, "versions": {"torch": "2.13.0+cpu"}}
    return Identity(run("a"), None, **given).changes(before | (then or {}))


def test_another_build_of_a_version_is_no_change_and_all_else_is(monkeypatch):
    assert changes(monkeypatch, versions={"torch": "2.13.0+cu130"}) == changes(monkeypatch) == []
    assert changes(monkeypatch, versions={"torch": "2.14.0+cpu"}) == ["torch was 2.13.0+cpu, is 2.14.0+cpu"]
    assert changes(monkeypatch, reads={"x": "2"}) == ["x has other bytes"]
    assert changes(monkeypatch, reads={"x": "1", "y": "1"}) == ["y was not recorded"]
    assert changes(monkeypatch, reads={}) == ["x has other bytes"]
    assert changes(monkeypatch, {"each": [["data=ring"]]}) == ["the words of its seeds changed"]
    assert changes(monkeypatch, {"recipe": 3}) == ["recipe was 3, is 1"]


def test_a_run_changes_with_those_it_is_made_from(monkeypatch):
    said = {"a": ["lr was 1, is 2"], "b": [], "c": ["recipe was 1, is 2"], "other": []}
    monkeypatch.setattr(identity, "identity", lambda one: SimpleNamespace(changes=lambda then: said[one.name]))
    found = identity.find_changes(Claims("", CHAIN, {}), {key: {} for key in CHAIN}, CHAIN)
    made = "made from a: lr was 1, is 2"
    assert found == {"a": "lr was 1, is 2", "b": made, "c": f"recipe was 1, is 2; made from b: {made}"}


def test_enhancing_reads_the_shipped_network_and_the_upscaler_only_where_that_makes_the_keys():
    def read(**job):
        return {path.parent.name for path in identity._weights("enhance-video", SimpleNamespace(**job))}

    upscaler = local("video_small") / "upscaler"
    assert any(upscaler.iterdir())
    assert "upscaler" not in read(model="small", stage="enhance", keys="lanczos")
    assert read(model="small", stage="enhance", keys="upscaler") > read(model="small", stage="enhance", keys="lanczos")
    assert read(model="small", stage="train", keys="upscaler") == set()


def test_downloads_of_the_data_and_of_the_input_are_what_is_read(monkeypatch):
    shelf = {"moving": SimpleNamespace(download="clips"), "digits": SimpleNamespace(download="")}
    monkeypatch.setattr(identity, "CATALOGUE", shelf | {"mnist": SimpleNamespace(download="mnist")})
    monkeypatch.setattr(identity, "pins", lambda name: {"file": f"sha of {name}"})
    one = SimpleNamespace(data=SimpleNamespace(name="mnist"), input="moving")
    assert identity.reads("enhance-video", one) == {"mnist/file": "sha of mnist", "clips/file": "sha of clips"}
    assert identity.reads("enhance-video", SimpleNamespace(data=SimpleNamespace(name="digits"))) == {}


def parsed(*changes, more=""):
    text = CLAIMS
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return parse_claims(yaml.safe_load(text + more))


def test_what_varies_is_the_runs_unless_the_claim_says_so():
    varied = parsed(
        ("minutes: 2}", "minutes: 2, varies: clips}"), ("minutes: 1.5", "minutes: 1.5\n    varies: sampling")
    )
    assert [one.varies for one in varied.claims.values()] == ["sampling", "sampling", "training"]
    assert parsed(('{">=": 10}', '{">=": 10}\n    varies: nothing')).claims["wins"].varies == "nothing"
    assert (varied.runs["tuned"].minutes, varied.runs["tuned"].quick_minutes) == (1.5, 0.1)


def test_one_number_may_be_demanded_and_no_more_seeds_than_another_run_has():
    assert parsed(('">=": -0.05, "<=": 0.05', '">=": 1, "<=": 1')).claims["between"].holds == {">=": 1, "<=": 1}
    parsed(("seeds: [0, 1, 2], minutes: 2", "seeds: [0, 1, 2, 3], minutes: 2"))  # more of what it is held against
    with pytest.raises(UserError):
        parsed(("seeds: [0, 1, 2], minutes: 2", "seeds: [0, 1], minutes: 2"))


def test_what_is_decided_once_more_is_an_open_claim():
    again = parsed(more="again: {seeds: [7, 8], claims: [ratio]}\n").claims["ratio_again"]
    assert (again.level, again.figure, again.seeds) == ("open", None, [7, 8])


def test_intervals_without_an_end_and_exact_numbers_read_as_such():
    entry = {"center": 2.0, "interval_95": [1.5, None], "n": 3, "varies": "clips"}
    assert results._ours(entry) == "2 [1.5, ∞], n=3 clips"
    assert results._ours(entry | {"varies": "nothing"}) == "2, exact" and results._ours({"center": None}) == "–"


def test_a_seed_is_published_with_where_it_went_on_and_only_the_metrics_that_pages_need():
    record = {"git_commit": "1", "continued_at": ["2"], "wall_time_s": 3.0, "versions": {"torch": "2.13"}}
    info = SimpleNamespace(record=record, status="done", metrics={"loss.1": 0.5, "loss.x": float("nan"), "time": 9.0})
    found = results._provenance(SimpleNamespace(info=lambda: info), ["loss.*"])
    assert (found["git_commit"], found["continued_at"], found["wall_time_s"]) == ("1", ["2"], 3.0)
    assert found["metrics"] == {"loss.1": 0.5, "loss.x": None}


def test_runs_of_other_claims_stay_among_the_results():
    before = {"claims": {}, "runs": {name: {"seeds": {}} for name in ("base", "tuned", "gone")}}
    assert list(results.merge(before, parsed(), [])["runs"]) == ["base", "tuned"]
