"""A plan as tables: one column a stage, one row a quantity."""

from __future__ import annotations

from typing import Any

from toolkit.plan.estimate import GIB
from toolkit.show.table import Table

MEMORY = {
    "weights": "weights",
    "gradients": "gradients",
    "moments": "optimiser's moments",
    "averages": "averaged weights",
    "activations": "activations",
    "exchange": "exchange buffers",
    "peak": "at its peak",
}


def tables(plan: dict[str, Any]) -> list[Table]:
    """The plan on a terminal."""
    stages, device = plan["stages"], plan["devices"]
    names = [stage["name"] for stage in stages]
    title = f"{plan['command']} on {device['count']} x {device['name']}"
    room = plan["assumptions"]["usable_memory"] * device["memory_gib"]
    return [
        Table(title, ["", *names], _columns(stages, _work), _how(plan["assumptions"]["time"])),
        Table(
            "memory per device, GiB",
            ["", *names],
            _columns(stages, lambda stage: _memory(stage, room)),
            f"{room:.3g} of {device['memory_gib']:g} GiB count as usable; activations are freed as gradients come",
        ),
        Table("whole training", ["", *names, "sum"], _total(plan), " ".join(_notes(stages))),
    ]


def _how(time: str | dict[str, str]) -> str:
    return time if isinstance(time, str) else "; ".join(f"{stage}: {how}" for stage, how in time.items())


def _columns(stages: list[dict[str, Any]], rows: Any) -> list[list[Any]]:
    """Rows of (what, one value a stage)."""
    columns = [rows(stage) for stage in stages]
    return [[what, *(column[what] for column in columns)] for what in columns[0]]


def _work(stage: dict[str, Any]) -> dict[str, Any]:
    return {
        "parameters": stage["parameters"],
        "of them trained": stage["trained"],
        "batch": f"{stage['batch_size']} {stage['item']}",
        "micro-batch": stage["micro_batch_size"],
        "passes per step": stage["passes"],
        "largest micro-batch, activations kept": _or_none(stage["largest_micro_batch"]["kept"]),
        "largest micro-batch, recomputed": _or_none(stage["largest_micro_batch"].get("recomputed", "-")),
        "activation checkpointing": "yes" if stage["checkpointing"] else "no",
        "TFLOP per step": _rounded(stage["flops_per_step"] / 1e12),
        "exchanged per step and device, GB": _rounded(stage["exchanged"] / 1e9),
        "seconds per step": _rounded(stage["step_s"]),
        "of them waiting for others": _rounded(stage["exposed_exchange_s"]),
        "share of peak FLOP/s (MFU)": f"{stage['utilisation']:.0%}",
    }


def _memory(stage: dict[str, Any], room: float) -> dict[str, Any]:
    rows: dict[str, Any] = {word: _rounded(stage["memory"][key] / GIB) for key, word in MEMORY.items()}
    kept, again = stage["activations"]["kept"], stage["activations"].get("recomputed")
    rows["activations, kept"] = _rounded(kept / GIB)
    rows["activations, recomputed"] = "-" if again is None else _rounded(again / GIB)
    rows["fits"] = "yes" if stage["fits"] else f"no: {room:.3g} there"
    return rows


def _total(plan: dict[str, Any]) -> list[list[Any]]:
    stages, total = plan["stages"], plan["total"]
    steps = [stage["num_steps"] * stage["repeats"] for stage in stages]
    return [
        ["steps", *steps, sum(steps)],
        ["hours", *(_rounded(stage["total_s"] / 3600) for stage in stages), _rounded(total["time_s"] / 3600)],
        ["device-hours", *(_rounded(stage["device_hours"]) for stage in stages), _rounded(total["device_hours"])],
        ["one checkpoint, GB", *(_rounded(stage["checkpoint_bytes"] / 1e9) for stage in stages), ""],
        ["disk, GB", *(_rounded(stage["disk_bytes"] / 1e9) for stage in stages), _rounded(total["disk_bytes"] / 1e9)],
    ]


def _notes(stages: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(f"{note}." for stage in stages for note in stage["notes"]))


def _or_none(value: Any) -> Any:
    return "none fits" if value is None else value


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
