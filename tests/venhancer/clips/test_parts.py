"""Parts of a clip: which are made, and of which frames."""

from fractions import Fraction

import numpy as np
import pytest

from tests.data.videos import moving, write
from tests.venhancer.networks import tiny_pipeline
from toolkit.data.video.reader import VideoReader
from toolkit.data.video.scan import index_video
from toolkit.data.video.write import Encoding
from toolkit.venhancer.clips.backends import GenerativeBackend
from toolkit.venhancer.clips.parts import write_parts
from toolkit.venhancer.clips.timeline import Shot, Timeline, make_timeline
from toolkit.venhancer.config import EnhanceVideo
from toolkit.venhancer.engine.enhancer import Enhancer
from toolkit.venhancer.engine.settings import EnhanceSettings

RATE, NUM_FRAMES = Fraction(8), 8


class Numbered:
    """A backend whose frame n is grey, of the level 30 n."""

    def __init__(self):
        self.asked = []

    def frames(self, shot, start):
        for number in range(start, len(shot.positions)):
            self.asked.append(number)
            yield np.full((32, 32, 3), 30 * number, np.uint8)

    def stored(self, shot, stop):
        pass


def timeline():
    keys = tuple(range(NUM_FRAMES))
    return Timeline(RATE, NUM_FRAMES, 1, (Shot(keys, tuple(map(Fraction, keys)), 0),))


def levels(paths):
    return [round(float(frame.mean()) / 30) for path in paths for frame in VideoReader(index_video(path)).frames()]


def written(folder, crf=1):
    backend = Numbered()
    paths = write_parts(backend, timeline(), Encoding(32, 32, RATE, crf=crf), 2, folder, None)
    assert levels(paths) == list(range(NUM_FRAMES))
    return paths, backend.asked


def test_a_part_that_is_gone_is_made_of_its_own_frames(tmp_path):
    """Whichever parts lie before and after it."""
    paths, _ = written(tmp_path)
    paths[0].unlink()
    paths[2].unlink()
    assert written(tmp_path)[1] == [0, 1, 4, 5]


def test_parts_are_encoded_again_and_not_made_again(tmp_path):
    former, _ = written(tmp_path)
    former[3].unlink()
    former[1].rename(tmp_path / "part_000001.mp4")  # as an earlier version called it
    paths, asked = written(tmp_path, crf=2)
    assert asked == [6, 7] and sorted(tmp_path.iterdir()) == paths


def test_a_part_of_the_network_that_is_gone_when_a_killed_shot_goes_on(tmp_path):
    """What the network made of it was forgotten when it was stored: the shot is made once more, not shifted."""
    write(tmp_path / "in.mp4", moving(9, 48, 32))
    index = index_video(tmp_path / "in.mp4")
    timeline, encoding = make_timeline(index, index.rate), Encoding(48, 32, index.rate, crf=1)
    settings = EnhanceSettings(height=32, width=48, chunk_mib=1).changed(num_steps=1, num_frames=3)
    settings = settings.changed(tile_height_px=32, tile_width_px=48)

    def parts(folder, stop=None):
        enhancer = Enhancer(tiny_pipeline(), settings)
        config = EnhanceVideo(color_fix="none")
        work = tmp_path / folder / "work"
        backend = GenerativeBackend(VideoReader(index), enhancer, config, (48, 32), 1, "cpu", work)
        forget = backend.stored

        def stored(shot, number):
            forget(shot, number)
            if number == stop:
                raise KeyboardInterrupt

        backend.stored = stored
        return write_parts(backend, timeline, encoding, 2, tmp_path / folder, None)

    with pytest.raises(KeyboardInterrupt):
        parts("killed", stop=6)
    sorted((tmp_path / "killed").glob("part_*"))[1].unlink()
    for one, other in zip(parts("killed"), parts("whole"), strict=True):
        pictures = [np.stack([*VideoReader(index_video(path)).frames()]) for path in (one, other)]
        assert np.array_equal(*pictures)
