"""What stands against what in each measure: items, sources of z, budgets, guidance, and which ratio is reported."""

import sys
from types import SimpleNamespace

import pytest
import torch

from toolkit.disco.config import TrainDisco
from toolkit.disco.measure import guidance, jacobian, latents, loss, memorisation, paths, prior_gap, quality, use
from toolkit.runs.seeds import generator
from toolkit.show import figures

LOSS, QUALITY = sys.modules[loss.__module__], sys.modules[quality.__module__]
X = torch.tensor([[1.0, 3.0], [2.0, 5.0], [4.0, 1.0], [7.0, 0.0]])


class Net:
    """E[y | x] = x + z, or x where z is not given."""

    shape, sigma_data, num_classes, codebook_size = (1,), 2.0, 0, 3

    def __init__(self, num_latents=1):
        self.num_latents = num_latents

    def __call__(self, x, sigma, class_labels=None, latents=None):
        return x if latents is None else x + latents


@pytest.fixture
def setting(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "curves", lambda *names, **more: None)  # of other tests
    config = TrainDisco()
    config.measure.sigmas, config.measure.evaluations = [0.5, 2.0], [9, 35]
    parts = SimpleNamespace(denoiser=Net(), baseline=Net(0), encoder=None, prior=object())
    variants = {"ours": parts.denoiser, "baseline": parts.baseline}
    return SimpleNamespace(
        config=config, parts=parts, variants=variants, discrete=False, num_samples=4, device=torch.device("cpu"),
        dataset=SimpleNamespace(train="train", test="test", mixture=None, shape=(8, 8)), held_out=(X, None),
        run=SimpleNamespace(path=lambda *names: tmp_path / "_".join(names)),
        rng=lambda *names: generator(0, *names), cpu_rng=lambda *names: generator(1, *names),
        condition=lambda known: known, random_labels=lambda num: None,
        denoise=lambda name, z, labels: name,
    )  # fmt: skip


def test_the_loss_of_each_source_of_z_is_on_the_same_noise_and_of_each_level_on_noise_of_its_own(setting):
    """With E[y | x] = x + z the error is noise + z, so z is chosen to be seen."""
    asked = []

    def drawn(source, labels, num, *names):
        asked.append(source)
        return torch.full((num, 1), 1000.0)

    setting.encoded, setting.drawn = lambda x, known, *names: 10 * x, drawn
    setting.config.sampling.batch_size = 3
    found = loss(setting)
    noises = {s: torch.randn(X.shape, generator=generator(0, "loss", str(s))) for s in (0.5, 2.0)}
    assert not torch.equal(noises[0.5], noises[2.0])
    for sigma, name in ((0.5, "sigma_0p5"), (2.0, "sigma_2")):
        noise = sigma * noises[sigma]
        order = torch.randperm(4, generator=generator(0, "shuffle"))
        assert order.tolist() != [0, 1, 2, 3]
        z = {"ours": 10 * X, "null": 0 * X, "shuffled": 10 * X[order], "prior_z": 0 * X + 1000, "baseline": 0 * X}
        errors = {of: float((noise + value).square().mean()) for of, value in z.items()}
        assert {of: found[f"{of}.{name}"] for of in z} == pytest.approx(errors, rel=1e-5)
        weight = (sigma**2 + 2.0**2) / (sigma * 2.0) ** 2
        assert found[f"weighted.ours.{name}"] == pytest.approx(weight * errors["ours"], rel=1e-5)
        assert found[f"ratio.{name}"] == pytest.approx(errors["ours"] / errors["baseline"], rel=1e-5)
    assert asked == ["prior"]


@pytest.mark.parametrize(
    ("kind", "hard", "there"),
    [("discrete", False, True), ("discrete", True, False), ("kmeans", False, False), ("continuous", False, False)],
)
def test_the_loss_of_relaxed_codes_is_of_models_that_were_trained_on_them(setting, monkeypatch, kind, hard, there):
    monkeypatch.setattr(LOSS, "_relaxed", lambda setting, x, known: torch.full((4, 1), 7.0))
    setting.encoded, setting.drawn = lambda x, known, *names: 10 * x, lambda *_: torch.zeros(4, 1)
    setting.discrete = kind != "continuous"
    setting.config.latents.kind, setting.config.latents.hard = kind, hard
    found = LOSS._variants(setting)
    assert ("relaxed" in found) == there and (not there or found["relaxed"][1].unique().tolist() == [7.0])


