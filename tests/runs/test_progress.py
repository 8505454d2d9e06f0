"""The bar on a terminal, and the picture below it."""

import os
import pty
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from toolkit.runs import progress
from toolkit.runs.progress import half_blocks

DRAW = """
import sys
import numpy as np
from toolkit.runs import progress
picture = np.zeros((40, 80, 3), np.uint8)
picture[:20] = 255, 0, 0
picture[20:] = 0, 0, 255
with progress.bar("clip", 0, 3, "frame", stills=sys.argv[1] == "True") as bar:
    for frame in range(3):
        bar.show(picture)
        bar.advance(frame + 1)
    bar.progress.refresh()
"""


def on_terminal(stills, term="xterm-256color"):
    """What a person's terminal gets, all of it."""
    parent, child = pty.openpty()
    settings = {**os.environ, "TERM": term, "COLORTERM": "truecolor", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        [sys.executable, "-c", DRAW, str(stills)], stdin=child, stdout=child, stderr=child, env=settings
    )
    os.close(child)
    seen = b""
    while True:
        try:
            piece = os.read(parent, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(parent)
    assert process.wait() == 0, seen.decode()
    return seen.decode()


def test_a_terminal_shows_what_is_being_made_below_the_bar_and_keeps_the_bar_alone():
    seen = on_terminal(stills=True)
    assert "38;2;255;0;0;48;2;255;0;0m" in seen and "38;2;0;0;255;48;2;0;0;255m" in seen
    after = seen.rpartition("\u2580")[2]
    assert after.count("\x1b[1A\x1b[2K") >= 15 and "3/3" in after  # every line of it is wiped


@pytest.mark.parametrize(("stills", "term"), [(False, "xterm-256color"), (True, "dumb")])
def test_no_picture_where_none_is_wanted_or_can_be_shown(stills, term):
    seen = on_terminal(stills, term)
    assert "clip" in seen and "48;2;" not in seen


@pytest.mark.parametrize(("height", "width"), [(40, 80), (1, 1), (3, 500), (500, 3), (2160, 3840)])
def test_a_picture_keeps_to_its_room_and_its_shape(height, width):
    drawn = half_blocks(np.zeros((height, width, 3), np.uint8), 16, 64).plain.splitlines()
    assert len(drawn) <= 16 and all(len(line) <= 64 for line in drawn)
    if (height, width) == (40, 80):
        assert (len(drawn), len(drawn[0])) == (16, 64)


def test_two_pixels_are_one_character_in_their_own_colours():
    pixels = np.array([[[10, 20, 30]], [[40, 50, 60]]], np.uint16) * 257
    (span,) = half_blocks(pixels, 1, 1).spans
    assert span.style.color.triplet == (10, 20, 30) and span.style.bgcolor.triplet == (40, 50, 60)


@pytest.mark.parametrize(("is_terminal", "rank", "draws"), [(True, 0, True), (False, 0, False), (True, 1, False)])
def test_only_the_first_process_draws_and_only_on_a_terminal(monkeypatch, is_terminal, rank, draws):
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: is_terminal)))
    monkeypatch.setattr(progress, "rank", lambda: rank)
    with progress.bar("train", 0, 3) as bar:
        assert (bar.progress is not None) == draws
