"""Parts of a clip: which are made, and of which frames."""

from fractions import Fraction

import numpy as np

from toolkit.data.video.reader import VideoReader
from toolkit.data.video.scan import index_video
from toolkit.data.video.write import Encoding
from toolkit.venhancer.clips.parts import write_parts
from toolkit.venhancer.clips.timeline import Shot, Timeline

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
