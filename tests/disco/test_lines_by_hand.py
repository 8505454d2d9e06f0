"""Lines that combine: what a baseline's parameters match, what the headline holds against what, snapshots planned."""

import dataclasses

import torch

from tests.disco import tiny
from toolkit.disco.artefact import Parts
from toolkit.disco.build import build_denoiser, build_encoder, build_prior, build_stage
from toolkit.disco.config import Measure, Optim
from toolkit.disco.footprint import _snapshots
from toolkit.disco.measure import headline
from toolkit.zoo.registry import count_parameters


def test_one_matched_baseline_is_as_large_as_denoiser_and_prior_the_other_as_the_encoder_besides():
    config, data = tiny.config(tiny.mlp()), tiny.images()
    config.latents.encoder = dataclasses.replace(config.latents.encoder, width=64)  # far more than a step of the width
    made = {
        kind: build_stage(dataclasses.replace(config, baseline=kind), data, "baseline")
        for kind in ("same_width", "matched", "matched_total")
    }
    assert all(encoder is None and denoiser.num_latents == 0 for denoiser, encoder in made.values())
    sizes = {kind: count_parameters(denoiser) for kind, (denoiser, _) in made.items()}
    both = count_parameters(build_denoiser(config, data), build_prior(config, data))
    all_three = both + count_parameters(build_encoder(config, data))
    assert sizes["same_width"] < both <= sizes["matched"] < all_three <= sizes["matched_total"]


def test_the_headline_holds_ours_against_the_baseline_and_the_floor():
    config = tiny.config(tiny.mlp(), measure=Measure(evaluations=[9, 17], sigmas=[0.5, 0.1, 2.0, 5.0]))
    found = {"quality.frechet.floor": 0.5, "turning.mean.ours": 30.0, "turning.mean.baseline": 40.0}
    found |= {"quality.frechet.ours.nfe_9": 1.0, "quality.frechet.baseline.nfe_9": 2.0}
    found |= {"quality.frechet.ours.nfe_17": 0.75, "prior_gap.frechet.oracle": 0.6, "use.information": 1.25}
    for value, sigma in enumerate(("0p1", "0p5", "2", "5")):
        found |= {f"loss.ours.sigma_{sigma}": value, f"loss.baseline.sigma_{sigma}": value + 10}
        found |= {f"loss.bayes.sigma_{sigma}": value - 10}
    table = headline(found, config)
    assert table.columns[1:] == ["DisCo-Diff", "baseline", "floor"]
    assert table.rows == [
        ["frechet distance, 9 evaluations", 1.0, 2.0, 0.5],
        ["frechet distance, 17 evaluations", 0.75, None, 0.5],
        ["frechet distance, encoder's z", 0.6, None, 0.5],
        ["loss at σ = 0.1", 0, 10, -10],  # the smallest and the last two
        ["loss at σ = 2", 2, 12, -8],
        ["loss at σ = 5", 3, 13, -7],
        ["turning of the ODE, degrees", 30.0, 40.0, None],
        ["information in the codes, nats", 1.25, None, None],
    ]


def test_every_average_has_a_snapshot_for_each_span_that_is_begun():
    optim = Optim(num_steps=2500, ema_sigma_rels=[0.05, 0.1], ema_snapshot_every_steps=1000)
    assert _snapshots(tiny.config(optim=optim))[0].startswith("6 snapshots")
    assert _snapshots(tiny.config(optim=Optim(num_steps=2500))) == ()


def test_classes_are_spread_by_the_number_of_the_sample():
    parts = Parts(build_denoiser(tiny.config(tiny.mlp()), tiny.images(num_classes=4)))
    assert parts.spread_labels(6).tolist() == [0, 1, 2, 3, 0, 1]
    assert parts.spread_labels(range(6, 11)).tolist() == [2, 3, 0, 1, 2]
    assert Parts(build_denoiser(tiny.config(tiny.mlp()), tiny.images())).spread_labels(3) is None
    assert parts.spread_labels(2).dtype == torch.int64
