"""Lines that combine: what a baseline's parameters match, what the headline holds against what, snapshots planned."""

import dataclasses

import pytest
import torch

from tests.disco import tiny
from toolkit.disco import footprint
from toolkit.disco.artefact import Parts
from toolkit.disco.build import build_denoiser, build_encoder, build_prior, build_stage, latent_shape, memory_bytes
from toolkit.disco.config import Measure, Optim
from toolkit.disco.footprint import _snapshots
from toolkit.disco.measure import headline
from toolkit.zoo.counting import count_parameters


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


def test_a_stage_is_estimated_as_it_is_trained():
    optim = Optim(
        num_steps=70, batch_size=6, micro_batch_size=3, ema_sigma_rels=[0.05, 0.1], gradient_checkpointing=True
    )
    config = tiny.config(optim=dataclasses.replace(optim, sharding="fsdp"))
    config.data.name, config.network.attention_resolutions = "digits", [8]
    config.prior.num_steps, config.prior.batch_size, config.prior.micro_batch_size = 50, 5, 4
    first, baseline, prior = footprint.stages(config)
    for one in (first, baseline):
        assert (one.item, one.num_steps, one.batch_size, one.micro_batch_size) == ("images", 70, 6, 3)
        assert one.sharded and one.checkpointing and not one.replicated
    assert (prior.num_steps, prior.batch_size, prior.micro_batch_size) == (50, 5, 4)
    assert prior.replicated and not prior.sharded and not prior.checkpointing
    assert not footprint.stages(tiny.config(optim=Optim()))[0].sharded
    with torch.device("meta"):
        networks, frozen = first.build(), prior.build().frozen
    assert len(networks.averaged) == 1 + 2 and count_parameters(*frozen) == count_parameters(
        *networks.trained.children()
    )
    assert not any(one.requires_grad for part in frozen for one in part.parameters())


@pytest.mark.parametrize(("kind", "codes"), [("labels", (1, 10)), ("kmeans", (2, 3))])
def test_encoders_that_are_fitted_are_estimated_without_the_data(kind, codes):
    """What stands in for the data has neither labels nor items for k-means. Labels are then no condition besides."""
    config = tiny.config(tiny.mlp(), kind=kind)
    config.data.name, config.data.class_labels = "digits", True
    for stage in footprint.stages(config):
        networks = stage.build()
        assert networks.loss(3).isfinite()
        if stage.name == "denoiser":
            denoiser, encoder = networks.trained.denoiser, networks.trained.encoder
            assert (denoiser.num_latents, denoiser.codebook_size) == codes and denoiser.num_classes == 10 * (
                kind == "kmeans"
            )
            assert not list(encoder.parameters())


def test_priors_have_their_dropout_and_classes_and_weights_five_floats_each():
    config, data = tiny.config(), tiny.images(num_classes=4)
    config.prior.dropout = 0.3
    made = build_prior(config, data)
    assert (made.config["dropout"], made.config["num_classes"]) == (0.3, 4)
    assert (
        build_prior(dataclasses.replace(config, latents=tiny.config(kind="continuous").latents), data).config[
            "num_classes"
        ]
        == 4
    )
    assert latent_shape(tiny.config(kind="labels"), 7) == (1, 7) and latent_shape(config, 7) == (2, 3)
    assert memory_bytes(torch.nn.Linear(3, 4), None) == 4 * 5 * 16  # weight, gradient, two moments, average


def test_classes_are_spread_by_the_number_of_the_sample():
    parts = Parts(build_denoiser(tiny.config(tiny.mlp()), tiny.images(num_classes=4)))
    assert parts.spread_labels(6).tolist() == [0, 1, 2, 3, 0, 1]
    assert parts.spread_labels(range(6, 11)).tolist() == [2, 3, 0, 1, 2]
    assert Parts(build_denoiser(tiny.config(tiny.mlp()), tiny.images())).spread_labels(3) is None
    assert parts.spread_labels(2).dtype == torch.int64
