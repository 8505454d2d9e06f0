"""Which frames a degraded clip keeps, what becomes of their pixels, and their noise, with plain numbers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from toolkit.venhancer.clips import degrade
from toolkit.venhancer.clips.degrade import degraded_frames, degraded_size
from toolkit.venhancer.config import Degrade


def degraded(frames, size, seed=0, **words):
    return list(degraded_frames(iter(frames), Degrade(**words), *size, seed))


def test_frames_0_k_2k_are_kept():
    numbered = [np.full((4, 4, 3), 10 * number, np.uint8) for number in range(7)]
    made = degraded(numbered, (4, 4), frame_step=3)
    assert [int(frame.min()) for frame in made] == [int(frame.max()) for frame in made] == [0, 30, 60]


def test_pixels_are_averaged_by_keys_kernel_as_wide_as_the_scale():
    board = np.indices((64, 64)).sum(axis=0) % 2 * 200  # black and bright squares of a pixel
    image = np.repeat(board[..., None], 3, axis=-1).astype(np.uint8)
    (small,) = degraded([image], (32, 32), scale=2.0)
    assert small.shape == (32, 32, 3) and np.abs(small[4:-4, 4:-4].astype(int) - 100).max() <= 1
    edge = np.zeros((64, 64, 3), np.uint8)
    edge[:, 32:] = 200
    (small,) = degraded([edge], (32, 32), scale=2.0)
    assert small[8, 12:20, 0].tolist() == by_keys(edge[8, :, 0], range(12, 20))


def by_keys(line, places, a=-0.5):
    """Keys' kernel stretched by 2, its weights summing to one, as antialiased bicubic scaling by 2 has it."""
    made = []
    for place in places:
        distance = np.abs(np.arange(len(line)) + 0.5 - 2 * (place + 0.5)) / 2
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
        made.append(int(np.clip(np.rint((weights * line).sum() / weights.sum()), 0, 255)))
    return made


def test_every_frame_has_its_own_noise_of_the_deviation_asked_for():
    grey = [np.full((48, 48, 3), 128, np.uint8)] * 3
    noise = [frame.astype(float) - 128 for frame in degraded(grey, (48, 48), noise=12.0)]
    for one in noise:
        assert abs(one.std() - 12) < 0.5 and abs(one.mean()) < 0.5  # 6912 values: standard errors 0.1 and 0.14
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.corrcoef(noise[a].flat, noise[b].flat)[0, 1]) < 0.05  # four standard errors
    again, other = degraded(grey, (48, 48), noise=12.0), degraded(grey, (48, 48), seed=1, noise=12.0)
    assert all(np.array_equal(one, two + 128) for one, two in zip(again, noise, strict=True))
    assert not np.array_equal(other[0], again[0])


def test_sides_are_divided_rounded_and_even_where_the_codec_needs_it():
    index = SimpleNamespace(width=101, height=68)
    assert degraded_size(index, Degrade(scale=4.0, crf=None)) == (25, 17)
    assert degraded_size(index, Degrade(scale=4.0, crf=30)) == (24, 16)
    assert degraded_size(SimpleNamespace(width=64, height=32), Degrade(scale=2.0, crf=None)) == (32, 16)


def test_a_clip_of_every_third_frame_has_a_third_of_the_rate(monkeypatch):
    told = []
    monkeypatch.setattr(degrade, "VideoReader", lambda index: SimpleNamespace(frames=lambda: iter(())))
    monkeypatch.setattr(degrade, "write_part", lambda path, frames, encoding: told.append(encoding))
    index = SimpleNamespace(width=101, height=68, rate=Fraction(24000, 1001), aspect=Fraction(1))
    degrade.write_degraded(index, Degrade(scale=4.0, frame_step=3, crf=30), Path("made.mp4"), seed=0)
    assert (told[0].rate, told[0].width, told[0].height, told[0].crf) == (Fraction(8000, 1001), 24, 16, 30)
