"""``toolkit bench ivideogpt``: every contender does the work that it is timed for. No test looks at a duration."""

from __future__ import annotations

import pytest

from toolkit.errors import UserError
from toolkit.ivideogpt.bench import contenders, main
from toolkit.ivideogpt.bench.shared import TASKS, Options, build_world

TINY = {"size": "tiny", "num_future": 2, "batch_size": 2}


def test_every_task_counts_its_frames():
    makers = contenders(Options(**TINY))
    ours, full = makers["ours"](), makers["full"]()
    assert tuple(ours.tasks) == TASKS and tuple(full.tasks) == ("generate",)
    assert {task: action() for task, action in ours.tasks.items()} == dict.fromkeys(TASKS, 4)
    assert full.tasks["generate"]() == 2  # one frame for each of two rows
    assert "full" not in contenders(Options(**TINY, tasks="rollout,train"))  # it would have nothing to do


def test_contenders_have_the_same_weights():
    one, two = (build_world(Options(**TINY)) for _ in range(2))
    assert one.tokenizer.fingerprint() == two.tokenizer.fingerprint()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkout=/nowhere"], "checkout=/nowhere: no checkout of thuml/iVideoGPT there"),
        (["tasks=rollout,trane"], "tasks=trane: did you mean 'train'"),
        (["size=huge"], "size=huge"),
        (["batch=2"], "did you mean 'batch_size'"),
    ],
)
def test_bad_options_are_named(words, message):
    with pytest.raises(UserError, match=message):
        main(words)
