"""Numbers of the measures with two context frames and another error in every frame: which frame, place and sign."""

import json

import numpy as np
import pytest
import torch

from tests.ivideogpt import tiny
from toolkit.data.episodes.clips import Clip
from toolkit.ivideogpt.measure import actions as of_actions
from toolkit.ivideogpt.measure import long
from toolkit.ivideogpt.measure import tokenizer as of_tokenizer
from toolkit.ivideogpt.measure.actions import _agreement, _directions, _rank, measure_actions, measure_reward
from toolkit.ivideogpt.measure.long import hue_distance, measure_long, near
from toolkit.ivideogpt.measure.prediction import _difference, measure_goal, measure_prediction
from toolkit.ivideogpt.measure.setting import Counterfactual, Setting, frame_ssim, play_true, psnr
from toolkit.ivideogpt.measure.tokenizer import _reconstruct, _sprites, measure_decoupling, per_frame
from toolkit.ivideogpt.measure.tracking import TRACKED, Color, displacement, locate, pearson
from toolkit.metrics.ssim import ssim
from toolkit.runs.record import Run
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.sampling import Sampling

RNG = torch.Generator().manual_seed(0)
OFF = torch.tensor([0.1, 0.2, 0.05])  # of the three frames after the context
DB = -20 * torch.log10(OFF)


@pytest.fixture
def setting(tmp_path):
    config = tiny.config(context_length=2, num_frames=5)
    config.measure.batch_size = 3
    run = Run(tmp_path, config)
    run.record["metrics"] = {}
    made = Setting(tiny.world(context_length=2, positions=300), tiny.clips(), config, run)
    frames = 0.1 + 0.4 * torch.rand(4, 5, 3, 16, 16, generator=RNG)
    made.__dict__["test"] = Clip(frames, torch.rand(4, 5, 2, generator=RNG), torch.rand(4, 5, generator=RNG))
    return made


def off_by(errors):
    return torch.as_tensor(errors).view(1, -1, 1, 1, 1)


def read(folder, name):
    return json.loads((folder / "tables" / f"{name}.json").read_text())["rows"]


def test_each_predicted_frame_is_held_against_its_own_and_the_context_counts_as_it_is_coded(setting, monkeypatch):
    frames, own, luck = setting.test.frames, setting.test.actions[:, 1:4], []

    def imagine(self, context, actions, num, name):
        luck.append((name, torch.equal(actions, own), torch.equal(actions, own.roll(1, 0))))
        return frames[:, 2:] + off_by(OFF if torch.equal(actions, own) else 0.4 * torch.ones(3)), None

    monkeypatch.setattr(Setting, "imagine", imagine)
    found = measure_prediction(setting)
    assert luck == [("sample_0", True, False), ("sample_0", False, True)]  # the same luck, the clip before's actions
    assert [found[f"psnr.step_{k}"] for k in (1, 2, 3)] == pytest.approx(DB.tolist(), abs=1e-3)
    last = frames[:, 1:2].expand(-1, 3, -1, -1, -1)
    error = (last - frames[:, 2:]).square().mean((-1, -2, -3))
    copied = float((-10 * error.log10()).mean())
    assert found["psnr.copy_last"] == pytest.approx(copied, abs=1e-3)
    assert found["psnr.gain_over_copy"] == pytest.approx(float(DB.mean()) - copied, abs=1e-3)
    coder, coded = setting.world.tokenizer, []
    for index in range(4):
        coded.append(coder.decode_context(coder.encode_context(frames[index : index + 1, :2]).codes).frames)
    error = (torch.cat(coded).clamp(0, 1) - frames[:, :2]).square().mean((-1, -2, -3))
    every = torch.cat([-10 * error.log10(), DB.expand(4, -1)], 1)
    assert found["psnr.all_frames"] == pytest.approx(float(every.mean()), abs=1e-2)
    name, *row = read(setting.run.dir, "prediction")[0]
    assert name == "imagined" and row == pytest.approx([float(DB.mean()), float(DB[0]), float(DB[-1])], abs=1e-2)


def test_a_bootstrap_interval_has_the_ends_of_95_of_100_draws():
    """Of clips that are 0 or 1 in equal parts the mean of 400 varies by 0.025: 1.96 times that on both sides."""
    gaps = (torch.arange(400) % 2).float()[:, None] + torch.tensor([1.0, -1.0])
    found = _difference(gaps)
    low, high = (found[f"psnr.true_minus_other_actions_{end}"] for end in ("low", "high"))
    assert (0.5 - low, high - 0.5) == pytest.approx((0.049, 0.049), abs=0.005)
    assert found["psnr.true_minus_other_actions"] == pytest.approx(0.5)


