"""Numbers of the measures on imagination whose errors are known: which truth, which actions, which sign."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from tests.ivideogpt import tiny
from toolkit.data.episodes.clips import Clip
from toolkit.data.episodes.environments import PushSpriteEnv
from toolkit.ivideogpt.measure import setting as measures
from toolkit.ivideogpt.measure.actions import _agreement, measure_reward
from toolkit.ivideogpt.measure.long import SEED, hue_distance, measure_long, near
from toolkit.ivideogpt.measure.prediction import cross_entropy, measure_goal, measure_prediction
from toolkit.ivideogpt.measure.setting import Setting, frame_plips, images, play_true
from toolkit.ivideogpt.measure.tokenizer import measure_decoupling, measure_tokenizer
from toolkit.ivideogpt.measure.tracking import TRACKED, pearson
from toolkit.ivideogpt.rollout import future_actions, imagined_rows, to_bytes
from toolkit.metrics.plips import PLIPS
from toolkit.runs.record import Run
from toolkit.runs.seeds import derive
from toolkit.zoo.world.model import WorldModel


@pytest.fixture
def setting(tmp_path):
    config = tiny.config()
    run = Run(tmp_path, config)
    run.record["metrics"] = {}
    made = Setting(tiny.world(), tiny.clips(), config, run)
    rng = torch.Generator().manual_seed(0)
    frames = 0.2 + 0.5 * torch.rand(4, 5, 3, 16, 16, generator=rng)  # 0.3 more stays below 1
    made.__dict__["test"] = Clip(frames, torch.rand(4, 5, 2, generator=rng), torch.rand(4, 5, generator=rng))
    return made


def decibel(x, y):
    return -10 * torch.log10((x - y).square().mean((-1, -2, -3)))


def test_imagined_frames_are_held_against_their_own_truth(setting, monkeypatch):
    """0.1 off is 20 dB, 0.2 off 13.98; with other actions 0.3 off, 10.46 dB."""
    frames, own = setting.test.frames, setting.test.actions[:, 0:4]
    setting.config.measure.num_samples = 2
    off = {"sample_0": 0.1, "sample_1": 0.2}

    def imagine(self, context, actions, num, name):
        return frames[:, 1:] + (off[name] if torch.equal(actions, own) else 0.3), None

    monkeypatch.setattr(Setting, "imagine", imagine)
    found = measure_prediction(setting)
    assert found["psnr.predicted"] == pytest.approx((20 + 13.9794) / 2, abs=1e-3)
    assert found["psnr.best_of_2"] == pytest.approx(20, abs=1e-3)
    assert found["psnr.other_actions"] == pytest.approx(10.4576, abs=1e-3)
    gap = "psnr.true_minus_other_actions"
    assert [found[gap + end] for end in ("", "_low", "_high")] == pytest.approx([9.5424] * 3, abs=1e-3)
    copied = decibel(frames[:, :1].expand(-1, 4, -1, -1, -1), frames[:, 1:])
    assert found["psnr.copy_last"] == pytest.approx(float(copied.mean()), rel=1e-4)


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = PLIPS().eval()
    for head in made.heads:
        head.uniform_(0, 1)
    return made


def test_plips_is_of_enlarged_frames_of_255_levels_each_with_its_own_truth(network):
    x, y = torch.rand(2, 3, 3, 24, 24), torch.rand(2, 3, 3, 24, 24)
    x[0, 1] = y[0, 1]
    x[1, 2] += 1  # is clamped to what can be shown
    found = frame_plips(network, x, y, batch_size=4)
    assert found.shape == (2, 3) and found[0, 1] == 0
    for clip, frame in [(0, 0), (0, 2), (1, 2)]:
        pair = [
            interpolate(255 * one[clip, frame][None].clamp(0, 1), size=(72, 72), mode="nearest") for one in (x, y)
        ]  # three times 24 is the first that has 64
        assert float(found[clip, frame]) == pytest.approx(float(network(*pair)), rel=1e-4)
    large = torch.rand(1, 3, 64, 64)
    assert float(frame_plips(network, large, 1 - large, 1)) == pytest.approx(
        float(network(255 * large, 255 * (1 - large))), rel=1e-4
    )


def test_perceptual_distances_stand_beside_psnr_for_the_same_pairs(setting, network, monkeypatch):
    frames, own = setting.test.frames, setting.test.actions[:, 0:4]
    wrong = {"sample_0": 0.1}

    def imagine(self, context, actions, num, name):
        return frames[:, 1:] + (wrong[name] if torch.equal(actions, own) else 0.3), None

    monkeypatch.setattr(Setting, "imagine", imagine)
    assert not [key for key in measure_prediction(setting) if "plips" in key]
    setting.__dict__["perceptual"] = network
    found = measure_prediction(setting)
    last = frames[:, :1].expand(-1, 4, -1, -1, -1)
    made = {"predicted": frames[:, 1:] + 0.1, "copy_last": last, "other_actions": frames[:, 1:] + 0.3}
    assert {key for key in found if "plips" in key} == {f"plips.{name}" for name in made}
    for name, one in made.items():
        wanted = float(frame_plips(network, one, frames[:, 1:], 64).mean())
        assert found[f"plips.{name}"] == pytest.approx(wanted, rel=1e-4) and wanted > 0
    found = measure_tokenizer(setting)
    assert {key for key in found if "plips" in key} == {
        f"plips.{name}" for name in ("context", "future", "per_frame", "copy")
    }
    assert found["plips.copy"] == pytest.approx(float(frame_plips(network, last, frames[:, 1:], 64).mean()), rel=1e-4)


def test_long_roll_outs_are_held_against_the_simulator_under_the_same_actions(setting, monkeypatch):
    """The simulator itself in the model's place makes no error, past the positions too; a still world does."""
    setting.config.measure.num_long_clips, setting.config.measure.num_long_frames = 3, 6
    kept = {}

    def imagine(self, context, actions, num, name, on_overflow):
        assert on_overflow == "recontext" and context.shape[:2] == (3, 1) and actions.shape == (3, num, 2)
        made = []
        for world in range(3):
            env = self.clips.dataset.make_env()
            rng = np.random.default_rng(derive(SEED, "record", world))
            first, _ = env.reset(seed=int(rng.integers(2**31)))
            assert np.array_equal(first, (context[world, 0].permute(1, 2, 0) * 255).round().byte().numpy())
            made.append(np.stack([env.step(row)[0] for row in actions[world].numpy()]))
        kept["true"] = images(made)
        return kept["true"] if kept.get("still") is None else context.expand_as(kept["true"]), None

    monkeypatch.setattr(Setting, "imagine", imagine)
    found = measure_long(setting)
    assert found["psnr.imagined"] == found["psnr.imagined.step_5"] == pytest.approx(50, abs=0.1)
    assert found["hue"] == 0 and found["near.agent"] == found["near.block"] == 1 and found["hue.gray"] > 3
    color = kept["true"].flatten(-2).median(-1).values  # of three channels, which grey has all alike
    gray = 255 * (color - color.mean(-1, keepdim=True)).norm(dim=-1).mean()
    assert found["hue.gray"] == pytest.approx(float(gray), rel=1e-4)
    assert found["psnr.copied"] < 40 and "psnr.imagined.step_10" not in found
    kept["still"] = True
    still = measure_long(setting)
    assert still["psnr.imagined"] == pytest.approx(still["psnr.copied"]) and still["near.agent"] < 1


