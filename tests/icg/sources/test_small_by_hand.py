"""How sample-icg's small models are trained, written out: EDM's loss, dropped labels, AdamW, and the average kept."""

import math
from types import SimpleNamespace

import pytest
import torch

from toolkit import data, zoo
from toolkit.data.config import Data
from toolkit.data.stream import batches
from toolkit.errors import Interrupted
from toolkit.icg.config import Loss, Optim, SampleICG
from toolkit.icg.sources import small
from toolkit.runs.device import make_accelerator
from toolkit.runs.loop import Loop
from toolkit.runs.seeds import seed_all
from toolkit.zoo.config import MLPConfig
from toolkit.zoo.edm.build import build_network

STEPS, SIZE, DROP = 9, 4, 0.5
OPTIM = Optim(num_steps=STEPS, batch_size=SIZE, lr=5e-3, schedule="cosine", ema_half_life_images=1)
CONFIG = SampleICG(
    data=Data(name="ring"),
    network=MLPConfig(width=16, depth=2),
    optim=OPTIM,
    loss=Loss(p_mean=-0.7, p_std=1.4),
    checkpoint_every_steps=1,
)


@pytest.fixture(scope="module")
def ring():
    return data.load(Data(name="ring"))


def made(ring, folder, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(folder))
    model = small.make_small_model(small.small_config(CONFIG, ring, DROP), ring, make_accelerator(CONFIG))
    return zoo.load(str(model), part="denoiser").state_dict()


def weighted_loss(model, y, labels):
    """lambda(sigma) |D(y + sigma n; sigma, c) - y|^2 (EDM's eq. 2 and table 1), c all zeros for a dropped label."""
    sigma = torch.exp(1.4 * torch.randn(SIZE) - 0.7)
    x = y + sigma[:, None] * torch.randn(SIZE, 2)
    one_hot = torch.eye(8)[labels]
    one_hot[torch.rand(SIZE) < DROP] = 0
    s = model.sigma_data
    weight = (sigma**2 + s**2) / (sigma * s) ** 2
    return (weight * ((model(x, sigma, one_hot) - y) ** 2).mean(1)).mean()


def by_hand(ring):
    """The averaged weights after all steps."""
    seed_all(CONFIG.seed, "denoiser", "init")
    model = build_network(CONFIG.network, ring.shape, ring.sigma_data, 8)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=OPTIM.lr, weight_decay=OPTIM.weight_decay)
    stream = batches(ring.train, SIZE, CONFIG.seed)
    for step in range(STEPS):
        seed_all(CONFIG.seed, "denoiser", 0, step)
        loss = weighted_loss(model, *next(stream))
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(one.grad.square().sum()) for one in model.parameters()))
        for one in model.parameters():
            one.grad *= min(1, OPTIM.grad_clip / norm)
        optimizer.param_groups[0]["lr"] = OPTIM.lr * (1 + math.cos(math.pi * step / STEPS)) / 2
        optimizer.step()
        half_life = min(1, 0.05 * SIZE * step)  # in images: the ramp of EDM's training, full from the fifth step on
        left = 0.5 ** (SIZE / half_life) if half_life else 0.0
        for name, value in model.state_dict().items():
            average[name] = left * average[name] + (1 - left) * value
    return average, model.state_dict()


def test_what_is_kept_is_the_average_of_edm_steps_with_half_of_the_labels_dropped(ring, tmp_path, monkeypatch):
    assert isinstance(CONFIG.optim.grad_clip, float)
    found, (average, raw) = made(ring, tmp_path, monkeypatch), by_hand(ring)
    assert found.keys() == average.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, average[name], rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(value, raw[name], rtol=1e-3) for name, value in found.items())


def test_batches_are_mirrored_where_the_data_is_and_begin_where_a_run_goes_on(monkeypatch):
    asked = []
    item = (torch.zeros(1), torch.zeros(1))
    noting = lambda split, size, seed, **more: asked.append((split, size, seed, more)) or iter([item] * 2)  # noqa: E731
    monkeypatch.setattr(small.data, "batches", noting)
    for flip in (False, True):
        made = small.SmallModel(data=Data(name="ring", flip=flip), optim=OPTIM, seed=4)
        read = small._batches(made, SimpleNamespace(train="train", shape=(2,)), torch.device("cpu"))
        read(6), read(7)
    assert asked == [("train", SIZE, 4, {"start_step": 6, "flip": flip}) for flip in (False, True)]


def test_a_kept_model_says_what_it_was_trained_on_and_how_many_labels_it_dropped(tmp_path):
    network = SimpleNamespace(save_pretrained=lambda folder: folder.mkdir())
    small.save_model(tmp_path / "model", network, Data(name="ring", flip=True), 0.35)
    noted = small.read_training(tmp_path / "model")
    assert noted["label_drop"] == 0.35 and (noted["data"]["name"], noted["data"]["flip"]) == ("ring", True)
    assert small.read_training(tmp_path) == {}


def test_an_interrupted_training_goes_on_with_the_batches_that_are_next(ring, tmp_path, monkeypatch):
    log, (average, _) = Loop.log, by_hand(ring)

    def stopped(loop, **values):
        log(loop, **values)
        if loop.step == 2:
            raise Interrupted(143)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Loop, "log", stopped)
        made(ring, tmp_path, patch)
    for name, value in made(ring, tmp_path, monkeypatch).items():
        torch.testing.assert_close(value, average[name], rtol=1e-4, atol=1e-6)