def test_the_last_imagined_frame_is_held_against_the_goal_that_stands_first(setting, monkeypatch):
    setting.config.goal_conditioned = True
    ends = 0.5 + 0.1 * torch.arange(3).view(1, 3, 1, 1, 1)

    def imagine(self, context, actions, num, name):
        return context[:, :1] * 0 + ends.expand(4, -1, 3, 16, 16), None

    monkeypatch.setattr(Setting, "imagine", imagine)
    context = setting.test.frames[:, :2]
    found = measure_goal(setting)
    goal = context[:, 0]
    assert found["mse.own_goal"] == pytest.approx(float((0.7 - goal).square().mean()), rel=1e-4)
    assert found["mse.start"] == pytest.approx(float((goal - context[:, 1]).square().mean()), rel=1e-4)
    shift = {True: 0.1, False: 0.3}
    near_goal = lambda self, given, *_: (given[:, -1:] * 0 + goal[:, None] + shift[torch.equal(given, context)], None)  # noqa: E731
    monkeypatch.setattr(Setting, "imagine", near_goal)
    assert measure_goal(setting)["mse.ratio"] == pytest.approx(0.01 / 0.09, rel=1e-3)


# -- what measures share -----------------------------------------------------------------------------------------------


def test_frames_beyond_what_can_be_shown_are_cut_before_they_are_scored():
    x, y = torch.rand(2, 3, 16, 16, generator=RNG), torch.rand(2, 3, 16, 16, generator=RNG)
    beyond = x.clone()
    beyond[:, :, :4] += 2.0
    shown = beyond.clamp(max=1)
    assert torch.equal(psnr(beyond, y), psnr(shown, y)) and not torch.equal(psnr(beyond, y), psnr(x, y))
    assert torch.equal(frame_ssim(beyond, y), ssim(shown, y))


def test_imagination_gets_every_batch_its_own_actions_and_the_configs_way_of_drawing(setting, monkeypatch):
    given = []

    def imagine(world, context, actions, num, seeds, how, on_overflow):
        given.append((actions, how, on_overflow))
        return context[:, :1].expand(-1, num, -1, -1, -1), actions[:, :, 0]

    monkeypatch.setattr("toolkit.ivideogpt.measure.setting.imagine", imagine)
    setting.config.rollout.temperature = 0.5
    rows = setting.test.actions[:, 1:4]
    frames, rewards = setting.imagine(setting.test.frames[:, :2], rows, 3, "a", on_overflow="recontext")
    assert torch.equal(torch.cat([one for one, _, _ in given]), rows) and torch.equal(rewards, rows[:, :, 0])
    assert [len(one) for one, _, _ in given] == [3, 1] and len(frames) == 4
    assert {(how, overflow) for _, how, overflow in given} == {(Sampling(temperature=0.5), "recontext")}


def test_measures_see_the_first_windows_of_the_test_split(tmp_path):
    clips, config = tiny.clips(), tiny.config()
    seen = Setting(None, clips, config, None).test.frames
    wanted = [clips.dataset.test.read(index).image[:4] for index in range(4)]
    assert (seen * 255).round().byte().movedim(2, -1).numpy().tolist() == np.stack(wanted).tolist()


# -- the tokenizer -----------------------------------------------------------------------------------------------------


def test_future_frames_are_coded_with_their_own_context_and_a_frame_by_itself_without(setting):
    tokenizer, frames = setting.world.tokenizer, setting.test.frames
    coded, context, alone, (context_codes, codes) = _reconstruct(setting, frames[:, :2], frames[:, 2:])
    for index in range(4):
        part = frames[index : index + 1]
        seen = tokenizer.encode_context(part[:, :2])
        decoded = tokenizer.decode_context(seen.codes)
        mine = tokenizer.encode_frames(part[:, 2:], seen)
        assert torch.equal(codes[index], mine[0]) and torch.equal(context_codes[index], seen.codes[0])
        torch.testing.assert_close(coded[index], tokenizer.decode_frames(mine, decoded)[0])
        torch.testing.assert_close(context[index], decoded.frames[0])
    one = frames[1:2, 3:4]
    wanted = tokenizer.decode_context(tokenizer.encode_context(one.expand(-1, 2, -1, -1, -1)).codes).frames[:, 0]
    torch.testing.assert_close(alone[1:2, 1], wanted)
    torch.testing.assert_close(per_frame(tokenizer, frames[:, 2:])[1:2, 1], wanted)
    found = of_tokenizer.measure_tokenizer(setting)
    gain = found["psnr.future"] - found["psnr.copy"]
    assert found["psnr.gain_over_copy"] == pytest.approx(gain) and found["psnr.copy"] != found["psnr.per_frame"]
    used = {name: len(one.unique()) / 16 for name, one in (("context", context_codes), ("dynamics", codes))}
    assert {name: found[f"usage.{name}"] for name in used} == pytest.approx(used)
    rows = {row[0]: row[1] for row in read(setting.run.dir, "tokenizer")}
    assert list(rows.values()) == [64, 4, 64, 0]


