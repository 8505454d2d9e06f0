"""Memorisation: the nearest training item of samples, over that of held-out items, not the other way round."""

import pytest
import torch

from toolkit.metrics.neighbours import memorisation_ratio, precision_recall


def test_samples_and_held_out_items_look_for_training_items():
    """Held-out items are 2, 3 and 4 from training; seen from training they are 2 and 3. Samples are 1 away."""
    train, held_out = torch.tensor([[0.0], [10.0]]), torch.tensor([[2.0], [13.0], [4.0]])
    samples = torch.tensor([[1.0], [9.0], [11.0]])
    assert memorisation_ratio(samples, held_out, train) == pytest.approx(1 / 3)


def test_a_point_on_the_edge_of_a_ball_is_inside():
    """Real 0, 1, 2 and 10 reach 1, 1, 1 and 8; samples 3, 6 and 30 reach 3, 3 and 24: k = 1, the point itself aside."""
    real, samples = torch.tensor([[0.0], [1.0], [2.0], [10.0]]), torch.tensor([[3.0], [6.0], [30.0]])
    found = precision_recall(real, samples, k=1)
    assert found.precision == pytest.approx(2 / 3)  # 3 is 1 from 2, 6 is 4 from 10
    assert found.recall == 1.0  # 0 is 3 from 3, 1 and 2 nearer, 10 is 20 from 30
