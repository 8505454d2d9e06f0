"""Seconds, bytes and micro-batches of a stage from a trace whose numbers are told."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest

from toolkit.errors import UserError
from toolkit.plan import devices, estimate, measured
from toolkit.plan.devices import Cluster, Device
from toolkit.plan.estimate import (
    Pace,
    _choice,
    _exchanged,
    _memory,
    _step_s,
    _where,
    largest_micro_batch,
    pass_s,
    update_s,
)
from toolkit.plan.trace import Trace, Work
from toolkit.runs.stage_shape import StageShape

CARD = Device("a", {"fp32": 10.0, "tf32": 20.0, "bf16": 40.0}, 1.0, 1000.0, 50.0, 5.0, 8, 0.5, 0.8, 4.0)
SEEN = Trace(
    parameters=1000, trained=600, moments=1200, weights=4000, stored=2400, gradients=2400, averages=2000,
    activations=700, passing=3000, flops=10**9, work=Counter(), unit=100, outside=50,
)  # fmt: skip


def shape(**changes):
    keys = {"name": "a", "item": "items", "num_steps": 10, "batch_size": 64, "build": None} | changes
    return StageShape(**keys)


def test_an_operation_takes_its_arithmetic_or_its_memory_and_no_less_than_a_launch():
    """10 TFLOP/s at a half, 1000 GB/s at four fifths, 4 us a launch."""
    product, copy, tiny = Work("fp32", 10**9, 8), Work("fp32", 0, 16 * 10**8), Work("bf16", 1000, 1000)
    busy = 10**9 / 5e12
    traffic = 16e8 / 8e11
    assert pass_s(Counter({product: 3}), CARD) == pytest.approx(3 * busy)
    assert pass_s(Counter({copy: 2}), CARD) == pytest.approx(2 * traffic)
    assert pass_s(Counter({tiny: 5}), CARD) == pytest.approx(5 * 4e-6)
    told = Pace(launches=2.0, work=3.0, update=9.0)
    assert pass_s(Counter({product: 3, tiny: 5}), CARD, told) == pytest.approx(
        2 * 8 * 4e-6 + 3 * (3 * busy + 5 * 1000 / 8e11)
    )


def test_an_update_reads_and_writes_each_number_so_many_times():
    """Clipping three times what is trained, AdamW seven times; averages three times. FSDP shares them out."""
    rate = 8e11
    assert update_s(SEEN, shape(), Cluster(CARD, 4)) == pytest.approx((10 * 4 * 600 + 3 * 2000) / rate)
    assert update_s(SEEN, shape(sharded=True), Cluster(CARD, 4)) == pytest.approx((10 * 4 * 600 + 3 * 2000) / 4 / rate)


def test_an_exchange_hides_behind_the_backward_pass_of_the_last_micro_batch():
    """Two thirds of a pass are backward; with FSDP every pass exchanges, and hides as much."""
    seen = SimpleNamespace(
        **vars(SEEN) | {"work": Counter({Work("fp32", 10**9, 8): 10}), "trained": 10**8, "parameters": 2 * 10**8}
    )
    one = 10 * 10**9 / 5e12
    for sharded, passes in ((False, 1), (False, 4), (True, 4)):
        made, cluster = shape(sharded=sharded), Cluster(CARD, 8)
        compute = passes * one + update_s(seen, made, cluster)
        sent = 4 * 10**8 * 7 // 8
        exchange = (sent + 2 * passes * 4 * 2 * 10**8 * 7 // 8 if sharded else 2 * sent) / 50e9
        exposed = max(0.0, exchange - compute * 2 / 3 / (1 if sharded else passes))
        assert _step_s(made, seen, passes, cluster, None) == pytest.approx((compute + exposed, exposed))
    assert _step_s(shape(), seen, 1, Cluster(CARD, 8), None)[1] > 0
    pace = Pace(0.0, 2.0, 3.0)
    assert _step_s(shape(), seen, 2, Cluster(CARD, 1), pace)[0] == pytest.approx(
        2 * 2 * one + 3 * update_s(seen, shape(), Cluster(CARD, 1))
    )


@pytest.mark.parametrize("half", [False, True])
def test_bytes_that_a_device_sends_in_a_step(half):
    """DDP's ring twice the gradients; FSDP gathers weights forward and backward in every pass."""
    sharded = shape(sharded=True, half=half)
    assert _exchanged(shape(), SEEN, 3, 4) == 2 * 4 * 600 * 3 // 4
    size = 2 if half else 4
    assert _exchanged(sharded, SEEN, 3, 4) == 4 * 600 * 3 // 4 + 2 * 3 * size * 1000 * 3 // 4
    assert _exchanged(sharded, SEEN, 3, 1) == _exchanged(shape(replicated=True), SEEN, 3, 4) == 0


