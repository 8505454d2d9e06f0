"""What is a split, what is a class and what is no image: folders as people have them."""

import csv
import json
import logging
import shutil

import pytest
from PIL import Image, features

from tests.data.images.test_folder import fill, load, picture
from toolkit.data.images.labels import labels_of
from toolkit.errors import UserError


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "TEST"), ("training", "Validation"), ("train", "dev")])
def test_split_names_in_any_case_are_never_classes(tmp_path, names, caplog):
    for name, number in zip(names, (10, 3), strict=True):
        fill(tmp_path / name, number=number)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.xml").write_text("<a/>")
    with caplog.at_level(logging.INFO):
        loaded = load(tmp_path)
    assert loaded.class_names == ("cat", "dog") and len(loaded.test) == 6
    assert len(loaded.train) + len(loaded.valid) == 20
    assert "left out: annotations" in caplog.text
    assert caplog.text.count("20 images of 2 classes: cat 10, dog 10") == 1


def test_splits_without_classes_have_no_classes(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        for one in range(6):
            picture(one).save(tmp_path / name / f"{one}.png")
    loaded = load(tmp_path)
    assert loaded.num_classes == 0 and len(loaded.test) == 6


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("train", "car", "bus"), r"train is the name of a split, but there are images beside it \(bus, car\)"),
        (("train", "Training"), "name the same split"),
        (("val", "test"), r"has a split \(test, val\) but no train folder"),
        (("cat/train", "cat/test", "dog/train", "dog/test"), "cat: holds splits"),
        (("train/cat", "train/test"), "test is the name of a split, not of a class"),
    ],
)
def test_splits_that_cannot_be_told_from_classes_are_refused(tmp_path, folders, said):
    with pytest.raises(UserError, match=said):
        load(fill(tmp_path, folders))


def edm(root, labels):
    fill(root, ("00000", "00001"), number=6)
    (root / "dataset.json").write_text(json.dumps(labels))
    return root


def test_shards_are_classed_by_dataset_json_and_not_by_their_folders(tmp_path):
    files = [(f"0000{shard}/{one}.png", (6 * shard + one) % 3) for shard in range(2) for one in range(6)]
    loaded = load(edm(tmp_path, {"labels": files}), num_train=6)
    assert loaded.class_names == ("0", "1", "2") and sorted(loaded.test.labels) == [0, 1, 2]
    assert load(edm(tmp_path, {"labels": None})).num_classes == 0
    for labels, said in [
        ({"labels": files[1:]}, "has no label for 00000/0.png"),
        ({"labels": [*files, ("00009/1.png", 0)]}, "names 00009/1.png, which is not among the images"),
        ({"labels": [(name, [0.5, 0.5]) for name, _ in files]}, r"entry 1 has the label '\[0.5, 0.5\]'"),
        ({"images": []}, "is not .*labels"),
        ([1], "is not .*labels"),
        ({"labels": [3]}, "is not a list of"),
        ({"labels": [(name, 0) for name, _ in files]}, "one class only"),
        ({"labels": [*files, (files[0][0], 2)]}, "a second, different label"),
    ]:
        with pytest.raises(UserError, match=f"dataset.json: .*{said}"):
            load(edm(tmp_path, labels))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_of_hugging_face_gives_the_classes(tmp_path, kind):
    rows = []
    for part, number in (("train", 12), ("test", 4)):
        (tmp_path / part).mkdir()
        for one in range(number):
            picture(one).save(tmp_path / part / f"{one}.png")
            rows.append({"file_name": f"{part}/{one}.png", "text": "a, b", "label": "cat" if one % 2 else "dog"})
    with open(tmp_path / f"metadata.{kind}", "w", newline="") as file:
        if kind == "csv":
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    loaded = load(tmp_path)
    assert loaded.class_names == ("cat", "dog") and loaded.test.labels.tolist() == [1, 0, 1, 0]
    shutil.copy(tmp_path / f"metadata.{kind}", tmp_path / "test")
    with pytest.raises(UserError, match="two labels files"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metadata.csv", b"file_name,text\n0.png,red\n", "row 1 has no column 'label'"),
        ("metadata.csv", b"file_name,label\n0.png,\n", "row 1 has the label ''"),
        ("metadata.csv", b"file_name,label\n,red\n", "row 1 names no file"),
        ("metadata.jsonl", b'{"file_name": 5, "label": 1}', "row 1 names no file"),
        ("metadata.csv", b"\xff\xfe\0", "cannot be read as UTF-8"),
        ("metadata.jsonl", b'{"file_name"', "cannot be read as JSON"),
        ("metadata.jsonl", b"[" * 100_000, "cannot be read as JSON"),
        ("metadata.jsonl", b'{"label": 1}', "has no column 'file_name'"),
        ("metadata.parquet", b"PAR1", "labels in parquet are not read"),
    ],
)
def test_a_labels_file_that_cannot_be_used_is_refused_and_never_ignored(tmp_path, name, content, said):
    for one in range(5):
        picture(one).save(tmp_path / f"{one}.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: .*{said}") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    assert load(tmp_path, class_labels=False).num_classes == 0


