"""Out of latents and into pictures, tile by tile, with plain numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from toolkit.venhancer.engine.frame_store import FrameStore
from toolkit.venhancer.engine.transcode import Transcoder


def transcoder(folder, rows=12, columns=10, *, context=0, group=1, overlap=0.25, scale=None):
    """Of one channel; the codec's pictures are three times its latents, one pixel for each."""
    made = object.__new__(Transcoder)
    codec = SimpleNamespace(group=group, context=context, factor=1, margin=8, channels=1)
    codec.decode = lambda z: z.expand(-1, 3, -1, -1)
    codec.encode = lambda frames: frames[:, :1] * 1.0
    made.codec, made.size, made.tile, made.scale = codec, (rows - 1, columns - 2), (6, 5), scale
    made.overlap, made.device, made._encoded = overlap, torch.device("cpu"), {}
    geometry = SimpleNamespace(rows=rows, columns=columns, channels=1, frame_factor=1)
    made.flight = SimpleNamespace(geometry=geometry)
    made.canvas = FrameStore(folder / "canvas", 8, 3, rows, columns)
    return made


def stored(folder, values, rows=12, columns=10):
    latents = FrameStore(folder / "latents", len(values), 1, rows, columns)
    for number, value in enumerate(values):
        latents.write([number], torch.full((1, 1, rows, columns), value))
    return latents


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_tiles_that_overlap_are_no_brighter(tmp_path, overlap):
    made = transcoder(tmp_path, overlap=overlap)
    frames = made.decode(range(2), 2, stored(tmp_path, [0.2, -0.6]))
    assert frames.shape == (2, 11, 8, 3)
    assert np.unique(frames[0]).tolist() == [153] and np.unique(frames[1]).tolist() == [51]  # (v + 1) 127.5


def test_pixels_are_the_nearest_levels(tmp_path):
    made = transcoder(tmp_path, 18, 18)
    levels = (torch.arange(17 * 16) % 256).float().view(17, 16)
    for off in (-0.4, 0.4):
        picture = torch.zeros(1, 3, 18, 18)
        picture[0, :, :17, :16] = (levels + off) / 127.5 - 1
        made.canvas.write([3], picture)
        assert np.array_equal(made._finish(3)[..., 1], levels.numpy())


@pytest.mark.parametrize("frames", [range(5), range(1, 3), range(3, 5)])
def test_of_a_group_the_frames_in_the_middle_are_kept(tmp_path, frames):
    """Five at a time, of which one at either end only helps."""
    made = transcoder(tmp_path, context=1, group=5)
    found = made.decode(frames, 5, stored(tmp_path, [-1.0, -0.6, -0.2, 0.2, 0.6]))
    assert found[:, 0, 0, 0].tolist() == [[0, 51, 102, 153, 204][number] for number in frames]


def test_a_decoder_sees_no_more_frames_than_it_takes_and_tiles_overlap_where_it_sees_beyond_them(tmp_path):
    made, seen = transcoder(tmp_path, context=1, group=5), set()
    made.codec.decode = lambda z: seen.add(len(z)) or z.expand(-1, 3, -1, -1)
    made.decode(range(1, 7), 9, stored(tmp_path, [0.1] * 9))
    assert seen == {5}  # 0 to 4 for 1 to 3, 3 to 7 for 4 to 6
    flight = SimpleNamespace(canvas=lambda *_: None)
    for margin, overlap in ((8, 1 / 6), (0, 0.0)):
        codec = SimpleNamespace(margin=margin, group=1, factor=1)
        assert Transcoder(codec, flight, None, (1, 1), (1, 1), None, torch.device("cpu")).overlap == overlap


def test_a_residual_is_in_units_of_its_own_and_lies_on_the_filled_in_frame(tmp_path):
    """-0.1 + 0.5 in units of 0.4: 0.1, on the scale of pictures 140."""
    made = transcoder(tmp_path, scale=2.0)
    made._unit = lambda frame, rows, columns: torch.full((1, 1, rows[1] - rows[0], columns[1] - columns[0]), 0.4)
    made.fill_latents = lambda frame, rows, columns: torch.full_like(made._unit(frame, rows, columns), -0.1)
    found = made.decode(range(1), 1, stored(tmp_path, [0.5]))
    assert np.unique(found).tolist() == [140]


def test_a_whole_frame_of_latents_is_blended_from_tiles(tmp_path):
    made = transcoder(tmp_path)
    grid = torch.arange(120.0).view(1, 12, 10)
    made.fill = SimpleNamespace(mode="bilinear")
    made._encode_region = lambda parts, rows, columns: grid[None, :, slice(*rows), slice(*columns)] * parts[0][1]
    found = made._encode([(0, 2.0)], (2, 9), (1, 8))
    torch.testing.assert_close(found, 2 * grid[None, :, 2:9, 1:8])
