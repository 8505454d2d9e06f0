"""The guiders in the pipelines of diffusers: exact, or refused, as the record of experiments/icg says."""

import json

import pytest
import torch

from tests.icg.pipelines.parts import CASES
from tests.icg.pipelines.record import PAGE, RECORD, outcome, with_page
from toolkit.errors import UserError
from toolkit.icg import IndependentConditionGuidance, guided

KEPT = json.loads(RECORD.read_text())


def test_the_record_has_every_pipeline_and_the_page_shows_it():
    assert list(KEPT["pipelines"]) == list(CASES)
    assert with_page(PAGE.read_text(), KEPT) == PAGE.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_is_guided_exactly_or_refused(name):
    """Off: equal to the bit. On: twice the calls, equal to guidance written once more, and nothing is left behind."""
    assert outcome(name) == KEPT["pipelines"][name]


def test_what_is_not_exact_is_refused_with_a_line():
    said = [line for row in KEPT["pipelines"].values() for line in row.values()]
    assert not [line for line in said if line.startswith("not exact")]


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "WanPipeline", "PixArtSigmaPipeline"])
def test_three_of_them_every_time(name):
    assert outcome(name) == KEPT["pipelines"][name]


@pytest.mark.parametrize("name", ["StableDiffusionControlNetPipeline", "StableDiffusionXLControlNetPipeline"])
@pytest.mark.parametrize("batched", [False, True])
def test_a_random_control_picture_in_the_second_branch(name, batched):
    """Beside a pipeline whose ControlNet answers the second branch with the residuals of that picture."""
    case = CASES[name]()

    def call():
        return case.pipe(**case.call, generator=torch.Generator().manual_seed(3), num_inference_steps=1).images

    guider = IndependentConditionGuidance(3.0, control_std=0.5)
    guider.set_condition_sampler(lambda real, draws: dict(real))
    pictures, predictions = [], []
    seen = case.pipe.controlnet.register_forward_pre_hook(
        lambda module, args, kwargs: pictures.append(kwargs["controlnet_cond"]), with_kwargs=True
    )
    with guided(case.pipe, guider, batched=batched):
        ours = call()
    seen.remove()
    real, drawn = pictures
    assert not torch.equal(real, drawn) and float(drawn.std()) == pytest.approx(0.5, rel=0.1)
    for picture in (real, drawn):
        keep = case.network.register_forward_hook(lambda module, args, output: predictions.append(output[0]))
        swap = case.pipe.controlnet.register_forward_pre_hook(
            lambda module, args, kwargs, one=picture: (args, kwargs | {"controlnet_cond": one}), with_kwargs=True
        )
        call()
        keep.remove()
        swap.remove()
    own, weak = predictions
    answer = case.network.register_forward_hook(lambda module, args, output: (weak + 3.0 * (own - weak),))
    theirs = call()
    answer.remove()
    assert not torch.equal(own, weak)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_control_picture_that_is_not_there_is_refused():
    case = CASES["StableDiffusionPipeline"]()
    refused = pytest.raises(UserError, match="control_std: StableDiffusionPipeline has no ControlNet")
    with refused, guided(case.pipe, IndependentConditionGuidance(3.0, control_std=1.0)):
        pass
