"""Break one line of method code at a time, and see that a test notices.

    python tests/mutants.py run [--only ROOM] [--since COMMIT] [--every 1] [--jobs 1] [--results FILE] [--timeout-s 300]
    python tests/mutants.py run --random 100 [--seed 0] --results random.jsonl
    python tests/mutants.py table [--since COMMIT] [--results FILE] [--write docs/tests.md]

``tests/files/mutants/ROOM.toml`` has them by file, with the tests that must notice: the old fragment (once in its
file), the new one, why that is a break, and, where no test can notice, why not. Each is tried in a copy of the tree.
Results are kept by the bytes of the file and of its tests, so that a run that was stopped goes on, and what changed is
tried again. ``--every 28`` tries a sample: every 28th line; ``--since`` those that the tables of a commit do not have,
then those whose file or tests changed since; ``--random`` lines of the same files that nobody chose.
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import json
import multiprocessing
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # also where this file is run as a script
from tests import random_breaks  # noqa: E402

TABLES = ROOT / "tests" / "files" / "mutants"
PARTS = ("toolkit", "tests", "conf", "experiments", "docs", "pyproject.toml", "README.md")
FORK = multiprocessing.get_context("forkserver")  # which has loaded what is slow to load and is not ours
SLOW_TO_LOAD = [
    *("torch", "pytest", "xdist.plugin", "hydra.extra.pytest_plugin", "anyio.pytest_plugin", "matplotlib.pyplot"),
    *("diffusers.guiders", "diffusers.schedulers", "diffusers.models.autoencoders.autoencoder_kl_temporal_decoder"),
    *("diffusers.models.unets.unet_3d_condition", "diffusers.pipelines.pipeline_utils", "scipy.stats", "gymnasium"),
    *("transformers.models.clip.modeling_clip", "transformers.models.llama.modeling_llama", "sklearn.cluster", "av"),
]
NOTICED, SURVIVED, LATE = "noticed", "survived", "timed out"
BEGIN, END = "<!-- mutants{}: begin -->", "<!-- mutants{}: end -->"


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
    def what(self) -> tuple[str, str, str]:
        """What is broken, and how."""
        return self.file, self.old, self.new

    def is_made_of(self, names: set[str]) -> bool:
        """Whether its file or one of its tests is among these, or in a folder that one of these is in."""
        own = [self.file, *(test.partition("::")[0] for test in self.tests)]
        return any(name == one or name.startswith(f"{one}/") for name in names for one in own)

    @property
    def key(self) -> str:
        """Its name among the results: what is broken, how, and the bytes that decide whether it is noticed."""
        found = hashlib.sha256(json.dumps([self.file, self.old, self.new, self.tests]).encode())
        for name in (self.file, *(test.partition("::")[0] for test in self.tests)):
            paths = sorted((ROOT / name).rglob("*.py")) if (ROOT / name).is_dir() else [ROOT / name]
            for path in paths:
                found.update(path.read_bytes())
        return found.hexdigest()[:16]


def read_mutants(only: str | None = None, since: str | None = None) -> list[Mutant]:
    """All mutants, or those of one room, or what is new or changed since a commit."""
    paths = [path for path in sorted(TABLES.glob("*.toml")) if only in (None, path.stem)]
    found = [one for path in paths for one in parse(path.stem, path.read_text(encoding="utf-8"))]
    if since is None:
        return found
    changed = set(git("diff", "--name-only", "--relative", since).splitlines())
    tables = [(path.stem, git("show", f"{since}:./{path.relative_to(ROOT)}", must=False)) for path in paths]
    stood = {one.what for room, text in tables for one in parse(room, text)}
    new = [one for one in found if one.what not in stood]
    return new + [one for one in found if one.what in stood and one.is_made_of(changed)]


def random_mutants(number: int, seed: int, only: str | None = None) -> list[Mutant]:
    """Lines of the tables' files broken at random, for all tests that the tables name for each file."""
    listed = read_mutants(only)
    rooms = {one.file: one.room for one in listed}
    tests = {file: tuple(sorted({test for one in listed if one.file == file for test in one.tests})) for file in rooms}
    drawn = random_breaks.draw(list(rooms), ROOT, number, seed)
    return [Mutant(rooms[file], file, tests[file], old, new, "drawn at random") for file, old, new in drawn]


def parse(room: str, text: str) -> list[Mutant]:
    """The mutants of one table."""
    groups = tomllib.loads(text).get("group", [])
    return [Mutant(room, group["file"], tuple(group["tests"]), *line) for group in groups for line in group["lines"]]


def git(*words: str, must: bool = True) -> str:
    """What git says of the tree; nothing of a file that a commit does not have, where that may be (``must=False``)."""
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=must).stdout


def copy_tree(folder: Path) -> None:
    """What the tests read; its code compiled, and known by its bytes, for many tries in one second."""
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(folder / "toolkit", quiet=2, invalidation_mode=mode)


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


