"""What help and completion may read and load, counted in a new process; nothing is timed."""

import json
import subprocess
import sys

import pytest

from toolkit.paths import conf_dir

COUNT = """
import json, sys
opened = []
sys.addaudithook(lambda event, of: opened.append(str(of[0])) if event == "open" else None)
before = set(sys.modules)
try:
    if sys.argv[1] == "complete":
        from toolkit.help.completion import complete
        assert complete(*sys.argv[2:])
    else:
        from toolkit.cli import main
        main()
except SystemExit as stop:
    assert stop.code == 0
print("\\n" + json.dumps([opened, sorted(set(sys.modules) - before)]))
"""
HEAVY = {"torch", "diffusers", "transformers", "numpy", "accelerate", "matplotlib", "scipy", "sklearn", "av", "PIL"}


def opened_and_loaded(*words):
    """The paths that were opened, as often as they were, and the modules that were imported."""
    done = subprocess.run([sys.executable, "-c", COUNT, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("words", "most_modules"),
    [
        ("--help", 15),
        ("train-disco --help", 45),
        ("enhance-video --keys", 45),
        ("complete train-disco experiment=", 40),
        ("complete grow-llm optim.", 40),
    ],
)
def test_help_and_completion_read_presets_once_and_load_little(words, most_modules):
    opened, loaded = opened_and_loaded(*words.split())
    presets = [path for path in opened if path.startswith(str(conf_dir() / "experiment")) and path.endswith(".yaml")]
    known = len(list((conf_dir() / "experiment").glob("*.yaml")))
    assert len(presets) <= (0 if words == "--help" else known + 2)  # and the one that is composed
    assert len([path for path in opened if path.endswith(".yaml")]) <= len(list(conf_dir().rglob("*.yaml")))
    assert len([name for name in loaded if name.partition(".")[0] == "toolkit"]) <= most_modules
    assert not HEAVY & set(loaded)
