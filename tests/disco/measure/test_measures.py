"""The measures on a model whose answers are known: exact denoisers of the ring, with z the true mode."""

import dataclasses
import json
import re

import pytest
import torch
from diffusers.configuration_utils import register_to_config

from toolkit import data
from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.data.images.toys import ring
from toolkit.disco import measure as measures
from toolkit.disco.artefact import Parts
from toolkit.disco.baselines import LabelEncoder
from toolkit.disco.build import build_denoiser, build_encoder, build_prior
from toolkit.disco.config import MEASURES
from toolkit.disco.measure.loss import _curve
from toolkit.disco.measure.quality import mean_scores
from toolkit.disco.measure.setting import Setting, scale_key, sigma_key
from toolkit.disco.stage2 import ENCODE_BATCH
from toolkit.errors import UserError
from toolkit.metrics.mixture import posterior_mean
from toolkit.runs.record import Run
from toolkit.show.table import Table
from toolkit.zoo.disco.prior import MarginalPrior
from toolkit.zoo.edm.denoiser import Denoiser

COMMAND = COMMANDS["train-disco"]


def test_the_config_knows_every_measure():
    assert list(measures.MEASURES) == MEASURES


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("measure.names=[los]", "did you mean 'loss'?"),
        ("measure.evaluations=[]", "at least one value"),
        ("measure.sigmas=[]", "at least one value"),
        ("optim.betas=[0.9]", "must be two numbers"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(override, words):
    with pytest.raises(UserError, match=re.escape(words)):
        compose(COMMAND, [override])


def test_a_stage_that_would_train_nothing_is_refused():
    with pytest.raises(UserError, match="stage=baseline: baseline=none"):
        compose(COMMAND, ["stage=baseline", "baseline=none"])


class ExactRing(Denoiser):
    """E[y | x], or E[y | x, mode] where latents name the mode."""

    @register_to_config
    def __init__(self, sigma_data: float = 2.13, num_classes: int = 0, num_latents: int = 0, codebook_size: int = 8):
        torch.nn.Module.__init__(self)
        self.anchor = torch.nn.Parameter(torch.zeros(()))  # a device, and gradients in x

    @property
    def shape(self):
        return (2,)

    def forward(self, x, sigma, class_labels=None, latents=None, drop=None, **conditions):
        mixture = ring()
        modes = None if latents is None else latents[:, 0]
        return posterior_mean(x, sigma, mixture.centres, mixture.std, modes) + 0 * self.anchor


def toy_config(*overrides: str):
    small = ["measure.num_samples=800", "measure.num_trajectories=64", "measure.evaluations=[9,35]"]
    return compose(COMMAND, ["experiment=disco_toy", *small, *overrides])


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """A setting of exact denoisers on the ring."""
    config = toy_config("measure.sigmas=[0.1,0.5,1.0,10.0]", "latents.hard=true")
    dataset = data.load(config.data, seed=0)
    modes = torch.arange(8).repeat(10)[:, None]
    parts = Parts(
        ExactRing(num_latents=1), LabelEncoder((2,), 1, 8), MarginalPrior(1, 8).fit(modes), ExactRing(num_latents=0)
    )
    run = Run(tmp_path_factory.mktemp("exact"), config)
    run.record = {"metrics": {}}
    return Setting(parts, dataset, config, run)


def test_loss_of_exact_denoisers_is_the_closed_form(exact):
    found = measures.loss(exact)
    # mean squared error per coordinate of the ring's exact denoisers, without and with the mode
    expected = {"0p1": (0.0081, 0.0081), "0p5": (0.085, 0.035), "1": (0.545, 0.039), "10": (4.341, 0.040)}
    for sigma, (without, with_mode) in expected.items():
        assert found[f"bayes.sigma_{sigma}"] == pytest.approx(without, rel=0.03)
        assert found[f"bayes_mode_known.sigma_{sigma}"] == pytest.approx(with_mode, rel=0.03)
        assert found[f"baseline.sigma_{sigma}"] == pytest.approx(without, rel=0.12)
        assert found[f"ours.sigma_{sigma}"] == pytest.approx(with_mode, rel=0.12)
    assert found["ratio.sigma_1"] == pytest.approx(found["ours.sigma_1"] / found["baseline.sigma_1"])
    # the null branch is the baseline, on the very same noise; a wrong mode is worse than none
    assert found["null.sigma_1"] == found["baseline.sigma_1"]
    assert found["shuffled.sigma_10"] > 1.5 * found["baseline.sigma_10"]
    assert found["weighted.null.sigma_10"] == pytest.approx(
        found["null.sigma_10"] * (1 / 10**2 + 1 / exact.parts.denoiser.sigma_data**2)
    )


def test_every_held_out_item_has_noise_of_its_own_whatever_the_batch(exact):
    curves = []
    for size in (7, 64, 4096):
        sampling = dataclasses.replace(exact.config.sampling, batch_size=size)
        setting = Setting(exact.parts, exact.dataset, dataclasses.replace(exact.config, sampling=sampling), exact.run)
        curves.append(_curve(setting, exact.parts.baseline, None))
    assert curves[0] == pytest.approx(curves[2], rel=1e-5) and curves[1] == pytest.approx(curves[2], rel=1e-5)


def test_use_of_true_modes_is_ln_8(exact):
    found = measures.use(exact)
    assert found["information"] == pytest.approx(2.079, abs=0.01)
    assert found["conditional_entropy"] == pytest.approx(0, abs=1e-6)
    assert found["nmi"] == pytest.approx(1)
    assert found["tuples_per_item"] == pytest.approx(8 / max(800, ENCODE_BATCH))  # of so many test items
    assert (exact.run.dir / "figures" / "codes.png").exists()


def test_known_mode_makes_the_ode_straight(exact):
    found = measures.turning(exact)
    assert found["mean.ours"] < 0.1
    assert 60 < found["mean.baseline"] < 140  # 105 over many trajectories
    assert found["ratio"] < 0.002
    assert found["ratio"] == pytest.approx(found["mean.ours"] / found["mean.baseline"])
    assert found["curvature.baseline.sigma_1"] > 0.3


def test_jacobian_of_exact_denoisers(exact):
    found = measures.jacobian(exact)
    assert found["ours.sigma_0p1"] == pytest.approx(1.280, rel=0.01)
    assert found["ours.sigma_0p5"] == pytest.approx(0.038, rel=0.02)
    assert found["baseline.sigma_1"] == pytest.approx(1.244, rel=0.5)


def test_quality_falls_to_the_floor_and_latents_win_early(exact):
    found = measures.quality(exact)
    assert found["energy.ratio.nfe_9"] < 0.5
    assert abs(found["energy.ours.nfe_35"]) < 0.02
    assert found["off_mode.ours.nfe_35"] < 0.02
    assert found["num.floor"] == 800
    headline = measures.headline({f"quality.{key}": value for key, value in found.items()}, exact.config)
    assert headline.rows[0][:2] == ["energy distance, 9 evaluations", found["energy.ours.nfe_9"]]


def test_exchanging_z_moves_a_sample_to_the_other_mode(exact):
    found = measures.switch(exact)
    effects = [found[f"effect.percent_{percent}"] for percent in (25, 50, 75, 90)]
    assert effects == sorted(effects, reverse=True)
    assert effects[0] > 0.9
    assert effects[-1] < 0.1


def test_samples_of_one_mode_are_alike(exact):
    found = measures.shared(exact)
    assert found["within_over_total"] == pytest.approx(0.04 / 4.54, rel=0.5)
    assert found["label_agreement"] > 0.99
    assert found["label_agreement_chance"] < 0.4


def test_prior_gap_and_guidance_are_computed_at_the_largest_budget(exact):
    gap = measures.prior_gap(exact)
    assert gap["nats.prior"] == pytest.approx(2.079, abs=0.01)
    assert gap["nats.uniform"] == pytest.approx(2.0794, abs=1e-3)
    guided = measures.guidance(exact)
    assert guided["energy.cfg_0"] == pytest.approx(gap["energy.prior"])
    assert {f"ratio.{branch}.{scale_key(1.0)}" for branch in ("null", "baseline")} <= guided.keys()


def test_a_measurement_repeats_itself(exact):
    assert measures.loss(exact) == measures.loss(exact)
    first, second = (
        Setting(exact.parts, exact.dataset, exact.config, exact.run).samples("ours", 9)[0] for _ in range(2)
    )
    assert torch.equal(first, second)


LONG = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("continuous", "kmeans")]


