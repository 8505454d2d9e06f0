"""What a run works on, and in how much memory."""

import math

import pytest

from toolkit.errors import UserError
from toolkit.venhancer.clips.inputs import _left_in_container, find_tasks
from toolkit.venhancer.config import EnhanceVideo


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