def run(sample: list[Mutant], jobs: int, results: Path, timeout_s: float) -> int:
    """Try what has no result yet. Returns 1 where a mutant that is not equivalent was not noticed."""
    mutants = {one.key: one for one in sample}  # by the bytes of now: files may change while this runs
    known = read_results(results)
    todo = most_wanted([(key, one) for key, one in mutants.items() if key not in known], known)
    os.environ["OMP_NUM_THREADS"] = "1"
    FORK.set_forkserver_preload(SLOW_TO_LOAD)
    with tempfile.TemporaryDirectory() as scratch, results.open("a", encoding="utf-8") as out:

        def work(number: int) -> None:
            folder = Path(scratch) / str(number)
            folder.mkdir()
            copy_tree(folder)
            sound: set[tuple[str, ...]] = set()  # a test that fails anyway shows nothing
            for key, mutant in todo[number::jobs]:
                if mutant.tests not in sound:
                    outcome, by = run_tests(folder, mutant.tests, 4 * timeout_s)
                    if outcome != SURVIVED:
                        raise RuntimeError(f"{' '.join(mutant.tests)}: {outcome} without any mutant ({by})")
                    sound.add(mutant.tests)
                started = time.monotonic()
                known[key] = found = try_one(mutant, folder, timeout_s)
                found["seconds"] = f"{time.monotonic() - started:.0f}"
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


def latest(known: dict[str, dict[str, str]]) -> dict[tuple[str, str, str], str]:
    """What was said last of each broken line, whatever the bytes were."""
    return {(row["file"], row["old"], row["new"]): row["outcome"] for row in known.values()}


def most_wanted(todo: list[tuple[str, Mutant]], known: dict[str, dict[str, str]]) -> list[tuple[str, Mutant]]:
    """First what survived before, then what was never tried, then what is tried again."""
    before, order = latest(known), [SURVIVED, None, LATE, NOTICED]
    return sorted(todo, key=lambda pair: order.index(before.get(pair[1].what)))


def table(results: Path, since: str | None = None) -> str:
    """Markdown: per room how many lines there are, what the tests said of each, and each survivor's explanation.

    What was tried before the file or one of its tests changed is counted apart, as it was last.
    """
    known, mutants = read_results(results), read_mutants(since=since)
    before = latest(known)
    rows, survivors = [], []
    for room in [*dict.fromkeys(one.room for one in mutants), "all"]:
        ours = [one for one in mutants if room in (one.room, "all")]
        tried = [(one, known[one.key]["outcome"]) for one in ours if one.key in known]
        earlier = [before[what] for one in ours if one.key not in known and (what := one.what) in before]
        counts = [sum(outcome == word for _, outcome in tried) for word in (NOTICED, LATE, SURVIVED)]
        counts += [earlier.count(NOTICED), earlier.count(SURVIVED), len(ours) - len(tried) - len(earlier)]
        rows.append("| " + " | ".join(map(str, [room, len(ours), *counts])) + " |")
        survivors += [one for one, outcome in tried if outcome == SURVIVED and room != "all"]
    explained = [
        f"- `{one.file}`: `{one.old.strip()}` -> `{one.new.strip()}` ({one.why}): {one.equivalent or 'not explained'}"
        for one in survivors
    ]
    head = ["room", "lines", "noticed", "never ended", "survived", "noticed before", "survived before", "not tried"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows]
    return "\n".join([f"At commit {commit()}.", "", *lines, *([""] if explained else []), *explained])


def commit() -> str:
    """The commit of the tree, where nothing in it was changed since."""
    changed = git("status", "--porcelain", *PARTS[:4])
    return git("rev-parse", "--short=7", "HEAD").strip() + (" and changes since" if changed else "")


def write(page: Path, text: str, since: str | None) -> None:
    """Put ``text`` between the marks of ``page``; what is since a commit has marks of its own."""
    first, last = (mark.format(f" since {since}" if since else "") for mark in (BEGIN, END))
    before, begin, rest = page.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    assert begin and end, f"{page}: needs the lines {first} and {last}"
    page.write_text(f"{before}{first}\n\n{text}\n\n{last}{after}", encoding="utf-8")


def main() -> int:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--only", choices=sorted(path.stem for path in TABLES.glob("*.toml")))
    parser.add_argument("--since", help="a commit: what is new or changed since")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--random", type=int, default=0, help="so many lines that are drawn, in the tables' place")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--timeout-s", type=float, default=300)
    parser.add_argument("--write", type=Path, help="the page that the table is put into")
    words = parser.parse_args()
    if words.what == "table":
        print(text := table(words.results, words.since))
        if words.write:
            write(words.write, text, words.since)
        return 0
    if words.random:
        sample = random_mutants(words.random, words.seed, words.only)
    else:
        sample = read_mutants(words.only, words.since)[:: words.every]
    return run(sample, words.jobs, words.results, words.timeout_s)


if __name__ == "__main__":
    sys.exit(main())
