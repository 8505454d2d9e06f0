"""Where a run computed: versions, machine, commit, memory; for its record and for bug reports."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import resource
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from toolkit.errors import UserError, bytes_text
from toolkit.installation import __version__

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "hydra-core",
    "numpy",
    "safetensors",
    "scikit-learn",
    "av",
)


def package_versions() -> dict[str, str]:
    """Versions of Python, of the toolkit and of the packages that results depend on."""
    found = {"python": platform.python_version(), "toolkit": __version__}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def machine() -> dict[str, Any]:
    """Platform, processor and the number of cores that this process may use."""
    return {"platform": platform.platform(), "processor": processor(), "cores": cores()}


def git_commit() -> str | None:
    """The commit of the checkout, with -dirty where files differ; None for an installed package."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def processor() -> str:
    """The name of the processor, as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def cores() -> int:
    """How many cores this process may use: by its affinity, and by its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # "max 100000" where there is no quota
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(allowed, int(quota) // int(period)))
    return allowed


def memory_bytes() -> int:
    """What this machine has, or its container may use."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        return min(found, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return found


def check_fits(key: str, num: int, item_bytes: int) -> None:
    """Raises UserError where the numbers of ``num`` items at once are more than all of the memory."""
    has = memory_bytes()
    if num * item_bytes > has:
        raise UserError(
            f"{key}={num}: {bytes_text(num * item_bytes)} of numbers at once, and this machine has {bytes_text(has)} "
            f"of memory; give at most {has // item_bytes}, and far fewer where a network works on them"
        )


def check_side(key: str, side_px: int, pixel_bytes: int, num: int = 1) -> None:
    """Raises UserError where ``num`` square pictures of ``side_px`` pixels a side are more than all of the memory."""
    has, needs = memory_bytes(), num * side_px**2 * pixel_bytes
    if needs > has:
        what = "one picture" if num == 1 else f"{num} pictures"
        raise UserError(
            f"{key}={side_px}: {bytes_text(needs)} of numbers in {what}, and this machine has {bytes_text(has)} of "
            f"memory; give at most {math.isqrt(has // num // pixel_bytes)}, and far fewer where a network works on them"
        )


def peak_memory_mib() -> float:
    """The most memory that this process held."""
    scale = 1024 if platform.system() == "Linux" else 1024**2  # ru_maxrss: KiB on Linux, bytes on macOS
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale, 1)
