"""How alike samples of one z are, and shares of the cost, on numbers chosen so that they can be counted."""

from types import SimpleNamespace

import pytest
import torch

from toolkit.disco.config import TrainDisco
from toolkit.disco.measure import latents


@pytest.fixture
def setting(tmp_path):
    """Two draws of z; ``variants`` as a trained model with a baseline has them."""
    config = TrainDisco()
    config.measure.num_trajectories = 2 * latents.NOISES_PER_LATENT
    ours, baseline = SimpleNamespace(num_latents=2), SimpleNamespace(num_latents=0)
    return SimpleNamespace(
        config=config,
        num_samples=4,
        parts=SimpleNamespace(denoiser=ours),
        variants={"ours": ours, "baseline": baseline},
        dataset=None,
        device="cpu",
        run=SimpleNamespace(path=lambda *names: tmp_path / "_".join(names)),
        random_labels=lambda num: None,
        drawn=lambda source, labels, num, *names: torch.arange(2 * num).view(num, 2),
        rng=lambda *names: None,
    )


def test_variance_within_a_z_over_all_and_pairs_of_one_class(setting, monkeypatch):
    given = []

    def draw(denoiser, z, num, *_):
        given.append(z)
        return torch.tensor([1.0, -1.0] * 4 + [11.0, 9.0] * 4)[:, None], 1

    classes = torch.tensor([0] * 6 + [1] * 2 + [0] * 4 + [1] * 4)
    monkeypatch.setattr(latents, "draw_samples", draw)
    monkeypatch.setattr(latents, "make_judge", lambda dataset: SimpleNamespace(classify=lambda samples: classes))
    found = latents.shared(setting)
    assert given[0].tolist() == [[0, 1]] * 8 + [[2, 3]] * 8  # z of a row stands there eight times in turn
    within, total = 8 / 7, 16 * (5**2 + 1) / 15
    assert found["within_over_total"] == pytest.approx(within / total)
    pairs = [(6 * 5 + 2 * 1) / (8 * 7), (4 * 3 + 4 * 3) / (8 * 7)]  # ordered, none of an item with itself
    assert found["label_agreement"] == pytest.approx(sum(pairs) / 2)
    assert found["label_agreement_chance"] == pytest.approx((10 / 16) ** 2 + (6 / 16) ** 2)


def test_the_priors_share_is_of_both_and_latents_cost_what_the_baseline_does_not(setting, monkeypatch):
    seconds = iter([1.0, 3.0, 2.0])  # of the prior, of ours, of the baseline
    monkeypatch.setattr(latents, "_seconds", lambda setting, work: next(seconds))
    found = latents.cost(setting)
    assert found == {"prior_s": 1.0, "denoiser_s": 3.0, "prior_share": 0.25, "latents_overhead": 0.5}
