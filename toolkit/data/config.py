"""Configs of data sets: images, text, episodes. ``KINDS`` are the kinds of the catalogue that one of them names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from toolkit.schema import choice, number


@dataclass
class Data:
    """A data set by name (see ``toolkit data list``); ``folder`` reads any folder of images."""

    KINDS: ClassVar = ("points", "images")

    name: str = "digits"
    path: str | None = None
    size_px: int | None = number(None, least=1)
    channels: int | None = number(None, least=1)
    num_train: int | None = number(None, least=1)
    valid_fraction: float = number(0.1, above=0, below=1)
    flip: bool = False
    class_labels: bool = True


@dataclass
class TextData:
    """A text corpus by name (see ``toolkit data list``); ``text_folder`` reads any folder of text or jsonl files.

    text_key: the field of a jsonl line that holds the text. max_mb: how much of the corpus to take, in 10^6 bytes.
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
    """Episodes by name (kind ``episodes`` of ``toolkit data list``); ``episodes_folder`` reads any folder of npz."""

    KINDS: ClassVar = ("episodes",)

    name: str = "push_sprite"
    path: str | None = None
    size_px: int | None = number(None, least=8)
    image_key: str = "image"
    frame_step: int = number(1, least=1)
    num_train: int | None = number(None, least=1)
    num_valid: int = number(256, least=1)
    num_frames: int = number(24, least=2)  # of an episode that is recorded for this run
    valid_fraction: float = number(0.1, above=0, below=1)
    texture: float = number(0.0, least=0, most=1)  # of push_sprite
    num_distractors: int = number(1, least=0)
    random_goal: bool = False
    agent_shape: str = choice("disc", "disc", "square", "diamond")
    augment: bool = False
    skip_bad: bool = False