def test_relaxed_latents_are_mixtures_of_codes_as_training_saw_them(setting, monkeypatch):
    monkeypatch.setattr(LOSS, "code_logits", lambda encoder, x, known: torch.zeros(len(x), 1, 3))
    setting.parts.encoder, setting.config.latents.temperature = object(), 2.0
    found = LOSS._relaxed(setting, X, None)
    drawn = torch.rand(4, 1, 3, generator=generator(0, "relaxed"))
    torch.testing.assert_close(found, (-(-drawn.log()).log() / 2).softmax(-1))


def test_use_sums_information_over_slots_and_takes_the_mean_perplexity(setting, monkeypatch):
    logits = torch.tensor([[[0.0, 0.0], [50.0, 0.0]], [[0.0, 0.0], [0.0, 50.0]]])  # a slot that says nothing, one all
    monkeypatch.setattr(LOSS, "code_logits", lambda encoder, x, known: logits)
    codes = torch.tensor([[0, 0], [0, 1]])
    setting.parts.encoder = object()
    setting.chosen = lambda split, num: {"test": torch.arange(2)}[split]
    setting.batches = lambda split, index: [(X[:2], None)]
    setting.encoded_items = lambda split, index, *names: codes
    setting.known = lambda split, index: None
    found = use(setting)
    ln_2 = 0.6931471805599453
    assert found == pytest.approx(
        {"information": ln_2, "conditional_entropy": ln_2, "perplexity": 2.0, "dead_codes": 0, "tuples_per_item": 1.0},
        abs=1e-6,
    )


def test_paths_start_at_the_highest_level_and_ratios_are_ours_to_the_baselines(setting, monkeypatch):
    turnings = {"ours": torch.tensor([1.0, 2.0, 6.0]), "baseline": torch.tensor([4.0, 8.0, 9.0])}
    starts = []

    def follow(denoise, start, grid):
        starts.append(start)
        return SimpleNamespace(turning=turnings[denoise], defect=torch.tensor([0.25, 0.75]))

    monkeypatch.setattr(paths, "follow", follow)
    monkeypatch.setattr(paths, "_curvature_curve", lambda setting, denoise, start: ([], []))
    setting.config.measure.num_trajectories, setting.drawn = 200, lambda *names: None
    found = paths.turning(setting)
    assert (found["mean.ours"], found["median.ours"], found["defect.ours"]) == (3.0, 2.0, 0.5)
    assert (found["ratio"], found["ratio_median"]) == pytest.approx((3 / 7, 2 / 8))
    assert torch.equal(*starts) and 70 < float(starts[0].std()) < 90  # sigma_max is 80


def test_the_curvature_of_a_level_is_that_of_the_path_there(setting, monkeypatch):
    monkeypatch.setattr(paths, "curvature", lambda denoise, x, sigma: torch.tensor([0.0, 10 * sigma, 900.0]))
    setting.config.measure.sigmas = [0.1, 0.5, 2.0, 90.0]  # not those below 0.1 of the data's deviation or not reached
    levels, values = paths._curvature_curve(setting, lambda x, sigma: 0 * x, 80 * torch.ones(3, 1))
    assert levels == [0.5, 2.0] and values == [5.0, 20.0]


@pytest.mark.parametrize("size", [16, 17])
def test_the_jacobian_is_taken_at_noisy_test_items_exactly_where_they_are_small(setting, monkeypatch, size):
    items, seen = torch.arange(3.0 * size).view(3, size), []

    def norm(denoise, x, sigma, random, num_probes):
        noise = torch.randn(items.shape, generator=generator(0, "jacobian", str(sigma)))
        torch.testing.assert_close(x, items + sigma * noise)
        seen.append(num_probes)
        return torch.tensor([1.0, 5.0]) if denoise == "ours" else torch.tensor([4.0, 8.0])

    monkeypatch.setattr(paths, "jacobian_norm", norm)
    setting.items = lambda split, num: {"test": (items, None)}[split]
    setting.encoded = lambda x, known, *names: None
    assert jacobian(setting)["ratio.sigma_2"] == 3 / 6
    assert set(seen) == {None if size == 16 else paths.NUM_PROBES}


