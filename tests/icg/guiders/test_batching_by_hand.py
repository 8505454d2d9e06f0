"""Several network calls as one: whose row lands where."""

import pytest
import torch

from toolkit.errors import UserError
from toolkit.icg.guiders.batching import stack_arguments


def call(number):
    """Of three samples; every tensor holds the call's number."""
    full = lambda *shape: torch.full(shape, number)  # noqa: E731
    return {
        "own": full(3, 2),
        "one_row": full(1, 2),
        "scale": torch.tensor(number),
        "img_ids": full(5, 3),
        "added": {"time_ids": full(3), "text": full(1, 4)},
        "residuals": [full(3, 1), full(1, 1)],
        "return_dict": False,
    }


def test_each_call_keeps_its_rows_and_one_row_stands_for_all_samples_of_its_own_call():
    made = stack_arguments([call(1), call(2)], 3)
    in_turn = [1, 1, 1, 2, 2, 2]
    for name, width in (("own", 2), ("one_row", 2)):
        assert made[name].tolist() == [[number] * width for number in in_turn]
    assert made["added"]["time_ids"].tolist() == in_turn and made["added"]["text"][:, 3].tolist() == in_turn
    assert [one.flatten().tolist() for one in made["residuals"]] == [in_turn, in_turn]


def test_numbers_words_and_positions_are_shared():
    made = stack_arguments([call(1), call(2)], 3)
    assert made["scale"].item() == 1 and made["return_dict"] is False
    assert made["img_ids"].shape == (5, 3)
    with pytest.raises(UserError, match="batched: own has 3 rows for 2 samples"):
        stack_arguments([call(1), call(2)], 2)
