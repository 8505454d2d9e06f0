"""The learning rate over steps, against each room's formula written out, and a batch shared among processes."""

from math import cos, pi

import pytest

from toolkit.errors import UserError
from toolkit.runs.schedule import learning_rate_factor, share_of_batch


def test_without_a_schedule_nothing_changes():
    assert [learning_rate_factor(step, 3) for step in range(3)] == [1, 1, 1]


def test_it_rises_to_one_in_equal_steps():
    found = [learning_rate_factor(step, 100, "constant", 4) for step in (0, 1, 2, 3, 50, 99)]
    assert found == [0.25, 0.5, 0.75, 1, 1, 1]


def test_a_warm_up_may_end_within_a_step():
    rates = [learning_rate_factor(step, 100, "constant", 1000 / 64) for step in range(100)]
    assert rates == [min(1.0, (step + 1) * 64 / 1000) for step in range(100)]


def test_a_cosine_of_the_whole_training_is_multiplied_by_the_warm_up():
    for step in range(700):
        expected = min(1.0, (step + 1) / 50) * (0.5 + 0.5 * cos(pi * step / 700))
        assert learning_rate_factor(step, 700, "cosine", 50) == expected
    assert learning_rate_factor(0, 700, "cosine") == 1
    assert learning_rate_factor(350, 700, "cosine") == pytest.approx(0.5)


def test_a_cosine_after_the_warm_up_ends_at_the_lowest_rate_and_stays_there():
    found = [learning_rate_factor(step, 90, "cosine", 10, lowest=0.1, after_warmup=True) for step in range(120)]
    assert found[:10] == [(step + 1) / 10 for step in range(10)] and found[10] == 1
    assert found[10:90] == [0.1 + (1 - 0.1) * (1 + cos(pi * (step / 80))) / 2 for step in range(80)]
    assert found[50] == pytest.approx(0.55) and found[90:] == pytest.approx([0.1] * 30)


def test_a_training_that_is_all_warm_up_falls_at_once():
    assert learning_rate_factor(4, 5, "cosine", 5, after_warmup=True) == 1
    assert learning_rate_factor(6, 5, "cosine", 5, after_warmup=True) == pytest.approx(0)


def test_each_process_gets_its_share(monkeypatch):
    assert share_of_batch(6) == 6
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert share_of_batch(6) == 2
    with pytest.raises(UserError, match=r"^optim\.transformer\.batch_size=8: must be divisible by 3 processes$"):
        share_of_batch(8, "optim.transformer.batch_size")


def test_a_batch_larger_than_memory_is_refused_at_once(monkeypatch):
    monkeypatch.setattr("toolkit.runs.machine.memory_bytes", lambda: 2**30)
    monkeypatch.setattr("toolkit.runs.schedule.world_size", lambda: 2)
    assert share_of_batch(2**21, item_bytes=2**10) == 2**20
    said = r"^optim\.batch_size=2097154: 1\.0 GiB of numbers at once, .* has 1\.0 GiB of memory; give at most 2097152,"
    with pytest.raises(UserError, match=said):
        share_of_batch(2**21 + 2, item_bytes=2**10)