def test_every_suffix_that_pillow_reads_is_read_and_the_others_are_counted(tmp_path, caplog):
    kinds = {"jfif": "JPEG", "jpe": "JPEG", "tga": "TGA"}
    kinds |= {"JP2": "JPEG2000"} if features.check("jpg_2000") else {}
    kinds |= {"avif": "AVIF"} if features.check("avif") else {}
    for index, (suffix, kind) in enumerate(kinds.items()):
        picture(index).save(tmp_path / f"{index}.{suffix}", kind)
    for name in ("a.svg", "b.SVG", "notes.txt"):
        (tmp_path / name).write_text("no image")
    loaded = load(tmp_path)
    assert len(loaded.train) + len(loaded.valid) + len(loaded.test) == len(kinds)
    assert caplog.text.count("passed over, not read as images: 2 .svg, 1 .txt") == 1
    for file in tmp_path.iterdir():
        if file.suffix.lower() != ".svg":
            file.unlink()
    with pytest.raises(UserError, match=r"no images found \(.*there are 2 .svg"):
        load(tmp_path)


def test_linked_folders_are_followed_once_and_loops_end(tmp_path):
    root = tmp_path / "set"
    elsewhere = fill(tmp_path / "elsewhere", ("cat", "dog", "more"), number=5)
    (root / "dog").mkdir(parents=True)
    (root / "cat").symlink_to(elsewhere / "cat")
    (root / "dog" / "inner").symlink_to(elsewhere / "dog")
    (root / "dog" / "more").symlink_to(elsewhere / "more")
    (elsewhere / "more" / "back").symlink_to(root / "dog")
    (root / "dog" / "self").symlink_to(root / "dog" / "self")
    for labelled, classes in ((True, 2), (False, 0)):
        loaded = load(root, class_labels=labelled)
        assert len(loaded.train) + len(loaded.valid) + len(loaded.test) == 15 and loaded.num_classes == classes


def test_the_order_of_files_is_that_of_their_names_with_files_before_folders(tmp_path):
    from toolkit.data.images.layout import find_splits

    names = ["a/b/1.png", "a/0.png", "a/c.png", "b/2.png", "z.png"]
    for index, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(index).save(tmp_path / name)
    found = [str(file.relative_to(tmp_path)) for file in find_splits(tmp_path, by_class=False)["train"].files]
    assert found == ["z.png", "a/0.png", "a/c.png", "a/b/1.png", "b/2.png"]


def test_constant_images_are_refused_before_training(tmp_path):
    for one in range(8):
        Image.new("RGB", (8, 8), "grey").save(tmp_path / f"{one}.png")
    with pytest.raises(UserError, match="all training values are the same"):
        _ = load(tmp_path).sigma_data


def test_classes_that_are_numbers_stand_in_the_order_of_their_values(tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(4)]
    known = {"0.png": "10", "1.png": "9", "2.png": "2", "3.png": "10"}
    names, classes = labels_of(tmp_path / "labels.csv", known, files)
    assert names == ("2", "9", "10") and classes.tolist() == [2, 1, 0, 2]
    names, classes = labels_of(tmp_path / "labels.csv", known | {"2.png": "two"}, files)
    assert names == ("10", "9", "two") and classes.tolist() == [0, 1, 2, 0]