@pytest.mark.parametrize("kind", ["discrete", "none", "labels", *LONG])
def test_images_with_every_kind_of_latents(kind, tmp_path):
    words = [
        "measure.num_samples=24",
        "measure.evaluations=[3,5]",
        "measure.num_trajectories=4",
        "sampling.num_steps=3",
    ]
    names = "loss,use,quality,prior_gap"  # what depends on how z is encoded; the rest once for each way of drawing it
    if kind not in ("labels", "kmeans"):
        names += ",jacobian,guidance,shared,switch,cost,memorisation"
    words += [f"measure.names=[{names}]"]
    config = compose(COMMAND, ["experiment=disco_smoke", f"latents.kind={kind}", *words])
    dataset = data.load(config.data, seed=0)
    torch.manual_seed(0)
    encoder = build_encoder(config, dataset)
    parts = Parts(
        build_denoiser(config, dataset, kind != "none").eval(),
        encoder.eval() if encoder else None,
        build_prior(config, dataset),
        build_denoiser(config, dataset, with_latents=False).eval(),
    )
    run = Run(tmp_path, config)
    run.record = {"metrics": {}}
    found = measures.measure(parts, dataset, config, run)
    assert run.record["metrics"] == found
    # at initialisation the cross-attention adds nothing: both networks err by the noise they let through
    assert found["loss.ratio.sigma_1"] == pytest.approx(1, abs=0.05)
    assert ("use.information" in found) == (kind not in ("none", "continuous"))
    assert ("prior_gap.frechet.oracle" in found) == (kind != "none")
    assert ("prior_gap.nats.prior" in found) == (kind not in ("none", "continuous"))
    assert "quality.frechet.floor" in found
    ratios = [found[f"quality.frechet.ours.nfe_{n}"] / found[f"quality.frechet.baseline.nfe_{n}"] for n in (3, 5)]
    assert found["quality.frechet.ratio.mean"] == pytest.approx((ratios[0] * ratios[1]) ** 0.5)
    table = Table.load(tmp_path / "tables" / "headline.json")
    assert table.columns == ["measure", "DisCo-Diff", "baseline", "floor"]
    assert table.rows[0][0] == "frechet distance, 3 evaluations"
    for name in ("loss", "quality"):
        json.loads((tmp_path / "tables" / f"{name}.json").read_text())
    assert (tmp_path / "figures" / "loss.png").exists()


