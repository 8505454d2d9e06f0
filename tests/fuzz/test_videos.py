"""Video files that were damaged or lie about themselves, before the readers of videos."""

import struct

import pytest

from tests.data import videos
from tests.fuzz.box import cli
from tests.fuzz.harness import Fuzz, damaged_bytes
from toolkit.data.video.reader import VideoReader
from toolkit.data.video.scan import index_video

ROOMS = ("venhancer",)
NUM = 80  # of each kind
KINDS = {"mp4": {}, "mkv": {}, "mov": {}, "avi": {"codec": "mpeg4"}}


def read(path):
    index = index_video(path, most_bytes=2**28)
    for number, _ in enumerate(VideoReader(index).frames(0)):
        assert number < 1000


def patched(whole, mark, offset, content):
    """``whole`` with ``content`` at ``offset`` after the four letters ``mark`` of a box."""
    at = whole.index(mark) + 4 + offset
    return whole[:at] + content + whole[at + len(content) :]


def hostile(whole):
    """What a box says, made a lie."""
    most = b"\xff\xff\xff\x7f"
    big = struct.pack(">HH", 65535, 65535)
    yield from (b"", whole[:8], whole[:40], whole[: len(whole) // 2], bytes(10_000), b"\0\0\0\x08ftyp" * 5000)
    yield patched(whole, b"moov", -8, most)
    yield patched(whole, b"stts", 4, most)
    yield patched(whole, b"stsz", 8, most)
    yield patched(whole, b"stsc", 4, most)
    yield patched(whole, b"stco", 4, most)
    yield patched(whole, b"stco", 8, most)
    yield patched(whole, b"stts", 12, bytes(4))
    yield patched(whole, b"stts", 12, most)
    yield patched(whole, b"mvhd", 12, bytes(4))
    yield patched(whole, b"mdhd", 12, bytes(4))
    yield patched(whole, b"avc1", 24, big)
    yield patched(whole, b"tkhd", 76, most * 2)
    yield patched(whole, b"stsz", 8, bytes(4))
    nest = b""
    for _ in range(2000):
        nest = struct.pack(">I", len(nest) + 8) + b"moov" + nest
    yield whole[:32] + nest


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    frames = videos.moving(6, 48, 32)
    return {kind: videos.write(folder / f"a.{kind}", frames, **more).read_bytes() for kind, more in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged(tmp_path, clips, kind):
    fuzz = Fuzz(f"videos, {kind}")
    path = tmp_path / f"bad.{kind}"
    for number in range(NUM):
        content = damaged_bytes(clips[kind], fuzz.random)
        path.write_bytes(damaged_bytes(content, fuzz.random) if number % 3 == 0 else content)
        fuzz.boxed((kind, number), lambda: read(path), tmp_path, path.name)
    fuzz.check(least=NUM)


def test_hostile(tmp_path, clips, monkeypatch):
    fuzz = Fuzz("videos: lying boxes, no frames, huge pictures")
    monkeypatch.chdir(tmp_path)
    for number, content in enumerate(hostile(clips["mp4"])):
        path = tmp_path / "bad.mp4"
        path.write_bytes(content)
        fuzz.boxed(number, lambda path=path: read(path), tmp_path, path.name)
        if number in (0, 2, 4):
            words = ["experiment=enhance_smoke", "input=bad.mp4", "hydra.run.dir=run"]
            fuzz.boxed(("enhance-video", number), cli("enhance-video", *words), tmp_path, path.name)
            assert not (tmp_path / "run").exists()
    text = tmp_path / "bad.mp4"
    for content in (
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"<svg/>",
    ):
        text.write_bytes(content)
        fuzz.boxed(content, lambda: read(text), tmp_path, text.name)
    fuzz.check(least=20)
