"""Lines that nobody chose: code of the files in the table, each broken in one way that was drawn at random.

``python tests/mutants.py run --random 100 --seed 1`` tries them against the tests that the table names for their files.
What survives is to be looked at: some of it no test can notice.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from pathlib import Path

BREAKS = [
    *((r" \+ ", " - "), (r" - ", " + "), (r" \* ", " / "), (r" / ", " * "), (r"\*\*2", "**3"), (r" % ", " // ")),
    *((r" < ", " <= "), (r" > ", " >= "), (r" <= ", " < "), (r" >= ", " > "), (r" == ", " != "), (r" != ", " == ")),
    *((r" and ", " or "), (r" or ", " and "), (r" not ", " "), (r"\bTrue\b", "False"), (r"\bFalse\b", "True")),
    *((r"\bmin\(", "max("), (r"\bmax\(", "min("), (r"\.mean\(", ".sum("), (r"\.sum\(", ".mean("), (r"sqrt\(", "abs(")),
    *((r"\b1\b", "2"), (r"\b2\b", "3"), (r"\b0\.5\b", "0.25"), (r"-1\b", "0")),
    *((r"\[1:\]", "[:-1]"), (r"dim=1", "dim=0")),
]  # what is there -> what takes its place; the first that a line has
SAYS = ("raise", "import", "from", "def ", "class ", "log.", "@", "assert", "warn", "#")  # no arithmetic in it


def draw(files: list[str], root: Path, number: int, seed: int) -> list[tuple[str, str, str]]:
    """``number`` of (file, line, broken line), spread over ``files``; a function of their text and ``seed``."""
    rng = random.Random(seed)
    texts = {file: (root / file).read_text(encoding="utf-8") for file in sorted(files)}
    found = {file: list(_breaks(text)) for file, text in texts.items()}
    order = list(found)
    rng.shuffle(order)
    drawn: list[tuple[str, str, str]] = []
    while len(drawn) < number and any(found.values()):
        for file in order:
            while found[file] and len(drawn) < number:
                line, broken = found[file].pop(rng.randrange(len(found[file])))
                if _differs(texts[file], texts[file].replace(line, broken)):  # costs more than all else here
                    drawn.append((file, line, broken))
                    break
    return drawn


def _breaks(text: str) -> Iterator[tuple[str, str]]:
    """Each line inside a function that stands once in ``text``, and how it reads broken."""
    tree = ast.parse(text)
    inside = _lines(tree, ast.FunctionDef) - _lines(tree, ast.Raise, ast.Assert)
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip()
        if number not in inside or not words or words.startswith(SAYS) or text.count(line) != 1 or 'f"' in line:
            continue
        for there, other in BREAKS:
            broken = re.sub(there, other, line, count=1)
            if broken != line:
                yield line, broken
                break


def _lines(tree: ast.Module, *kinds: type[ast.AST]) -> set[int]:
    """Lines of nodes of these kinds; of functions those after their docstring."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.FunctionDef in kinds:
            body = node.body[1:] if ast.get_docstring(node) else node.body
            for one in body:
                found.update(range(one.lineno, (one.end_lineno or one.lineno) + 1))
        elif isinstance(node, kinds) and isinstance(node, ast.stmt):
            found.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def _differs(text: str, broken: str) -> bool:
    """Whether ``broken`` is Python, and other Python."""
    try:
        return ast.dump(ast.parse(broken)) != ast.dump(ast.parse(text))
    except SyntaxError:
        return False