@pytest.fixture
def judged(setting, monkeypatch):
    """Distances that say what was drawn: hundreds the variant and source of z, tens the scale, ones the budget."""
    score = {"ours.prior": 200.0, "ours.oracle": 100.0, "ours.marginal": 400.0, "ours.uniform": 800.0}
    score |= {"baseline.prior": 500.0}

    def samples(variant, budget, repeat=0, source="prior", cfg_scale=0.0, null_denoiser=None):
        return torch.tensor([score[f"{variant}.{source}"] + 10 * cfg_scale + budget + 1000 * bool(null_denoiser)]), None

    judge = SimpleNamespace(distance="frechet", space="", score=lambda x, labels: {"frechet": float(x)})
    monkeypatch.setattr(QUALITY, "make_judge", lambda dataset: judge)
    setting.samples = samples
    return setting


def test_the_gap_of_the_prior_is_to_the_encoders_z_and_to_independent_codes_at_the_largest_budget(judged, monkeypatch):
    monkeypatch.setattr(QUALITY, "_held_out_nats", lambda setting: {"prior": 1.5})
    judged.discrete = True
    found = prior_gap(judged)
    names = ("oracle", "prior", "marginal", "uniform")
    assert [found[f"frechet.{name}"] for name in names] == [135, 235, 435, 835]
    assert (found["over_oracle"], found["ratio"], found["nats.prior"]) == (235 / 135, 235 / 435, 1.5)


def test_nats_are_of_the_test_split_under_every_prior(judged, monkeypatch):
    class Latents:
        def __init__(self, parts, split, temperature):
            self.codes = {"test": torch.zeros(2, 1, dtype=torch.int64)}[split]
            assert temperature == 0.01

        def draw(self, rng):
            return self.codes, None

    monkeypatch.setattr(QUALITY, "Latents", Latents)
    monkeypatch.setattr(QUALITY, "evaluate", lambda prior, codes, labels: getattr(prior, "nats", 3.0))
    judged.parts.prior, judged.marginal_prior = SimpleNamespace(nats=1.0), SimpleNamespace(nats=2.0)
    assert QUALITY._held_out_nats(judged) == {"prior": 1.0, "marginal": 2.0, "uniform": 3.0}


def test_guidance_is_scored_at_every_scale_with_either_null_branch_against_none(judged):
    judged.config.measure.cfg_scales = [0.0, 0.5, 2.0]
    found = guidance(judged)
    assert found["frechet.cfg_0"] == 235
    for branch, more in (("null", 0), ("baseline", 1000)):
        for key, scale in (("cfg_0p5", 0.5), ("cfg_2", 2.0)):
            value = 235 + 10 * scale + more
            assert found[f"frechet.{branch}.{key}"] == value and found[f"ratio.{branch}.{key}"] == value / 235


def test_memorisation_holds_samples_of_each_source_against_held_out_items(judged, monkeypatch):
    judged.items = lambda split, num: ({"test": "held out"}[split], None)
    judged.pictures = lambda split: {"train": "all of training"}[split]
    asked = []
    monkeypatch.setattr(QUALITY, "memorisation_ratio", lambda *of: asked.append(of[1:]) or float(of[0]))
    assert memorisation(judged) == {"oracle": 135, "prior": 235, "baseline": 535}
    assert set(asked) == {("held out", "all of training")}


def test_the_cost_is_the_middle_of_three_timings_after_a_first_of_what_is_sampled(setting, monkeypatch):
    clock = iter([0, 1, 100, 107, 200, 203, 300, 305])  # 1, then 7, 3 and 5
    monkeypatch.setattr(latents, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert latents._seconds(setting, lambda: None) == 5
    given, z = {}, torch.zeros(4, 1)
    monkeypatch.setattr(latents, "_seconds", lambda setting, work: float(work() is not None) + 1)
    monkeypatch.setattr(latents, "draw_samples", lambda denoiser, z, *rest: given.update({denoiser.num_latents: z}))
    setting.drawn = lambda source, *names: {"prior": z}[source]
    latents.cost(setting)
    assert given == {1: z, 0: None}
