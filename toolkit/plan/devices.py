"""Devices by name: what they can do, and what share of it training is assumed to reach."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from toolkit.errors import UserError, brief, did_you_mean
from toolkit.plain_files import read_yaml
from toolkit.runs.machine import cores, memory_bytes, processor

TABLE = Path(__file__).parent / "devices.yaml"
HERE = "here"
DTYPES = ("fp32", "tf32", "bf16")
CPU_GHZ, CPU_BANDWIDTH_GB_S = 2.5, 10.0  # of a processor that does not say its clock; of one core's share of memory


@dataclass(frozen=True)
class Device:
    """One kind of device.

    tflops: 10^12 operations a second by type; tf32 is for float32 convolutions. memory_gib: what it holds.
    bandwidth_gb_s: of its memory. link_gb_s, network_gb_s: to the others of its node and to other nodes, each way, in
    10^9 bytes a second. per_node: devices of a node. product_efficiency, memory_efficiency: the shares of the peak that
    matrix products, and all else, are assumed to reach. launch_us: the least that an operation takes.
    """

    name: str
    tflops: dict[str, float] = field(hash=False)
    memory_gib: float
    bandwidth_gb_s: float
    link_gb_s: float = 32.0
    network_gb_s: float = 12.5
    per_node: int = 8
    product_efficiency: float = 0.6
    memory_efficiency: float = 0.75
    launch_us: float = 5.0

    @property
    def assumed(self) -> str:
        """The assumptions in one line."""
        return (
            f"matrix products at {self.product_efficiency:.0%} of peak, the rest at {self.memory_efficiency:.0%} of "
            f"the memory's bandwidth, {self.launch_us:g} us an operation at least"
        )


@dataclass(frozen=True)
class Cluster:
    """``count`` devices of a kind."""

    device: Device
    count: int

    @property
    def exchange_gb_s(self) -> float:
        """The slowest link that an exchange among all takes, each way."""
        return self.device.link_gb_s if self.count <= self.device.per_node else self.device.network_gb_s

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"count": self.count, **asdict(self.device)}


def parse(text: str, file: str | Path | None = None) -> Cluster:
    """``8xH100``, ``H100`` or ``here``. Raises UserError for an unknown device, or a ``file`` that is no table."""
    found = re.fullmatch(r"(?:(\d{1,9})x)?(\S+)", text.strip())
    if not found or int(found[1] or 1) < 1:
        raise UserError(f"--devices {text}: write a number and a device, as in 8xH100")
    known = read_table(TABLE) | (read_table(file) if file else {})
    name = next((one for one in known if one.lower() == found[2].lower()), found[2])
    if name == HERE and HERE not in known:
        device = here(known)
    elif name in known:
        device = known[name]
    else:
        names = [*known, HERE]
        raise UserError(
            f"--devices {text}: {did_you_mean(name, names)}known are {', '.join(names)}; --device-file adds one"
        )
    return Cluster(device, int(found[1] or 1))


def read_table(path: str | Path) -> dict[str, Device]:
    """The devices of a YAML file. Raises UserError naming the file, the device and the key."""
    try:
        rows = read_yaml(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({brief(error, 120)})") from None
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise UserError(f"{path}: must map names of devices to their keys, as in NEW: {{tflops: {{fp32: 10}}, ...}}")
    return {str(name): _device(path, str(name), row) for name, row in rows.items()}


def _device(path: str | Path, name: str, row: dict[str, Any]) -> Device:
    known = [one.name for one in fields(Device)][1:]
    for key in row:
        if key not in known:
            raise UserError(f"{path}: {name}.{key}: {did_you_mean(str(key), known)}keys are {', '.join(known)}")
    for key in ("tflops", "memory_gib", "bandwidth_gb_s"):
        if key not in row:
            raise UserError(f"{path}: {name}.{key}: must be given")
    rates = row["tflops"]
    if not isinstance(rates, dict) or not set(rates) <= set(DTYPES) or "fp32" not in rates:
        raise UserError(f"{path}: {name}.tflops: must map fp32 and, where they are faster, tf32 and bf16 to a number")
    numbers = [
        *((f"tflops.{key}", value) for key, value in rates.items()),
        *((k, v) for k, v in row.items() if v is not rates),
    ]
    for key, value in numbers:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise UserError(f"{path}: {name}.{key}={value}: must be a number greater than 0")
    return Device(name, **(row | {"tflops": dict.fromkeys(DTYPES, rates["fp32"]) | rates}))


def here(known: dict[str, Device]) -> Device:
    """This machine: its GPU where it has one that the table knows, else its processor's cores as one device.

    Raises UserError for a GPU that the table does not know.
    """
    import torch

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_name()
        words = gpu.upper().replace(" ", "")
        size = torch.cuda.get_device_properties(0).total_memory / 2**30
        fitting = [one for name, one in known.items() if name.split("-")[0].upper() in words]
        if not fitting:
            raise UserError(f"--devices here: a {gpu}, which the table does not know; add it by --device-file")
        return min(fitting, key=lambda one: abs(one.memory_gib - size))
    rate = cores() * _clock_ghz() * _operations_a_cycle() / 1000
    return Device(
        HERE,
        dict.fromkeys(DTYPES, rate),
        memory_bytes() / 2**30,
        cores() * CPU_BANDWIDTH_GB_S,
        link_gb_s=CPU_BANDWIDTH_GB_S,
        network_gb_s=1.0,
        per_node=1,
    )


def _clock_ghz() -> float:
    found = re.search(r"@ ([\d.]+)GHz", processor())
    return float(found[1]) if found else CPU_GHZ


def _operations_a_cycle() -> int:
    """float32 operations of a core's two multiply-add units."""
    flags = Path("/proc/cpuinfo")
    text = flags.read_text(encoding="utf-8") if flags.exists() else ""
    return 64 if "avx512f" in text else 32 if "avx2" in text else 16