def test_memory_of_one_device_by_hand():
    plain = _memory(shape(), SEEN, 1, False)
    assert (plain.weights, plain.gradients, plain.moments, plain.averages, plain.exchange) == (
        4000,
        2400,
        4800,
        2000,
        0,
    )
    assert plain.peak == 4000 + 4800 + 2000 + 3000
    shared = _memory(shape(), SimpleNamespace(**vars(SEEN) | {"passing": 100}), 4, False)
    assert shared.exchange == 2400 and shared.peak == 4000 + 4800 + 2000 + 2400 + 2400  # gradients outlast the pass
    for accumulating, gradients in ((False, 4 * (150 + 100)), (True, 4 * 600)):
        spread = _memory(shape(sharded=True), SEEN, 4, accumulating)
        assert (spread.weights, spread.moments, spread.averages, spread.gradients) == (1000, 1200, 500, gradients)
        assert spread.exchange == 4 * (50 + 2 * 100) + 4 * 100
        assert spread.peak == (4000 + 4800) // 4 + 500 + gradients + spread.exchange + 3000
    half = _memory(shape(sharded=True, half=True), SEEN, 4, False)
    assert half.exchange == 2 * (50 + 2 * 100) + 4 * 100


def test_passes_are_of_equal_size_and_checkpointing_is_taken_where_nothing_else_fits():
    assert _choice(shape(), 64, {False: 30, True: 64}) == (22, False)  # three passes: 22, 22 and 20
    assert _choice(shape(), 64, {False: None, True: 40}) == (32, True)
    assert _choice(shape(), 64, {False: None, True: None}) == (1, False)
    assert _choice(shape(micro_batch_size=80), 64, {False: 30}) == (64, False)
    assert _choice(shape(checkpointing=True), 64, {False: 64, True: 64}) == (64, True)


def test_the_largest_micro_batch_is_found_on_a_line_and_traced_itself():
    """1000 bytes and 300 an item: of 0.92 of 100,000 the 303rd still fits."""
    asked = []

    def tracer(made, micro, checkpointing, accumulating):
        asked.append(micro)
        return SimpleNamespace(
            **vars(SEEN) | {"weights": 1000, "moments": 0, "averages": 0, "gradients": 0, "passing": 300 * micro}
        )

    card = Device(**{**vars(CARD), "memory_gib": 1e5 / 2**30})
    assert largest_micro_batch(shape(batch_size=1000), Cluster(card, 1), tracer) == 303 and set(asked) == {1000, 1, 303}
    asked.clear()
    assert largest_micro_batch(shape(batch_size=200), Cluster(card, 1), tracer) == 200 and set(asked) == {200}
    assert (
        largest_micro_batch(shape(), Cluster(Device(**{**vars(CARD), "memory_gib": 1200 / 2**30}), 1), tracer) is None
    )
    assert _where(1, 1300, 2, 1600, 92000.0) == 303
    assert estimate.USABLE == 0.92


def test_links_are_those_of_a_node_up_to_its_devices():
    assert [Cluster(CARD, count).exchange_gb_s for count in (1, 8, 9)] == [50.0, 50.0, 5.0]
    with pytest.raises(UserError, match="a batch of 64 items must be divisible by 5 devices"):
        estimate._share(shape(), Cluster(CARD, 5))
    assert (
        estimate._share(shape(), Cluster(CARD, 4)) == 16
        and estimate._share(shape(replicated=True), Cluster(CARD, 5)) == 64
    )


def test_a_processor_is_as_fast_as_its_cores_clock_and_units(monkeypatch, tmp_path):
    for flags, operations in (("sse avx2 avx512f", 64), ("avx2", 32), ("sse", 16)):
        (tmp_path / "cpuinfo").write_text(flags)
        monkeypatch.setattr(devices, "Path", lambda _: tmp_path / "cpuinfo")
        assert devices._operations_a_cycle() == operations
    monkeypatch.setattr(devices, "processor", lambda: "A CPU @ 3.10GHz")
    assert devices._clock_ghz() == 3.1


def test_the_shortest_of_the_steps_counts(monkeypatch):
    times = iter([9.0, 9.0, 3.0, 1.0, 5.0, 2.0, 8.0, 4.0, 6.0, 7.0])

    class Step:
        def __init__(self, _):
            pass

        def __call__(self, micro):
            return measured.Took(micro + next(times), 10.0)

    monkeypatch.setattr(measured, "RealStep", Step)
    found = measured.measure(None, [100, 200])
    assert {size: took.passes for size, took in found.items()} == {100: 101.0, 200: 204.0}
    assert math.isclose(found[100].update, 10.0)


def test_a_stage_that_is_repeated_takes_as_many_times_as_long(monkeypatch):
    """Two devices of 32 items each; ten steps three times; two checkpoints are kept and one is written."""
    for name, told in (("_can_recompute", False), ("_step_s", (0.5, 0.125)), ("largest_micro_batch", 32)):
        monkeypatch.setattr(estimate, name, lambda *_, told=told: told)
    cluster = Cluster(CARD, 2)
    memory = _memory(shape(repeats=3), SEEN, 2, False)
    made = estimate.plan_stage(shape(repeats=3, cache_bytes=7), cluster, lambda *_: SEEN, keep_checkpoints=2)
    checkpoint = SEEN.stored + 4 * SEEN.moments + SEEN.averages
    assert (made.num_steps, made.repeats, made.micro_batch_size, made.passes) == (10, 3, 32, 1)
    assert (made.step_s, made.exposed_exchange_s, made.total_s) == (0.5, 0.125, 0.5 * 10 * 3)
    assert made.device_hours == 15.0 * 2 / 3600 and made.utilisation == 2 * 10**9 / (0.5 * 2 * 10 * 1e12)
    assert (made.memory, made.flops_per_step) == (memory, 2 * 10**9)
    assert (made.checkpoint_bytes, made.disk_bytes) == (checkpoint, 3 * checkpoint + SEEN.stored + 7)
