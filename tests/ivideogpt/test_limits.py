"""What no machine holds, no video shows and no episode has is refused before anything trains."""

import dataclasses

import pytest
import torch

from tests.ivideogpt import tiny
from toolkit.errors import UserError
from toolkit.ivideogpt import job, rollout
from toolkit.ivideogpt.config import Measure, Plan, Rollout
from toolkit.ivideogpt.limits import check_limits
from toolkit.ivideogpt.rollout import imagined_rows, num_rows, rollout_source

FRAME = 4 * 3 * 16 * 16  # bytes of a frame of 16 x 16 pixels as float32


def refused(memory, monkeypatch, message, **changes):
    """``changes`` are refused with ``message`` where memory is a byte short of ``memory``, and let through with it."""
    config = tiny.config(**changes)
    monkeypatch.setattr("toolkit.runs.machine.memory_bytes", lambda: memory)
    check_limits(config, tiny.clips())
    monkeypatch.setattr("toolkit.runs.machine.memory_bytes", lambda: memory - 1)
    with pytest.raises(UserError, match=message):
        check_limits(config, tiny.clips())


def test_starts_and_long_roll_outs_are_held_against_memory(monkeypatch):
    """Two numbers of an action: each at both ends, and at rest: 5 sequences from every start, of 4 frames each."""
    only = lambda *names, **more: Measure(names=list(names), **more)  # noqa: E731
    small = Rollout(num_clips=1, scale=1)
    measure = only("actions", num_counterfactual=30)
    refused(30 * 5 * 4 * FRAME, monkeypatch, r"^measure\.num_counterfactual=30: ", rollout=small, measure=measure)
    measure = only("long", num_long_clips=40, num_long_frames=9)
    refused(40 * (1 + 9) * FRAME, monkeypatch, r"^measure\.num_long_clips=40: ", rollout=small, measure=measure)
    measure = only("long", num_long_clips=1, num_long_frames=600)
    config = tiny.config(rollout=small, measure=measure)
    monkeypatch.setattr("toolkit.runs.machine.memory_bytes", lambda: 599 * FRAME)
    with pytest.raises(UserError, match=r"^measure\.num_long_frames=600: "):
        check_limits(config, tiny.clips())


def test_of_held_out_clips_only_those_that_there_are_count(monkeypatch):
    """The split has four, however many are asked for."""
    small = Rollout(num_clips=1, scale=1)
    measure = Measure(names=["prediction"], num_clips=10**9)
    refused(4 * 4 * FRAME, monkeypatch, r"^measure\.num_clips=4: ", rollout=small, measure=measure)
    many, nothing = Rollout(num_clips=10**9, scale=1), Measure(names=["tokens"], num_clips=10**9)
    video = 4 * 5 * 3 * 16 * 16  # of a clip: four frames of five pictures, in bytes
    refused(4 * video, monkeypatch, r"^rollout\.num_clips=4: ", rollout=many, measure=nothing)


def test_plans_that_are_imagined_at_once_are_held_against_memory(monkeypatch):
    """Shooting draws those of all iterations at once."""
    rest = {"rollout": Rollout(num_clips=1, scale=1), "measure": Measure(names=["tokens"])}
    plan = Plan(num_episodes=1, planners=["cem"], horizon=3, num_candidates=50)
    refused(50 * 3 * FRAME, monkeypatch, r"^plan\.num_candidates=50: ", plan=plan, **rest)
    plan = dataclasses.replace(plan, planners=["shooting"], num_iterations=7)
    refused(7 * 50 * 3 * FRAME, monkeypatch, r"^plan\.num_candidates=50: ", plan=plan, **rest)
    check_limits(tiny.config(plan=dataclasses.replace(plan, planners=["random"]), **rest), tiny.clips())


def test_a_roll_outs_video_fits_what_h264_encodes(monkeypatch):
    """4 clips in columns of 16 x scale pixels with 2 between them; five rows, each with 14 more pixels."""
    check_limits(tiny.config(rollout=Rollout(scale=203)), tiny.clips())  # 5 x (16 x 203 + 14) = 16310
    with pytest.raises(UserError, match=r"^rollout\.scale=204: makes a video 16390 pixels high; 16384 are"):
        check_limits(tiny.config(rollout=Rollout(scale=204)), tiny.clips())
    monkeypatch.setattr("toolkit.ivideogpt.limits.MOST_SIDE_PX", {"h264": 3000})
    monkeypatch.setattr("toolkit.ivideogpt.limits.num_rows", lambda *_: 1)
    with pytest.raises(UserError, match=r"^rollout\.num_clips=4: makes a video 3206 pixels wide at rollout\.scale=50"):
        check_limits(tiny.config(rollout=Rollout(scale=50)), tiny.clips())


def test_the_rows_that_are_counted_are_those_that_are_made():
    clip = tiny.clips().test.fixed(1)
    torch.manual_seed(0)
    assert len(imagined_rows(tiny.world(), clip, tiny.config())) == num_rows(tiny.config(), discrete=False)
    free = tiny.config(action_conditioned=False)
    assert len(imagined_rows(tiny.world(action_dim=0), clip, free)) == num_rows(free, discrete=False)


def test_a_roll_out_longer_than_every_held_out_episode_is_refused():
    """They have six frames: one of context and five to come."""
    assert rollout_source(tiny.clips(), tiny.config(rollout=Rollout(num_frames=5))).counts.tolist() == [1] * 4
    with pytest.raises(UserError, match=r"^rollout\.num_frames=6: of the held-out episodes, no episode has 7 frames"):
        check_limits(tiny.config(rollout=Rollout(num_frames=6)), tiny.clips())


@pytest.mark.parametrize("planner", ["cem", "shooting", "mbpo"])
def test_a_plan_longer_than_the_positions_is_refused_before_the_tokenizer_is_trained(planner, monkeypatch):
    """79 tokens hold three frames after the context; what does not imagine may look further."""
    config = tiny.config(plan=Plan(num_episodes=1, planners=[planner], horizon=4))
    config.transformer.max_position_embeddings = 79
    monkeypatch.setattr(job, "train_tokenizer", lambda *_: pytest.fail("was trained"))
    with pytest.raises(UserError, match=rf"^plan\.horizon=4: .* hold 3 frames after the context, and {planner} "):
        job._train_tokenizer(None, config, tiny.clips(), None)
    config.plan.horizon = 3
    rollout.check_horizon(config, tiny.tokenizer(), 79)
    config.plan = Plan(num_episodes=1, planners=["random", "oracle", "sac"], horizon=4)
    rollout.check_horizon(config, tiny.tokenizer(), 79)


def test_a_given_transformers_own_positions_are_checked_before_the_tokenizer_is_trained(monkeypatch, tmp_path):
    tiny.world(positions=79).save_pretrained(tmp_path)
    monkeypatch.setattr(job, "train_tokenizer", lambda *_: pytest.fail("was trained"))
    config = tiny.config(init=str(tmp_path), rollout=Rollout(num_frames=4))
    with pytest.raises(UserError, match=r"^rollout\.num_frames=4: the transformer's positions hold 3"):
        job._train_tokenizer(None, config, tiny.clips(), None)
