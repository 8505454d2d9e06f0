"""The benchmark of training: its contenders do the work they are timed for, and wrong options are one line."""

import pytest

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
