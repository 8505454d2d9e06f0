"""The command line as a user meets it, each in a process of its own: help, version, errors, completion."""

import json
import os
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from toolkit import cli
from toolkit.claims.reproduce import paper_folder, reproduce
from toolkit.cli import app
from toolkit.commands import COMMANDS, paper_named
from toolkit.errors import UserError, bytes_text
from toolkit.help.completion import complete
from toolkit.launch import refused_by_plugin, run_bench

RUN = "import sys; sys.argv[0] = 'toolkit'; from toolkit.cli import main; main()"


JOBS = [name for name in COMMANDS if name != "train-toy"]  # which only tests register
GROUPS = {
    "The five papers": JOBS,
    "Looking at runs": ["runs", "report", "reproduce", "bench"],
    "Models and data": ["zoo", "data", "play"],
}


def toolkit(*words, env=None, cwd=None):
    """``toolkit WORDS``: exit code, stdout, stderr."""
    settings = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb", **(env or {})}
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True, env=settings, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def page(*words, columns=120):
    """The page of ``toolkit WORDS --help``, in this process."""
    env = {"COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb"}
    done = CliRunner().invoke(app, [*words, "--help"], env=env)
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize("words", [["--help"], ["train-disco", "--help"], ["sample-icg", "--keys"], ["plan", "--help"]])
def test_help_imports_nothing_heavy(words):
    code = (
        f"import sys\nfrom toolkit.cli import main\nsys.argv = ['toolkit', *{words}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'hydra', 'omegaconf', 'numpy', 'accelerate', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_is_the_command_line_too(tmp_path):
    command = [sys.executable, "-m", "toolkit", "runs", "list", "nowhere"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "toolkit: error: nowhere: no such folder; runs are listed below one\n"


def test_help_lists_the_commands_in_groups():
    out = page()
    places = [out.index(f"─ {title} ─") for title in GROUPS]
    assert places == sorted(places)
    for commands, start, end in zip(GROUPS.values(), places, [*places[1:], len(out)], strict=True):
        assert all(f"│ {command} " in out[start:end] for command in commands)
    assert all(word in out for word in ("images", "video", "world models", "language models"))


@pytest.mark.parametrize(
    "words",
    [[], *([name] for group in GROUPS.values() for name in group), ["runs", "list"], ["data", "record"]],
    ids=" ".join,
)
def test_help_pages_fit_80_columns_and_break_no_table(words):
    lines = page(*words, columns=80).splitlines()
    assert max(map(len, lines)) <= 80
    inside = False
    for line in lines:
        inside = (inside or line.startswith("╭")) and not line.startswith("╰")
        assert not inside or (line[0] in "╭│" and line[79] in "╮│"), line


def test_help_of_a_job_command_lists_its_presets():
    from toolkit.paths import presets

    code, out, _ = toolkit("train-disco", "--help")
    assert code == 0
    assert all(f"│ {name} " in out for name in presets("train-disco"))
    assert "default disco_digits" in out and "--cfg job" in out and "--dry-run" in out


@pytest.mark.parametrize("name", JOBS)
def test_help_of_a_job_command_shows_examples_and_a_dozen_keys(name):
    from toolkit.help.keys import keys_of, shown

    command = COMMANDS[name]
    known = {key.name: key for key in keys_of(command)}
    assert len(command.examples) == 3 and 10 <= len(command.keys.split()) <= 14
    out = page(name)
    assert all(f"│ {line} " in out for line, _ in command.examples)
    for key in command.keys.split():
        (row,) = [line for line in out.splitlines() if line.startswith(f"│ {key} ")]
        assert row.split()[2] == shown(known[key].default).split()[0]


def test_keys_are_listed_for_words_and_a_wrong_word_is_one_line():
    code, out, _ = toolkit("enhance-video", "--keys", "keep_checkpoints")
    assert code == 0 and out.startswith("keep_checkpoints\t2\twhole number ≥ 1\t")
    code, out, error = toolkit("enhance-video", "--keys", "keep_checkpoint5")
    assert code == 2 and out == "" and len(error.splitlines()) == 1
    assert error.startswith("toolkit: error: --keys keep_checkpoint5: no key of enhance-video; did you mean")


@pytest.mark.parametrize("command", [COMMANDS[name] for name in JOBS], ids=JOBS)
def test_a_paper_has_three_names(command):
    assert {paper_named(name) for name in (command.name, command.paper, command.prefix)} == {command}
    with pytest.raises(UserError, match=f"^{command.paper}e: no such paper; did you mean"):
        paper_named(f"{command.paper}e")


@pytest.mark.parametrize("name", ["grow-llm", "stacking", "grow"])
def test_bench_and_reproduce_take_every_name_of_a_paper(name, capsys):
    with pytest.raises(UserError, match="layer=3: did you mean 'layers'"):
        run_bench(name, ["layer=3"])
    assert reproduce(name, level="quick", dry_run=True, launch=pytest.fail) == 0
    assert "budget.growth_tokens" in "".join(capsys.readouterr().out.split())
    assert paper_folder(name).name == "stacking"


def test_report_of_a_paper_takes_its_runs(tmp_path):
    def write(place, command):
        (tmp_path / place).mkdir(parents=True)
        record = {"command": command, "status": "done", "config": {}, "metrics": {}, "overrides": []}
        (tmp_path / place / "run.json").write_text(json.dumps(record))

    assert toolkit("report", "grow", cwd=tmp_path)[2] == (
        "toolkit: error: grow: no run of grow-llm under runs/, and no folder grow here\n"
    )
    write("runs/grow-llm/one", "grow-llm")
    write("runs/reproduce/stacking/micro/seed_1", "grow-llm")
    write("runs/elsewhere", "train-disco")
    code, out, told = toolkit("report", "grow", cwd=tmp_path)
    assert code == 0 and out == "report.html\n"
    assert told.splitlines() == [
        "grow: the runs of grow-llm under runs/",
        "  runs/grow-llm/one",
        "  runs/reproduce/stacking/micro/seed_1",
    ]
    assert "elsewhere" not in (tmp_path / "report.html").read_text()
    write("grow", "train-disco")  # a folder of that name is the folder
    assert toolkit("report", "grow", cwd=tmp_path)[1] == "grow/report.html\n"


def test_hydras_own_help_and_info_are_reachable():
    code, out, _ = toolkit("train-disco", "--cfg", "job", "experiment=disco_smoke")
    assert code == 0 and "num_latents:" in out
    code, out, _ = toolkit("train-disco", "--info", "defaults")
    assert code == 0 and "train_disco_schema" in out
    code, out, _ = toolkit("train-disco", "--", "--help")
    assert code == 0 and "experiment" in out and "network" in out


def test_version_reports_the_environment():
    code, out, _ = toolkit("--version")
    assert code == 0
    assert out.splitlines()[0].startswith("python 3.") and "torch " in out and "cuda " in out


@pytest.mark.parametrize(
    ("words", "hint"),
    [(["train-disko"], "train-disco"), (["runs", "lst"], "list"), (["--fast"], "--fast"), (["runs", "show"], "folder")],
)
def test_wrong_usage_is_exit_code_2(words, hint):
    code, _, error = toolkit(*words)
    assert code == 2 and hint in error.lower() and "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train-disco", "optim.lrr=3"], "toolkit: error: optim.lrr: no such key; did you mean 'optim.lr'?"),
        (["train-disco", "experiment=null"], "toolkit: error: experiment=null: a choice cannot be null; write ~experi"),
        (["runs", "resume", "."], "toolkit: error: .: neither a run"),
        (["bench", "nothing"], "toolkit: error: nothing: no such paper; choose one of disco, icg, stacking,"),
        (["zoo", "show", "nothing"], "toolkit: error: "),
        (["data", "fetch", "nothing"], "toolkit: error: "),
        (["report", "nowhere"], "toolkit: error: nowhere: no folder here, and no such paper; choose one of disco,"),
        (["report", "no/where"], "toolkit: error: no/where: no run there"),
        (["reproduce", "stackin"], "toolkit: error: stackin: no such paper; did you mean 'stacking'?"),
        (["runs", "compare", "nowhere"], "toolkit: error: "),
        (["runs", "list", "nowhere"], "toolkit: error: nowhere: no such folder"),
        (["runs", "show", ""], "toolkit: error: an empty word on the command line; is a variable without a value?"),
    ],
)
def test_users_mistakes_are_one_line_and_exit_code_2(tmp_path, words, message):
    code, out, error = toolkit(*words, cwd=tmp_path)
    assert code == 2 and error.startswith(message) and len(error.splitlines()) == 1, error
    assert out == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("before", "incomplete", "expected"),
    [
        ([], "optim.l", ["optim.lr="]),
        ([], "network=adm_t", ["network=adm_tiny"]),
        ([], "network=mlp_s", []),  # schemas are not options
        ([], "precision=", ["precision=fp32", "precision=bf16", "precision=fp16"]),
        ([], "data=mnist1", ["data=mnist16"]),
        ([], "experiment=disco_sm", ["experiment=disco_smoke"]),
        ([], "experiment=icg_sm", []),  # another command's
        ([], "hydra/launcher=b", ["hydra/launcher=basic"]),
        (["seed", "=", "1", "network", "="], "adm_t", ["adm_tiny"]),  # as bash splits words
        (["precision"], "", ["fp32", "bf16", "fp16"]),
        (["seed", "=", "1"], "optim.l", ["optim.lr="]),
        ([], "nothing.here=", []),
    ],
)
def test_overrides_are_completed(before, incomplete, expected):
    assert complete("train-disco", incomplete, before) == expected
    assert complete("no-such-command", incomplete, before) == []


