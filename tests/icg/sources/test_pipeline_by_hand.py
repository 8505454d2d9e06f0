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
from toolkit.icg.guiders.pipeline_loop import own_guidance_off
from toolkit.icg.guiders.random_text import RandomTokens
from toolkit.icg.methods import ICG, PAG, NoGuidance
from toolkit.icg.sources import pipeline
from toolkit.icg.sources.base import Request
from toolkit.icg.sources.pipeline import PipelineSource
from toolkit.icg.sources.pipeline_files import PEERS, read_call
from toolkit.runs.seeds import derive

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


def test_the_layers_of_the_network_are_given_back(source, monkeypatch):
    network, given = source.networks[0], []
    network.attn_processors, network.set_attn_processor = {"layer": "own"}, given.append
    monkeypatch.setattr(diffusers, PEERS["pag"][source.kind], lambda **_: Pipe(network), raising=False)
    source.draw(PAG(), 2.5, REQUEST)
    assert given == [{"layer": "own"}]


def test_banks_are_of_the_seed_and_null_of_the_last_class(source, monkeypatch):
    asked = []
    monkeypatch.setattr(
        pipeline.text, "random_token_bank", lambda pipe, rows, seed, **call: asked.append((rows, seed, call))
    )
    source.config.seed = 7
    for rows in (5, 5, None):
        source.prepare(ICG(bank_rows=rows))
    wanted = derive(7, "bank")
    assert asked == [(5, wanted, {"height": 2}), (pipeline.PipelineSource.bank_rows, wanted, {"height": 2})]
    source.condition, source.num_classes = "class", 10
    assert source._null({}) == {"class_labels": 10}  # a row of the table after the classes


@pytest.mark.parametrize(("frames", "shown"), [(3, [0, 1, 2]), (8, [*range(8)]), (15, [0, 2, 4, 6, 8, 10, 12, 14])])
def test_of_a_film_eight_frames_are_shown_side_by_side(source, frames, shown):
    film = np.arange(frames).reshape(1, frames, 1, 1, 1).repeat(2, 2).repeat(3, 3).repeat(3, 4)
    made = source._pictures(SimpleNamespace(frames=film))
    assert made.shape == (1, 2, 3 * len(shown), 3) and made[0, 0, ::3, 0].tolist() == shown


@pytest.mark.parametrize(("size_px", "side"), [(None, 32), (24, 24)])
def test_a_pipelines_images_are_its_latents_enlarged_or_as_large_as_asked(size_px, side):
    network = SimpleNamespace(config={"sample_size": 8, "out_channels": 4})
    vae = SimpleNamespace(config={"block_out_channels": (8, 8, 8), "out_channels": 3})
    assert pipeline.image_shape(SimpleNamespace(vae=vae), network, size_px) == (3, side, side)
    assert pipeline.image_shape(SimpleNamespace(), network, None) == (4, 8, 8)


def test_each_tokenizer_has_random_tokens_of_its_own_and_a_row_the_same_in_any_call():
    class Tokens:
        model_max_length = 6

        def __len__(self):
            return 50

    def ids(name, start, num):
        return RandomTokens(Tokens(), 3, name, start, 9)([""] * num)["input_ids"]

    whole = ids("tokenizer", 0, 9)
    assert torch.equal(ids("tokenizer", 4, 2), whole[4:6]) and not torch.equal(ids("tokenizer_2", 0, 9), whole)
    assert len(whole.unique(dim=0)) == 9 and whole.shape == (9, 6)


class TurnedOffAtNought:
    do_classifier_free_guidance = property(lambda self: self.guidance_scale > 0)

    def __call__(self, prompt, guidance_scale=3.0):
        """It guides from a scale above nought."""


class TurnedOffAtOne(TurnedOffAtNought):
    do_classifier_free_guidance = property(lambda self: self.guidance_scale > 1)


def test_a_pipelines_own_guidance_is_switched_off_where_it_says_so():
    assert own_guidance_off(TurnedOffAtNought()) == {"guidance_scale": 0.0}
    assert own_guidance_off(TurnedOffAtOne()) == {"guidance_scale": 1.0}


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
    call.sample = torch.zeros(1, channels, 2, 2)  # of as many channels as the prediction
    assert call._guided_channels(torch.zeros(1, channels, 2, 2)) == (3 if kind == "learned_range" else None)


def test_of_rows_that_stand_several_times_one_is_drawn_for():
    call = object.__new__(_GuidedCall)
    call.guider, call.null, call.num_samples, call.takes_level = None, {}, 3, False
    text = torch.tensor([[1.0], [1.0], [2.0], [2.0], [3.0], [3.0]])
    call.arguments = {"sample": torch.zeros(3, 1), "timestep": torch.tensor(5), "encoder_hidden_states": text}
    assert call._inputs()["encoder_hidden_states"].tolist() == [[1], [2], [3]] and call.repeats == {
        "encoder_hidden_states": 2
    }


@pytest.mark.parametrize("takes_level", [True, False])
def test_the_noise_level_of_an_upscalers_picture_is_no_class(takes_level):
    call = object.__new__(_GuidedCall)
    call.guider, call.null, call.num_samples, call.takes_level = None, {}, 2, takes_level
    call.arguments = {"sample": torch.zeros(2, 1), "timestep": torch.tensor(5), "class_labels": torch.tensor([20, 20])}
    assert ("class_labels" in call._inputs()) is not takes_level
    call.arguments["class_labels"] = torch.zeros(2, 4)
    assert "class_labels" in call._inputs()