def test_long_roll_outs_are_left_out_where_every_episode_ends_earlier(setting, monkeypatch):
    env = setting.clips.dataset.make_env()
    step = env.step
    env.step = lambda action: (*step(action)[:2], True, *step(action)[3:])
    monkeypatch.setattr(type(setting.clips.dataset), "make_env", lambda self: env)
    assert measure_long(setting) == {}


def test_a_thing_is_near_where_it_is_seen_within_three_pixels():
    color = TRACKED["push_sprite"]["agent"]

    def frame(column, size=4):
        made = torch.full((3, 32, 32), 0.5)
        made[:, 10 : 10 + size, column : column + 4] = torch.tensor(color.rgb).view(3, 1, 1)
        return made

    true = torch.stack([frame(10)] * 4)[None]
    made = torch.stack([frame(10), frame(13), frame(14), torch.full((3, 32, 32), 0.5)])[None]
    assert near(made, true, color).tolist() == [[1, 1, 0, 0]]
    colors = torch.tensor([[0.5, 0.5, 0.5], [0.6, 0.6, 0.6], [0.53, 0.5, 0.5]])
    plain = colors[None, :, :, None, None].expand(-1, -1, -1, 8, 8)
    distance = hue_distance(plain, plain[:, :1].expand_as(plain))
    assert distance[0].tolist() == pytest.approx([0, 0, 255 * 0.03 * (2 / 3) ** 0.5], abs=1e-3)


