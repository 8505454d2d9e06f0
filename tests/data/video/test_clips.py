"""Clips that packages ship: names, folders and what is refused. No test here needs a network."""

import io
import tarfile
import zipfile

import pytest

from toolkit import data
from toolkit.data import downloads, sources
from toolkit.data.config import Data
from toolkit.data.video import clips
from toolkit.errors import UserError


def test_every_clip_belongs_to_a_download_that_pins_its_file():
    for name, clip in clips.CLIPS.items():
        assert len(downloads.DOWNLOADS[clip.download].files[clip.file]) == 64, name
        assert data.CATALOGUE[name].kind == "clips" and data.CATALOGUE[name].licence == clip.licence


def test_an_unknown_clip_names_the_nearest():
    with pytest.raises(UserError, match="clip bike: did you mean 'bikes'"):
        clips.clip_path("bike")


def test_a_folder_gives_its_videos_sorted_without_hidden_and_other_files(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("b.MP4", "a.mkv", ".hidden.mp4", "notes.txt", "inner/c.webm"):
        (tmp_path / name).write_bytes(b"")
    found = clips.clip_paths("clips_folder", tmp_path)
    assert [path.name for path in found] == ["a.mkv", "b.MP4", "c.webm"]


def test_folders_that_hold_no_video_are_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path, what in ((tmp_path, "no video"), (tmp_path / "none", "no such folder"), (tmp_path / "file", "is a file")):
        with pytest.raises(UserError, match=what):
            clips.clip_paths("clips_folder", path)
    with pytest.raises(UserError, match=r"data\.path"):
        clips.clip_paths("clips_folder")


def test_clips_are_no_images():
    with pytest.raises(UserError, match=r"data\.name=bikes: video clips"):
        data.load(Data(name="bikes"))


def test_a_source_archive_is_unpacked_with_the_zips_inside(tmp_path, monkeypatch):
    def pip(command, folder):
        assert "--no-binary" in command and command[-1] == "thing==1.0"
        inner = io.BytesIO()
        with zipfile.ZipFile(inner, "w") as archive:
            archive.writestr("deep/clip.mp4", b"frames")
        with tarfile.open(folder / "thing-1.0.tar.gz", "w:gz") as archive:
            entry = tarfile.TarInfo("thing-1.0/media.zip")
            entry.size = len(inner.getvalue())
            archive.addfile(entry, io.BytesIO(inner.getvalue()))

    monkeypatch.setattr(sources, "_run", pip)
    folder = sources.from_sdist("thing", "1.0")(tmp_path)
    assert next(folder.rglob("clip.mp4")).read_bytes() == b"frames"
