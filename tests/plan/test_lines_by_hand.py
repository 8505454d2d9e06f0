"""A plan's sums, its pages and its devices, from stages whose numbers are told."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from toolkit.plan import command, devices, estimate, measured, pages
from toolkit.plan.devices import Cluster, Device
from toolkit.plan.estimate import GIB, Pace
from toolkit.plan.trace import Trace, Work
from toolkit.runs.stage_shape import StageShape

CARD = Device("a", {"fp32": 10.0, "tf32": 20.0, "bf16": 40.0}, 1.0, 1000.0, 50.0, 5.0, 8, 0.5, 0.8, 4.0)


def seen(micro):
    return Trace(
        parameters=1000, trained=600, moments=1200, weights=4000, stored=2400, gradients=2400, averages=2000,
        activations=700 * micro, passing=3000, flops=10**9 * micro, work=Counter({Work("bf16", 10**9, 8): micro}),
        unit=100, outside=50,
    )  # fmt: skip


def shape(**changes):
    keys = {"name": "a", "item": "items", "num_steps": 10, "batch_size": 64, "build": None} | changes
    return StageShape(**keys)


def test_a_plan_counts_the_products_of_all_passes_on_all_devices_beside_their_peak(monkeypatch):
    """16 items a device in passes of 4: four passes of 4 GFLOP on four devices, of 40 TFLOP/s each in bfloat16."""
    monkeypatch.setattr(estimate, "_can_recompute", lambda shape: True)
    one = shape(precision="bf16", micro_batch_size=4, cache_bytes=77)
    tracer = lambda shape, micro, recomputed, accumulating: seen(micro)  # noqa: E731
    found = estimate.plan_stage(one, Cluster(CARD, 4), tracer, 2)
    assert (found.micro_batch_size, found.passes, found.flops_per_step) == (4, 4, 64 * 10**9)
    assert found.utilisation == pytest.approx(64e9 / (found.step_s * 4 * 40e12))
    assert found.activations == {"kept": 2800, "recomputed": 2800}
    assert found.total_s == pytest.approx(10 * found.step_s)
    assert found.device_hours == pytest.approx(4 * found.total_s / 3600)
    assert found.checkpoint_bytes == 2400 + 4 * 1200 + 2000
    assert found.disk_bytes == 3 * found.checkpoint_bytes + 2400 + 77
    alone = estimate.plan_stage(
        shape(precision="bf16", micro_batch_size=4, replicated=True), Cluster(CARD, 4), tracer, 2
    )
    assert alone.flops_per_step == 64 * 10**9 and alone.passes == 16
    assert alone.utilisation == pytest.approx(64e9 / (alone.step_s * 40e12))


def planned(name, **changes):
    told = {
        "name": name, "item": "clip", "parameters": 10, "trained": 8, "num_steps": 100, "repeats": 1, "batch_size": 64,
        "micro_batch_size": 4, "passes": 2, "checkpointing": False, "fits": True, "exchanged": 3 * 10**9,
        "largest_micro_batch": {"kept": 5, "recomputed": None}, "activations": {"kept": 2 * GIB, "recomputed": GIB},
        "flops_per_step": 10**12, "step_s": 2.0, "exposed_exchange_s": 0.5, "total_s": 7200.0, "device_hours": 16.0,
        "utilisation": 0.25, "checkpoint_bytes": 4 * 10**9, "disk_bytes": 9 * 10**9, "notes": ["so"],
        "memory": dict.fromkeys(pages.MEMORY, GIB),
    } | changes  # fmt: skip
    return SimpleNamespace(**told, as_dict=lambda: told)


def make(monkeypatch, name, **changes):
    """A plan of two stages on ``name``; and what was handed on."""
    calls, tracers = [], []

    def plan_stage(shape, cluster, tracer, keep_checkpoints, pace):
        calls.append((keep_checkpoints, pace))
        return planned(shape.name, **(changes if shape.name == "b" else {}))

    monkeypatch.setattr(command, "plan_stage", plan_stage)
    monkeypatch.setattr(command, "Tracer", lambda fused: tracers.append(fused))
    device = Device(name, {"fp32": 10.0, "tf32": 10.0, "bf16": 10.0}, 40.0, 1000.0)
    found = command.make_plan(
        SimpleNamespace(name="train"),
        SimpleNamespace(keep_checkpoints=3),
        [shape(), shape(name="b")],
        Cluster(device, 8),
    )
    return found, calls, tracers


def test_a_whole_training_is_the_sum_of_its_stages_and_fits_where_each_one_does(monkeypatch):
    found, calls, tracers = make(monkeypatch, "H", repeats=3, num_steps=10, total_s=60.0, device_hours=0.5, fits=False)
    assert found["total"] == {
        "time_s": 7260.0, "device_hours": 16.5, "flops": 130 * 10**12, "disk_bytes": 18 * 10**9, "fits": False,
    }  # fmt: skip
    assert calls == [(3, None)] * 2 and tracers == [True]
    assert make(monkeypatch, "here")[2] == [False]  # as this processor computes
    assert make(monkeypatch, "H")[0]["total"]["fits"] is True


def test_the_pages_tell_gib_of_memory_gb_of_disk_and_hours(monkeypatch):
    found = make(monkeypatch, "H", repeats=3, num_steps=10, total_s=1800.0, fits=False)[0]
    work, memory, total = pages.tables(found)
    rows = {row[0]: row[1:] for table in (work, memory, total) for row in table.rows}
    assert rows["exchanged per step and device, GB"] == [3.0, 3.0] and rows["TFLOP per step"] == [1.0, 1.0]
    assert rows["activations, kept"] == [2.0, 2.0] and rows["activations, recomputed"] == [1.0, 1.0]
    assert rows["at its peak"] == [1.0, 1.0]
    assert rows["steps"] == [100, 30, 130] and rows["hours"] == [2.0, 0.5, 2.5]
    assert rows["one checkpoint, GB"] == [4.0, 4.0, ""] and rows["disk, GB"] == [9.0, 9.0, 18.0]
    assert rows["fits"] == ["yes", f"no: {0.92 * 40:.3g} there"]
    assert rows["largest micro-batch, recomputed"] == ["none fits", "none fits"]


def test_half_precision_is_planned_as_the_other_sixteen_bits_with_a_note(monkeypatch):
    stages = [shape(precision="fp16", notes=("x",)), shape(name="b", precision="fp32")]
    monkeypatch.setattr(command.importlib, "import_module", lambda name: SimpleNamespace(stages=lambda config: stages))
    found = command.shapes_of(SimpleNamespace(room="toolkit.x", name="x"), None)
    assert [one.precision for one in found] == ["bf16", "fp32"] and found[0].notes == ("x", command.FP16)
    assert found[1] == stages[1]


def test_devices_are_assumed_to_reach_six_tenths_of_products_and_unsaid_types_are_as_fast_as_float32(tmp_path):
    (tmp_path / "d.yaml").write_text("NEW: {tflops: {fp32: 10, bf16: 40}, memory_gib: 24, bandwidth_gb_s: 900}")
    made = devices.read_table(tmp_path / "d.yaml")["NEW"]
    assert made.tflops == {"fp32": 10, "tf32": 10, "bf16": 40}
    assert (made.product_efficiency, made.memory_efficiency, made.launch_us) == (0.6, 0.75, 5.0)


def test_a_processors_rate_is_told_in_tflops_and_of_two_gpus_of_a_name_the_one_of_its_memory_is_taken(monkeypatch):
    monkeypatch.setattr(devices, "cores", lambda: 4)
    monkeypatch.setattr(devices, "_clock_ghz", lambda: 2.5)
    monkeypatch.setattr(devices, "_operations_a_cycle", lambda: 32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.here({}).tflops["fp32"] == pytest.approx(0.32)
    for size, expected in ((79.1, "A100-80GB"), (39.4, "A100-40GB")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4")
        made = SimpleNamespace(total_memory=size * GIB)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number, made=made: made)
        known = {name: Device(name, CARD.tflops, gib, 1.0) for name, gib in (("A100-40GB", 40.0), ("A100-80GB", 80.0))}
        assert devices.here(known).name == expected


def test_what_is_measured_takes_a_quarter_of_the_memory_and_two_seconds_by_the_model(monkeypatch):
    rooms, sizes = [], []

    def largest(shape, cluster, tracer):
        rooms.append(cluster.device.memory_gib)
        return 64

    monkeypatch.setattr(measured, "largest_micro_batch", largest)
    monkeypatch.setattr(measured, "modelled_step_s", lambda shape, micro, cluster, tracer: micro / 10)
    took = measured.Took(1.0, 0.5)
    monkeypatch.setattr(measured, "measure", lambda shape, given: sizes.extend(given) or dict.fromkeys(given, took))
    monkeypatch.setattr(measured, "pace_of", lambda *_: Pace(1.0, 1.0, 1.0))
    one = shape()
    _, said = measured.pace_here(one, one, CARD, None)
    assert rooms == [0.25] and sizes == [4, 16]  # 6.4 s, 3.2 s, 1.6 s; and a quarter of it
    assert said.startswith("measured here: 1.5 s a step of 16; steps of 4 and of 16 items")


def test_launches_and_work_are_what_explains_two_sizes(monkeypatch):
    """Half a second for launches of 0.1 s by the model and 0.2 s an item for work of 0.05: 5 and 4 times as long."""
    tracer = lambda shape, micro, recomputed, accumulating: SimpleNamespace(work=micro)  # noqa: E731
    monkeypatch.setattr(measured, "pass_parts_s", lambda work, device: (0.1, 0.05 * work))
    monkeypatch.setattr(measured, "update_s", lambda *_: 0.25)
    took = {size: measured.Took(0.5 + 0.2 * size, 0.75) for size in (2, 8)}
    found = measured.pace_of(shape(), took, Cluster(CARD, 1), tracer)
    assert (found.launches, found.work, found.update) == pytest.approx((5.0, 4.0, 3.0))
