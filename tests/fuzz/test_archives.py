"""Archives that lead out of their folder, hold links and devices, or unpack to more than there is room for."""

import gzip
import io
import os
import shutil
import tarfile
import warnings
import zipfile

from tests.fuzz.harness import Fuzz, damaged_bytes
from toolkit.data import downloads, fetching
from toolkit.data.sources import Download, SourceFailed, unpack_archive
from toolkit.errors import UserError

NUM = 150


def tar(*members, mode="w:gz"):
    """members: (name, content or None, what else the header says)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content, more in members:
            info = tarfile.TarInfo(name)
            info.size = len(content or b"")
            for key, value in more.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content or b""))
    return buffer.getvalue()


def zipped(*members):
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        warnings.simplefilter("ignore")
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return buffer.getvalue()


def hostile():
    link, hard, device, fifo = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE
    zeros = bytes(2**24)
    return {
        "tar: out": tar(("../MADE", b"x", {})),
        "tar: absolute": tar(("/tmp/toolkit_fuzz_MADE", b"x", {})),
        "tar: link out": tar(("a", None, {"type": link, "linkname": "../.."}), ("a/MADE", b"x", {})),
        "tar: link to a file": tar(("a", None, {"type": link, "linkname": "/etc/passwd"})),
        "tar: hard link": tar(("a", None, {"type": hard, "linkname": "../../MADE"})),
        "tar: device": tar(("a", None, {"type": device, "devmajor": 1, "devminor": 5})),
        "tar: pipe": tar(("a", None, {"type": fifo})),
        "tar: twice": tar(("a", b"x", {}), ("a", b"y", {}), ("a/b", b"z", {})),
        "tar: bomb": tar(*((f"a{number}", zeros, {}) for number in range(160))),
        "tar: set user id": tar(("a", b"x", {"mode": 0o4755, "uid": 0})),
        "tar: long": tar(("a/" * 3000 + "a", b"x", {})),
        "zip: out": zipped(("../MADE", b"x", 0o644), ("..\\MADE", b"x", 0o644)),
        "zip: absolute": zipped(("/tmp/toolkit_fuzz_MADE", b"x", 0o644)),
        "zip: link": zipped(("a", b"/etc/passwd", 0o120777), ("a/MADE", b"x", 0o644)),
        "zip: twice": zipped(("a", b"x", 0o644), ("a", b"y", 0o644), ("a/b", b"z", 0o644)),
        "zip: bomb": zipped(*((f"a{number}", zeros, 0o644) for number in range(160))),
        "zip: long": zipped(("a/" * 3000 + "a", b"x", 0o644)),
        "nothing": b"",
        "text": b"hello",
    }


def unpack(path, target):
    try:
        unpack_archive(path, target)
    except SourceFailed as error:  # a line among those of the other sources
        raise UserError(str(error)) from None


def test_archives(tmp_path):
    fuzz = Fuzz("archives: zip and tar")
    wholes = [tar(("a/b.txt", b"hello" * 99, {}), ("c", b"", {})), zipped(("a/b.txt", b"hello" * 99, 0o644))]
    damaged = [damaged_bytes(wholes[number % 2], fuzz.random) for number in range(NUM)]
    path, target = tmp_path / "archive", tmp_path / "target"
    before = set(os.listdir("/tmp"))
    for name, content in [*hostile().items(), *(("damaged", one) for one in damaged)]:
        path.write_bytes(content)
        fuzz.boxed(name, lambda: unpack(path, target), target, path.name)
        for made in target.rglob("*") if target.exists() else ():
            assert not made.is_symlink() or made.resolve().is_relative_to(target), name
            assert made.is_symlink() or not made.lstat().st_mode & 0o6000, name
        shutil.rmtree(target, ignore_errors=True)
        assert {one.name for one in tmp_path.iterdir()} == {"archive"}, name
    assert not {name for name in set(os.listdir("/tmp")) - before if "MADE" in name}
    fuzz.check(least=NUM)


def test_fetched_files(tmp_path, monkeypatch):
    """``toolkit data fetch NAME --path FOLDER`` where the folder holds something else."""
    fuzz = Fuzz("files given to data fetch")
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(downloads.DOWNLOADS, "x", Download({"a": "0" * 64}, "", ""))
    home = tmp_path / "home"
    home.mkdir()
    bomb = gzip.compress(bytes(2**20), 9) * 3000
    damaged = [damaged_bytes(gzip.compress(b"a" * 999), fuzz.random) for _ in range(50)]
    for content in (bomb, b"", gzip.compress(b"hello")[:-4], *damaged):
        (home / "a.gz").write_bytes(content)
        fuzz.boxed(content[:40], lambda: fetching.fetch("x", home), tmp_path, "a")
    fuzz.check(least=50)
