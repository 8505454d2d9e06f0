"""``toolkit bench ivideogpt``: every contender does the work that it is timed for. No test looks at a duration."""

from __future__ import annotations

import pytest

from toolkit.errors import UserError
from toolkit.ivideogpt.bench import contenders, main
from toolkit.ivideogpt.bench.shared import TASKS, Options, build_world
from toolkit.zoo.world.dynamics import Dynamics

TINY = {"size": "tiny", "num_future": 2, "batch_size": 2}


def test_every_task_counts_its_frames():
    makers = contenders(Options(**TINY))
    ours, full = makers["ours"](), makers["full"]()
    assert tuple(ours.tasks) == TASKS and tuple(full.tasks) == ("generate",)
    assert {task: action() for task, action in ours.tasks.items()} == dict.fromkeys(TASKS, 4)
    assert full.tasks["generate"]() == 2  # one frame for each of two rows
    in_turn = makers["in_turn"]()
    assert {task: action() for task, action in in_turn.tasks.items()} == {"rollout": 4, "generate": 4}
    assert "in_turn" not in contenders(Options(**TINY, tasks="tokenize,train"))
    assert "full" not in contenders(Options(**TINY, tasks="rollout,train"))  # it would have nothing to do


def test_what_is_not_the_same_is_not_timed(monkeypatch):
    """Where guessing goes wrong: here it takes the guess for what was drawn."""
    right = Dynamics._pass

    def wrong(self, llm, tokens, *rest):
        hidden, drawn, settled = right(self, llm, tokens, *rest)
        drawn.tokens[:, 1:] = self.layout.num_context_codes
        return hidden, drawn, settled

    monkeypatch.setattr(Dynamics, "_pass", wrong)
    with pytest.raises(RuntimeError, match="other tokens or frames than ours"):
        contenders(Options(**TINY))["in_turn"]()


def test_the_trained_model_imagines_its_own_world():
    options = Options(size="shipped", num_future=2, tasks="rollout,generate")
    ours = contenders(options)["ours"]()
    assert {task: action() for task, action in ours.tasks.items()} == {"rollout": 2, "generate": 2}
    assert "full" not in contenders(options)
    with pytest.raises(UserError, match="size=shipped: context_length=1 and num_future="):
        build_world(Options(size="shipped", num_future=1000))


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