def test_another_clip_is_the_one_before_in_the_same_batch(setting):
    """Batches of three: the first clip takes the third's context, the fourth, alone in its batch, its own."""
    tokenizer, frames = setting.world.tokenizer, setting.test.frames
    found = measure_decoupling(setting)
    middle = lambda x: x.flatten(-2).median(-1).values  # noqa: E731
    made, others = [], []
    for index, other in enumerate((2, 0, 1, 3)):
        seen = tokenizer.encode_context(frames[index : index + 1, :2])
        strange = tokenizer.encode_context(frames[other : other + 1, :2]).codes
        codes = tokenizer.encode_frames(frames[index : index + 1, 2:], seen)
        made.append(tokenizer.decode_frames(codes, tokenizer.decode_context(strange)).clamp(0, 1))
        others.append(frames[other, 1:2].expand(1, 3, -1, -1, -1))
    wanted = pearson(middle(torch.cat(made)), middle(torch.cat(others)))
    assert found["appearance.exchanged_follows_context"] == pytest.approx(wanted, abs=1e-3)


def test_blind_is_without_the_context_whose_attention_is_put_back_as_it_was(setting):
    tokenizer, frames = setting.world.tokenizer, setting.test.frames
    layers = [block.att.out_proj for block in tokenizer.cond_decoder.cross_att_blocks]
    with torch.no_grad():
        for layer in layers:
            layer.bias.normal_()
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    with of_tokenizer._without_cross_attention(tokenizer):
        assert not any(layer.weight.any() or layer.bias.any() for layer in layers)
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())
    own, blind = frames[:, 2:], frames[:, 2:].flip(0)
    made = {"own": own + 0.1, "blind": blind, "exchanged": own}
    found = of_tokenizer._appearance(made, own, frames[:, :2])
    assert found["psnr.own"] == pytest.approx(20, abs=1e-3)
    assert found["psnr.loss_without_context"] == pytest.approx(20 - found["psnr.blind"], abs=1e-3)
    assert found["appearance.own_context"] == pytest.approx(1) and found["appearance.blind"] < 0.9
    brighter = of_tokenizer._appearance(made | {"blind": own + 0.05}, own, frames[:, :2])
    assert brighter["psnr.blind"] == pytest.approx(26.0206, abs=1e-3)  # 20 log 20


def test_motion_is_the_worse_of_two_directions_of_each_kind_of_frame(setting):
    """Blind frames follow in x and not in y; exchanged ones in both."""
    red = torch.tensor(TRACKED["push_sprite"]["agent"].rgb).view(3, 1, 1)

    def shot(x, y):
        made = torch.full((3, 32, 32), 0.5)
        made[:, y : y + 4, x : x + 4] = red
        return made

    places = [(4, 20), (8, 6), (20, 12), (14, 16)]
    true = torch.stack([shot(x, y) for x, y in places])[None]
    blind = torch.stack([shot(x, 26 - y) for x, y in places])[None]
    found = of_tokenizer._motion(setting, {"exchanged": true, "blind": blind}, true, None)
    assert found["motion.exchanged"] == pytest.approx(1) and found["motion.blind"] == pytest.approx(-1)
    moved = torch.stack([shot(x + 3, y + 4) for x, y in places])[None]
    assert _sprites(setting, moved, true)["error_px.agent"] == pytest.approx(5 / 32 * 16, rel=1e-3)


# -- actions -----------------------------------------------------------------------------------------------------------


def test_agreement_is_of_the_last_frame_and_of_the_first():
    true = torch.randn(40, 3, 2, generator=RNG) * 0.3
    made = true.clone()
    made[:, 0, 0] = -true[:, 0, 0]  # the first frame goes the other way in x
    made[:, -1] += torch.tensor([0.03, 0.04])
    made[:, -1, 1] *= -1
    found = _agreement("agent", made, true, 20)
    assert found["r.x.agent"] == pytest.approx(1) and found["r.y.agent"] == pytest.approx(-1)
    assert found["r.least.agent"] == pytest.approx(-1)
    assert found["r_first.x.agent"] == pytest.approx(-1) and found["r_first.y.agent"] == pytest.approx(1)
    error = (made - true)[:, -1].square().sum(-1).sqrt().mean() * 20
    assert found["error_px.agent"] == pytest.approx(float(error), rel=1e-4)