def test_the_shell_gets_completions_of_commands_and_overrides():
    def ask(*words):
        env = {"_TOOLKIT_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(["toolkit", *words])}
        return toolkit(env={**env, "COMP_CWORD": str(len(words))})[1].split()

    assert ask("train-d") == ["train-disco"]
    assert ask("train-disco", "optim.l") == ["optim.lr="]
    assert "disco_smoke" in ask("train-disco", "experiment", "=")
    assert ask("train-disco", "network", "=", "adm_t") == ["adm_tiny"]
    assert ask("bench", "st") == ["stacking"] and ask("reproduce", "v") == ["venhancer"]
    assert ask("report", "ic") == ["icg"]


def test_what_memory_does_not_hold_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["toolkit"])
    monkeypatch.setattr(cli, "app", lambda: bytearray(2**62))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, error = capsys.readouterr()
    assert stop.value.code == 1 and out == "" and error.startswith("toolkit: error: out of memory"), error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("size", "text"),
    [(300, "0.3 KiB"), (2**20 - 1, "1024.0 KiB"), (2**20, "1.0 MiB"), (2**30, "1.0 GiB"), (3 * 2**29, "1.5 GiB")],
)
def test_bytes_are_told_in_the_unit_that_fits_them(size, text):
    assert bytes_text(size) == text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_any_command_with_a_line(monkeypatch, capsys, number, code):
    monkeypatch.setattr(sys, "argv", ["toolkit"])
    monkeypatch.setattr(cli, "app", lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == code and capsys.readouterr().err == "toolkit: interrupted\n"


@pytest.mark.parametrize(
    ("module", "error", "refused"),
    [
        ("hydra_plugins.hydra_joblib_launcher._core", ValueError, True),
        ("hydra_plugins.hydra_joblib_launcher._core", KeyError, False),
        ("toolkit.data", ValueError, False),
    ],
)
def test_what_a_launcher_refuses_is_no_bug(module, error, refused):
    space = {"__name__": module, "error": error}
    exec("def launch():\n    raise error('n_jobs == 0 has no meaning')", space)
    with pytest.raises(error) as caught:
        space["launch"]()
    assert refused_by_plugin(caught.value) == refused
