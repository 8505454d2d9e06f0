"""Tar shards of WebDataset, parquet and arrow files of Hugging Face: splits, classes, pixels; refusals in a line."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
import torch

from tests.data.images.test_folder import fill, load, picture
from toolkit.data import batches
from toolkit.data.images import folder as folder_module
from toolkit.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def png(number, size=(8, 8)):
    stream = io.BytesIO()
    picture(number, size=size).save(stream, "PNG")
    return stream.getvalue()


def tar(path, members, mode="w"):
    """A tar of (name, content); content None is a link that leads out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def web(numbers, classes=3, **options):
    """Samples of WebDataset: an image, its class, a text."""
    for number in numbers:
        yield f"n{number:04d}.png", png(number, **options)
        if classes:
            yield f"n{number:04d}.cls", str(number % classes).encode()
        yield f"n{number:04d}.txt", b"a caption"


def table(path, numbers, labels=None, names=(), group=4, images=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = images or [{"bytes": png(number), "path": f"{number}.png"} for number in numbers]
    columns = {"image": content} | ({} if labels is None else {"label": labels})
    made = pyarrow.table(columns)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(made, path, row_group_size=group)
    return path


def numbers_of(part):
    """Which ``picture`` each item of a split is, and its label."""
    known = {np.moveaxis(np.asarray(picture(number)), -1, 0).tobytes(): number for number in range(40)}
    x = ((part.batch(np.arange(len(part)))[0] + 1) * 127.5).round().byte().numpy()
    labels = [None] * len(x) if part.labels is None else part.labels.tolist()
    return {known[one.tobytes()]: label for one, label in zip(x, labels, strict=True)}


@pytest.mark.parametrize("few", [2**27, 0])
def test_tar_shards_hold_out_by_name_and_know_their_classes(tmp_path, monkeypatch, few):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folder_module, "FEW_PIXELS", few)
    for shard in range(3):
        tar(tmp_path / "set" / f"{shard:05d}.tar", web(range(10 * shard, 10 * shard + 10)))
    loaded = load(tmp_path / "set")
    assert loaded.class_names == ("0", "1", "2") and loaded.num_classes == 3
    found = [numbers_of(part) for part in (loaded.train, loaded.valid, loaded.test)]
    assert sum(map(len, found)) == 30 and found[0] | found[1] | found[2] == {n: n % 3 for n in range(30)}
    assert load(tmp_path / "set").contents() == loaded.contents()
    before = load(tmp_path / "set", class_labels=False)
    tar(tmp_path / "set" / "00003.tar", web(range(30, 40)))
    after = load(tmp_path / "set", class_labels=False)
    for name in ("train", "valid", "test"):
        assert set(numbers_of(getattr(before, name))) <= set(numbers_of(getattr(after, name)))
    lone = load(tmp_path / "set" / "00000.tar", class_labels=False)
    assert lone.num_classes == 0 and len(lone.train) + len(lone.valid) + len(lone.test) == 10


def test_shards_named_as_splits_are_kept_apart(tmp_path):
    tar(tmp_path / "by name" / "set-train-0000.tar", web(range(12), classes=0))
    tar(tmp_path / "by name" / "set-validation-0000.tar", web(range(12, 15), classes=0))
    tar(tmp_path / "by folder" / "train" / "0.tar", web(range(12), classes=0))
    tar(tmp_path / "by folder" / "val" / "0.tar", web(range(12, 15), classes=0))
    for name in ("by name", "by folder"):
        loaded = load(tmp_path / name)
        assert set(numbers_of(loaded.test)) == {12, 13, 14} and loaded.train.labels is None
        assert len(loaded.train) + len(loaded.valid) == 12
    tar(tmp_path / "by name" / "extra.tar", web(range(20, 22), classes=0))
    with pytest.raises(UserError, match=r"of 3 shards some name a split and extra\.tar names none"):
        load(tmp_path / "by name")
    (tmp_path / "by folder" / "train" / "0.tar").unlink()
    with pytest.raises(UserError, match=r"of 1 shards some name a split and none is for training"):
        load(tmp_path / "by folder")


def test_a_tar_beside_images_is_passed_over(tmp_path):
    tar(fill(tmp_path / "set") / "backup.tar", web(range(5)))
    assert len(load(tmp_path / "set").class_names) == 2


