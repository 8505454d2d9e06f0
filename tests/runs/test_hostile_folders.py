"""Ten folders that somebody made to run, read or write something: every command that takes a folder of runs does not.

Each reader runs in a process that is watched: programs started, files opened for writing outside of its folder.
"""

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import yaml

from tests.fuzz.box import boxed
from tests.toyroom.harness import finished_run_and_sweep
from toolkit.claims.parse import load_claims
from toolkit.claims.results import read_results
from toolkit.plain_files import read_yaml
from toolkit.resume import resume
from toolkit.show.browse import compare_runs, list_runs, show_run
from toolkit.show.report import write_report
from toolkit.stacking.slices import read_slices

MADE, SECRET = "MADE", "the user's own secret"
TOUCH = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [MADE]}}
OPEN = {"_target_": "builtins.open", "_args_": [MADE, "w"]}
EXEC = {"_target_": "builtins.exec", "_args_": [f"open({MADE!r}, 'w')"]}
OURS = {"_target_": "toolkit.runs.files.write_atomic", "path": MADE, "data": "x"}
TAGS = f"a: !!python/object/apply:os.system ['touch {MADE}']\nb: !!python/name:os.system\n"
SAVED = ("one/.hydra/hydra.yaml", "one/.hydra/config.yaml", "sweep/multirun.yaml")


class Evil:
    def __reduce__(self):
        return (open, (MADE, "w"))


def edit_json(path, **values):
    path = Path(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_saved(change):
    """Change what Hydra saved of the run and of the sweep."""
    for path in SAVED:
        content = yaml.safe_load(Path(path).read_text())
        change(content.setdefault("hydra", {}), content)
        Path(path).write_text(yaml.safe_dump(content))


def overrides(*words):
    """Words that the run, and every kind of the sweep's, brings along."""
    edit_json("one/run.json", overrides=list(words), status="interrupted", stages={})
    content = yaml.safe_load(Path("sweep/multirun.yaml").read_text())
    content["hydra"]["overrides"] = {"task": list(words), "hydra": list(words)}
    Path("sweep/multirun.yaml").write_text(yaml.safe_dump(content))


def as_words(key, value):
    inner = ", ".join(f"{name}: {_word(one)}" for name, one in value.items())
    return f"+{key}={{{inner}}}"


def _word(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_word(one)}" for name, one in value.items()) + "}"
    return f"[{', '.join(map(_word, value))}]" if isinstance(value, list) else f"'{value}'"


def callbacks():
    edit_saved(lambda hydra, _: hydra.update(callbacks={"x": OURS, "y": OPEN}))
    overrides(as_words("hydra.callbacks.x", OURS))


def launchers():
    edit_saved(lambda hydra, _: hydra.update(launcher={**OPEN, "setup": [f"touch {MADE}"]}))
    overrides("hydra/launcher=submitit_local", "+hydra.launcher.python=./evil.sh")


def sweepers():
    edit_saved(lambda hydra, _: hydra.update(sweeper={**EXEC, "storage": f"sqlite:///{MADE}"}))
    overrides("hydra/sweeper=optuna", f"hydra.sweeper.storage=sqlite:///{MADE}")


def config_dirs():
    Path("evil").mkdir()
    Path("evil/train_toy.yaml").write_text(yaml.safe_dump({"hydra": {"callbacks": {"x": OPEN}}}))
    source = {"path": str(Path("evil").absolute()), "schema": "file", "provider": "command-line"}
    edit_saved(lambda hydra, _: hydra.setdefault("runtime", {}).update(config_sources=[source]))
    overrides("hydra.searchpath=[file://evil]")


def resolvers():
    words = "${oc.env:SECRET}", "${oc.create:${oc.env:SECRET}}", "${oc.decode:'1'}", "${hydra:runtime.cwd}"
    edit_saved(lambda _, content: content.update({f"a{number}": word for number, word in enumerate(words)}))
    overrides(f"data_path={words[0]}")
    for path in ("one/run.json", "sweep/0/run.json"):
        config = json.loads(Path(path).read_text())["config"]
        edit_json(path, config=config | {"data_path": words[0], "amplitude": words[1]}, error=words[0], device=words[1])


def builtins():
    edit_saved(lambda hydra, content: (hydra.update(job_logging=EXEC), content.update(network=EXEC, optim=OPEN)))
    overrides(as_words("optim", OPEN).removeprefix("+"))


