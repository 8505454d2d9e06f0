"""The command line as a user meets it, each in a process of its own: help, version, errors, completion."""

import os
import subprocess
import sys

import pytest

from toolkit.commands import COMMANDS
from toolkit.completion import complete

RUN = "import sys; sys.argv[0] = 'toolkit'; from toolkit.cli import main; main()"


def toolkit(*words, env=None, cwd=None):
    """``toolkit WORDS``: exit code, stdout, stderr."""
    settings = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb", **(env or {})}
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True, env=settings, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def test_help_lists_working_commands_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom toolkit.cli import main\nsys.argv = ['toolkit', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'hydra', 'omegaconf', 'numpy', 'accelerate', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    jobs = [name for name in COMMANDS if name != "train-toy"]  # which only tests register
    for command in (*jobs, "runs", "report", "reproduce", "bench", "zoo", "data", "play"):
        assert command in done.stdout


def test_help_of_a_job_command_lists_its_presets():
    from toolkit.paths import presets

    code, out, _ = toolkit("train-disco", "--help")
    assert code == 0
    assert all(name in out for name in presets("train-disco"))
    assert "--cfg job" in out and "--dry-run" in out


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
        (["runs", "resume", "."], "toolkit: error: .: neither a run"),
        (["bench", "nothing"], "toolkit: error: bench nothing:"),
        (["zoo", "show", "nothing"], "toolkit: error: "),
        (["data", "fetch", "nothing"], "toolkit: error: "),
        (["report", "nowhere"], "toolkit: error: "),
        (["reproduce", "nothing"], "toolkit: error: "),
        (["runs", "compare", "nowhere"], "toolkit: error: "),
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
        ([], "precision=", ["precision=fp32", "precision=bf16"]),
        ([], "hydra/launcher=b", ["hydra/launcher=basic"]),
        (["seed", "=", "1", "network", "="], "adm_t", ["adm_tiny"]),  # as bash splits words
        (["precision"], "", ["fp32", "bf16"]),
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
