"""Prompts from a file are those that an editor shows, whatever mark it begins with."""

import pytest

from toolkit.errors import UserError
from toolkit.icg.labels_and_prompts import read_labels, read_prompts


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_marks_are_no_part_of_the_first_prompt(tmp_path, codec):
    path = tmp_path / "prompts.txt"
    path.write_bytes("a café\r\n\r\n猫\r\n".encode(codec))
    assert read_prompts(str(path)) == ["a café", "猫"]


def test_other_texts_are_refused_with_key_and_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("café".encode("latin-1"))
    for key, read in (("prompts", read_prompts), ("labels", lambda given: read_labels(given, 2, {"café": 0}))):
        with pytest.raises(UserError, match=rf"{key}=.*names\.txt: cannot be read as UTF-8 text"):
            read(str(path))
