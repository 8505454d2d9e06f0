"""Break one line of method code at a time, and see that a test notices.

    python tests/mutants.py run [--only ROOM] [--jobs 1] [--results FILE] [--timeout-s 300]
    python tests/mutants.py table [--results FILE]

``tests/files/mutants/ROOM.toml`` has them by file, with the tests that must notice: the old fragment (once in its
file), the new one, why that is a break, and, where no test can notice, why not. Each is tried in a copy of the tree.
Results are kept by the bytes of the file and of its tests, so that a run that was stopped goes on, and what changed is
tried again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "tests" / "files" / "mutants"
PARTS = ("toolkit", "tests", "conf", "experiments", "docs", "pyproject.toml", "README.md")
FORK = multiprocessing.get_context("forkserver")  # which has loaded what is slow to load and is not ours
SLOW_TO_LOAD = ["torch", "pytest", "diffusers.models.modeling_utils", "transformers.modeling_utils", "scipy.stats"]
NOTICED, SURVIVED, LATE = "noticed", "survived", "timed out"


@dataclass(frozen=True)
class Mutant:
    """One broken line. ``equivalent``: why no test can notice it, or empty."""

    room: str
    file: str
    tests: tuple[str, ...]
    old: str
    new: str
    why: str
    equivalent: str = ""

    @property
    def key(self) -> str:
        """Its name among the results: what is broken, how, and the bytes that decide whether it is noticed."""
        found = hashlib.sha256(json.dumps([self.file, self.old, self.new, self.tests]).encode())
        for name in (self.file, *(test.partition("::")[0] for test in self.tests)):
            paths = sorted((ROOT / name).rglob("*.py")) if (ROOT / name).is_dir() else [ROOT / name]
            for path in paths:
                found.update(path.read_bytes())
        return found.hexdigest()[:16]


def read_mutants(only: str | None = None) -> list[Mutant]:
    """All mutants, or those of one room."""
    found = []
    for path in sorted(TABLES.glob("*.toml")):
        groups = tomllib.loads(path.read_text(encoding="utf-8"))["group"] if only in (None, path.stem) else []
        for group in groups:
            tests = tuple(group["tests"])
            found += [Mutant(path.stem, group["file"], tests, *line) for line in group["lines"]]
    return found


def copy_tree(folder: Path) -> None:
    """What the tests read, without caches."""
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder / name)


def run_tests(folder: Path, tests: tuple[str, ...], timeout_s: float) -> tuple[str, str]:
    """What the tests in ``folder`` say, and the first that failed."""
    log = folder / "pytest.log"
    process = FORK.Process(target=in_folder, args=(str(folder), tests, str(log)))
    process.start()
    process.join(timeout_s)
    if process.is_alive():
        process.kill()
        process.join()
        return LATE, ""
    said = log.read_text(encoding="utf-8", errors="replace")
    if process.exitcode not in (0, 1, 2):  # 2: the broken file cannot be imported; more is pytest's own trouble
        raise RuntimeError(f"pytest ended with {process.exitcode}: {said[-2000:]}")
    failed = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (SURVIVED, "") if process.exitcode == 0 else (NOTICED, failed[0].split(" - ")[0] if failed else "")


def in_folder(folder: str, tests: tuple[str, ...], log: str) -> None:
    """pytest in a process of its own, on the package in ``folder``."""
    import pytest

    assert "toolkit" not in sys.modules
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = folder
    sys.path.insert(0, folder)
    for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
        del sys.modules[name]
    sys.dont_write_bytecode = True
    code = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow", *tests])
    sys.stdout.flush()
    os._exit(int(code))


def try_one(mutant: Mutant, folder: Path, timeout_s: float) -> dict[str, str]:
    """Break the line in ``folder``, run its tests, mend it."""
    path = folder / mutant.file
    whole = path.read_text(encoding="utf-8")
    assert whole.count(mutant.old) == 1, f"{mutant.file}: {mutant.old!r} is there {whole.count(mutant.old)} times"
    path.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        outcome, by = run_tests(folder, mutant.tests, timeout_s)
    finally:
        path.write_text(whole, encoding="utf-8")
    return {
        "room": mutant.room,
        "file": mutant.file,
        "old": mutant.old,
        "new": mutant.new,
        "outcome": outcome,
        "by": by,
    }


def run(only: str | None, jobs: int, results: Path, timeout_s: float) -> int:
    """Try what has no result yet. Returns 1 where a mutant that is not equivalent was not noticed."""
    mutants = {one.key: one for one in read_mutants(only)}  # by the bytes of now: files may change while this runs
    known = read_results(results)
    todo = [(key, one) for key, one in mutants.items() if key not in known]
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    FORK.set_forkserver_preload(SLOW_TO_LOAD)
    with tempfile.TemporaryDirectory() as scratch, results.open("a", encoding="utf-8") as out:

        def work(number: int) -> None:
            folder = Path(scratch) / str(number)
            folder.mkdir()
            copy_tree(folder)
            for tests in dict.fromkeys(
                one.tests for _, one in todo[number::jobs]
            ):  # a test that fails anyway shows nothing
                outcome, by = run_tests(folder, tests, 4 * timeout_s)
                if outcome != SURVIVED:
                    raise RuntimeError(f"{' '.join(tests)}: {outcome} without any mutant ({by})")
            for key, mutant in todo[number::jobs]:
                known[key] = found = try_one(mutant, folder, timeout_s)
                out.write(json.dumps({"key": key, **found}) + "\n")
                out.flush()
                print(f"{found['outcome']:9} {mutant.file}: {mutant.old.strip()} -> {mutant.new.strip()}", flush=True)

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(work, range(jobs)))
    unseen = [one for key, one in mutants.items() if known[key]["outcome"] == SURVIVED]
    print(f"{len(mutants) - len(unseen)} of {len(mutants)} noticed")
    return int(any(not one.equivalent for one in unseen))


def read_results(path: Path) -> dict[str, dict[str, str]]:
    """Outcomes by key; empty where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {row.pop("key"): row for row in map(json.loads, lines)}


def table(results: Path) -> str:
    """Markdown: per room how many were tried and noticed, and each survivor with its explanation."""
    known, rows, survivors = read_results(results), [], []
    mutants = read_mutants()
    for room in dict.fromkeys(one.room for one in mutants):
        found = [(one, known[one.key]["outcome"]) for one in mutants if one.room == room and one.key in known]
        unseen = [one for one, outcome in found if outcome == SURVIVED]
        rows.append(f"| {room} | {len(found)} | {len(found) - len(unseen)} | {len(unseen)} |")
        survivors += [
            f"- `{one.file}`: `{one.old}` -> `{one.new}` ({one.why}): {one.equivalent or 'not explained'}"
            for one in unseen
        ]
    head = ["| room | tried | noticed | survived |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, *(["", *survivors] if survivors else [])])


def main() -> int:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--only", choices=sorted(path.stem for path in TABLES.glob("*.toml")))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--timeout-s", type=float, default=300)
    words = parser.parse_args()
    if words.what == "table":
        print(table(words.results))
        return 0
    return run(words.only, words.jobs, words.results, words.timeout_s)


if __name__ == "__main__":
    sys.exit(main())