def test_tars_that_cannot_be_used_are_refused(tmp_path):
    path = tmp_path / "set.tar"
    for members, said in (
        ([("../a.png", png(0))], r"the member '\.\./a\.png' leads out of the archive or is there twice"),
        ([("a.png", png(0)), ("a.png", png(1))], ".*is there twice"),
        ([*web(range(3)), ("b.png", png(9))], "1 images of train have no class, and others have"),
        ([("a.png", png(0)), ("a.cls", b"cat")], r"a\.cls is 'cat', not the number of a class"),
        ([("a.png", None), ("a.txt", b"")], "no images in the shards of train"),
    ):
        tar(path, members)
        with pytest.raises(UserError, match=rf"set\.tar: {said}"):
            load(path)
    whole = tar(path, web(range(9))).read_bytes()
    path.write_bytes(whole[:2600])
    with pytest.raises(UserError, match=r"set\.tar: (is cut short|not an uncompressed tar)"):
        load(path)
    path.write_bytes(gzip.compress(whole))
    with pytest.raises(UserError, match=r"set\.tar: not an uncompressed tar file"):
        load(path)
    broken = [("a.png", png(0)[:60]), ("b.png", png(1)), ("c.png", b"nothing")]
    tar(path, broken)
    with pytest.raises(UserError, match=r"2 of 3 files cannot be used .*set\.tar/a\.png.*set\.tar/c\.png"):
        load(path)


# -- parquet ---------------------------------------------------------------------------------------------------------


def test_parquet_of_hugging_face_has_its_splits_and_the_names_of_its_classes(tmp_path):
    names = ("cat", "dog", "eel")
    for shard in range(2):
        rows = range(10 * shard, 10 * shard + 10)
        place = tmp_path / "data" / f"train-{shard:05d}-of-00002.parquet"
        table(place, rows, [number % 3 for number in rows], names)
    table(tmp_path / "data" / "test-00000-of-00001.parquet", range(20, 25), [0, 1, 2, 0, 1], names)
    (tmp_path / "README.md").write_text("a card")
    loaded = load(tmp_path)
    assert loaded.class_names == names and numbers_of(loaded.test) == {20: 0, 21: 1, 22: 2, 23: 0, 24: 1}
    rest = numbers_of(loaded.train) | numbers_of(loaded.valid)
    assert rest == {number: number % 3 for number in range(20)}
    assert load(tmp_path).contents() == loaded.contents()


def test_parquet_of_plain_bytes_and_named_classes(tmp_path):
    labels = ["dog" if number % 2 else "cat" for number in range(12)]
    table(tmp_path / "set.parquet", range(12), labels, images=[png(number) for number in range(12)])
    loaded = load(tmp_path / "set.parquet")
    assert loaded.class_names == ("cat", "dog")
    assert numbers_of(loaded.train).items() <= {number: number % 2 for number in range(12)}.items()
    resized = load(tmp_path / "set.parquet", size_px=4, channels=1)
    assert resized.shape == (1, 4, 4) and torch.isfinite(resized.train.all()[0]).all()


def test_parquet_that_cannot_be_used_is_refused(tmp_path):
    path = tmp_path / "set.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", "b"]}), path)
    with pytest.raises(UserError, match=r"set\.parquet: must have one column of encoded images .*among \['text'\]"):
        load(path)
    table(path, range(6), [0, 1, -1, 0, 1, 0], ("cat", "dog"))
    with pytest.raises(UserError, match=r"train has the class -1, which is none of cat, dog"):
        load(path)
    table(path, range(6), [0, 1, None, 0, 1, 0])
    with pytest.raises(UserError, match="1 images of train have no class"):
        load(path)
    table(
        path,
        range(6),
        images=[{"bytes": None, "path": "elsewhere.png"}, *({"bytes": png(n), "path": ""} for n in range(5))],
    )
    with pytest.raises(UserError, match=r"set\.parquet/00000000: not a readable image \(the row holds no bytes"):
        load(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"set\.parquet: cannot be read as parquet"):
        load(path)


# -- arrow -----------------------------------------------------------------------------------------------------------


