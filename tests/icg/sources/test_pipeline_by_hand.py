"""What a pipeline is given for sample i and what is made of its pictures, on a pipeline of one layer."""

from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from toolkit.icg.config import SampleICG
from toolkit.icg.guiders.in_pipelines import _GuidedCall
from toolkit.icg.methods import PAG, NoGuidance
from toolkit.icg.sources.base import Request
from toolkit.icg.sources.pipeline import PipelineSource
from toolkit.icg.sources.pipeline_files import PEERS, read_call

REQUEST = Request(seed=0, repeat=0, start=4, stop=6)


class Network(nn.Module):
    """Answers with what it is given, in a tuple as networks of diffusers do."""

    def forward(self, x):
        return (x,)


class Pipe:
    """Calls its network three times with all samples and gives pictures of 0, a quarter and 1."""

    components, config = {}, {}

    def __init__(self, network):
        self.network, self.given = network, {}

    def set_progress_bar_config(self, **_):
        """None is shown."""

    def __call__(self, **given):
        self.given = given
        for _ in range(3):
            self.network(torch.zeros(len(given["generator"]), 1))
        row = np.array([0, 0.25, 1.0]).reshape(1, 1, 3, 1).repeat(2, 0).repeat(2, 1).repeat(3, 3)
        return SimpleNamespace(images=row)


@pytest.fixture
def source():
    made = object.__new__(PipelineSource)
    network = Network()
    made.name, made.config, made.kind = "a pipeline", SampleICG(model="here"), "StableDiffusionPipeline"
    made.pipe, made.networks, made.off, made.call = Pipe(network), [network], {"guidance_scale": 1.0}, {"height": 2}
    made.banks, made.condition, made.nulls = {}, "text", {}
    made.prompts, made.labels = ["a", "b", "c"], None
    return made


def test_pictures_become_minus_one_to_one_and_calls_are_of_one_sample(source):
    images, calls = source.draw(NoGuidance(), 1.0, REQUEST)
    assert images.shape == (2, 3, 2, 3) and images[1, 0, 0].tolist() == [-1, -0.5, 1]
    assert calls == 3
    assert source.shape == (3, 2, 3)


def test_each_sample_has_the_prompt_or_the_class_of_its_number(source):
    source.draw(NoGuidance(), 1.0, REQUEST, num_steps=7)
    given = source.pipe.given
    assert given["prompt"] == ["b", "c"] and given["num_inference_steps"] == 7 and given["height"] == 2
    assert given["guidance_scale"] == 1.0 and given["output_type"] == "np" and len(given["generator"]) == 2
    noise = [torch.randn(2, generator=one) for one in given["generator"]]
    assert torch.equal(noise[1], torch.randn(2, generator=REQUEST.generators("noise")[1]))
    source.labels, source.prompts = [7, 8, 9], None
    assert source._arguments(REQUEST, 3)["class_labels"] == [8, 9]


def test_a_peer_of_diffusers_counts_its_scale_from_nought(source, monkeypatch):
    """w = 1 is no guidance here; there it is a scale of 0."""
    made = []

    def build(**parts):
        made.append(Pipe(source.networks[0]))
        return made[0]

    monkeypatch.setattr(diffusers, PEERS["pag"][source.kind], build, raising=False)
    source.draw(PAG(), 2.5, REQUEST)
    assert made[0].given["pag_scale"] == 1.5


def test_masks_are_grey_and_pictures_have_colours(tmp_path):
    path = str(tmp_path / "a.png")
    Image.new("RGB", (4, 6), (255, 0, 0)).save(path)
    found = read_call({"image": path, "mask_image": path, "strength": 0.5, "image_scale": 2}, 8)
    assert (found["image"].mode, found["mask_image"].mode) == ("RGB", "L")
    assert found["image"].size == found["mask_image"].size == (8, 8)
    assert found["strength"] == 0.5 and found["image_scale"] == 2
    assert read_call({"image": path}, None)["image"].size == (4, 6)


@pytest.mark.parametrize(
    ("kind", "channels", "guided"), [("learned_range", 6, 3), ("fixed_small", 3, None), (None, 6, 3), (None, 4, None)]
)
def test_of_learned_variances_the_first_half_is_the_prediction(kind, channels, guided):
    """Told by the scheduler, or by twice as many channels as the sample has."""
    call = object.__new__(_GuidedCall)
    config = {} if kind is None else {"variance_type": kind}
    call.loop = SimpleNamespace(scheduler=SimpleNamespace(config=config))
    call.sample = torch.zeros(1, 3, 2, 2)
    assert call._guided_channels(torch.zeros(1, channels, 2, 2)) == guided
    assert call._guided_channels(torch.zeros(1, 5, channels)) is None


@pytest.mark.parametrize("takes_level", [True, False])
def test_the_noise_level_of_an_upscalers_picture_is_no_class(takes_level):
    call = object.__new__(_GuidedCall)
    call.guider, call.null, call.num_samples, call.takes_level = None, {}, 2, takes_level
    call.arguments = {"sample": torch.zeros(2, 1), "timestep": torch.tensor(5), "class_labels": torch.tensor([20, 20])}
    assert ("class_labels" in call._inputs()) is not takes_level
    call.arguments["class_labels"] = torch.zeros(2, 4)
    assert "class_labels" in call._inputs()
