"""The parts of a guider, each against its formula: annealing, momentum, noise on time, streams, clocks, runs' ends."""

import math
from types import SimpleNamespace

import pytest
import torch

from toolkit.icg import CombinedGuidance
from toolkit.icg import IndependentConditionGuidance as ICG
from toolkit.icg import TimeStepGuidance as TSG
from toolkit.icg.guiders import time_step_guidance
from toolkit.icg.guiders.base import Branch
from toolkit.icg.guiders.cads import Annealing
from toolkit.icg.guiders.clock import SchedulerClock
from toolkit.icg.guiders.conditions import IndependentCondition
from toolkit.icg.guiders.projection import Projection
from toolkit.icg.guiders.streams import Draws
from toolkit.icg.guiders.time_embeddings import TimeEmbeddings, time_noise

RNG = torch.Generator().manual_seed(0)
CPU = torch.device("cpu")


@pytest.mark.parametrize(("t", "gamma"), [(0.2, 1.0), (0.3, 1.0), (0.4, 0.75), (0.6, 0.25), (0.7, 0.0), (0.9, 0.0)])
def test_conditions_are_clean_up_to_tau1_and_noise_from_tau2_on(t, gamma):
    assert Annealing(0.2, 0.3, 0.7).gamma(t) == pytest.approx(gamma)


def test_an_annealed_condition_has_the_mean_and_deviation_of_the_clean_one_in_the_share_asked_for():
    """Sadat et al. 2024, eq. 4: sqrt(gamma) c + s sqrt(1 - gamma) n, then mixed with itself rescaled, row by row."""
    clean, noise = torch.randn(2, 5, 3, generator=RNG), torch.randn(2, 5, 3, generator=RNG)
    clean[1] = 4 * clean[1] + 7
    made = Annealing(0.3, 0.2, 0.6, mix=0.8).anneal(clean, noise, 0.5)
    for row in range(2):
        c = clean[row]
        noisy = math.sqrt(0.25) * c + 0.3 * math.sqrt(0.75) * noise[row]
        restored = (noisy - noisy.mean()) / noisy.std() * c.std() + c.mean()
        torch.testing.assert_close(made[row], 0.8 * restored + 0.2 * noisy)


def test_every_direction_has_a_momentum_of_its_own_that_a_new_run_forgets():
    one, other, first, second = torch.randn(4, 2, 3, generator=RNG, dtype=torch.float64)
    projection = Projection(eta=1.0, momentum=-0.5)
    torch.testing.assert_close(projection(first, one, "icg"), first)
    torch.testing.assert_close(projection(second, one, "tsg"), second)
    torch.testing.assert_close(projection(other, one, "icg"), other - 0.5 * first)
    torch.testing.assert_close(projection(second, one, "icg"), second - 0.5 * (other - 0.5 * first))
    guider = ICG(2.0, apg_momentum=-0.5)
    guider.projection(first, one, "icg")
    guider.restart()
    torch.testing.assert_close(guider.projection(second, one, "icg"), second)


def test_purposes_and_seeds_have_streams_of_their_own_that_begin_anew():
    def drawn(seed, purpose):
        return Draws(seed, purpose).normal((2, 3), CPU)

    made = [drawn(0, "icg"), drawn(0, "tsg"), drawn(1, "icg"), drawn([0, 1], "icg")]
    assert len({tuple(one.flatten().tolist()) for one in made}) == 4
    guider = ICG(2.0, seed=3)
    first = [one.normal((2, 3), CPU) for one in (guider.draws, guider.annealing_draws, guider.control_draws)]
    assert len({tuple(one.flatten().tolist()) for one in first}) == 3
    guider.restart()
    for one, before in zip((guider.draws, guider.annealing_draws, guider.control_draws), first, strict=True):
        assert torch.equal(one.normal((2, 3), CPU), before)


@pytest.mark.parametrize(("alpha", "size"), [(0.0, 2.0), (0.5, 1.0), (1.0, 0.5), (2.0, 0.125)])
def test_the_noise_on_time_falls_with_time_to_the_power_alpha(monkeypatch, alpha, size):
    sizes = []
    monkeypatch.setattr(time_step_guidance, "time_noise", lambda draws, size, *_: sizes.append(size))
    guider = TSG(3.0, noise_scale=2.0, alpha=alpha)
    guider.set_state(0, 10, 250.0)
    (branch,) = guider._branches({})
    assert sizes == [size] and (branch.scale, branch.name) == (3.0, "pred_cond_tsg")


def test_rows_of_one_sample_share_its_noise():
    """Two samples of three rows each, one after the other."""
    change = time_noise(Draws(0, "tsg"), 0.5, False, TimeEmbeddings()).change
    added = change(torch.zeros(6, 4), 2)
    noise = 0.5 * Draws(0, "tsg").normal((2, 4), CPU)
    torch.testing.assert_close(added, noise.repeat_interleave(3, 0))


def test_a_perturbed_branch_keeps_the_annealed_condition_and_one_of_another_condition_does_not():
    guider, owner = TSG(2.0), object()
    guider.cond_changes = ("annealed",)
    perturbed = Branch("pred_cond_tsg", owner, "tsg", 2.0, changes=("noise",))
    drawn = Branch("pred_uncond", owner, "icg", 2.0, fields={"class_labels": torch.zeros(1)})
    null = Branch("pred_uncond", owner, "cfg", 2.0, slot=1)
    guider.plan = [None, perturbed, drawn, null]
    assert [guider._changes(index) for index in range(4)] == [("annealed",), ("noise", "annealed"), (), ()]