def test_every_number_is_held_at_both_of_its_ends_and_rest_is_the_nearest_to_nought(setting):
    world = setting.world
    setting.config.measure.num_counterfactual = 3
    setting.world = WorldModel(world.tokenizer, world.transformer, [0.5, -1.0], [2.0, 3.0])
    names, sequences = _directions(setting)
    assert names == ["rest", "action 1 low", "action 1 high", "action 2 low", "action 2 high"]
    wanted = np.float32([[0.5, 0], [0.5, 0], [2, 0], [0.5, -1], [0.5, 3]])
    assert sequences.shape == (3, 5, 3, 2) and (sequences == wanted[None, :, None]).all()
    wide = tiny.world(action_dim=4, context_length=2, positions=300)
    setting.world = WorldModel(wide.tokenizer, wide.transformer, discrete=2)
    assert (_directions(setting)[1][0, :, 0] == [[1, 0, 1, 0], [0, 1, 0, 1]]).all()


def test_imagined_moves_are_held_against_true_ones_from_the_last_context_frame(setting, monkeypatch):
    """The simulator's own frames in the model's place agree in everything; the table has their mean displacements."""
    kept = []
    own = play_true
    monkeypatch.setattr(of_actions, "play_true", lambda *given: kept.append(own(*given)) or kept[0])
    monkeypatch.setattr(Setting, "imagine", lambda self, context, actions, num, name: (kept[0].frames, None))
    found = measure_actions(setting)
    truth = kept[0]
    assert found["psnr.imagined"] == pytest.approx(50) and found["r.least.agent"] == pytest.approx(1)
    last = truth.context[:, -1:].expand_as(truth.frames)
    assert found["psnr.copy_last"] == pytest.approx(float(psnr(last, truth.frames).mean()), rel=1e-5)
    moved = displacement(truth.frames, truth.context[:, -1], TRACKED["push_sprite"]["agent"])[:, -1] * 16
    rows = read(setting.run.dir, "actions")
    for index, (_, *numbers) in enumerate(rows):
        mine = moved[index :: len(rows)].mean(0).tolist()
        assert numbers == pytest.approx([*mine, *mine], abs=0.011)
    assert len({tuple(row[1:]) for row in rows}) > 3


def test_rewards_are_read_with_the_actions_into_the_frames(setting, monkeypatch):
    asked = []

    def score(self, context, frames, actions):
        asked.append((context, frames, actions))
        return type("Said", (), {"rewards": torch.zeros(len(context), 3)})

    monkeypatch.setattr(WorldModel, "score", score)
    monkeypatch.setattr(of_actions, "_rank", lambda _: 0.5)
    found = measure_reward(setting)
    clip, true = setting.test, setting.test.rewards[:, 1:4]
    for at, wanted in enumerate((clip.frames[:, :2], clip.frames[:, 2:], clip.actions[:, 1:4])):
        assert torch.equal(torch.cat([one[at] for one in asked]), wanted)
    assert found["r2"] == pytest.approx(1 - float(true.square().mean() / true.var(correction=0)), rel=1e-4)
    assert found["rank"] == 0.5