def test_class_conditional_models_get_labels_everywhere(tmp_path):
    words = ["data.class_labels=true", "measure.num_samples=24", "measure.evaluations=[3]", "sampling.num_steps=3"]
    words += ["measure.names=[loss,quality,prior_gap,shared]", "measure.num_trajectories=16"]
    config = compose(COMMAND, ["experiment=disco_smoke", *words])
    dataset = data.load(config.data, seed=0)
    parts = Parts(
        build_denoiser(config, dataset).eval(),
        build_encoder(config, dataset).eval(),
        build_prior(config, dataset).eval(),
        build_denoiser(config, dataset, with_latents=False).eval(),
    )
    run = Run(tmp_path, config)
    run.record = {"metrics": {}}
    found = measures.measure(parts, dataset, config, run)
    assert 0 <= found["quality.accuracy.ours.nfe_3"] <= 1


def test_repeats_report_their_spread(exact):
    twice = dataclasses.replace(exact.config.measure, num_repeats=2, evaluations=[9])
    setting = Setting(exact.parts, exact.dataset, dataclasses.replace(exact.config, measure=twice), exact.run)
    found = measures.quality(setting)
    assert found["sd.energy.ours.nfe_9"] > 0


def test_keys_are_stable():
    assert [sigma_key(sigma) for sigma in (0.05, 1.0, 10.0)] == ["sigma_0p05", "sigma_1", "sigma_10"]
    assert [scale_key(scale) for scale in (-1.0, 0.0, 0.5)] == ["cfg_m1", "cfg_0", "cfg_0p5"]


def test_scores_of_one_repeat_have_no_spread_and_of_more_the_samples_deviation():
    assert mean_scores([{"a": 2.0}]) == ({"a": 2.0}, {})
    means, spread = mean_scores([{"a": 2.0}, {"a": 5.0}, {"a": 5.0}])
    assert means == {"a": 4.0} and spread == {"a": pytest.approx(3**0.5)}