def test_no_guidance_is_scale_one_or_nought_in_the_original_formulation():
    for original, off in ((False, 1.0), (True, 0.0)):
        for scale in (0.0, 1.0, 2.0):
            guider = ICG(scale, use_original_formulation=original, num_classes=3)
            guider.set_state(0, 10, 500.0)
            assert guider.num_conditions == (1 if scale == off else 2), (original, scale)
    assert ICG(2.0).time_fraction() == 1.0  # before a run
    late = ICG(2.0, start=0.5, num_draws=3)
    for step, calls in ((4, 1), (5, 4)):
        late.set_state(step, 10, 500.0)
        assert late.num_conditions == calls


def test_the_random_control_picture_has_the_deviation_asked_for():
    one, three = (ICG(2.0, control_std=std, seed=1).random_control(torch.zeros(2, 3, 4, 4)) for std in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)


def test_which_fields_are_drawn_and_how():
    text, numbers = torch.randn(2, 3, 4, generator=RNG), torch.randn(2, 3, generator=RNG)
    real = {"class_labels": torch.tensor([0, 1]), "encoder_hidden_states": text, "time_ids": numbers}
    assert IndependentCondition().chosen(real) == ["class_labels", "encoder_hidden_states"]
    assert IndependentCondition(fields=["prompt_embeds"]).chosen(real) == ["encoder_hidden_states"]
    assert IndependentCondition(fields=["time_ids"]).chosen(real) == ["time_ids"]
    plain, banked = IndependentCondition(), IndependentCondition()
    banked.set_bank({"prompt_embeds": torch.arange(36.0).view(3, 3, 4)})
    one_hot, dropped = torch.eye(4)[[0, 2]], torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 0]])
    values = (real["class_labels"], one_hot, dropped, 2 * one_hot)
    assert [plain._mode_of("class_labels", value) for value in values] == ["class", "class", "gaussian", "gaussian"]
    assert [one._mode_of("encoder_hidden_states", text) for one in (plain, banked)] == ["gaussian", "bank"]
    drawn = [banked.draw({"encoder_hidden_states": text}, 1, Draws(seed, "icg"))[0] for seed in range(30)]
    found = {float(value) for one in drawn for value in one["encoder_hidden_states"][:, 0, 0]}
    assert found == {0.0, 12.0, 24.0}  # every row of the bank, the last as well
    other = IndependentCondition("class", exclude_own=True)
    codes = [other.draw({"class_labels": one_hot}, 1, Draws(seed, "icg"))[0]["class_labels"] for seed in range(30)]
    assert {int(code.argmax(-1)[0]) for code in codes} == {1, 2, 3}  # of four, but its own
    network = SimpleNamespace(num_classes=9)
    for given, size in ((None, 9), (4, 4)):
        condition = IndependentCondition(num_classes=given)
        condition.bind(network)
        assert condition.sizes == {"class_labels": size}


@pytest.mark.parametrize(("std", "factor"), [("tensor", None), ("sample", None), ("0.5", 0.5), (0.5, 0.5)])
def test_gaussians_have_the_deviation_of_the_real_values_or_one_that_is_given(std, factor):
    real = torch.stack([torch.linspace(-1, 1, 50), 5 * torch.linspace(-1, 1, 50)])
    condition = IndependentCondition("gaussian", std=float(std) if factor else std)
    made = condition._gaussian(real, Draws(0, "icg"))
    noise = Draws(0, "icg").normal((2, 50), CPU)
    size = {"tensor": real.std(), "sample": real.std(1, keepdim=True)}.get(std, factor)
    torch.testing.assert_close(made, noise * size)


def scheduler(name, **config):
    return type(name, (), {"config": config})()


def test_clocks_of_angles_and_of_edm_read_the_noise_level():
    """Time as a share of a quarter turn, the noise level its tangent; SCM in units of the data; EDM's c_noise."""
    quarter = SchedulerClock(scheduler("IPNDMScheduler"))
    assert quarter.noise_level(0.5) == pytest.approx(1.0) and quarter.fraction(0.5) == 0.5
    scm = SchedulerClock(scheduler("SCMScheduler", sigma_data=0.25))
    assert scm.noise_level(math.pi / 4) == pytest.approx(0.25) and scm.fraction(math.pi / 4) == pytest.approx(0.5)
    for name, unit in (("EDMEulerScheduler", 1.0), ("CMStochasticIterativeScheduler", 1000.0)):
        clock = SchedulerClock(scheduler(name, sigma_min=0.1, sigma_max=10.0))
        assert clock.noise_level(0.25 * math.log(3.0) * unit) == pytest.approx(3.0)
        assert clock.fraction(0.25 * math.log(10.0) * unit) == pytest.approx(1)
        assert clock.fraction(0.25 * math.log(0.1) * unit) == pytest.approx(0, abs=1e-9)


def test_what_a_combination_is_told_all_its_parts_are_told():
    icg, tsg = ICG(2.0, num_classes=3, resample="run"), TSG(2.0)
    both, clock, network = (
        CombinedGuidance([icg, tsg]),
        SimpleNamespace(fraction=lambda time: 0.5),
        torch.nn.Linear(1, 1),
    )
    both.set_clock(clock)
    assert icg.clock is clock and tsg.clock is clock
    both.set_state(3, 10, 500.0)
    assert icg._step == tsg._step == 3 and both._resists_caching()  # the noise on time is another at every step
    tsg.time_embeddings.found[network] = icg.plan = object()
    both.end_run()
    assert icg._step is tsg._step is both._step is None and not tsg.time_embeddings.found and icg.plan == []
    both.set_clock(None)
    assert icg.clock is icg.own_clock and tsg.clock is tsg.own_clock
    generator = torch.Generator()
    both.set_generator(generator)
    assert icg.draws.generators == tsg.draws.generators == [generator]
