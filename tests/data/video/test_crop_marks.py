"""Rows and columns that a codec's crop marks cut off are not shown, whatever their number."""

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext

from tests.data.videos import moving, psnr, write
from toolkit.data.video.reader import VideoReader
from toolkit.data.video.scan import index_video

CLIP = moving(3, 192, 128)


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "h264"), ("libx265", "hevc")])
@pytest.mark.parametrize("left", [0, 10, 32])
def test_what_is_cut_off_at_any_side_is_not_shown(tmp_path, codec, suffix, left):
    options = {"crf": "1", "preset": "ultrafast"} | ({"x265-params": "log-level=none"} if suffix == "hevc" else {})
    whole, marked = write(tmp_path / f"whole.{suffix}", CLIP, codec=codec, options=options), tmp_path / f"cut.{suffix}"
    marks = f"{suffix}_metadata=crop_left={left}:crop_right=6:crop_top=4:crop_bottom=2"
    with av.open(str(whole)) as container, open(marked, "wb") as file:
        stream = container.streams.video[0]
        marker = BitStreamFilterContext(marks, stream)
        for packet in container.demux(stream):
            for made in marker.filter(packet if packet.size else None):
                file.write(bytes(made))
    index = index_video(marked)
    assert (index.width, index.height) == (192 - left - 6, 122)
    assert psnr(np.stack(list(VideoReader(index).frames())), CLIP[:, 4:-2, left:-6]) > 38
