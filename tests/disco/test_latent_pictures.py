"""What z means, as pictures: what each row and column of them has in common."""

import dataclasses

import pytest
import torch

from tests.disco import tiny
from toolkit.disco import latent_pictures
from toolkit.disco.artefact import Parts
from toolkit.disco.build import build_denoiser, build_prior
from toolkit.disco.config import Sampling
from toolkit.errors import UserError
from toolkit.runs.record import Run
from toolkit.runs.seeds import derive


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Draws the pictures of a model with so many classes; {name: (rows, columns, C, H, W)} and their labels.

    ``matter``: deviation of the weights by which z enters.
    """

    def draw(num_classes, matter=0.3):
        torch.manual_seed(0)
        config, data = tiny.config(tiny.mlp()), tiny.images(num_classes=num_classes)
        parts = Parts(build_denoiser(config, data).eval(), None, build_prior(config, data).eval())
        with torch.no_grad():  # let z and the class matter
            parts.denoiser.embed_latents.weight.normal_(std=matter)
        found = {}

        def keep(path, images, *, columns, **labels):
            found[path.stem] = images.unflatten(0, (-1, columns)), labels

        monkeypatch.setattr(latent_pictures.figures, "image_grid", keep)
        latent_pictures.check_shows(parts)
        latent_pictures.draw_latent_pictures(Run(tmp_path, config), parts, Sampling(num_steps=3, sigma_max=0.5))
        return found

    return draw


def differ(images):
    """Whether any two of images (n, ...) differ."""
    return len(images.unique(dim=0)) > 1


def test_rows_share_z_and_columns_share_noise_or_class(pictures):
    found = pictures(4)
    assert set(found) == {"shared_z", "z_and_class", "one_latent"}
    shared, _ = found["shared_z"]
    assert shared.shape == (8, 10, 1, 8, 8) and differ(shared[0]) and differ(shared[:, 0])
    classes, labels = found["z_and_class"]
    assert classes.shape == (8, 4, 1, 8, 8) and differ(classes[0]) and len(labels["row_labels"]) == 8
    same_z = dict(zip(labels["row_labels"], classes, strict=True))
    for name, row in zip(labels["row_labels"], classes, strict=True):  # the noise is one, so equal z are equal rows
        torch.testing.assert_close(row, same_z[name])


def test_columns_of_the_first_picture_start_from_one_noise_each(pictures):
    """Where z does nothing, only the noise is left to tell samples apart."""
    shared, _ = pictures(0, matter=0.0)["shared_z"]
    torch.testing.assert_close(shared, shared[:1].expand_as(shared))
    assert len(shared[0].unique(dim=0)) == 10


def test_what_the_pictures_are_drawn_from(tmp_path, monkeypatch):
    """Eight z of streams of their own, ten noises; the last picture changes the last z under its own class."""
    config, data, calls = tiny.config(tiny.mlp()), tiny.images(num_classes=3), []
    z = torch.arange(16).view(8, 2) % 3

    def codes(parts, num, sampling, noise, source, class_labels):
        calls.append((noise.seed, noise.index.tolist(), source, class_labels.tolist()))
        return z

    def samples(denoiser, latents, num, sampling, noise, labels):
        calls.append((noise.seed, noise.index.tolist(), latents, labels.tolist()))
        return torch.zeros(num, 1, 8, 8), 1

    monkeypatch.setattr(latent_pictures, "draw_latents", codes)
    monkeypatch.setattr(latent_pictures, "draw_samples", samples)
    monkeypatch.setattr(latent_pictures.figures, "image_grid", lambda *_, **__: None)
    parts = Parts(build_denoiser(config, data), None, build_prior(config, data))
    config.seed = 5
    latent_pictures.draw_latent_pictures(Run(tmp_path, config), parts, Sampling())
    of_z, shared, classes, changed = calls
    classes_of_z = [number % 3 for number in range(8)]
    assert of_z == (derive(5, "sample", "shown latents"), [*range(8)], "prior", classes_of_z)
    assert {call[0] for call in calls[1:]} == {derive(5, "sample", "shown noise")}
    assert shared[1] == [*range(10)] * 8 and torch.equal(shared[2], z.repeat_interleave(10, 0))
    assert shared[3] == [one for one in classes_of_z for _ in range(10)]
    assert classes[1] == [0] * 24 and torch.equal(classes[2], z.repeat_interleave(3, 0)) and classes[3] == [0, 1, 2] * 8
    last = z[-1].tolist()
    one_changed = [[code, last[1]] for code in range(3)] + [[last[0], code] for code in range(3)]
    assert changed[1:] == ([0] * 6, changed[2], [classes_of_z[-1]] * 6) and changed[2].tolist() == one_changed


def test_a_row_changes_one_latent_alone(pictures):
    images, labels = pictures(4)["one_latent"]
    assert images.shape == (2, 3, 1, 8, 8) and labels["row_labels"] == ["latent 1", "latent 2"]
    first, second = (int(code) for code in labels["caption"].partition("z = ")[2].partition(";")[0].split())
    torch.testing.assert_close(images[0, first], images[1, second])  # both are the z that nothing was changed in
    assert differ(images[0]) and differ(images[1])


def test_without_classes_there_is_a_picture_less_and_without_latents_none(pictures):
    assert set(pictures(0)) == {"shared_z", "one_latent"}
    data = tiny.images()
    without = Parts(build_denoiser(tiny.config(tiny.mlp()), data, with_latents=False))
    with pytest.raises(UserError, match=r"sampling\.show_latents: pictures of discrete latents"):
        latent_pictures.check_shows(without)
    with pytest.raises(UserError, match="none was trained"):
        latent_pictures.check_shows(dataclasses.replace(without, denoiser=build_denoiser(tiny.config(), data)))
