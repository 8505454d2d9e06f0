"""What a model of ours is sampled from: the noise it starts with, the z and the labels of sample i, what is dropped."""

from types import SimpleNamespace

import pytest
import torch

from tests.icg.sources.test_sources import CODES, CPU, K, M, config_for, make_model, open_model, request
from toolkit.icg.labels_and_prompts import draw_labels
from toolkit.icg.methods import CFG, ICG, NoGuidance
from toolkit.icg.sources import denoiser as denoiser_module
from toolkit.icg.sources.base import Request
from toolkit.icg.sources.denoiser import DenoiserSource
from toolkit.runs.seeds import derive
from toolkit.zoo.disco.prior import MarginalPrior


def test_one_step_is_the_denoiser_at_the_largest_noise_of_that_much_noise(tmp_path):
    """Heun's last step to noise 0 is Euler's, x - sigma (x - D) / sigma = D: with one step there is no other."""
    config = config_for(make_model(tmp_path, num_latents=0), 4)
    config.sampling.sigma_max = 5.0
    source = DenoiserSource(config.model, config, CPU)
    made, calls = source.draw(NoGuidance(), 1.0, request(), num_steps=1)
    noise = torch.stack([torch.randn(1, 4, 4, generator=one) for one in request().generators("noise")])
    wanted = source.denoiser(5 * noise, torch.full((3,), 5.0), class_labels=torch.tensor([0, 1, 2]))
    torch.testing.assert_close(made, wanted.clamp(-1, 1).float(), atol=1e-5, rtol=0)
    assert calls == 1


def test_the_interval_of_steps_is_one_of_evaluations(tmp_path, monkeypatch):
    """Heun's 18 levels are 35 evaluations, of which the guider counts its share of steps."""
    source, given = open_model(make_model(tmp_path)), []
    monkeypatch.setattr(source, "_guided", lambda *call: given.append(call[3]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        source.draw(NoGuidance(), 1.0, request(), num_steps=18)
    assert given == [35]


def test_a_bank_is_drawn_for_random_classes_from_a_stream_of_the_seed_and_only_what_was_dropped_is_null(tmp_path):
    source, asked = open_model(make_model(tmp_path), seed=5, batched=True), []

    def sample(rows, class_labels, generator, **more):
        asked.append((rows, generator.initial_seed(), more, class_labels))
        return torch.zeros(rows, M, dtype=torch.int64)

    source.prior.sample = sample
    source.prepare(ICG(bank_rows=40))
    ((rows, seed, more, classes),) = asked
    assert (rows, seed, more) == (40, derive(5, "bank"), {}) and set(classes.tolist()) == set(range(K))
    source.prior.sample = lambda num, **_: torch.ones(num, M, dtype=torch.int64)
    source.training = {"class_labels_dropped": True, "latents_dropped": False}
    made = source._guided(CFG(), 2.0, request(), 5)
    assert torch.equal(made.null["latents"], made.conditions["latents"]) and not made.null["class_labels"].any()
    assert made.batched and made.num_evaluations == 5 and source._guided(NoGuidance(), 1.0, request(), 5).null is None


def test_a_decoder_makes_images_of_its_own_size(monkeypatch):
    config = {"latent_channels": 4, "block_out_channels": (8, 8, 8), "out_channels": 3}
    vae = SimpleNamespace(config=config, to=lambda device: vae, eval=lambda: vae)
    vae.decode = lambda z: SimpleNamespace(sample=z.mean(1, keepdim=True).repeat(1, 3, 4, 4))
    monkeypatch.setattr(denoiser_module, "_load_autoencoder", lambda name: vae)
    network = SimpleNamespace(shape=(4, 5, 6), to_raw_latents=lambda z: 2 * z)
    decoder = denoiser_module.LatentDecoder("a vae", network, CPU)
    z = torch.randn(3, 4, 5, 6)
    assert decoder.shape == (3, 20, 24)  # two of three stages double the side
    torch.testing.assert_close(decoder(z), (2 * z).mean(1, keepdim=True).repeat(1, 3, 4, 4))


@pytest.mark.parametrize("start", [0, 254, 256, 600])
def test_z_is_drawn_for_the_class_of_its_own_sample(tmp_path, start):
    """Class c has code c in every slot; sample i has class i mod 5. 256 is no multiple of 5."""
    folder = make_model(tmp_path)
    classes = torch.arange(K)
    prior = MarginalPrior(M, CODES, K).fit((classes % CODES)[:, None].expand(-1, M), classes, pseudo_count=1e-6)
    prior.save_pretrained(tmp_path / "model" / "prior")
    labels, latents = open_model(folder)._conditions(Request(0, 0, start, start + 4))
    wanted = [number % K for number in range(start, start + 4)]
    assert labels.tolist() == wanted
    assert latents.tolist() == [[one % CODES] * M for one in wanted]


def test_cfg_drops_what_training_dropped_and_everything_where_nothing_is_known(tmp_path):
    source = open_model(make_model(tmp_path))
    both = ["class_labels", "latents"]
    for training, wanted in [
        ({"class_labels_dropped": True, "latents_dropped": False}, ["class_labels"]),
        ({"class_labels_dropped": False, "latents_dropped": True}, ["latents"]),
        ({"class_labels_dropped": False, "latents_dropped": False}, both),
        ({}, both),
    ]:
        source.training = training
        assert source.null_fields(CFG()) == wanted


def test_labels_of_a_seeded_draw_are_of_all_classes():
    assert set(draw_labels(0, 200, 4)) == {0, 1, 2, 3} and draw_labels(0, 200, 4) != draw_labels(1, 200, 4)
