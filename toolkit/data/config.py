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

    name: of the data set; ``data=NAME`` says the same and sets what belongs to it. path: a folder of your own that
    holds the files, or ``hf://datasets/OWNER/NAME`` of the hub. size_px: edge to which images are resized; None keeps
    their size. channels: 1 for grey, 3 for colour; None keeps what they have. num_train: how many training items to
    take; None takes all. valid_fraction: share of the training items that is held out where a set has no part of its
    own for it. flip: whether images are mirrored at random. class_labels: whether classes are given to the network; a
    folder's are read all the same where it has them. skip_bad: whether files that are no readable images are left
    out, which is told; each is then decoded once to be sure. resize: how a folder's images are brought to size_px:
    ``bicubic`` (antialiased), ``lanczos`` as EDM's and StyleGAN's tools, ``box`` as Downsampled ImageNet, ``adm`` as
    ADM; published references differ by it. max_pixels: of one image; a file with more is refused unread. cache:
    whether the decoded images of a large folder are kept for later passes and runs.
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
    skip_bad: bool = False
    resize: str = choice("bicubic", "bicubic", "lanczos", "box", "adm")
    max_pixels: int = number(178_956_970, least=1, computes=False)
    cache: bool = cosmetic(True)


@dataclass
class TextData:
    """A text corpus by name (see ``toolkit data list``); ``text_folder`` reads any folder of text or jsonl files.

    name: of the corpus; ``data=NAME`` says the same. path: a folder of your own that holds the files. text_key: the
    field of a jsonl line that holds the text. max_mb: how much of the corpus to take, in 10^6 bytes; None takes all.
    valid_fraction: share of the documents that is held out.
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

    name: of the data set; ``data=NAME`` says the same. path: a folder of your own that holds the episodes. size_px:
    edge of the square frames; None keeps theirs. image_key: the array of an npz file that holds the frames. convention:
    which move row t of actions and rewards in a folder is: from frame t (departure) or to it (arrival); None is
    departure, refused where the first rows of all files are zeros. frame_step: every how manieth frame is kept.
    num_train, num_valid: how many episodes to take, or to record. num_frames: of an episode that is recorded for this
    run. valid_fraction: share of a folder's episodes that is held out. texture: of push_sprite, contrast within the
    background. num_distractors: of push_sprite, still grey shapes in the background. random_goal: of push_sprite,
    whether the goal is somewhere else in every world. agent_shape: of push_sprite, what moves is drawn as. augment:
    whether clips are cropped and recoloured at random, as the release does. skip_bad: whether files that cannot be
    read are left out, which is told.
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
    """How the result is written; a run that failed or is done may be resumed with other values, hdr excepted.

    codec: h264, hevc, or png, which makes ``output`` a folder of numbered pictures. crf: constant rate factor, 0
    (lossless up to the colour conversion) to 51; the release uses 17. speed: of the encoder; slower ones write smaller
    files. pix_fmt: ``auto`` is yuv420p, which every player shows, at the even size next to an odd one, or 10 bits where
    hevc keeps HDR and 16 where png gets more than 8; yuv444p keeps odd sizes; yuv420p10le and yuv444p10le are hevc's
    with 10 bits, rgb48 png's with 16 (the network gives 8). hdr: of a PQ or HLG input: keep it, or make of it what
    screens without HDR show. audio: whether sound is copied.
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