def test_cross_entropy_is_minus_the_mean_log_probability_of_a_token(setting):
    context, future, actions = setting.test.frames[:, :1], setting.test.frames[:, 1:], setting.test.actions[:, :4]
    frames = setting.world.score(context, future, actions).logprobs.double()  # of frames of 4 tokens
    found = cross_entropy(setting, context, future, actions)
    assert found == pytest.approx(-float(frames.mean()) / 4, rel=1e-5) and found > 0


def test_a_goal_that_is_reached_has_no_error_and_the_other_clips_has_that_between_goals(setting, monkeypatch):
    setting.config.goal_conditioned = True
    monkeypatch.setattr(Setting, "imagine", lambda self, context, *_: (context[:, :1], None))
    found = measure_goal(setting)
    goal = setting.test.frames[:, 0]
    assert found["mse.own_goal"] == 0
    assert found["mse.other_goal"] == pytest.approx(float((goal.roll(1, 0) - goal).square().mean()))


def test_r2_of_the_rewards_of_the_moves_into_the_frames(setting, monkeypatch):
    """Row t is of the move from frame t on: frames 1 to 4 take rows 0 to 3. Off by c: 1 - c^2 / variance."""
    true = setting.test.rewards[:, :4]
    said = SimpleNamespace(rewards=true + 0.1)
    monkeypatch.setattr(WorldModel, "score", lambda *_: said)
    setting.config.action_conditioned = False  # so that nothing is ranked in the simulator
    wanted = 1 - 0.01 / float(((true - true.mean()) ** 2).mean())
    assert measure_reward(setting)["r2"] == pytest.approx(wanted, rel=1e-4)


def test_only_moves_that_are_seen_have_a_sign():
    """Of the edge: 0.1 and -0.1 count, 0.01 does not, whatever is imagined for it."""
    true = torch.tensor([0.1, -0.1, 0.01, -0.01]).view(4, 1, 1).expand(-1, 1, 2)
    made = torch.tensor([0.2, -0.05, -0.3, 0.3]).view(4, 1, 1).expand(-1, 1, 2)
    assert _agreement("agent", made, true, 16)["sign.agent"] == 1
    assert _agreement("agent", -made, true, 16)["sign.agent"] == 0


def test_correlation_does_not_depend_on_the_means():
    x = torch.tensor([1.0, 2.0, 4.0])
    assert pearson(x + 100, x) == pytest.approx(1) and pearson(x + 100, -x - 50) == pytest.approx(-1)


def test_the_tokenizers_baseline_copies_the_last_context_frame(setting):
    frames = setting.test.frames
    found = measure_tokenizer(setting)
    wanted = decibel(frames[:, :1].expand(-1, 4, -1, -1, -1), frames[:, 1:]).mean()
    assert found["psnr.copy"] == pytest.approx(float(wanted), rel=1e-4)


