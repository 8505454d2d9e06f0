"""Who may import whom: cli -> launch -> paper/job -> paper/* -> zoo; data, metrics, show and runs beside them."""

import ast
import functools
import re
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from toolkit.commands import COMMANDS

PACKAGE = Path(__file__).parent.parent / "toolkit"
PAPERS = {command.room.split(".")[1] for command in COMMANDS.values() if command.room.startswith("toolkit.")}
GROUND = {"errors", "plain_files", "schema", "commands", "paths", "lazy", "renamed", "installation"}
GROUND |= {"spelling", "moved"}
FLOOR = GROUND - {"commands", "paths", "renamed", "spelling", "moved"}  # what a paper's room stands on
BRIDGE = GROUND | {"configs", "runs"}
MAY_IMPORT = {
    "errors": set(),
    "plain_files": {"errors"},
    "commands": {"errors"},
    "lazy": set(),
    "installation": set(),
    "spelling": set(),
    "moved": set(),
    "schema": {"errors", "moved"},
    "renamed": {"errors"},
    "paths": {"errors"},
    "runs": {"errors", "schema", "renamed", "installation", "paths"},
    "zoo": {"errors", "plain_files", "schema", "paths"},
    "data": {"errors", "plain_files", "schema", "lazy", "installation", "runs"},
    "metrics": {"errors", "plain_files", "runs", "data", "zoo"},
    "show": {"errors", "schema", "runs"},
    "measure": {"errors", "plain_files", "data", "metrics", "runs", "show", "zoo"},
    "bench": {"errors", "plain_files", "schema", "runs", "show"},
    "plan": BRIDGE | {"show"},
    "search": BRIDGE | {"launch"},
    "claims": BRIDGE | {"data", "metrics", "show", "zoo"},
    "configs": GROUND | {"data"},
    "help": GROUND | {"configs"},
    "sweep": {"runs"},
    "one_job": BRIDGE | {"sweep", "show"},
    "launch": BRIDGE | {"one_job", "sweep", "bench"},
    "resume": BRIDGE | {"launch"},
    "api": BRIDGE | PAPERS | {"launch", "show", "zoo"},
    "cli": BRIDGE | {"launch", "resume", "help", "zoo", "data", "show", "claims", "measure", "plan", "search"},
    "__main__": {"cli"},
    **dict.fromkeys(PAPERS, FLOOR | {"paths", "zoo", "data", "metrics", "runs", "show", "bench"}),
}
MOST_FILES = 18  # of a folder, without __init__.py: more than one sees at a glance
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES
}


def room(path):
    """The room of a file: its folder, or its own name at the top."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


@functools.cache  # parsing all files takes seconds
def imports(path, top_level_only=False):
    """Dotted names that a file imports, in functions too; ``from a import b`` counts as a.b."""
    found, tree = [], ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def modules_used(path):
    """The modules of ours behind a file's imports: a.b itself, or a where b is a name in it."""
    names = {target if target in MODULES else target.rpartition(".")[0] for target in imports(path)}
    return {name for name in names if name in MODULES}


def circle(arrows):
    """A circle in ``{node: nodes it uses}``; empty where there is none."""
    try:
        TopologicalSorter({node: used - {node} for node, used in arrows.items()}).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_room_has_its_rule():
    assert {room(path) for path in FILES} - {"__init__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_imports_follow_the_arrows(name):
    for path in (path for path in FILES if room(path) == name):
        used = {target.split(".")[1] for target in imports(path) if target.startswith("toolkit.")}
        assert used <= MAY_IMPORT[name] | {name}, f"{path.relative_to(PACKAGE)} imports {used - MAY_IMPORT[name]}"


def test_no_rule_goes_round():
    assert not circle(MAY_IMPORT)


def test_no_files_import_each_other_in_a_circle():
    assert not circle({name: modules_used(path) for name, path in MODULES.items()})


def test_a_circle_would_be_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) and not circle({"a": {"a", "b"}, "b": set()})


def test_no_folder_holds_more_files_than_one_sees_at_a_glance():
    counts = Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert not {str(folder): count for folder, count in counts.items() if count > MOST_FILES}


@pytest.mark.parametrize("paper", sorted(PAPERS))
def test_every_room_has_the_same_doors(paper):
    for door in ("config", "job", "measure", "bench"):
        assert f"toolkit.{paper}.{door}" in MODULES, door


CONFIGS = ("config.py", "schema.py", "commands.py", "upscalers.py")


@pytest.mark.parametrize("path", [path for path in FILES if path.name in CONFIGS])
def test_configs_need_only_the_standard_library(path):
    ours = ("toolkit.schema.", "toolkit.errors.", "toolkit.moved.", "toolkit.zoo.config.", "toolkit.data.config.")
    ours += ("toolkit.venhancer.train.config.", "toolkit.zoo.upscalers.")  # which are among these files
    ours += ("toolkit.icg.methods.",)  # itself without torch: the next test but one
    for target in imports(path):
        assert f"{target}.".startswith(ours) or target.split(".")[0] in sys.stdlib_module_names, target


ROOMS_CLI = {str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.glob("*/cli.py")}


@pytest.mark.parametrize("name", sorted(GROUND | {"cli", "__init__"} | ROOMS_CLI))
def test_the_command_line_imports_nothing_heavy(name):
    light = sys.stdlib_module_names | {"typer", "toolkit"}
    for target in imports(PACKAGE / f"{name}.py", top_level_only=True):
        assert target.split(".")[0] in light
        if target.startswith("toolkit."):
            assert target.split(".")[1] in GROUND or "/".join(target.split(".")[1:3]) in ROOMS_CLI, target


def test_nothing_is_unpickled():
    for path in FILES:
        assert not {"pickle", "dill", "cloudpickle", "joblib"} & {name.split(".")[0] for name in imports(path)}, path
        text = path.read_text(encoding="utf-8")
        if not re.search(r"(torch|np|numpy)\s*\.\s*load\b", text):
            continue
        for node in ast.walk(ast.parse(text)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load"):
                continue
            if ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                safe = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert safe.get("weights_only") == "True" or safe.get("allow_pickle", "False") == "False", path
                assert ast.unparse(node.func) != "torch.load" or safe.get("weights_only") == "True", path


def _is_text(call):
    """Whether a call turns bytes into text or back: of a file by its name, of a log, or what a process prints."""
    called = ast.unparse(call.func)
    if called.startswith("subprocess."):
        return bool({keyword.arg for keyword in call.keywords} & {"text", "universal_newlines"})
    if called.endswith("FileHandler"):
        return True
    if isinstance(call.func, ast.Name) and call.func.id == "open":
        modes = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
        return all("b" not in ast.literal_eval(mode) for mode in modes)
    return isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text")


def test_text_names_its_encoding():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _is_text(node):
                position = 1 if ast.unparse(node.func).endswith("write_text") else 0
                named = isinstance(node.func, ast.Attribute) and len(node.args) > position
                named = named or any(keyword.arg == "encoding" for keyword in node.keywords)
                assert named, f"{path}:{node.lineno}: {ast.unparse(node)}"
