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


def test_names_are_looked_up_only_where_a_label_is_no_number():
    def names():
        asked.append(1)
        return {"cat": 0, "1": 0, "dog": 1}

    asked = []
    assert read_labels([1, 0], 2, names) == [1, 0] and not asked
    assert read_labels(["dog", 1, "cat", "0"], 2, names) == [1, 1, 0, 0] and asked == [1]  # 1 is a number, no name
    with pytest.raises(UserError, match=r"no class 'dgo'; did you mean 'dog'\? give names, or numbers from 0 to 1"):
        read_labels("dgo", 2, names)
    with pytest.raises(UserError, match="the model does not name its classes; give numbers from 0 to 1"):
        read_labels("dog", 2, dict)


def test_a_model_of_ones_own_knows_the_names_of_its_classes(tmp_path, monkeypatch):
    """Of the folder that it learned from; its names are sorted, and the second one is 1."""
    from types import SimpleNamespace

    import numpy as np
    from PIL import Image

    from toolkit.icg.sources.denoiser import DenoiserSource

    for number, name in enumerate(("zebra", "ape", "yak")):
        (tmp_path / "own" / name).mkdir(parents=True)
        for count in range(20):
            pixels = np.full((8, 8), 12 * count + number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "own" / name / f"{count}.png")
    source = DenoiserSource.__new__(DenoiserSource)
    source.name, source.num_classes = "mine", 3
    source.training = {"data": {"name": "folder", "path": str(tmp_path / "own")}}
    source.config = SimpleNamespace(labels=["yak", "zebra", 0], model="mine", data=None, seed=0)
    assert source._labels() == [1, 2, 0]
    source.training["data"]["path"] = str(tmp_path / "gone")
    with pytest.raises(UserError, match=r"labels: the names are in the training data, which cannot be read \(.*gone"):
        source._labels()
