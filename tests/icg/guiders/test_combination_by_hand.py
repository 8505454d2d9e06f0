"""One and several weak branches combined as the formula says, and the noise on embeddings with its deviation a row."""

import math

import pytest
import torch

from toolkit.errors import UserError
from toolkit.icg import CombinedGuidance, IndependentConditionGuidance, TimeStepGuidance
from toolkit.icg.guiders.base import Branch, check_scale
from toolkit.icg.guiders.streams import Draws
from toolkit.icg.guiders.time_embeddings import TimeEmbeddings, time_noise

RNG = torch.Generator().manual_seed(0)
COND, FIRST, SECOND, THIRD = torch.randn(4, 2, 3, 4, generator=RNG, dtype=torch.float64)


def combined(guider, *branches):
    """The guider's prediction from ``(owner, group, scale, weak)`` of every branch."""
    made = [Branch(f"weak_{i}", owner, group, scale) for i, (owner, group, scale, _) in enumerate(branches)]
    guider.plan = [None, *made]
    return guider.forward(COND, **{f"weak_{i}": weak for i, (*_, weak) in enumerate(branches)}).pred


def test_two_guiders_add_their_steps_and_draws_of_one_are_averaged():
    icg, tsg = IndependentConditionGuidance(guidance_scale=3.0), TimeStepGuidance(tsg_scale=2.5)
    both = CombinedGuidance([icg, tsg])
    made = combined(both, (icg, "icg", 3.0, FIRST), (icg, "icg", 3.0, SECOND), (tsg, "tsg", 2.5, THIRD))
    torch.testing.assert_close(made, COND + 2 * (COND - (FIRST + SECOND) / 2) + 1.5 * (COND - THIRD))


@pytest.mark.parametrize(("original", "factor"), [(False, 2.0), (True, 3.0)])
def test_one_guider_with_and_without_a_projection(original, factor):
    """The difference of norm 0.5 at most; what of it is parallel to the prediction counts 0.3."""
    plain = IndependentConditionGuidance(guidance_scale=3.0, use_original_formulation=original)
    made = combined(plain, (plain, "icg", 3.0, FIRST))
    torch.testing.assert_close(made, COND + factor * (COND - FIRST))
    keys = {"apg_eta": 0.3, "apg_norm": 0.5, "use_original_formulation": original}
    apg = IndependentConditionGuidance(guidance_scale=3.0, **keys)
    made = combined(apg, (apg, "icg", 3.0, FIRST))
    for row in range(2):
        c, d = COND[row].flatten(), (COND - FIRST)[row].flatten()
        d = d * min(1.0, 0.5 / d.norm().item())
        along = (d @ c) / (c @ c) * c
        torch.testing.assert_close(made[row].flatten(), c + factor * (d - 0.7 * along))
    assert apg.forward(COND, weak_0=FIRST).pred_uncond is FIRST


def test_the_noise_on_an_embedding_is_in_deviations_of_its_own_row():
    """Rows of deviation 1 and 10: the same draws, one ten times the other."""
    row = torch.linspace(-1, 1, 64)
    values = torch.stack([row, 10 * row]) / row.std()
    change = time_noise(Draws(0, "tsg"), 0.5, True, TimeEmbeddings()).change
    added = change(values.clone(), 2) - values
    noise = Draws(0, "tsg").normal((2, 64), torch.device("cpu"))
    torch.testing.assert_close(added, 0.5 * noise * torch.tensor([[1.0], [10.0]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -0.5, True, "2", None])
def test_a_scale_is_a_finite_number_of_at_least_nought(value):
    check_scale("guidance_scale", 0)
    with pytest.raises(UserError, match="guidance_scale"):
        check_scale("guidance_scale", value)


@pytest.mark.parametrize(("step", "calls"), [(0, 2), (4, 2), (5, 3), (9, 3)])
def test_each_part_keeps_to_its_own_share_of_the_steps(step, calls):
    """ICG from the sixth of ten steps on, TSG at all of them."""
    both = CombinedGuidance([IndependentConditionGuidance(start=0.5), TimeStepGuidance()])
    both.set_state(step, 10, 500.0)
    assert both.num_conditions == calls


@pytest.mark.parametrize("annealed", [0, 1])
def test_labels_are_annealed_whichever_part_asks_for_it(annealed):
    """CADS of one part changes the conditional branch's class embedding; t = 0.8 is on its slope."""
    keys = [{}, {}]
    keys[annealed] = {"cads_scale": 0.2}
    both = CombinedGuidance([IndependentConditionGuidance(**keys[0]), TimeStepGuidance(**keys[1])])
    both.set_state(0, 10, 800.0)
    both._anneal({"class_labels": torch.tensor([0, 1])})
    assert len(both.cond_changes) == 1
    embedding = torch.randn(2, 8, generator=RNG)
    assert not torch.equal(both.cond_changes[0].change(embedding, 2), embedding)


def test_both_parts_are_called_unless_it_is_switched_off():
    parts = [IndependentConditionGuidance(num_classes=4), TimeStepGuidance()]
    labels = {"class_labels": torch.tensor([0, 1])}
    for enabled, calls in ((True, 3), (False, 1)):
        both = CombinedGuidance(parts, enabled=enabled)
        both.set_state(0, 10, 500.0)
        assert both.num_conditions == calls and len(both._branches(dict(labels))) == calls - 1
