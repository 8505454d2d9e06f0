"""What counts as seen, which of several context frames and samples a number is of, and whose episodes are long."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from tests.ivideogpt import tiny
from toolkit.data.episodes.clips import Clip
from toolkit.ivideogpt.measure import long, prediction
from toolkit.ivideogpt.measure import tokenizer as of_tokenizer
from toolkit.ivideogpt.measure.long import near
from toolkit.ivideogpt.measure.prediction import measure_prediction
from toolkit.ivideogpt.measure.setting import Setting
from toolkit.ivideogpt.measure.tokenizer import measure_tokenizer
from toolkit.ivideogpt.measure.tracking import Color, displacement, locate
from toolkit.runs.record import Run

RNG = torch.Generator().manual_seed(0)


@pytest.fixture
def setting(tmp_path):
    """Two context frames, three later ones, four clips."""
    run = Run(tmp_path, tiny.config(context_length=2, num_frames=5))
    run.record["metrics"] = {}
    made = Setting(tiny.world(context_length=2, positions=300), tiny.clips(), run.config, run)
    frames = 0.2 + 0.4 * torch.rand(4, 5, 3, 16, 16, generator=RNG)
    made.__dict__["test"] = Clip(frames, torch.rand(4, 5, 2, generator=RNG), torch.rand(4, 5, generator=RNG))
    return made


def decibel(x, y):
    return -10 * torch.log10((x - y).square().mean((-1, -2, -3)))


def test_a_colour_is_as_far_as_the_straight_line_through_all_channels():
    """0.12 off in one channel and 0.16 in another are 0.2 of the 0.5 where nothing counts."""
    frames = torch.full((3, 4, 4), -5.0)
    frames[:, 2, 1] = torch.tensor([0.9 - 0.12, 0.2 + 0.16, 0.3])
    assert locate(frames, Color((0.9, 0.2, 0.3), 0.5))[1].item() == pytest.approx(0.6)
    frames[:, 2, 1] = torch.tensor([0.9, 0.2, 0.6])
    assert locate(frames, Color((0.9, 0.2, 0.3)))[1].item() == pytest.approx(0.25)  # 0.4 is where nothing counts


def test_a_thing_is_seen_above_a_quarter_of_its_usual_mass():
    color = Color((1.0, 0.0, 0.0), 0.5)

    def frame(column, pixels):
        made = torch.zeros(3, 20, 20)
        made[0, :pixels, column] = 1.0
        return made

    start = frame(4, 8)
    later = torch.stack([frame(9, 3), frame(9, 2), frame(9, 1)])
    assert displacement(later, start, color)[:, 0].tolist() == pytest.approx([0.25, 0, 0])
    true = torch.stack([frame(9, 8), frame(9, 3), frame(9, 3)])[None]
    made = torch.stack([frame(9, 3), frame(9, 3), frame(9, 2)])[None]
    assert near(made, true, color).tolist() == [[1, 1, 0]]


def test_each_coded_context_frame_is_held_against_its_own(setting, monkeypatch):
    frames = setting.test.frames
    own = frames[:, :2] + torch.tensor([0.1, 0.2]).view(1, 2, 1, 1, 1)
    found = (frames[:, 2:] + 0.05, own, frames[:, 2:] + 0.3, (torch.zeros(1).long(), torch.zeros(1).long()))
    monkeypatch.setattr(of_tokenizer, "_reconstruct", lambda *_: found)
    told = measure_tokenizer(setting)
    for name, wanted in (("context", (20 + 13.9794) / 2), ("future", 26.0206), ("per_frame", 10.4576)):
        assert told[f"psnr.{name}"] == pytest.approx(wanted, abs=1e-3), name


def test_several_samples_have_luck_of_their_own_and_the_first_stands_beside_the_context(setting, monkeypatch):
    """Two samples, of which each is better for half of the clips; the other actions have the first one's luck."""
    setting.config.measure.num_samples = 2
    frames, asked = setting.test.frames, []
    errors = {"sample_0": torch.tensor([0.1, 0.1, 0.3, 0.3]), "sample_1": torch.tensor([0.2, 0.2, 0.05, 0.05])}

    def imagine(self, context, actions, num, name):
        asked.append(name)
        return frames[:, 2:] + errors[name].view(4, 1, 1, 1, 1), None

    monkeypatch.setattr(Setting, "imagine", imagine)
    monkeypatch.setattr(prediction, "_context_psnr", lambda *_: torch.full((4, 2), 40.0))
    monkeypatch.setattr(prediction, "frame_ssim", lambda x, y: (x - y).mean((-1, -2, -3)))
    monkeypatch.setattr(prediction, "_report", lambda *_: None)
    found = measure_prediction(setting)
    first, second = (-20 * torch.log10(one) for one in errors.values())
    assert asked == ["sample_0", "sample_1", "sample_0"]
    assert found["psnr.predicted"] == pytest.approx(float(torch.cat([first, second]).mean()), abs=1e-3)
    assert found["psnr.best_of_2"] == pytest.approx(float(torch.maximum(first, second).mean()), abs=1e-3)
    assert found["psnr.all_frames"] == pytest.approx((2 * 40 + 3 * float(first.mean())) / 5, abs=1e-3)
    assert found["ssim.predicted"] == pytest.approx(0.2, abs=1e-5)
    last = decibel(frames[:, 1:2], frames[:, 2:]).mean()
    assert found["psnr.copy_last"] == pytest.approx(float(last), abs=1e-3)


def test_long_episodes_are_of_a_seed_that_no_recording_has(setting, monkeypatch):
    """A run's own seed is drawn from far fewer than a million numbers."""
    asked = []

    def run_episode(simulator, env, plan, number):
        asked.append((plan.seed, number, plan.num_frames, plan.size_px))
        episode = tiny.clips().dataset.test.read(0)
        return dataclasses.replace(episode, image=episode.image[:5], action=episode.action[:5])

    monkeypatch.setattr(long, "run_episode", run_episode)
    monkeypatch.setattr(long, "find", lambda env: SimpleNamespace())
    setting.config.measure.num_long_clips, setting.config.measure.num_long_frames = 2, 3
    true, actions = long._episodes(setting, "push_sprite")
    assert true.shape[:2] == (2, 5) and actions.shape == (2, 3, 2)
    assert asked == [(1_000_003, 0, 5, 16), (1_000_003, 1, 5, 16)]
