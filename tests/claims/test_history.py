"""What becomes of a verdict when what it depends on changes, or when it is decided again."""

import hashlib
import json

import pytest

from tests.claims.small import CLAIMS, Runner, results
from toolkit.claims.identity import reads
from toolkit.claims.reproduce import reproduce
from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.errors import UserError
from toolkit.paths import PACKAGE
from toolkit.zoo.catalogue import local


def test_results_of_other_claims_are_kept_until_they_change(paper):
    reproduce("small", root="r", launch=Runner())
    reproduce("small", ["wins"], root="r", launch=Runner())
    found = results(paper)["claims"]
    assert {name: entry["verdict"] for name, entry in found.items()} == {
        "ratio": "holds",
        "between": "holds",
        "wins": "does not hold",
    }
    for kept in (results(paper)["runs"], json.loads((paper / "identity.json").read_text())):
        assert list(kept) == ["base", "tuned", "long"]
    (paper / "claims.yaml").write_text(CLAIMS.replace("0.2}", "0.3}"))
    reproduce("small", ["wins"], root="r", launch=Runner())
    found = results(paper)["claims"]
    assert list(found) == ["ratio", "between", "wins"]
    assert found["ratio"]["verdict"] == "not run: the claim or its runs changed"
    (line,) = found["ratio"]["history"]
    assert (line["verdict"], line["center"], line["git_commits"]) == ("holds", pytest.approx(0.1), ["abc123"])
    assert "| holds | abc123 | the claim or its runs changed |" in (paper / "README.md").read_text()


@pytest.mark.parametrize(
    ("then", "why"),
    [
        ({"recipe": 2}, "base: recipe was 2, is 1"),
        ({"reads": {"mnist/images": "0"}}, "base: mnist/images has other bytes"),
        ({"versions": {"torch": "1.0.0+cpu"}}, "base: torch was 1.0.0+cpu, is "),
        ({"config": {"optim": {"lr": 7.0}}}, "optim.lr was 7.0, is "),
    ],
)
def test_a_verdict_is_stale_when_what_it_depends_on_changed(paper, capsys, then, why):
    reproduce("small", root="r", launch=Runner())
    identities = json.loads((paper / "identity.json").read_text())
    identities["base"] |= then
    (paper / "identity.json").write_text(json.dumps(identities))
    assert reproduce("small", root="r", dry_run=True, launch=pytest.fail) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "ratio: stale, base: " in said and why in said
    assert "tuned: made from base: " in said  # which was trained on it
    reproduce("small", ["wins"], root="r", launch=Runner())
    assert results(paper)["claims"]["ratio"]["stale"].startswith("base: ")
    assert "| stale (base: " in (paper / "README.md").read_text()
    reproduce("small", ["ratio"], root="r", launch=Runner())
    entries = results(paper)["claims"]
    assert "stale" not in entries["ratio"]
    assert "stale" in entries["between"]  # decided from runs that are no longer there
    reproduce("small", root="r", launch=Runner())
    assert "stale" not in results(paper)["claims"]["between"]


def test_runs_of_another_identity_are_set_aside_with_all_that_was_made_from_them(paper, tmp_path):
    reproduce("small", root="r", launch=Runner())
    home = tmp_path / "r" / "small"
    mark = home / "base" / "identity.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"recipe": 2}))
    for _ in range(2):  # the second time all is as it should be
        reproduce("small", root="r", launch=Runner())
        assert {path.name for path in home.iterdir()} == {"base", "base.before-1", "tuned", "tuned.before-1"}


def test_a_verdict_that_is_replaced_stays_as_a_line(paper):
    reproduce("small", ["wins"], root="r", launch=Runner())
    for _ in range(2):
        reproduce("small", ["wins"], root="elsewhere", launch=Runner(scale=3))
    entry = results(paper)["claims"]["wins"]
    (line,) = entry["history"]
    assert (line["center"], line["verdict"], line["why"]) == (6.0, "does not hold", "run again")
    assert (entry["center"], entry["verdict"]) == (18.0, "holds")


def test_other_values_leave_a_line_though_the_verdict_is_the_same(paper):
    reproduce("small", ["wins"], root="r", launch=Runner())
    reproduce("small", ["wins"], root="elsewhere", launch=Runner(scale=1.1))
    entry = results(paper)["claims"]["wins"]
    (line,) = entry["history"]
    assert line["verdict"] == entry["verdict"] == "does not hold"
    assert (line["center"], entry["center"]) == (6.0, pytest.approx(6.6))


def test_a_withdrawn_claim_is_not_run_and_keeps_what_it_said(paper):
    reproduce("small", level="full", root="r", launch=Runner())
    (paper / "claims.yaml").write_text(CLAIMS + "    withdrawn: one clip is no sample\n")
    with pytest.raises(UserError, match=r"claim wins: is withdrawn \(one clip is no sample\)"):
        reproduce("small", ["wins"], root="r", launch=pytest.fail)
    runner = Runner()
    reproduce("small", level="full", root="r", launch=runner)
    assert len(runner.calls) == 6
    entry = results(paper)["claims"]["wins"]
    assert entry["verdict"] == "withdrawn: one clip is no sample"
    assert [line["verdict"] for line in entry["history"]] == ["does not hold"]
    assert "| does not hold | abc123 | withdrawn: one clip is no sample |" in (paper / "README.md").read_text()


@pytest.mark.parametrize(
    ("command", "words", "model"),
    [
        ("sample-icg", ["experiment=icg_shipped"], "mnist28"),
        ("train-disco", ["experiment=disco_shipped"], "mnist28"),
        ("train-disco", ["experiment=disco_faces_shipped"], "faces32"),
        ("train-disco", ["experiment=disco_mnist28", "init=mnist28"], "mnist28"),
        ("train-disco", ["experiment=disco_mnist28", "sampling.null_model=mnist28", "sampling.cfg_scale=2"], "mnist28"),
    ],
)
def test_the_weights_of_a_model_that_ships_are_what_a_verdict_depends_on(command, words, model):
    job = compose(COMMANDS[command], words)
    found = {name: digest for name, digest in reads(command, job).items() if name.startswith("disco/weights/")}
    files = [path for path in local(model).rglob("*") if path.suffix in (".json", ".safetensors")]
    assert found == {str(path.relative_to(PACKAGE)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert any(name.endswith(".safetensors") for name in found)
    job = compose(COMMANDS[command], ["experiment=disco_toy" if command == "train-disco" else "model=exact"])
    assert not reads(command, job)
