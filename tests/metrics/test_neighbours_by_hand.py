"""Memorisation: the nearest training item of samples, over that of held-out items, not the other way round."""

import pytest
import torch

from toolkit.metrics.neighbours import memorisation_ratio


def test_samples_and_held_out_items_look_for_training_items():
    """Held-out items are 2, 3 and 4 from training; seen from training they are 2 and 3. Samples are 1 away."""
    train, held_out = torch.tensor([[0.0], [10.0]]), torch.tensor([[2.0], [13.0], [4.0]])
    samples = torch.tensor([[1.0], [9.0], [11.0]])
    assert memorisation_ratio(samples, held_out, train) == pytest.approx(1 / 3)
