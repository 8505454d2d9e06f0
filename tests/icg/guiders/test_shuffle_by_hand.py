"""Conditions of a batch moved on by so many places: any but its own."""

import torch

from tests.icg.guiders.test_conditions import draw


def test_every_other_samples_condition_is_drawn_and_its_own_never():
    real, seen = {"class_labels": torch.arange(4)}, set()
    for seed in range(40):
        (drawn,) = draw("shuffle", real=real, exclude_own=True, seed=seed)
        moved = (drawn["class_labels"] - torch.arange(4)) % 4
        assert len(moved.unique()) == 1  # all by as much, so that each is drawn once
        seen.add(int(moved[0]))
    assert seen == {1, 2, 3}
