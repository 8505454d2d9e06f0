"""Every ``toolkit ...`` line of README.md, docs/, experiments/ and help pages is a command that works as written."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.composed import composed
from toolkit.cli import app
from toolkit.commands import COMMANDS
from toolkit.paths import presets

REPO = Path(__file__).parent.parent
PAGES = [
    REPO / "README.md",
    *sorted(REPO.glob("C*.md")),
    *sorted(REPO.glob("docs/*.md")),
    *sorted(REPO.glob("experiments/**/*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands_of(page):
    """The words after ``toolkit`` of every fenced command line, and of the same started by torchrun or accelerate."""
    for language, block in FENCE.findall(page.read_text()):
        if language not in ("", "bash", "console"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|", line):
                words = shlex.split(part, comments=True)
                if words[:1] == ["toolkit"]:
                    yield words[1:]
                elif "toolkit" in words:  # torchrun ... -m toolkit
                    yield words[words.index("toolkit") + 1 :]


HELP = [(name, line.partition(" ")[2]) for name, job in COMMANDS.items() for line, _ in job.examples]
LINES = list(dict.fromkeys([(page.name, shlex.join(words)) for page in PAGES for words in commands_of(page)] + HELP))


def first_of_sweep(override):
    """``a=1,2`` as its first job sees it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return override
    return f"{parsed.get_key_element()}={next(parsed.sweep_string_iterator())}"


def is_a_job(words):
    return words[0] in COMMANDS and not {"--help", "-h", "--keys"} & set(words)


@pytest.mark.parametrize("line", [line for _, line in LINES if is_a_job(shlex.split(line))])
def test_job_commands_compose(line):
    command, *words = shlex.split(line)
    flags = {"-m", "--multirun", "--cfg", "job", "--info", "defaults", "--dry-run"}
    overrides = [word for word in words if word not in flags and not word.startswith("hydra")]
    composed(command, *(first_of_sweep(word) for word in overrides))


@pytest.mark.parametrize("line", [line for _, line in LINES if not is_a_job(shlex.split(line))])
def test_other_commands_parse(line):
    command = typer.main.get_command(app)
    words = shlex.split(line)
    if not words or words[0].startswith("-"):
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(words) <= known | {"--help"}
        return
    context = command.make_context("toolkit", list(words), resilient_parsing=True)
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, line
        command, words = command.commands[words[0]], words[1:]
    if not {"--help", "-h"} & set(words):
        command.make_context(line, list(words), parent=context)


def test_there_are_commands_to_test():
    assert len(LINES) > 40
    assert {"README.md", "cluster.md", "weights.md"} <= {name for name, _ in LINES}


def test_the_first_block_is_the_two_set_up_commands():
    _, block = FENCE.findall((REPO / "README.md").read_text())[0]
    assert block.splitlines() == ["pip install -e . && toolkit train-disco", "pip install -e '.[test]' && pytest"]


def test_the_pages_list_every_preset_command_and_dependency():
    import tomllib

    text = (REPO / "README.md").read_text()
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    pages = "".join(page.read_text() for page in PAGES)
    for name in presets():
        assert f"| `{name}` |" in pages
    for command in COMMANDS:
        assert command == "train-toy" or f"| `toolkit {command}` |" in text
    for requirement in project["dependencies"]:
        assert f"| {re.split('[<>=]', requirement)[0]} |" in text
    for extra in project["optional-dependencies"]:
        assert f"`{extra}`" in text


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_python_blocks_of_the_docs_compile():
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text()):
            if language == "python":
                compile(block, page.name, "exec")


def test_no_generated_block_is_left_without_its_end():
    for page in PAGES:
        text = page.read_text()
        assert re.findall(r"<!-- generated: (\w+)", text) == re.findall(r"<!-- /generated: (\w+)", text)


def test_help_pages_render():
    runner = CliRunner()
    for words in (["--help"], ["runs", "--help"], ["zoo", "--help"], ["data", "--help"], ["reproduce", "--help"]):
        assert runner.invoke(app, words).exit_code == 0
