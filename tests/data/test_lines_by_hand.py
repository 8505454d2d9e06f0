"""Splits, samples and tables with plain numbers."""

import hashlib
import io

import numpy as np
import pytest
import torch
from PIL import Image

from toolkit.data import sources
from toolkit.data.sets import GaussianMixture, MemorySplit, fixed_subset, hold_out


def test_a_valid_and_a_test_split_are_not_the_same_items():
    held = {name: hold_out(None, 40, 0.25, name)[1].tolist() for name in ("valid", "test")}
    assert len(held["valid"]) == len(held["test"]) == 10 and held["valid"] != held["test"]


def test_a_fixed_subset_is_drawn_from_everywhere_and_read_forward():
    found = fixed_subset(200, 20).tolist()
    assert found == sorted(set(found)) and len(found) == 20 and found[0] < 40 and found[-1] > 160
    assert fixed_subset(5, None).tolist() == fixed_subset(5, 9).tolist() == [0, 1, 2, 3, 4]


def test_labels_are_part_of_what_a_split_holds():
    values = torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2)
    labels = np.array([2, 0, 1])
    expected = hashlib.sha256(bytes(range(12)) + labels.astype("<i8").tobytes()).hexdigest()
    assert MemorySplit(values, labels).fingerprint() == expected
    assert MemorySplit(values).fingerprint() == hashlib.sha256(bytes(range(12))).hexdigest()
    assert MemorySplit(values, labels, identity="x").identity() == "x"
    assert MemorySplit(values, labels).identity() == expected[:16]


def test_points_of_a_mixture_lie_around_the_centre_of_the_component_that_they_are_said_to_be_of():
    centres = torch.tensor([[0.0, 50.0], [100.0, 0.0], [-100.0, 0.0]], dtype=torch.float64)
    points, components = GaussianMixture(centres, 2.0).sample(500, torch.Generator().manual_seed(0))
    assert components.tolist() == [0] * 500 + [1] * 500 + [2] * 500
    around = points - centres[torch.from_numpy(components)]
    assert around.abs().max() < 12 and around.std().item() == pytest.approx(2, rel=0.1)


def test_a_hub_tables_rows_keep_their_labels_and_train_is_the_file_of_training(tmp_path, monkeypatch):
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")

    def table(repository, file):
        split = file.removeprefix("config/").partition("-")[0]
        grey = {"train": [10, 20, 30], "test": [40, 50]}[split]
        cells = []
        for level in grey:
            Image.new("L", (2, 3), level).save(buffer := io.BytesIO(), "PNG")
            cells.append({"bytes": buffer.getvalue(), "path": None})
        path = tmp_path / f"{split}.parquet"
        parquet.write_table(pyarrow.table({"image": cells, "label": [level // 10 for level in grey]}), path)
        return path

    monkeypatch.setattr(sources, "_hub_file", table)
    sources.from_hub("someone/something", "config")(tmp_path)
    for prefix, grey in {"train": [10, 20, 30], "t10k": [40, 50]}.items():
        images = (tmp_path / f"{prefix}-images-idx3-ubyte").read_bytes()
        assert images == bytes([0, 0, 8, 3, 0, 0, 0, len(grey), 0, 0, 0, 3, 0, 0, 0, 2]) + bytes(
            np.repeat(np.uint8(grey), 6)
        )
        labels = (tmp_path / f"{prefix}-labels-idx1-ubyte").read_bytes()
        assert labels == bytes([0, 0, 8, 1, 0, 0, 0, len(grey), *(level // 10 for level in grey)])
