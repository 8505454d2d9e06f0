"""Faults of ``train-toy``: signals, disks, processes, clocks, terminals."""

from __future__ import annotations

import functools
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.faults.shared import (
    SLOW,
    TRIALS,
    WORDS,
    Told,
    ending,
    lost,
    mounted,
    read_only,
    run,
    said,
    toolkit,
    trial,
    wait_for,
)
from tests.toyroom.harness import finish, record, result, start

# -- signals ---------------------------------------------------------------------------------------------------------


def signalled(name: str, place: str) -> Told:
    """``place``: a file whose appearance says that the run has come so far; empty: while Hydra composes."""
    process = start(*SLOW, "hydra.run.dir=one", prepare=_as_from_a_terminal)
    if place:
        wait_for(f"one/{place}")
        time.sleep(0.15)
    else:
        wait_for("ready")
        time.sleep(random.Random(name).uniform(0.0, 0.3))
    os.kill(process.pid or 0, getattr(signal, name))
    code = finish(process, timeout_s=300)[0] or 0
    step = record("one")["stages"].get("train", {}).get("step", 0) if Path("one/run.json").exists() else 0
    why = " TRACEBACK" if "Traceback" in said() else ""
    return Told(f"{ending(code)} at step {step}{why}", lost())


def _as_from_a_terminal() -> None:
    """A shell's background jobs and nohup ignore what a terminal sends."""
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Path("ready").touch()


ASKS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
for _name in (*ASKS, "SIGQUIT", "SIGABRT", "SIGKILL"):
    TRIALS[f"{_name} while it trains"] = functools.partial(signalled, _name, "metrics.jsonl")
for _name in (*ASKS, "SIGKILL"):
    TRIALS[f"{_name} while Hydra composes"] = functools.partial(signalled, _name, "")
for _name in ("SIGTERM", "SIGKILL"):
    TRIALS[f"{_name} as the model is written"] = functools.partial(signalled, _name, "model/net/model.safetensors")
    TRIALS[f"{_name} as the folder is made"] = functools.partial(signalled, _name, ".hydra/config.yaml")


@trial("SIGSTOP for two seconds, SIGCONT")
def stopped() -> Told:
    process = start(*SLOW, "hydra.run.dir=one")
    wait_for("one/metrics.jsonl")
    os.kill(process.pid or 0, signal.SIGSTOP)
    time.sleep(2)
    os.kill(process.pid or 0, signal.SIGCONT)
    return Told(ending(finish(process, timeout_s=300)[0] or 0), lost())


# -- disks -----------------------------------------------------------------------------------------------------------


@trial("the disk is full at a checkpoint")
def full_disk() -> Told:
    words = [*WORDS, "ballast=60000"]
    with mounted("disk", "700k"):
        code = run(*words, folder="disk/one")
        happened = f"{ending(code)}: {said()[:110]}"
        subprocess.run(["mount", "-o", "remount,size=50m", "disk"], check=True)
        return Told(happened, lost(words, "disk/one"))


@trial("files may grow to 100 kB only")
def small_files() -> Told:
    words = [*WORDS, "ballast=60000"]
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000))
    code = run(*words, prepare=limit)
    return Told(f"{ending(code)}: {said()[:110]}", lost(words))


@trial("a finished run on a read-only disk: show, compare, report, resume, the command again")
def finished_read_only() -> Told:
    assert run(*WORDS) == 0
    before = result("one")
    asked = [("runs", "show", "one"), ("runs", "compare", "one", "one"), ("runs", "list", "one")]
    asked += [("report", "one", "--out", "page.html")]
    with read_only("one"):
        ended = [(words[-1] if words[0] == "report" else words[1], *toolkit(*words)) for words in asked]
        again = run(*WORDS)
    bad = [f"{name}: {text.strip()[-80:]}" for name, code, text in ended if code or "Traceback" in text]
    return Told(
        f"all readers read; again: {ending(again)} ({said()[-40:]})", "; ".join(bad) or _same(before), len(asked) + 1
    )


def _same(before: tuple[bytes, bytes]) -> str:
    return "nothing" if result("one") == before else "the results"


@trial("the folder is deleted while it trains")
def deleted() -> Told:
    process = start(*SLOW, "hydra.run.dir=one")
    wait_for("one/metrics.jsonl")
    shutil.rmtree("one")
    code = finish(process, timeout_s=300)[0] or 0
    half = "a half folder came back" if Path("one").exists() else "nothing"
    return Told(f"{ending(code)}: {said()[-70:]}", half)


@trial("a name of 300 letters, and one of 5000")
def long_names() -> Told:
    codes = [run(*WORDS, folder="a" * length) for length in (300, 5000)]
    return Told(
        f"{', '.join(map(ending, codes))}: {said()[-60:]}", "nothing" if codes == [2, 2] else "no clear refusal", 2
    )


