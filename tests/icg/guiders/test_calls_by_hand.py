"""What each call of a guided pipeline's network is given: rows that stand several times, and the control picture."""

from types import SimpleNamespace

import pytest
import torch

from toolkit.icg.guiders.in_pipelines import _GuidedCall


@pytest.fixture
def call():
    """Of two films of three frames, whose text stands once for every frame, as some video networks take it."""
    made = object.__new__(_GuidedCall)
    made.arguments = {"sample": torch.zeros(2, 1), "text": torch.tensor([[1.0]] * 3 + [[2.0]] * 3)}
    made.repeats, made.control = {"text": 3}, None
    return made


def test_a_drawn_row_stands_for_every_frame_of_its_own_film(call):
    given = call._call_arguments(SimpleNamespace(text=torch.tensor([[5.0], [6.0]])))
    assert given["text"].flatten().tolist() == [5, 5, 5, 6, 6, 6] and given["sample"] is call.arguments["sample"]


@pytest.mark.parametrize(
    ("branch", "drawn"),
    [("pred_cond", False), ("pred_cond_tsg", False), ("pred_uncond", True), ("pred_uncond_1", True)],
)
def test_the_random_picture_is_of_the_random_conditions_branch(call, branch, drawn):
    call.control = SimpleNamespace(residuals=lambda arguments: {"mid_block_additional_residual": "of a random picture"})
    call.arguments["mid_block_additional_residual"] = "of the real picture"
    given = call._call_arguments(SimpleNamespace(__guidance_identifier__=branch))
    assert given["mid_block_additional_residual"] == ("of a random picture" if drawn else "of the real picture")
