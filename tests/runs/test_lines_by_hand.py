"""What a run says and takes line by line: devices, threads, ranks, bars, copies, memory."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.toyroom.config import TrainToy
from toolkit.errors import JobError, UserError
from toolkit.runs import device, distributed, machine, progress, reading, signals, threads
from toolkit.runs.passes import update
from toolkit.runs.states.sharding import gather
from toolkit.runs.states.writing import copied


@pytest.mark.parametrize(
    ("asked", "record", "chosen", "expected"),
    [
        (3, {"num_threads": 2}, (5, "why"), 3),  # what the config says
        (None, {"num_threads": 2}, (5, "why"), 2),  # else as many as before
        (None, {"stages": {"train": {}}}, (5, "why"), 7),  # an older record does not say: torch's number
        (None, {}, (5, "why"), 5),
        (None, {}, None, 7),
    ],
)
def test_a_run_has_the_threads_it_asks_for_else_those_it_had_else_those_that_are_free(
    monkeypatch, asked, record, chosen, expected
):
    taken = []
    monkeypatch.setattr(device, "_threads_of_torch", lambda: 7)
    monkeypatch.setattr(threads, "choose", lambda: chosen)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    run = SimpleNamespace(config=TrainToy(num_threads=asked), record=dict(record))
    device._set_threads(run)
    assert taken == [expected] and run.record["num_threads"] == expected


def test_jobs_of_a_sweep_take_the_gpus_in_turn(monkeypatch):
    taken = []
    cuda = {"is_available": lambda: True, "device_count": lambda: 3, "set_device": taken.append}
    for name, answer in (cuda | {"reset_peak_memory_stats": lambda: None, "empty_cache": lambda: None}).items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    made = []
    monkeypatch.setattr("accelerate.Accelerator", lambda **keys: made.append(keys) or SimpleNamespace(num_processes=1))
    for number in (0, 1, 5):
        device.make_accelerator(TrainToy(device="cuda", precision="bf16"), number)
    assert taken == [0, 1, 2] and made == [{"cpu": False, "mixed_precision": "bf16"}] * 3


def test_without_a_launcher_there_is_one_process_and_it_is_the_first(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    for size in ("1", "many"):
        monkeypatch.setenv("WORLD_SIZE", size)
        assert (distributed.world_size(), distributed.rank()) == (1, 0)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (distributed.world_size(), distributed.rank()) == (4, 3)


def test_what_the_first_process_refuses_the_others_are_told_before_it_is_raised(monkeypatch):
    sent = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    monkeypatch.setattr(distributed, "_meet", lambda: None)
    monkeypatch.setattr("torch.distributed.broadcast_object_list", lambda box, src: sent.append(list(box)))

    def refuse():
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        distributed.from_rank_zero(refuse)
    assert sent[0][0] is None and isinstance(sent[0][1], UserError)
    assert distributed.from_rank_zero(lambda: 5) == 5 and sent[1] == [5, None]


@pytest.mark.parametrize(("scale", "stops"), [(1.0, False), (0.99, True)])
def test_gradients_that_overflow_without_any_scaling_stop_the_run(scale, stops):
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    scaler = SimpleNamespace(
        unscale_=lambda one: None, get_scale=lambda: scale, step=lambda one: None, update=lambda: None
    )
    arguments = (torch.optim.SGD([weight], lr=1.0), [weight], 1.0, SimpleNamespace(scaler=scaler))
    if stops:
        with pytest.raises(JobError, match="overflow at any scale"):
            update(*arguments)
    else:
        assert update(*arguments).item() == pytest.approx(2**0.5)


def test_an_average_that_was_spread_wants_no_gradient_when_it_is_whole_again():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    gather(module)
    assert not any(one.requires_grad for one in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_part_of_a_tensor_is_copied_beside_the_whole():
    whole = torch.arange(6.0).view(2, 3)
    made = copied({"whole": whole, "row": whole[:1], "turned": whole.t(), "again": whole})
    assert made["whole"].tolist() == whole.tolist() and made["row"].tolist() == [[0.0, 1.0, 2.0]]
    assert made["turned"].tolist() == whole.t().tolist() and made["again"] is made["whole"]
    whole.zero_()
    assert made["row"].tolist() == [[0.0, 1.0, 2.0]]


def test_a_bar_counts_from_where_it_began(monkeypatch):
    """It began at step 100 of 400 and has made 20 steps in ten seconds: two a second, and 140 s are left."""
    now = [50.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.Bar("train", 100, 400, None)
    now[0] = 60.0
    shown.step = 120
    shown.log(120, {"loss": 0.5})
    assert shown.text == "loss 0.5  2.0 steps/s" and shown._left() == ", 2 min left"
    shown.step = 260
    assert shown._left() == ", 9 s left"  # 140 steps at 16 a second
    shown.step = 100
    assert shown._left() == ""


def test_a_picture_is_looked_at_in_the_middle_of_what_each_place_stands_for():
    """Eight rows of deep pixels in two lines of one character: rows 1, 3, 5 and 7, and the bytes of 257ths."""
    pixels = np.zeros((8, 2, 3), np.uint16)
    pixels[..., 1] = (np.arange(8)[:, None] * 10 + 5) * 257
    (first, second) = (one.style for one in progress.half_blocks(pixels, 2, 1).spans)
    greens = [one.triplet.green for style in (first, second) for one in (style.color, style.bgcolor)]
    assert greens == [15, 35, 55, 75]


def test_whole_numbers_of_a_record_are_those_of_64_bits_and_repeated_signals_are_one_wish(monkeypatch):
    assert reading._is_number(2**63 - 1) and reading._is_number(-(2**40)) and not reading._is_number(2**63)
    monkeypatch.setattr(signals, "_asked", [])
    for moment, new in ((10.0, True), (10.9, False), (11.5, True), (12.4, False)):
        monkeypatch.setattr(signals.time, "monotonic", lambda moment=moment: moment)
        assert signals._is_new(15) == new
    assert [number for number, _ in signals._asked] == [15, 15]


def files(monkeypatch, module, **texts):
    """``Path`` in ``module`` reads ``texts`` by the last part of a name."""
    monkeypatch.setattr(module, "Path", lambda name: SimpleNamespace(read_text=lambda **_: texts[Path(name).name]))


def test_cores_are_those_of_the_quota_and_memory_is_told_in_mib(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for text, expected in (("300000 100000", 3), ("50000 100000", 1), ("2000000 100000", 8), ("max 100000", 8)):
        files(monkeypatch, machine, **{"cpu.max": text})
        assert machine.cores() == expected
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    monkeypatch.setattr(machine.resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=3 * 1024))
    assert machine.peak_memory_mib() == 3.0


def test_waiting_for_disks_is_no_work(monkeypatch):
    """user nice system idle iowait irq softirq steal, in hundredths of a second; of two cores that we may use."""
    lines = [
        "cpu 9 9 9 9 9 9 9 9 9 9",
        "cpu0 100 0 50 1000 700 1 2 3 0 0",
        "cpu1 200 0 0 5 5 0 0 0 0 0",
        "cpu2" + " 7" * 10,
    ]
    files(monkeypatch, threads, stat="\n".join(lines))
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(threads.os, "sysconf", lambda name: 100)
    assert threads._sample().busy == pytest.approx((100 + 50 + 1 + 2 + 3 + 200) / 100)