def test_returns_of_a_start_are_ranked_among_themselves_and_a_start_without_differences_is_left_out(
    setting, monkeypatch
):
    """Five starts: two ranked rightly, one the other way round, one in no order, one whose true returns are equal."""
    monkeypatch.setattr(of_actions, "REWARD_STARTS", 5)
    monkeypatch.setattr(of_actions, "NUM_REWARD_SEQUENCES", 20)
    steps = torch.tensor([[1.0, 2, 3, 4]] * 4 + [[2.0] * 4])
    true = (100 * torch.arange(5)[:, None] + steps).flatten()  # starts differ by much more than sequences do
    said = torch.stack([steps[0], 3 * steps[0], -steps[0], torch.tensor([2.0, 4, 1, 3]), steps[0]]).flatten()
    early = (torch.arange(20) * 7 % 5).float()  # in no order: no frame alone has that of the sum
    spread = lambda returns: torch.stack([early, returns - 2 * early, early], 1)  # noqa: E731 - summed over frames
    asked = []

    def play(env, starts, sequences, num_context):
        asked.append((starts, sequences))
        frames = torch.zeros(20, 3, 3, 16, 16)
        return Counterfactual(frames[:, :2], torch.zeros(20, 3, 2), frames, spread(true), torch.arange(20) // 4)

    monkeypatch.setattr(of_actions, "play_true", play)
    monkeypatch.setattr(Setting, "imagine", lambda *_: (None, spread(said)))
    assert _rank(setting) == pytest.approx((1 + 1 - 1 + 0) / 4)
    (starts, sequences) = asked[0]
    assert not set(starts) & set(of_actions._starts(setting, 5)) and len(set(starts)) == 5
    assert sequences.shape == (5, 4, 3, 2) and np.abs(sequences).max() <= 1
    held, jitter = sequences.mean(2).std(), sequences.std(2).mean()
    assert held > 0.4 > jitter > 0.1  # long pushes, a little jitter


# -- long roll-outs and trackers ---------------------------------------------------------------------------------------


def test_long_roll_outs_begin_after_the_whole_context_and_name_their_steps(setting, monkeypatch):
    setting.config.measure.num_long_clips, setting.config.measure.num_long_frames = 2, 5
    asked = []

    def imagine(self, context, actions, num, name, on_overflow):
        asked.append((context, actions))
        return torch.zeros(2, num, 3, 16, 16) + off_by([0.1, 0.2, 0.3, 0.4, 0.5]), None

    monkeypatch.setattr(Setting, "imagine", imagine)
    true, rows = long._episodes(setting, "push_sprite")
    assert true.shape[:2] == (2, 7) and rows.shape == (2, 5, 2)
    found = measure_long(setting)
    context, actions = asked[0]
    assert torch.equal(context, true[:, :2]) and torch.equal(actions, rows)
    made = torch.zeros(2, 5, 3, 16, 16) + off_by([0.1, 0.2, 0.3, 0.4, 0.5])
    errors = (made - true[:, 2:]).square().mean((-1, -2, -3))
    for step in (1, 5):
        wanted = float((-10 * errors[:, step - 1].log10()).mean())
        assert found[f"psnr.imagined.step_{step}"] == pytest.approx(wanted, abs=1e-3)
    assert found["psnr.imagined"] == pytest.approx(float((-10 * errors.log10()).mean()), abs=1e-3)
    assert {key for key in found if "step" in key and key.startswith("hue.step")} == {"hue.step_1", "hue.step_5"}
    setting.config.seed += 1
    assert torch.equal(long._episodes(setting, "push_sprite")[0], true)  # the same worlds for every seed
    red, blue = (
        hue_distance(torch.zeros(1, 1, 3, 4, 4) + torch.tensor(c).view(3, 1, 1), torch.zeros(1, 1, 3, 4, 4))
        for c in ((0.3, 0, 0), (0, 0, 0.6))
    )
    assert (float(red), float(blue)) == pytest.approx(
        (255 * 0.3 * (2 / 3) ** 0.5, 255 * 0.6 * (2 / 3) ** 0.5), rel=1e-4
    )


def test_near_is_three_pixels_of_any_size_and_only_what_is_seen():
    color = TRACKED["push_sprite"]["block"]

    def frame(column, size):
        made = torch.full((3, size, size), 0.5)
        made[:, 10:14, column : column + 4] = torch.tensor(color.rgb).view(3, 1, 1)
        return made

    for size in (32, 64):
        true = torch.stack([frame(10, size)] * 3)[None]
        made = torch.stack([frame(13, size), frame(15, size), torch.full((3, size, size), 0.5)])[None]
        assert near(made, true, color).tolist() == [[1, 0, 0]]


def test_a_centroid_is_in_shares_of_width_and_height_weighed_by_nearness_of_colour():
    """Two pixels of 8 x 5, one of the colour itself, one halfway to where nothing counts: two thirds, one third."""
    color = Color((1.0, 0.0, 0.0), 0.5)
    frames = torch.zeros(1, 3, 5, 8)
    frames[0, :, 1, 2] = torch.tensor([1.0, 0, 0])
    frames[0, :, 4, 5] = torch.tensor([0.75, 0, 0])
    place, mass = locate(frames, color)
    assert mass.item() == pytest.approx(1.5)
    assert place[0].tolist() == pytest.approx([(2 * 2.5 + 5.5) / 3 / 8, (2 * 1.5 + 4.5) / 3 / 5])
    later = torch.zeros(1, 1, 3, 5, 8)
    later[0, 0, :, 3, 6] = torch.tensor([1.0, 0, 0])
    frames[0, :, 4, 5] = 0
    assert displacement(later, frames, color)[0, 0].tolist() == pytest.approx([4 / 8, 2 / 5])
    assert pearson(torch.ones(3), torch.arange(3.0)) == 0