@trial("all checkpoints are damaged")
def damaged() -> Told:
    process = start(*SLOW, "hydra.run.dir=one")
    wait_for("one/checkpoints/train")
    time.sleep(0.6)
    process.kill()
    finish(process)
    files = list(Path("one/checkpoints/train").glob("*.pt"))
    for path in files:
        path.write_bytes(path.read_bytes()[:-100] + b"x" * 100)
    return Told(f"{len(files)} damaged: said, and begun anew", lost())


# -- processes -------------------------------------------------------------------------------------------------------


@trial("two processes resume one run at once")
def twice() -> Told:
    first = start(*SLOW, "hydra.run.dir=one")
    wait_for("one/metrics.jsonl")
    first.kill()
    finish(first)
    codes = finish(*(start(*SLOW, "hydra.run.dir=one") for _ in range(2)), timeout_s=300)
    return Told(" and ".join(ending(code or 0) for code in codes), lost(), 2)


@trial("two sweeps in one folder at once")
def two_sweeps() -> Told:
    words = ["-m", "seed=1,2", *WORDS, "hydra.sweep.dir=sweep"]
    codes = finish(*(start(*words) for _ in range(2)), timeout_s=600)
    code = finish(start(*words), timeout_s=600)[0] or 0
    statuses = [record(f"sweep/{number}")["status"] for number in range(2)]
    return Told(
        f"{' and '.join(ending(one or 0) for one in codes)}; again: {ending(code)}",
        "nothing" if statuses == ["done", "done"] and code == 0 else str(statuses),
        2,
    )


@trial("a joblib worker is killed, as for want of memory")
def worker_killed() -> Told:
    words = ["-m", "seed=1,2,3", *SLOW, "hydra.sweep.dir=sweep", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = start(*words)
    wait_for("sweep/0/metrics.jsonl")
    import psutil

    workers = [one for one in psutil.Process(process.pid).children(recursive=True) if "loky" in " ".join(one.cmdline())]
    busy = [one for one in workers if "popen_loky" in " ".join(one.cmdline())]
    busy[0].kill()
    code = finish(process, timeout_s=600)[0] or 0
    happened = f"{ending(code)}: {said()[:110]}"
    again = finish(start(*words), timeout_s=600)[0] or 0
    statuses = {record(f"sweep/{number}")["status"] for number in range(3)}
    return Told(happened, "nothing" if again == 0 and statuses == {"done"} else f"again: {again}, {statuses}")


@trial("a clock that jumps a day to and fro")
def clock() -> Told:
    code = run(*WORDS, prepare=_jumping_clock)
    wall = record("one")["wall_time_s"]
    return Told(f"{ending(code)}, wall time {'right' if 0 < wall < 600 else f'{wall} s'}", lost())


def _jumping_clock() -> None:
    real, dice = time.time, random.Random(0)
    time.time = lambda: real() + dice.choice((-86400, 0, 86400))


@trial("twenty files may be open")
def few_files() -> Told:
    code = run(*WORDS, prepare=functools.partial(resource.setrlimit, resource.RLIMIT_NOFILE, (20, 20)))
    return Told(f"{ending(code)}: {said()[-70:]}", lost())


# -- what is printed -------------------------------------------------------------------------------------------------


def printing_to(where: str) -> Told:
    """``where``: closed, full, or a reader that leaves after a line."""
    process = start(*WORDS, "hydra.run.dir=one", prepare=functools.partial(_redirect, where))
    code = finish(process, timeout_s=300)[0] or 0
    status = record("one")["status"]
    return Told(f"{ending(code)}, run.json says {status}", lost() if status == "done" else status)


def _redirect(where: str) -> None:
    if where == "closed":
        for stream in (1, 2):
            os.close(stream)
        return
    if where == "full":
        target = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, target = os.pipe()
        os.close(reading)
    for stream in (1, 2):
        os.dup2(target, stream)


for _where, _words in (
    ("closed", "is closed"),
    ("full", "is a full disk"),
    ("gone", "has a reader that left (| head)"),
):
    TRIALS[f"standard output {_words}"] = functools.partial(printing_to, _where)


@trial("Rich markup in the names of folders and in errors")
def markup() -> Told:
    bad = []
    for name in ("[red] run", "a [/] b", "[bold]x[/bold]", ":smile:"):
        code = run(*WORDS, folder=name)
        shown = Path("output.txt").read_text()
        if code or name not in shown:
            bad.append(f"{name}: {ending(code)}")
        code, printed = toolkit("runs", "show", name)
        if code or name not in printed.replace("\n", ""):
            bad.append(f"runs show {name}: {ending(code)}")
        if run("data_path='[/] x'", folder="refused") != 2 or "[/] x" not in said():
            bad.append(f"error: {said()}")
    return Told("printed as they are", "; ".join(bad) or "nothing", 12)
