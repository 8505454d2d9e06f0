"""The benchmark of training: its contenders do the work they are timed for, and wrong options are one line."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from toolkit.errors import UserError
from toolkit.launch import run_bench
from toolkit.stacking.bench.training import TrainingOptions, contenders

SMALL = {"layers": 1, "width": 16, "mlp": 24, "vocab_size": 64, "context": 8, "batch_size": 2, "num_steps": 2}


def test_contenders_count_the_tokens_they_train_on():
    makers = contenders(TrainingOptions(**SMALL))
    made = {name: makers[name]() for name in ("ours", "plain", "bare", "gemm")}
    assert len({contender.parameters for contender in made.values()}) == 1
    assert {name: made[name].tasks["train"]() for name in ("ours", "plain", "bare")} == dict.fromkeys(
        ("ours", "plain", "bare"), 2 * 2 * 8
    )
    assert made["gemm"].tasks["train"]() > 0


def test_the_products_are_those_of_a_steps_linear_layers():
    """7 layers of a block and the head, 3 products each, 2 x in x out FLOPs a row: 6 FLOPs a weight and token."""
    contender = contenders(TrainingOptions(**SMALL))["products"]()
    with FlopCounterMode(display=False) as counted:
        assert contender.tasks["train"]() == 2 * 2 * 8
    weights = 4 * 16 * 16 + 3 * 16 * 24 + 64 * 16
    assert counted.get_total_flops() == 6 * weights * 2 * 2 * 8


@pytest.mark.slow
def test_the_trainer_stops_after_every_round():
    contender = contenders(TrainingOptions(**SMALL))["trainer"]()
    assert contender.tasks["train"]() == contender.tasks["train"]() == 32


def test_wrong_options_are_one_line(tmp_path):
    for words, message in (
        (["layer=3"], "did you mean 'layers'"),
        (["measure=speed"], "measure=speed: choose one of training, growth"),
        ([f"litgpt={tmp_path}"], "no checkout of litgpt there"),
        (["layers=0"], "must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            run_bench("stacking", words)
