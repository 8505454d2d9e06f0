"""What a run works on, and in how much memory."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.venhancer.clips.test_timeline import clip
from toolkit.errors import UserError
from toolkit.venhancer.clips import inputs
from toolkit.venhancer.clips.between import check_memory
from toolkit.venhancer.clips.inputs import _left_in_container, find_tasks
from toolkit.venhancer.config import EnhanceVideo, Windows


def test_pages_of_files_that_were_read_are_no_lack_of_memory(tmp_path):
    """A container that has read much is always near its limit: the kernel keeps what it can of files."""
    assert _left_in_container(tmp_path) == math.inf
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("990\n")
    (tmp_path / "memory.stat").write_text("anon 190\nfile 800\ninactive_anon 5\ninactive_file 700\n")
    assert _left_in_container(tmp_path) == 710
    (tmp_path / "memory.max").write_text("max\n")
    assert _left_in_container(tmp_path) == math.inf


def test_results_of_one_name_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a__b.mp4", "a/b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"a/b\.mp4, .*a__b\.mp4 would have one name, a__b; rename one"):
        find_tasks(EnhanceVideo(input=str(tmp_path)), tmp_path / "samples")


def test_memory_is_for_fourteen_float_copies_of_an_input_frame_and_six_byte_copies_of_an_output_frame():
    index = clip(width=90, height=62)
    assert inputs.frame_bytes(index, 0, 0) == 14 * 90 * 62 * 3 * 4
    assert inputs.frame_bytes(index, 100, 50) - inputs.frame_bytes(index, 0, 0) == 6 * 100 * 50 * 3
    deep = replace(index, deep=True)
    assert inputs.frame_bytes(deep, 100, 50) - inputs.frame_bytes(deep, 0, 0) == 6 * 100 * 50 * 3 * 2


def test_the_largest_scale_that_memory_carries_is_named(monkeypatch):
    index = clip(width=90, height=62)
    room = inputs.frame_bytes(index, 270, 186)  # three times
    monkeypatch.setattr(inputs, "available_bytes", lambda: room)
    inputs.check_size(EnhanceVideo(scale=3.0), index, 270, 186)
    with pytest.raises(UserError, match="at most scale=3 fits"):
        inputs.check_size(EnhanceVideo(scale=4.0), index, 360, 248)
    monkeypatch.setattr(inputs, "available_bytes", lambda: 100)
    with pytest.raises(UserError, match="the input itself is too large"):
        inputs.check_size(EnhanceVideo(scale=1.0), index, 90, 62)


def test_free_memory_is_the_least_of_what_the_system_and_the_container_have(monkeypatch):
    monkeypatch.delenv("TOOLKIT_MEMORY_GIB", raising=False)
    told = SimpleNamespace(read_text=lambda encoding: "MemTotal:  900 kB\nMemAvailable:    5 kB\n")
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "Path", lambda place: told)
        assert inputs._meminfo() == 5 * 1024
    for system, container in ((1000, 700), (700, 1000)):
        monkeypatch.setattr(inputs, "_meminfo", lambda system=system: system)
        monkeypatch.setattr(inputs, "_left_in_container", lambda group, container=container: container)
        assert inputs.available_bytes() == 700
    monkeypatch.setenv("TOOLKIT_MEMORY_GIB", "0.5")
    assert inputs.available_bytes() == 2**29


def test_a_side_that_is_asked_for_is_an_eighth_at_least_and_the_networks_are_as_large_as_the_input():
    index = clip(width=160, height=128)

    def size(backend="classic", **keys):
        return inputs.output_size(EnhanceVideo(input="c.mp4", backend=backend, **keys), index)[:2]

    assert size(width=20) == (20, 16) and size(height=64) == (80, 64) and size(width=1280) == (1280, 1024)
    assert size() == (320, 256) and size(width=30) == (30, 24)
    with pytest.raises(UserError, match=r"width=18: is 0\.113 times .* from 0\.125 to 8"):
        size(width=18)
    with pytest.raises(UserError, match=r"height=126: is 0\.984 times .* from 1 to 8"):
        size(height=126, backend="generative")
    large = clip(width=8001, height=6400)
    assert inputs.output_size(EnhanceVideo(input="c.mp4", backend="classic", width=1000), large)[:2] == (1000, 800)
    assert inputs.output_size(EnhanceVideo(input="c.mp4"), index, (90, 60))[:2] == (90, 60)
    assert inputs.output_size(EnhanceVideo(input="c.mp4", scale=0.5), index, (90, 60))[:2] == (80, 64)
    assert (inputs._even(31.5), inputs._even(32.9), inputs._even(0.4)) == (32, 32, 2)


def test_rife_needs_1200_bytes_of_every_pixel_that_it_computes_at_once():
    """Of a picture that is smaller than a tile all of it, of a larger one 1280 rows and 2048 columns."""
    for size, need in {(40, 30): 1200 * 40 * 30, (3000, 2000): 1200 * 1280 * 2048}.items():
        check_memory("rife", size, Windows(), need)
        check_memory("motion", size, Windows(), 0)
        with pytest.raises(UserError, match=r"between=rife: .* pixels at a time need about"):
            check_memory("rife", size, Windows(), need - 1)