def saved(folder, numbers, names=("cat", "dog", "eel"), shards=2, images=None):
    """A set as ``save_to_disk`` of Hugging Face's datasets writes it, labelled by number modulo the classes."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers, files = list(numbers), []
    content = images or [{"bytes": png(number), "path": None} for number in numbers]
    whole = pyarrow.table({"image": content, "label": [number % len(names) for number in numbers]})
    for shard in range(shards):
        files.append(f"data-{shard:05d}-of-{shards:05d}.arrow")
        each = len(whole) // shards
        part = whole.slice(shard * each, each)
        with pyarrow.ipc.new_stream(folder / files[-1], whole.schema) as stream:
            stream.write_table(part, max_chunksize=4)
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    (folder / "dataset_info.json").write_text(json.dumps({"description": "", "features": features}))
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": one} for one in files], "_split": None})
    )
    return folder


@pytest.mark.parametrize("few", [2**27, 0])
def test_a_set_saved_to_disk_has_its_rows_and_the_names_of_its_classes(tmp_path, monkeypatch, few):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folder_module, "FEW_PIXELS", few)
    loaded = load(saved(tmp_path / "set", range(30)))
    assert loaded.class_names == ("cat", "dog", "eel") and loaded.num_classes == 3
    found = [numbers_of(part) for part in (loaded.train, loaded.valid, loaded.test)]
    assert sum(map(len, found)) == 30 and found[0] | found[1] | found[2] == {n: n % 3 for n in range(30)}
    assert load(tmp_path / "set").contents() == loaded.contents()
    lone = load(tmp_path / "set" / "data-00001-of-00002.arrow")
    assert lone.class_names == ("cat", "dog", "eel") and max(numbers_of(lone.train)) > 14


def test_the_splits_of_a_saved_set_are_its_folders(tmp_path):
    saved(tmp_path / "saved" / "train", range(20), shards=1)
    saved(tmp_path / "saved" / "test", range(20, 25), shards=1)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    loaded = load(tmp_path / "saved")
    assert numbers_of(loaded.test) == {n: n % 3 for n in range(20, 25)}
    assert numbers_of(loaded.train) | numbers_of(loaded.valid) == {n: n % 3 for n in range(20)}


def test_batches_of_arrow_files_continue_at_any_step(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "IN_MEMORY_BYTES", 0)  # every batch is read from the files
    split = load(saved(tmp_path / "set", range(30)), cache=False).train
    assert split.store is None
    whole = [next_ for next_, _ in zip(batches(split, 7, seed=1), range(9), strict=False)]
    again = [next_ for next_, _ in zip(batches(split, 7, seed=1, start_step=4, num_workers=2), range(5), strict=False)]
    for (x, labels), (same, same_labels) in zip(whole[4:], again, strict=True):
        assert torch.equal(x, same) and torch.equal(labels, same_labels)


def test_files_that_an_earlier_save_left_are_not_of_the_set(tmp_path):
    saved(tmp_path / "set", range(30), shards=3)
    saved(tmp_path / "set", range(10), shards=2)
    loaded = load(tmp_path / "set")
    assert sum(len(part) for part in (loaded.train, loaded.valid, loaded.test)) == 10


def test_a_saved_selection_of_rows_is_refused(tmp_path):
    state = saved(tmp_path / "set", range(10)) / "state.json"
    state.write_text(
        json.dumps(json.loads(state.read_text()) | {"_indices_data_files": [{"filename": "indices.arrow"}]})
    )
    with pytest.raises(UserError, match=r"state.json: holds a selection of its rows"):
        load(tmp_path / "set")


def test_arrow_files_that_cannot_be_used_are_refused(tmp_path):
    folder = saved(tmp_path / "set", range(12))
    first = folder / "data-00000-of-00002.arrow"
    whole = first.read_bytes()
    offsets = np.cumsum([0, *(len(png(number)) for number in range(3))], dtype=np.int32)  # of the first images
    assert offsets.tobytes() in whole
    for content, said in (
        (whole[:-8], "is cut short"),
        (whole.replace(offsets.tobytes(), offsets[[0, 3, 1, 2]].tobytes(), 1), "cannot be read as arrow: "),
        (whole[:-100], "cannot be read as arrow: "),
        (b"ARROW1\0\0" + whole, "cannot be read as arrow: "),
        (b"", "cannot be read as arrow: "),
    ):
        first.write_bytes(content)
        with pytest.raises(UserError, match=rf"data-00000-of-00002\.arrow: {said}"):
            load(folder)
    first.unlink()
    with pytest.raises(UserError, match=r"state\.json: names data-00000-of-00002\.arrow, which is not there"):
        load(folder)
    for name, said in (("state", "not the state of a set"), ("dataset_info", "does not describe the columns")):
        saved(tmp_path / "set", range(12))
        (folder / f"{name}.json").write_text("[]")
        with pytest.raises(UserError, match=rf"{name}\.json: {said}"):
            load(folder)
    saved(
        folder, range(6), images=[{"bytes": None, "path": "a.png"}, *({"bytes": png(n), "path": ""} for n in range(5))]
    )
    with pytest.raises(UserError, match=r"00002\.arrow/00000000: not a readable image \(the row holds no bytes"):
        load(folder)
    (folder / "state.json").unlink()
    table(folder / "more.parquet", range(3))
    with pytest.raises(UserError, match="holds shards of several kinds"):
        load(tmp_path / "set")


def test_labels_that_are_no_classes_are_refused(tmp_path):
    path = table(tmp_path / "set.parquet", range(4), [[0, 1]] * 4)
    with pytest.raises(UserError, match=r"set\.parquet: the column label must be whole numbers or text.*; is list"):
        load(path)


def test_what_the_library_saves_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog", "eel"]))
    rows = {"image": [picture(number) for number in range(30)], "label": [number % 3 for number in range(30)]}
    made = datasets.Dataset.from_dict(rows, features=features)
    parts = {"train": made.select(range(20)), "test": made.select(range(29, 19, -1))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set", num_shards={"train": 2, "test": 1})
    loaded = load(tmp_path / "set")
    assert loaded.class_names == ("cat", "dog", "eel") and numbers_of(loaded.test) == {n: n % 3 for n in range(20, 30)}
    assert numbers_of(loaded.train) | numbers_of(loaded.valid) == {n: n % 3 for n in range(20)}


def test_what_shards_hold_besides_is_said_and_where_classes_would_be(tmp_path, caplog):
    caplog.set_level("INFO")
    load(tar(tmp_path / "a.tar", [*web(range(6), classes=0), ("n0000.json", b"{}")]))
    assert (
        "6 images, no classes (a column label, or data.label_column=NAME, or .cls in a tar, would give them)"
        in caplog.text
    )
    assert "a.tar: passed over, neither images nor classes: .json, .txt" in caplog.text
    made = {"image": [{"bytes": png(number)} for number in range(6)], "fine_label": list(range(6)), "text": ["x"] * 6}
    parquet.write_table(pyarrow.table(made), tmp_path / "b.parquet")
    load(tmp_path / "b.parquet")
    assert "b.parquet: passed over, neither images nor classes: fine_label, text" in caplog.text
    caplog.clear()
    load(table(tmp_path / "c.parquet", range(6), [0, 1] * 3))
    assert "6 images of 2 classes" in caplog.text and "passed over" not in caplog.text


def test_classes_in_a_column_of_another_name(tmp_path):
    made = {"image": [{"bytes": png(number)} for number in range(12)], "fine": [5, 7, 9] * 4, "coarse": ["a", "b"] * 6}
    parquet.write_table(pyarrow.table(made), tmp_path / "set.parquet")
    path = {"path": tmp_path / "set.parquet"}
    assert load(**path).class_names == () and load(**path, label_column="fine").class_names == ("5", "7", "9")
    loaded = load(**path, label_column="coarse")
    assert (
        loaded.class_names == ("a", "b") and numbers_of(loaded.train).items() <= {n: n % 2 for n in range(12)}.items()
    )
    with pytest.raises(
        UserError, match=r"label_column=gone: .*set\.parquet has no such column; it has image, fine, coarse"
    ):
        load(**path, label_column="gone")
    saved(tmp_path / "arrow", range(6))
    with pytest.raises(UserError, match=r"label_column=fine: .*arrow has no such column; it has image, label"):
        load(tmp_path / "arrow", label_column="fine")
    tar(tmp_path / "a.tar", web(range(6)))
    with pytest.raises(UserError, match=r"label_column=fine: .*a\.tar has no columns; of a tar, \.cls gives the class"):
        load(tmp_path / "a.tar", label_column="fine")
    fill(tmp_path / "photos")
    with pytest.raises(UserError, match=r"label_column=fine: is of parquet and arrow files, and .*photos holds none"):
        load(tmp_path / "photos", label_column="fine")


def test_a_folder_of_compressed_tars_says_that_they_are_not_read(tmp_path):
    tar(tmp_path / "set" / "0.tar.gz", web(range(6)), mode="w:gz")
    with pytest.raises(UserError, match=r"no images found .*there are 1 \.gz; compressed tars are not read: unpack"):
        load(tmp_path / "set")
