"""Image files that were damaged, lie about themselves or are of another kind, before the readers of image folders."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.fuzz.box import cli
from tests.fuzz.harness import Fuzz, damaged_bytes
from toolkit.data import load
from toolkit.data.config import Data

ROOMS = ("disco",)
NUM = 60  # of each suffix
KINDS = ("png", "jpg", "gif", "webp", "tiff", "bmp")


def picture(mode="RGB", size=(16, 12)):
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def encoded(kind, image=None, **options):
    buffer = io.BytesIO()
    (image or picture()).save(buffer, {"jpg": "JPEG", "tiff": "TIFF"}.get(kind, kind.upper()), **options)
    return buffer.getvalue()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, depth=8, colour=2, data=b"", extra=b""):
    """A PNG that says what it likes."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def hostile():
    """Name of the file -> its bytes."""
    huge = {f"{side}_{more}.png": png(side, more) for side in (2**15, 2**20, 2**31 - 1) for more in (1, side)}
    bomb = png(12_000, 12_000, data=bytes(12_000 * 36_001))  # 432 MB in half a megabyte
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28)))
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**28)))
    modes = {f"{mode}.png": encoded("png", picture(mode)) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")}
    frames = [picture().rotate(angle) for angle in (0, 90, 180)]
    animated = {
        f"animated.{kind}": encoded(kind, frames[0], save_all=True, append_images=frames[1:])
        for kind in ("gif", "webp", "png", "tiff")
    }
    return {
        **huge, **modes, **animated,
        "bomb.png": bomb,
        "text.png": png(4, 4, data=bytes(52), extra=text),
        "profile.png": png(4, 4, data=bytes(52), extra=profile),
        "cmyk.jpg": encoded("jpg", picture("CMYK")),
        "cmyk.tiff": encoded("tiff", picture("CMYK")),
        "float.tiff": encoded("tiff", picture("F")),
        "lab.tiff": encoded("tiff", picture("LAB")),
        "jpeg.png": encoded("jpg"), "png.jpg": encoded("png"), "text.jpg": b"hello", "empty.png": b"",
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "bmp_huge.bmp": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 1, 1, 0, 0),
        "gif_huge.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF7, 0, 0) + bytes(800),
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(20):
        (tmp_path / f"data/good_{number}.png").write_bytes(encoded("png"))
    return tmp_path


def read(folder, **changes):
    """All that training would read."""
    data = load(Data(name="folder", path=str(folder), **changes), seed=0)
    for split in (data.train, data.valid, data.test):
        split.batch(range(len(split)))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged(folder, kind):
    fuzz = Fuzz(f"images, {kind}")
    path, whole = folder / f"data/bad.{kind}", encoded(kind)
    for _ in range(NUM):
        path.write_bytes(damaged_bytes(whole, fuzz.random))
        options = {"size_px": fuzz.random.choice([None, 8])}
        fuzz.boxed(
            (kind, path.read_bytes()[:80]), lambda options=options: read(folder / "data", **options), folder, path.name
        )
    fuzz.check(least=NUM)


def test_hostile(folder, monkeypatch):
    monkeypatch.chdir(folder)
    fuzz = Fuzz("images that lie, bombs, other modes")
    for name, content in hostile().items():
        path = folder / "data" / name
        path.write_bytes(content)
        for size in (None, 8):
            for skip in (False, True):
                fuzz.boxed(
                    (name, size, skip),
                    lambda size=size, skip=skip: read(folder / "data", size_px=size, skip_bad=skip),
                    folder,
                    "" if skip or size is None else name,
                )
        path.unlink()
    for name in ("1048576_1048576.png", "empty.png", "postscript.png"):
        path = folder / "data" / name
        path.write_bytes(hostile()[name])
        words = ["experiment=disco_smoke", "data=folder", f"data.path={folder}/data", "data.size_px=8"]
        fuzz.boxed(name, cli("train-disco", *words, "hydra.run.dir=run"), folder, name)
        assert not (folder / "run").exists()
        path.unlink()
    fuzz.check(least=100)