def paths():
    edit_saved(lambda hydra, content: content.update(network=TOUCH, data_path=TOUCH))
    overrides(as_words("hydra.callbacks.x", TOUCH))
    for name in ("../../out", "/out", "a\x00b"):
        edit_json("sweep/0/run.json", command="train-toy", job_number=name, git_commit=name)
        edit_json("one/run.json", metrics={name: 1.0}, command=f"../{name}")


def tags():
    for path in (*SAVED, "one/.hydra/overrides.yaml", "claims.yaml", "slices.yaml"):
        Path(path).write_text(TAGS)


def pickles():
    content = pickle.dumps(Evil())
    home = Path("one/checkpoints/train")
    shutil.rmtree(home)
    home.mkdir()
    (home / f"step-000000009-{hashlib.sha256(content).hexdigest()[:16]}.pt").write_bytes(content)
    edit_json("one/run.json", status="interrupted", stages={})
    for path in (
        "one/model/net/model.safetensors", "sweep/.submitit/0/0_submitted.pkl", "sweep/.submitit/0/0_0_result.pkl",
        "one/metrics.jsonl", "one/tables/headline.json", "results.json",
    ):  # fmt: skip
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)


def links():
    for path in ("one/samples/a.txt", "one/figures/a.png", "one/tables/a.json", "one/samples/folder"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).symlink_to(Path("..").resolve() / ("secret" if "." in path[4:] else ""))
    Path("one/run.log").unlink()
    Path("one/run.log").symlink_to(Path("../secret").resolve())


ATTACKS = [callbacks, launchers, sweepers, config_dirs, resolvers, builtins, paths, tags, pickles, links]
READERS = {
    "list": lambda: list_runs("."),
    "show": lambda: show_run("one"),
    "compare": lambda: compare_runs(["one", "sweep"]),
    "report": lambda: write_report(["one", "sweep"], "page.html"),
    "resume the run": lambda: resume(Path("one")),
    "resume the sweep": lambda: resume(Path("sweep")),
    "claims": lambda: load_claims("claims.yaml"),
    "results": lambda: read_results(Path()),
    "slices": lambda: read_slices("slices.yaml"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and a finished sweep."""
    return finished_run_and_sweep(tmp_path_factory.mktemp("finished"))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda one: one.__name__)
def test_a_hostile_folder_runs_reads_and_writes_nothing(toy, finished, monkeypatch, attack):
    monkeypatch.setenv("SECRET", SECRET)
    (toy.parent / "secret").write_text(SECRET)
    for name in ("one", "sweep"):
        shutil.copytree(finished / name, toy / name)
    attack()
    before = {path for path in toy.parent.rglob("*") if toy not in path.parents}
    for name, read in READERS.items():
        outcome = boxed(read, toy)
        assert outcome.kind in ("accepted", "refused"), (name, outcome)
        assert not outcome.escapes and "Traceback" not in outcome.printed, (name, outcome)
        assert SECRET not in outcome.printed and "\n" not in outcome.said, (name, outcome)
    assert not list(toy.parent.rglob(MADE)) and not list(toy.parent.rglob("out"))
    assert {path for path in toy.parent.rglob("*") if toy not in path.parents} == before
    assert SECRET not in "".join(path.read_text(errors="replace") for path in toy.rglob("page.html"))


@pytest.mark.parametrize(
    "content",
    [
        b"a: &a [x]\nb: *a\n", TAGS.encode(), b"a: " + b"[" * 50_000, b"a: 2023-99-99\n", b"\xff\xfe\x00", b"a: b: c\n",
        b"? [a]\n: 1\n", b"a: " + b"x" * 2**18, b"%TAG ! tag:yaml.org,2002:python/\na: !name:os.system\n", b"\x00",
    ],
)  # fmt: skip
def test_yaml_that_is_more_than_values_is_a_value_error(tmp_path, content):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300


def test_yaml_of_plain_values_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1e-3\nb: [1, x, null, true]\nc: {d: 0.5, e: '1e-3'}\n")
    found = {"a": 0.001, "b": [1, "x", None, True], "c": {"d": 0.5, "e": "1e-3"}}
    assert read_yaml(tmp_path / "a.yaml") == found
