"""Configs of data: sets of images, text and episodes by name (``KINDS``, of the catalogue); how videos are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from toolkit.errors import UserError
from toolkit.schema import choice, cosmetic, number, written

PIX_FMTS = {
    "h264": ("yuv420p", "yuv444p"),
    "hevc": ("yuv420p", "yuv444p", "yuv420p10le", "yuv444p10le"),
    "png": ("rgb48",),
}
PICTURES = "enhance,measure"  # the stages that another encoding of the pictures concerns


@dataclass
class Data:
    """A data set by name (see ``toolkit data list``); ``folder`` reads any folder of images.

    name: name of the data set. ``data=NAME`` sets it together with the settings that belong to it. path: your own
    folder with the files, or ``hf://datasets/OWNER/NAME`` from the hub. size_px: edge in pixels that images are
    resized to. None: keeps their size. channels: 1 for grey, 3 for colour. None: keeps what they have. num_train:
    number of training items to use. None: all. valid_fraction: share of the training items held out if the set has
    no held-out part of its own. flip: whether to mirror images at random. class_labels: whether the network is
    given the classes. A folder's classes are read in any case, if it has them. label_column: column of parquet and
    arrow files that holds the classes. None: ``label`` or ``labels``, if there is one. skip_bad: whether to leave
    out files that are not readable images, with a message. Each file is then decoded once. resize: how a folder's
    images are resized to size_px: ``bicubic`` (antialiased), ``lanczos`` as in EDM's and StyleGAN's tools, ``box``
    as in Downsampled ImageNet, ``adm`` as in ADM. Published references differ in this. max_pixels: most pixels of
    an image. A larger file is refused unread. cache: whether to keep decoded images of a large folder for later
    passes and runs.
    """

    KINDS: ClassVar = ("points", "images")

    name: str = "digits"
    path: str | None = None
    size_px: int | None = number(None, least=1)
    channels: int | None = number(None, least=1)
    num_train: int | None = number(None, least=1)
    valid_fraction: float = number(0.1, above=0, below=1)
    flip: bool = False
    class_labels: bool = True
    label_column: str | None = None
    skip_bad: bool = False
    resize: str = choice("bicubic", "bicubic", "lanczos", "box", "adm")
    max_pixels: int = number(178_956_970, least=1, computes=False)
    cache: bool = cosmetic(True)


@dataclass
class TextData:
    """A text corpus by name (see ``toolkit data list``); ``text_folder`` reads any folder of text or jsonl files.

    name: name of the corpus. ``data=NAME`` sets it too. path: your own folder with the files. text_key: field of a
    jsonl line that holds the text. max_mb: how much of the corpus to use, in 10^6 bytes. None: all. valid_fraction:
    share of the documents held out.
    """

    KINDS: ClassVar = ("text",)

    name: str = "text_python"
    path: str | None = None
    text_key: str = "text"
    max_mb: float | None = number(None, above=0)
    valid_fraction: float = number(0.05, above=0, below=1)


@dataclass
class EpisodeData:
    """Episodes by name (kind ``episodes`` of ``toolkit data list``); ``episodes_folder`` reads any folder of npz.

    name: name of the data set. ``data=NAME`` sets it too. path: your own folder with the episodes. size_px: edge of the
    square frames in pixels. None: keeps their size. image_key: array of an npz file that holds the frames. convention:
    meaning of row t of a folder's actions and rewards: the move that leaves frame t (``departure``) or the one that
    leads to it (``arrival``). None: departure, but an error if the first rows of all files are zeros. frame_step: keeps
    every n-th frame; 1 keeps all. num_train: number of training episodes to use, or to record. num_valid: number of
    held-out episodes to use, or to record. num_frames: frames of each episode that is recorded for this run.
    valid_fraction: share of a folder's episodes held out. texture: contrast within the background of push_sprite.
    num_distractors: number of still grey shapes in the background of push_sprite. random_goal: whether the goal of
    push_sprite is in a different place in every world. agent_shape: shape of the agent that moves in push_sprite.
    augment: whether to crop and recolour clips at random, as the release does. skip_bad: whether to leave out files
    that cannot be read, with a message.
    """

    KINDS: ClassVar = ("episodes",)

    name: str = "push_sprite"
    path: str | None = None
    size_px: int | None = number(None, least=8)
    image_key: str = "image"
    convention: str | None = choice(None, "departure", "arrival")
    frame_step: int = number(1, least=1)
    num_train: int | None = number(None, least=1)
    num_valid: int = number(256, least=1)
    num_frames: int = number(24, least=2)
    valid_fraction: float = number(0.1, above=0, below=1)
    texture: float = number(0.0, least=0, most=1)
    num_distractors: int = number(1, least=0, most=64)
    random_goal: bool = False
    agent_shape: str = choice("disc", "disc", "square", "diamond")
    augment: bool = False
    skip_bad: bool = False


@dataclass
class Encode:
    """How the result is written; a failed or finished run can be resumed with other values, except for hdr.

    codec: ``h264``, ``hevc``, or ``png``, which makes ``output`` a folder of numbered pictures. crf: constant rate
    factor, from 0 (lossless except for the colour conversion) to 51. The release uses 17. speed: speed of the encoder.
    Slower ones write smaller files. pix_fmt: pixel format. ``auto`` is yuv420p, which every player shows; an odd size
    becomes the even one next to it. It takes 10 bits where hevc keeps HDR, and 16 where png gets more than 8. yuv444p
    keeps odd sizes. yuv420p10le and yuv444p10le are hevc's formats with 10 bits, rgb48 is png's with 16 (the network
    gives 8). hdr: what happens to a PQ or HLG input: keep it, or convert it for screens without HDR (``tonemap``).
    audio: whether to copy the sound.
    """

    codec: str = choice("h264", *PIX_FMTS, rewrites=PICTURES)
    crf: int = number(17, least=0, most=51, rewrites=PICTURES)
    speed: str = choice("medium", "ultrafast", "veryfast", "fast", "medium", "slow", "veryslow", rewrites=PICTURES)
    pix_fmt: str = choice("auto", "auto", *PIX_FMTS["hevc"], *PIX_FMTS["png"], rewrites=PICTURES)
    hdr: str = choice("keep", "keep", "tonemap")
    audio: bool = written(True, "enhance")

    def check(self) -> None:
        """Raises UserError for pixels that the codec does not have."""
        if self.pix_fmt not in (fits := ("auto", *PIX_FMTS[self.codec])):
            raise UserError(f"encode.pix_fmt={self.pix_fmt}: encode.codec={self.codec} takes {', '.join(fits)}")
