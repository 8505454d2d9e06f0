"""Presets of one's own that are no YAML, no UTF-8, or hold wrong keys and values: one line that names file and key."""

import pytest

from tests.toyroom.harness import run_here
from toolkit.commands import COMMANDS
from toolkit.configs import compose, words_at_home
from toolkit.errors import UserError

HEAD = b"# @package _global_\n"
GLOBAL = "experiment/mine: its first line must be '# @package _global_', without a byte order mark before it"


@pytest.mark.parametrize(
    "content, problem",
    [
        (HEAD + b"# f\xfcr mich\ncommand: train-toy\n", "mine/experiment/mine.yaml: is not UTF-8 text ('utf-8' codec"),
        (HEAD.decode().encode("utf-16"), "mine/experiment/mine.yaml: is not UTF-8 text ('utf-8' codec"),
        (HEAD + b"optim:\n\tlr: 1\n", 'mine.yaml", line 3, column 1'),
        (HEAD + b"seed: 1\x00\n", "special characters are not allowed"),
        (HEAD + b"seed: !!python/object/apply:os.getpid []\n", "could not determine a constructor for the tag"),
        (b"command: train-toy\n", GLOBAL),
        (b"", GLOBAL),
        (b"\xef\xbb\xbf" + HEAD + b"seed: 1\n", GLOBAL),
        (HEAD + b"optim: {lrr: 1}\n", "experiment/mine: optim.lrr: no such key; did you mean 'optim.lr'? --keys lists"),
        (HEAD + b"optim: {lr: fast}\n", "experiment/mine: optim.lr: Value 'fast' of type 'str' could not be"),
        (HEAD + b"optim: null\n", "experiment/mine: optim: field 'optim' is not Optional"),
    ],
)
def test_what_is_wrong_with_a_preset_of_ones_own_is_said_in_a_line(toy, capfd, content, problem):
    (toy / "mine/experiment").mkdir(parents=True)
    (toy / "mine/experiment/mine.yaml").write_bytes(content)
    assert run_here("--config-dir", "mine", "experiment=mine", "hydra.run.dir=one") == 2
    said = capfd.readouterr().err
    assert said.startswith("toolkit: error: ") and said.count("\n") == 1 and problem in said
    assert not (toy / "one").exists()
    with pytest.raises(UserError) as refused:
        compose(COMMANDS["train-toy"], ["--config-dir=mine", "experiment=mine"])
    assert problem in str(refused.value)


def test_a_folder_below_home_is_meant_where_a_shell_leaves_the_tilde(toy, monkeypatch, capfd):
    """In values, in hydra's folders and behind options; a run that began with the tilde goes on."""
    monkeypatch.setenv("HOME", str(toy / "home"))
    (toy / "home").mkdir()
    (toy / "home/notes").touch()
    words = ["optim.num_steps=2", "data_path='~/data'", "hydra.run.dir=~/one"]
    assert run_here(*words) == 2 and f"data_path={toy}/home/data: no such folder" in capfd.readouterr().err
    (toy / "home/data").mkdir()
    assert run_here(*words) == 0 and (toy / "home/one/run.json").exists() and not (toy / "~").exists()
    record = (toy / "home/one/run.json").read_text()
    (toy / "home/one/run.json").write_text(record.replace(f'"{toy}/home/data"', '"~/data"'))  # as it was noted before
    capfd.readouterr()
    assert run_here(*words) == 0 and "is done already" in capfd.readouterr().err
    assert run_here("-m", "seed=1", "optim.num_steps=2", "hydra.sweep.dir='~/two'") == 0
    assert (toy / "home/two/0/run.json").exists() and not (toy / "~").exists()


def test_words_below_home_are_found_where_hydra_has_no_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    words = [
        "out=~/g",
        "a.b=[~/x,~/y]",
        "data.path=~/a,~/b",
        "hydra.run.dir='~/x'",
        "prompt='~/x'",
        "~network",
        "x=a~/b",
    ]
    expected = ["out=/home/me/g", "a.b=[/home/me/x,/home/me/y]", "data.path=/home/me/a,/home/me/b"]
    assert words_at_home(words) == [*expected, "hydra.run.dir='/home/me/x'", *words[4:]]


def test_options_of_the_command_line_know_the_home_folder(monkeypatch):
    from toolkit.cli import _at_home

    monkeypatch.setenv("HOME", "/home/me")
    words = ["report", "--out=~/a.html", "~/x", "--out=b~/c", "optim.lr=~/1", "--json"]
    assert [_at_home(word) for word in words] == ["report", "--out=/home/me/a.html", *words[2:]]


def test_more_threads_than_a_system_carries_are_refused(toy):
    """OpenMP ended the process with a segmentation fault."""
    with pytest.raises(UserError, match="num_threads=100000: must be at most 1024"):
        compose(COMMANDS["train-toy"], ["num_threads=100000"])
