"""Measures on a world model of random weights: what they find is known, and they leave the model as it was."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.ivideogpt import tiny
from toolkit.data.episodes.push_sprite import PushSprite, replay
from toolkit.ivideogpt.measure import MEASURES, actions, measure, measure_tokens
from toolkit.ivideogpt.measure.actions import _agreement, _directions, _starts
from toolkit.ivideogpt.measure.prediction import _difference
from toolkit.ivideogpt.measure.setting import Setting, frame_ssim, play_true, psnr
from toolkit.ivideogpt.measure.tokenizer import _without_cross_attention, per_frame
from toolkit.ivideogpt.rollout import imagined_rows
from toolkit.runs.record import Run
from toolkit.zoo.world.model import WorldModel


@pytest.fixture
def setting(tmp_path):
    config = tiny.config()
    run = Run(tmp_path, config)
    run.record["metrics"] = {}
    return Setting(tiny.world(), tiny.clips(), config, run)


@pytest.mark.parametrize("name", ["tokens", "tokenizer", "decoupling", "prediction", "actions", "reward", "long"])
def test_every_measure_gives_finite_numbers_and_leaves_the_weights_alone(setting, name):
    before = setting.world.tokenizer.fingerprint()
    setting.run.add_metrics(name, MEASURES[name](setting))
    assert setting.run.record["metrics"] and np.isfinite(list(setting.run.record["metrics"].values())).all()
    assert setting.world.tokenizer.fingerprint() == before


def test_a_measure_that_has_nothing_to_measure_says_what_it_needs(setting, caplog):
    """An action-free model without rewards or goals."""
    config = tiny.config(action_conditioned=False, reward_head=False)
    config.measure.names = ["tokens", "actions", "reward", "goal", "long"]
    caplog.set_level("INFO", logger="toolkit")
    measure(tiny.world(action_dim=0, has_reward=False), setting.clips, config, setting.run)
    said = [line for line in caplog.messages if "left out" in line]
    assert [line.split(": ")[1] for line in said] == ["actions", "reward", "goal", "long"]
    assert "it needs reward_head=true" in said[1] and "it needs goal_conditioned=true" in said[2]
    assert {key.partition(".")[0] for key in setting.run.record["metrics"]} == {"tokens"}


def test_the_releases_token_arithmetic(setting):
    found = measure_tokens(setting)
    lengths = {name: one["length"] for name, one in found.items()}
    assert lengths == {"bair": 511, "oxe": 751, "robonet": 683, "goal": 768, "own": 64 + 1 + 3 * 5 - 1}
    reductions = {name: round(one["reduction"], 2) for name, one in found.items()}
    assert [reductions[name] for name in ("bair", "oxe", "robonet", "goal")] == [8.05, 5.47, 4.51, 5.69]


def test_without_cross_attention_the_context_does_not_matter_and_afterwards_it_does_again():
    tokenizer = tiny.tokenizer()
    codes = torch.randint(0, 16, (1, 2, 4), generator=torch.Generator().manual_seed(0))
    contexts = [tokenizer.decode_context(torch.full((1, 1, 64), code)) for code in (0, 5)]
    with _without_cross_attention(tokenizer):
        blind = [tokenizer.decode_frames(codes, one) for one in contexts]
    seen = [tokenizer.decode_frames(codes, one) for one in contexts]
    assert torch.equal(*blind) and not torch.allclose(*seen)


def test_a_frame_by_itself_is_coded_as_a_context():
    tokenizer = tiny.tokenizer().double()  # six frames at once may round unlike two
    frames = torch.rand(2, 3, 3, 16, 16, dtype=torch.float64)
    expected = tokenizer.decode_context(tokenizer.encode_context(frames[:, 1:2]).codes).frames[:, 0]
    torch.testing.assert_close(per_frame(tokenizer, frames)[:, 1], expected)


def test_the_true_environment_is_played_as_the_simulator_says(setting):
    _, sequences = _directions(setting)
    starts = _starts(setting, 2)
    truth = play_true(setting.clips.dataset.make_env(), starts, sequences, 1)
    assert truth.frames.shape == (10, 3, 3, 16, 16) and truth.start.tolist() == [0] * 5 + [1] * 5
    actions = np.concatenate([truth.actions[1:2], truth.actions[1:2, -1:]], 1)
    expected = replay(PushSprite(16), starts[:1], actions)
    found = (truth.frames[1].permute(0, 2, 3, 1).numpy() * 255).round()
    assert (found == expected.frames[0, 1:]).all() and np.allclose(truth.rewards[1], expected.rewards[0, :3])


def test_agreement_is_perfect_for_the_truth_and_absent_for_noise():
    rng = torch.Generator().manual_seed(0)
    true = torch.randn(200, 3, 2, generator=rng)
    found = _agreement("agent", true, true, 32)
    assert found["r.least.agent"] == pytest.approx(1) and found["sign.agent"] == 1 and found["error_px.agent"] == 0
    noise = _agreement("agent", torch.randn(200, 3, 2, generator=rng), true, 32)
    assert abs(noise["r.x.agent"]) < 0.2 and 0.4 < noise["sign.agent"] < 0.6
    mirrored = _agreement("agent", true * torch.tensor([1.0, -1.0]), true, 32)
    assert mirrored["r.y.agent"] == pytest.approx(-1) == mirrored["r.least.agent"]


def test_bootstrap_interval_holds_the_mean():
    gaps = torch.randn(100, 7, generator=torch.Generator().manual_seed(0)) + 0.5
    found = {key.removeprefix("psnr.true_minus_other_actions"): value for key, value in _difference(gaps).items()}
    assert 0 < found["_low"] < found[""] < found["_high"] and found["_high"] - found["_low"] < 0.3


def test_frame_scores():
    x = torch.rand(2, 3, 3, 16, 16)
    assert torch.allclose(psnr(x, x), torch.full((2, 3), 50.0)) and torch.allclose(frame_ssim(x, x), torch.ones(2, 3))
    assert psnr(x * 0, x * 0 + 0.1)[0, 0] == pytest.approx(20)
    assert (frame_ssim(x.flip(-1), x) < 0.6).all()


@pytest.fixture
def choosing(setting):
    return dataclasses.replace(
        setting, world=WorldModel(setting.world.tokenizer, setting.world.transformer, discrete=2)
    )


def test_where_actions_are_a_choice_only_choices_are_imagined(choosing, monkeypatch):
    names, sequences = _directions(choosing)
    assert names == ["choice 0", "choice 1"] and (sequences[0, :, 0] == np.eye(2)).all()
    monkeypatch.setattr(actions, "NUM_REWARD_SEQUENCES", 32)
    asked = []
    honest = Setting.imagine
    monkeypatch.setattr(Setting, "imagine", lambda self, *given: asked.append(given[1]) or honest(self, *given))
    for name in ("actions", "reward"):
        MEASURES[name](choosing)
    for rows in asked:
        assert set(rows.unique().tolist()) == {0, 1} and (rows.sum(-1) == 1).all()


def test_the_other_actions_of_a_rollout_are_the_next_choice(choosing):
    clip = choosing.test
    picked = torch.eye(2)[torch.arange(clip.frames.shape[1]) % 2].expand(len(clip), -1, -1)
    clip = dataclasses.replace(clip, actions=picked)
    rows = imagined_rows(choosing.world, clip, choosing.config)
    swapped = imagined_rows(choosing.world, dataclasses.replace(clip, actions=1 - picked), choosing.config)
    assert list(rows) == ["truth", "reconstruction", "imagined", "imagined, next choice"]
    assert (rows["imagined, next choice"] == swapped["imagined"]).all()
    assert (rows["imagined"] != swapped["imagined"]).any()
