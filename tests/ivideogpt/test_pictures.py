"""Videos that players read, and trackers that find what the simulator put there."""

import av
import numpy as np
import torch
from PIL import Image

from toolkit.data.episodes.push_sprite import PushSprite, record
from toolkit.ivideogpt.film import film_strip, save_gif, save_mp4, side_by_side
from toolkit.ivideogpt.measure.tracking import TRACKED, displacement, locate, pearson, spearman

RNG = np.random.default_rng(0)


def clips(num_frames=5):
    return np.broadcast_to(RNG.integers(0, 256, (3, num_frames, 1, 1, 3), dtype=np.uint8), (3, num_frames, 8, 8, 3))


def test_videos_hold_every_frame_in_its_colours(tmp_path):
    video = side_by_side({"truth": clips(), "imagined": clips()}, 4)
    assert video.shape[0] == 5 and video.shape[1] % 2 == 0 and video.shape[2] % 2 == 0
    save_mp4(tmp_path / "a.mp4", video, 6)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p" and float(stream.average_rate) == 6
        found = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert found.shape == video.shape and np.abs(found.astype(int) - video).mean() < 6
    save_gif(tmp_path / "a.gif", video, 6)
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 5 and picture.size == (video.shape[2], video.shape[1])


def test_pixels_of_clips_stand_enlarged_below_their_label():
    rows = {"a": clips(), "b": clips()}
    video = side_by_side(rows, 4)
    for place, frames in enumerate(rows.values()):
        top = place * (12 + 32 + 2) + 12
        assert (video[3, top + 5, 34 + 5] == frames[1, 3, 0, 0]).all()


def test_a_strip_aligns_rows_at_their_end():
    truth = clips(6)
    strip = film_strip({"truth": truth, "imagined": truth[:, 2:]}, 0, 1)
    assert (strip[12 + 4, :8] == truth[0, 0, 0, 0]).all() and (strip[2 * 12 + 8 + 2 + 4, :8] == 255).all()


def test_trackers_find_the_sprites_where_the_simulator_has_them():
    made = record(PushSprite(32), range(30), 6)
    frames = torch.from_numpy(made.frames).permute(0, 1, 4, 2, 3).float() / 255
    agent, _ = locate(frames, TRACKED["push_sprite"]["agent"])
    assert (agent - torch.from_numpy(made.positions[:, :, 0])).norm(dim=-1).max() * 32 < 0.6
    block, mass = locate(frames, TRACKED["push_sprite"]["block"])
    whole = mass > 0.95 * mass.max()  # where the disc does not hide a part of it
    assert (block - torch.from_numpy(made.positions[:, :, 1])).norm(dim=-1)[whole].max() * 32 < 0.6


def test_displacement_counts_from_the_start_and_is_zero_where_nothing_is_seen():
    sim = PushSprite(32, num_distractors=0)
    sim.reset([0])
    block = np.float32([[0.8, 0.8]])
    shots = [sim.place(np.float32([[x, 0.3]]), block)[0] for x in (0.2, 0.5, 0.6)]
    frames = torch.from_numpy(np.stack(shots)).permute(0, 3, 1, 2).float()[None] / 255
    moved = displacement(
        torch.cat([frames[:, 1:], torch.full_like(frames[:, :1], 0.5)], 1),
        frames[:, 0],
        TRACKED["push_sprite"]["agent"],
    )
    assert torch.allclose(moved[0], torch.tensor([[0.3, 0], [0.4, 0], [0, 0]]), atol=0.02)


def test_correlations():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert np.isclose(pearson(x, 2 * x + 1), 1) and np.isclose(pearson(x, -x), -1) and pearson(x, torch.ones(4)) == 0
    assert np.isclose(spearman(x, x.exp()), 1) and pearson(x, x.exp()) < 0.95
    tied = torch.tensor([0.0, 0, 0, 1])  # the order of equal values is no order
    assert spearman(torch.tensor([1.0, 2, 3, 9]), tied) == spearman(torch.tensor([3.0, 2, 1, 9]), tied) > 0.7
