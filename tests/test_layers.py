"""Who may import whom: cli -> launch -> paper/job -> paper/* -> zoo; data, metrics and runs beside them."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "toolkit"
PAPERS = {"disco", "icg", "ivideogpt", "stacking", "venhancer"}
SHARED = {"schema", "zoo", "data", "metrics", "runs"}
BRIDGE = {"schema", "commands", "configs", "paths", "runs"}
MAY_IMPORT = {
    "schema": set(),
    "commands": set(),
    "paths": {"schema"},
    "zoo": {"schema"},
    "data": {"schema", "runs"},
    "metrics": {"schema", "runs", "data"},
    "runs": {"schema", "paths", "metrics"},
    "configs": BRIDGE,
    "completion": BRIDGE,
    "sweep": BRIDGE | {"launch"},
    "launch": BRIDGE | {"sweep"},
    "cli": BRIDGE | {"launch", "sweep", "completion", "zoo", "data"},
    **dict.fromkeys(PAPERS, SHARED),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    """The room of a file: its folder, or its own name at the top."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path, top_level_only=False):
    """Dotted names that a file imports; ``from a import b`` counts as a.b."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_has_its_rule():
    assert {room(path) for path in FILES} - {"__init__"} <= set(MAY_IMPORT)


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_imports_follow_the_arrows(name):
    for path in (path for path in FILES if room(path) == name):
        used = {target.split(".")[1] for target in imports(path) if target.startswith("toolkit.")}
        assert used <= MAY_IMPORT[name] | {name}, f"{path.relative_to(PACKAGE)} imports {used - MAY_IMPORT[name]}"


@pytest.mark.parametrize("path", [path for path in FILES if path.name in ("config.py", "schema.py", "commands.py")])
def test_configs_need_only_the_standard_library(path):
    for target in imports(path):
        assert target.startswith("toolkit.schema.") or target.split(".")[0] in sys.stdlib_module_names, target


@pytest.mark.parametrize("name", ["cli", "paths", "commands", "schema", "__init__"])
def test_the_command_line_imports_nothing_heavy(name):
    light = sys.stdlib_module_names | {"typer", "toolkit"}
    for target in imports(PACKAGE / f"{name}.py", top_level_only=True):
        assert target.split(".")[0] in light
        assert not target.startswith(("toolkit.runs", "toolkit.launch", "toolkit.zoo", "toolkit.data")), target


def test_nothing_is_unpickled():
    for path in FILES:
        assert not {"pickle", "dill", "cloudpickle", "joblib"} & {name.split(".")[0] for name in imports(path)}, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                safe = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert safe.get("weights_only") == "True" or safe.get("allow_pickle", "False") == "False", path
                assert ast.unparse(node.func) != "torch.load" or safe.get("weights_only") == "True", path
