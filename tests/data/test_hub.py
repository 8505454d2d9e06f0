"""Data sets on the Hugging Face hub in the place of a folder; the hub's client is a stand-in here."""

import numpy as np
import pytest
import torch
from PIL import Image

import toolkit.data.catalogue as catalogue
from tests.data.videos import moving, write
from toolkit.data import hub
from toolkit.data.config import Data, TextData
from toolkit.data.text.corpora import check_text, load_text
from toolkit.data.video.clips import clip_paths
from toolkit.errors import UserError


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder that stands for the snapshot of me/set at revision v2, and the calls of its client."""
    import huggingface_hub

    calls = []

    class Api:
        def dataset_info(self, name, revision=None, timeout=None):
            if name != "me/set":
                raise OSError("404: no such\nrepository")

    def snapshot(name, **words):
        calls.append((name, words))
        if name != "me/set":
            raise OSError("not in the cache")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub._downloaded.cache_clear()
    yield tmp_path, calls
    hub._downloaded.cache_clear()


def photographs(folder):
    for number in range(8):
        name = folder / ("cat", "dog")[number % 2] / f"{number}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(name)


def test_images_of_a_folder_of_the_hub_are_those_of_the_folder(there):
    folder, calls = there
    photographs(folder / "photos")
    config = Data(name="folder", path="hf://datasets/me/set@v2/photos")
    catalogue.check(config)
    assert not calls  # nothing is fetched to check the words
    ours, own = catalogue.load(config), catalogue.load(Data(name="folder", path=str(folder / "photos")))
    assert ours.contents() == own.contents() and ours.class_names == ("cat", "dog")
    pairs = [(one.batch(torch.arange(len(one)))) for one in (ours.train, own.train)]
    assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))
    words = {"repo_type": "dataset", "revision": "v2", "allow_patterns": ["photos", "photos/*"]}
    assert calls[0] == ("me/set", words | {"local_files_only": False})


def test_films_and_text_of_the_hub(there):
    folder, _ = there
    (folder / "films").mkdir()
    write(folder / "films" / "a.mp4", moving(3, 32, 32))
    assert clip_paths("clips_folder", "hf://datasets/me/set/films") == [folder / "films" / "a.mp4"]
    (folder / "words").mkdir()
    (folder / "words" / "a.txt").write_text("one two three " * 50)
    config = TextData(name="text_folder", path="hf://datasets/me/set/words")
    check_text(config)
    assert list(load_text(config).documents()) == ["one two three " * 50]


@pytest.mark.parametrize("path", ["hf://datasets/", "hf://datasets/me", "hf://datasets/me/set/../../x"])
def test_other_words_are_refused_at_the_start(path):
    with pytest.raises(UserError, match=r"data.path=hf://.*: name a data set as hf://datasets/OWNER/NAME"):
        catalogue.check(Data(name="folder", path=path))


def test_what_the_hub_does_not_give_is_one_line(there):
    calls = there[1]
    with pytest.raises(UserError, match=r"^data.path=hf://datasets/me/no: cannot be had from the hub: 404: no such re"):
        hub.given_path("hf://datasets/me/no")
    assert calls[-1][1]["local_files_only"]  # what an earlier run fetched would have been taken
    with pytest.raises(UserError, match="me/set has no photos"):
        hub.given_path("hf://datasets/me/set/photos")


def test_without_a_network_the_cache_is_read(there, monkeypatch):
    import huggingface_hub

    folder, calls = there
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub.given_path("hf://datasets/me/set") == folder
    assert calls[-1][1]["local_files_only"] and calls[-1][1]["allow_patterns"] is None
    with pytest.raises(UserError, match="offline"):
        hub.given_path("hf://datasets/me/no")
