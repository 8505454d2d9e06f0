"""What `tests/device/run.sh` tries: one command a row, with the seconds that it may take."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

PYTHON = sys.executable
TOOLKIT = [PYTHON, "-m", "toolkit.cli"]
SMOKE = {
    "disco_smoke": "train-disco",
    "icg_smoke": "sample-icg",
    "grow_smoke": "grow-llm",
    "ivideogpt_smoke": "train-ivideogpt",
    "enhance_smoke": "enhance-video",
}
PARITY = ["tests/zoo/edm/test_parity.py", "tests/zoo/world/test_parity.py", "tests/zoo/video/test_parity.py"]
BENCHES = {  # whose peers are installed packages or our own other ways
    "disco": ["diffusers", "size_px=32", "width=64", "batch_size=64"],
    "stacking": ["trainer", "layers=6", "width=256", "mlp=704", "heads=4", "context=256"],
    "icg": ["native", "network=unet", "num_steps=5"],
    "ivideogpt": ["full", "tasks=generate", "num_future=3"],
    "venhancer": ["one_by_one"],
}
SMALL = {  # a rehearsal shows that the rows run, not how fast
    "disco": ["size_px=8", "width=32", "batch_size=2", "num_steps=1", "sampling_steps=2"],
    "stacking": ["layers=1", "width=32", "mlp=64", "heads=2", "context=32", "batch_size=2", "num_steps=1"],
    "icg": ["batch_size=1", "num_steps=2"],
    "ivideogpt": ["size=tiny", "num_future=2"],
    "venhancer": ["frames=2", "rows=10", "columns=8"],
}
SMOKE_S, PARITY_S, COMPILE_S, BENCH_S = 60, 60, 120, 60
REHEARSAL = 10  # times as long: a processor is slower, and often busy


@dataclass(frozen=True)
class Row:
    """``group``: what it shows. ``alone``: nothing else runs beside it. ``out``: a benchmark's JSON; ``peer`` in it."""

    name: str
    group: str
    command: list[str]
    limit_s: float
    environment: dict[str, str] = field(default_factory=dict)
    alone: bool = False
    out: Path | None = None
    peer: str = ""


def rows(device: str, scratch: Path) -> list[Row]:
    """All rows on ``device``, a device of torch; what they write goes under ``scratch``."""
    slower = REHEARSAL if device == "cpu" else 1
    found = [*_smoke(device, scratch), *_parity(device), *_compiled(device, scratch), *_benches(device, scratch)]
    return [Row(**{**vars(row), "limit_s": row.limit_s * slower}) for row in found]


def _job(preset: str, device: str, scratch: Path, *words: str) -> list[str]:
    folder = scratch / "-".join([preset, *words]).replace("=", "_")
    return [SMOKE[preset], f"experiment={preset}", f"device={device}", f"hydra.run.dir={folder}", *words]


def _smoke(device: str, scratch: Path) -> list[Row]:
    return [
        Row(
            f"{preset}, {precision}",
            "smoke",
            [*TOOLKIT, *_job(preset, device, scratch, f"precision={precision}")],
            SMOKE_S,
        )
        for precision in ("fp32", "bf16")
        for preset in SMOKE
    ]


def _parity(device: str) -> list[Row]:
    command = [PYTHON, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *PARITY]
    kinds = ("fp32", "bf16") if device == "cpu" else ("fp32", "tf32", "bf16")
    return [
        Row(
            f"official networks, {kind}",
            "parity",
            command,
            PARITY_S,
            {"TOOLKIT_TEST_DEVICE": device, "TOOLKIT_TEST_PRECISION": kind},
        )
        for kind in kinds
    ]


def _compiled(device: str, scratch: Path) -> list[Row]:
    torchrun = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "-m", "toolkit.cli"]
    return [
        Row(
            "disco_smoke, compile",
            "compile",
            [*TOOLKIT, *_job("disco_smoke", device, scratch, "compile=true")],
            COMPILE_S,
        ),
        Row(
            "grow_smoke, compile",
            "compile",
            [*TOOLKIT, *_job("grow_smoke", device, scratch, "compile=true")],
            COMPILE_S,
        ),
        Row("grow_smoke, torchrun of one", "ddp", [*torchrun, *_job("grow_smoke", device, scratch, "seed=1")], SMOKE_S),
        Row(
            "disco_smoke, torchrun of one", "ddp", [*torchrun, *_job("disco_smoke", device, scratch, "seed=1")], SMOKE_S
        ),
    ]


def _benches(device: str, scratch: Path) -> list[Row]:
    found = []
    for name, (peer, *words) in BENCHES.items():
        out = scratch / f"bench_{name}.json"
        words = [*words, "num_rounds=3", *([*SMALL[name], "num_rounds=1"] if device == "cpu" else [])]
        command = [*TOOLKIT, "bench", name, f"device={device}", f"out={out}", *_last_of_each(words)]
        found.append(Row(f"bench {name}, ours / {peer}", "timings", command, BENCH_S, alone=True, out=out, peer=peer))
    return found


def _last_of_each(words: list[str]) -> list[str]:
    """Each key once, with its last value."""
    return [f"{key}={value}" for key, value in dict(word.split("=", 1) for word in words).items()]
