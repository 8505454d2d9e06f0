"""npz and npy files of episodes and of ImageNet: damaged, with pickles, with shapes that lie, compressed bombs."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from tests.fuzz.box import cli
from tests.fuzz.harness import Fuzz, damaged_bytes
from toolkit.data import load
from toolkit.data.config import Data, EpisodeData
from toolkit.data.episodes.episode import EpisodeSpec, read_episode
from toolkit.data.images.imagenet import stored_array
from toolkit.ivideogpt.clips import load_clips

ROOMS = ("ivideogpt",)
NUM = 100


class Evil:
    def __reduce__(self):
        return (open, ("MADE", "w"))


def arrays(frames=5):
    values = np.random.default_rng(0).integers(0, 255, (frames, 16, 16, 3), dtype=np.uint8)
    return {"image": values, "action": np.ones((frames, 2), np.float32), "reward": np.zeros(frames, np.float32)}


def npz(write=np.savez, **values):
    buffer = io.BytesIO()
    write(buffer, **values)
    return buffer.getvalue()


def npy_header(shape, dtype="|u1", text=None, version=1):
    text = text or f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    body = text.encode() + b" " * (-(len(text) + 11) % 64) + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(body))
    return b"\x93NUMPY" + bytes([version, 0]) + length + body


def zipped(members, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=9) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def with_image(content, method=zipfile.ZIP_DEFLATED):
    return zipped([("image.npy", content)], method)


def hostile():
    objects = io.BytesIO()
    np.save(objects, np.array([Evil()], dtype=object), allow_pickle=True)
    huge = {
        f"shape {shape}": with_image(npy_header(shape) + bytes(3072))
        for shape in ((10**9, 16, 16, 3), (2**62, 4, 4, 3), (-5, 16, 16, 3), (10**30, 1, 1, 3), (0, 2**62, 2**62, 3))
    }
    whole = npz(**arrays())
    return huge | {
        "bomb": _bomb(),
        "objects": with_image(objects.getvalue()),
        "pickle instead of an array": with_image(pickle.dumps(Evil())),
        "pickle instead of an archive": pickle.dumps(Evil()),
        "code in the header": with_image(npy_header((), text="__import__('os').system('touch MADE')")),
        "deep header": with_image(npy_header((), text="[" * 60_000, version=2)),
        "header of 4 GB": with_image(b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(99)),
        "dtype of a terabyte": with_image(npy_header((5, 16, 16, 3), "|V1000000000000") + bytes(99)),
        "text": with_image(npy_header((5, 16, 16, 3), "<U1") + bytes(99)),
        "npy": npy_header((5, 16, 16, 3)) + bytes(3840),
        "traversal": zipped([("../../MADE.npy", npy_header((1,)) + b"1"), ("image.npy", b"")]),
        "duplicate names": _twice(),
        "no members": zipped([]),
        "encrypted": whole[: _entry(whole) + 8] + b"\x01" + whole[_entry(whole) + 9 :],
        "complex": npz(image=arrays()["image"].astype(np.complex64)),
        "records": npz(image=np.zeros((5, 16, 16, 3), [("a", "i4")])),
        "dates": npz(image=np.zeros((5, 16, 16, 3), "M8[s]")),
        "booleans": npz(image=np.zeros((5, 16, 16, 3), bool)),
        "long doubles": npz(image=np.zeros((5, 16, 16, 3), np.longdouble)),
        **{f"action {one!r:.60}": npz(image=arrays()["image"], action=one) for one in _actions()},
    }


def _entry(whole):
    """Where the directory's first entry begins: what it says of a member counts, not what stands before that."""
    return whole.index(b"PK\x01\x02")


def _actions():
    yield from (np.array(3.0), np.array(["a"] * 5), np.full((5, 2), np.nan), np.full((5, 2), 1e300), np.ones((5, 2, 2)))
    yield from (np.ones((5, 0)), np.ones((0, 2)), np.ones((5, 2), "c8"), np.zeros(5, "M8[s]"), np.ones((5, 2**16)))


def _bomb():
    """Four gigabytes of frames in four megabytes."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("image.npy", "w", force_zip64=True) as member,
    ):
        member.write(npy_header((2**32 // 768, 16, 16, 3)))
        zeros = bytes(2**24)
        for _ in range(2**8):
            member.write(zeros)
    return buffer.getvalue()


def _twice():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return zipped([("image.npy", npy_header((5, 16, 16, 3)) + bytes(3840)), ("image.npy", b"other")])


@pytest.fixture(scope="module")
def kinds():
    return hostile()


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damaged_episodes(tmp_path, write):
    fuzz = Fuzz(f"episodes, {write.__name__}")
    path, whole = tmp_path / "bad.npz", npz(write, **arrays())
    for number in range(NUM):
        path.write_bytes(damaged_bytes(whole, fuzz.random))
        spec = EpisodeSpec(size_px=fuzz.random.choice([None, 8]), convention=[None, "departure", "arrival"][number % 3])
        fuzz.boxed(path.read_bytes()[:80], lambda spec=spec: read_episode(path, spec), tmp_path, path.name)
    fuzz.check(least=NUM)


def test_hostile_episodes(tmp_path, monkeypatch, kinds):
    fuzz = Fuzz("episodes: pickles, lying shapes, bombs")
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "data"
    home.mkdir()
    for number in range(12):
        (home / f"{number:02d}.npz").write_bytes(npz(**arrays()))
    path = home / "05_bad.npz"
    for name, content in kinds.items():
        path.write_bytes(content)
        fuzz.boxed(name, lambda: read_episode(path, EpisodeSpec()), tmp_path, path.name)
        for skip in (False, True):
            data = EpisodeData(name="episodes_folder", path=str(home), size_px=16, skip_bad=skip)
            fuzz.boxed((name, skip), lambda data=data: read_set(data), tmp_path, "" if skip else path.name)
    for name in ("bomb", "objects", "code in the header", "encrypted"):
        path.write_bytes(kinds[name])
        words = ["experiment=ivideogpt_smoke", "data=episodes_folder", f"data.path={home}", "hydra.run.dir=run"]
        fuzz.boxed(name, cli("train-ivideogpt", *words), tmp_path, path.name)
        fuzz.boxed(name, cli("play", "--episodes", str(home), "--port", "0"), tmp_path, path.name)
    assert not list(tmp_path.rglob("MADE*")) and not (tmp_path / "run").exists()
    fuzz.check(least=90)


def read_set(data):
    from toolkit.ivideogpt.config import TrainIVideoGPT

    clips = load_clips(TrainIVideoGPT(data=data, num_frames=4))
    for split in (clips.dataset.train, clips.dataset.valid):
        for number in range(len(split)):
            split.read(number)


def test_imagenet(tmp_path, kinds):
    fuzz = Fuzz("ImageNet's npz batches")
    rows = {"data": np.zeros((24, 12288), np.uint8), "labels": np.arange(24) % 6 + 1}
    whole = npz(**rows)
    path = tmp_path / "train_data_batch_1.npz"
    (tmp_path / "val_data.npz").write_bytes(whole)
    for _ in range(NUM):
        path.write_bytes(damaged_bytes(whole, fuzz.random))
        fuzz.boxed(
            path.read_bytes()[:60], lambda: load(Data(name="imagenet64", path=str(tmp_path)), 0), tmp_path, path.name
        )
    for name, content in kinds.items():
        path.write_bytes(content)
        fuzz.boxed(name, lambda: stored_array(path, "image"), tmp_path, path.name)
    fuzz.check(least=NUM)