def test_exchanged_context_is_the_clips_before_and_appearance_is_held_against_it(setting):
    tokenizer, frames = setting.world.tokenizer, setting.test.frames
    found = measure_decoupling(setting)
    with torch.no_grad():
        seen = tokenizer.encode_context(frames[:, :1])
        codes = tokenizer.encode_frames(frames[:, 1:], seen)
        made = tokenizer.decode_frames(codes, tokenizer.decode_context(seen.codes[[3, 0, 1, 2]])).clamp(0, 1)
    colour = lambda x: x.flatten(-2).median(-1).values  # noqa: E731
    others = colour(frames[[3, 0, 1, 2]][:, :1].expand(-1, 4, -1, -1, -1))
    assert found["appearance.exchanged_follows_context"] == pytest.approx(pearson(colour(made), others), abs=1e-4)
    assert found["appearance.exchanged_follows_tokens"] == pytest.approx(
        pearson(colour(made), colour(frames[:, 1:])), abs=1e-4
    )


def test_actions_of_the_future_are_those_that_lead_into_it():
    clip = Clip(torch.zeros(1, 5, 3, 2, 2), torch.arange(5.0).view(1, 5, 1), None)
    assert future_actions(clip, 2, 3).flatten().tolist() == [1, 2, 3]


def test_opposite_actions_are_mirrored_about_the_middle_of_their_range(setting):
    clip = dataclasses.replace(setting.test, frames=tiny.clips().test.fixed(4).frames)
    rows = imagined_rows(setting.world, clip, setting.config)
    mirrored = imagined_rows(setting.world, dataclasses.replace(clip, actions=-clip.actions), setting.config)
    assert (rows["imagined, opposite actions"] == mirrored["imagined"]).all()
    assert (rows["imagined"] != mirrored["imagined"]).any()


def test_bytes_of_frames_are_their_nearest_of_255_levels():
    levels = torch.arange(256).view(1, 1, 1, 16, 16).expand(1, 1, 3, -1, -1) / 255
    for off in (-0.4, 0.4):
        made = to_bytes(levels + off / 255)
        assert made.shape == (1, 1, 16, 16, 3) and (made[..., 0].reshape(-1) == np.arange(256)).all()
    assert to_bytes(torch.tensor([-0.5, 1.5, 0.5]).view(1, 1, 3, 1, 1)).ravel().tolist() == [0, 255, 128]


def test_each_row_of_imagination_has_its_own_seed_whatever_the_batch(setting, monkeypatch):
    given = []

    def imagine(world, context, actions, num, seeds, *_):
        given.append(seeds)
        return context.expand(-1, num, -1, -1, -1), None

    monkeypatch.setattr(measures, "imagine", imagine)
    for batch_size in (4, 3):
        setting.config.measure.batch_size = batch_size
        setting.imagine(setting.test.frames[:, :1], setting.test.actions[:, :4], 4, "a measure")
    assert given[0] == given[1] + given[2] and len(set(given[0])) == 4
    setting.config.seed += 1
    assert not set(setting.seeds(4, "a measure")) & set(given[0])
    assert not set(setting.seeds(4, "another")) & set(setting.seeds(4, "a measure"))


def test_the_true_environment_stands_still_until_its_context_is_full():
    """Two starts, two sequences of each; a context of three is the start and two frames at rest."""
    sequences = np.random.default_rng(0).uniform(-1, 1, (2, 2, 3, 2)).astype(np.float32)
    found = play_true(PushSpriteEnv(16), [7, 8], sequences, 3)
    env, rows = PushSpriteEnv(16), []
    for seed, plans in zip([7, 8], sequences, strict=True):
        for plan in plans:
            seen = [env.reset(seed=seed)[0]]
            seen += [env.step(action)[0] for action in (*np.zeros((2, 2), np.float32), *plan)]
            rows.append(np.stack(seen))
    wanted = torch.from_numpy(np.stack(rows)).movedim(-1, 2) / 255
    torch.testing.assert_close(torch.cat([found.context, found.frames], dim=1), wanted)
    assert found.start.tolist() == [0, 0, 1, 1]
    assert torch.equal(found.actions, torch.from_numpy(sequences).flatten(0, 1))
