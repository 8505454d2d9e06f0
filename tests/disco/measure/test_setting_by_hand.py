"""What each measure is given: its items with their labels, z of its own source, noise and random streams of its own."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from tests.disco import tiny
from toolkit.data.sets import MemorySplit
from toolkit.disco.measure import setting as module
from toolkit.disco.measure.setting import Setting, ratio
from toolkit.zoo.edm.noise import SampleNoise

TRAIN = torch.arange(10.0)[:, None] + 100  # an item's value says which it is
TRAIN_LABELS = torch.tensor([3, 0, 0, 0, 0, 0, 0, 0, 0, 0])
TEST, TEST_LABELS = torch.arange(3.0)[:, None], torch.tensor([2, 0, 1])


class Net:
    """What the measures ask of a network; a call returns the latents it is given."""

    device, shape, num_classes, codebook_size, latent_kind = torch.device("cpu"), (1,), 4, 5, "discrete"

    def __init__(self, num_latents):
        self.num_latents = num_latents

    def __call__(self, x, sigma, class_labels=None, latents=None):
        return latents


@pytest.fixture
def calls(monkeypatch):
    """What was encoded, which latents and which samples were drawn."""
    found = SimpleNamespace(encoded=[], latents=[], samples=[])

    def encode(parts, y, known, temperature, rng):
        found.encoded.append((y, known, temperature, rng.initial_seed()))
        return y.long()

    def draw_latents(parts, num, sampling, rng, source, labels, prior=None):
        found.latents.append((num, rng.initial_seed(), source, labels, prior))
        return torch.zeros(num, 1, dtype=torch.int64)

    def draw_samples(denoiser, z, num, sampling, noise, labels, num_evaluations, **guidance):
        found.samples.append((z, noise, sampling.cfg_scale, guidance))
        return torch.full((num, 1), float(len(found.samples))), num_evaluations

    for one in (encode, draw_latents, draw_samples):
        monkeypatch.setattr(module, one.__name__, one)
    return found


def setting(num_classes=4, **measure):
    config = tiny.config(tiny.mlp())
    config.measure = dataclasses.replace(config.measure, **({"num_samples": 7} | measure))
    config.latents.extraction_temperature, config.sampling.batch_size, config.seed = 0.3, 4, 5
    train, test = (
        MemorySplit(x, labels.numpy(), num_classes > 0) for x, labels in ((TRAIN, TRAIN_LABELS), (TEST, TEST_LABELS))
    )
    data = dataclasses.replace(tiny.images(), train=train, valid=train, test=test, num_classes=num_classes)
    parts = SimpleNamespace(denoiser=Net(1), baseline=Net(0), encoder=object(), prior=object(), null=None)
    return Setting(parts, data, config, None)


def test_a_smaller_number_of_items_is_part_of_a_larger_one_and_every_purpose_has_a_stream_of_its_own():
    one = setting()
    few, many = (one.chosen(one.dataset.train, num) for num in (4, 9))
    assert few.tolist() == many[:4].tolist() and many.tolist() != sorted(many.tolist())
    seeds = [rng(*names).initial_seed() for rng in (one.rng, one.cpu_rng) for names in (("a",), ("a", 1), ("b",))]
    assert len(set(seeds)) == 3
    other = setting()
    other.config.seed = 6
    assert other.rng("a").initial_seed() != one.rng("a").initial_seed()


def test_few_held_out_items_are_repeated_each_with_its_label_and_of_many_the_first(monkeypatch):
    one = setting()
    x, known = one.held_out
    assert len(x) == 9  # three items, for seven samples
    order = {float(value): int(label) for value, label in zip(TEST, TEST_LABELS, strict=True)}
    assert [order[float(value)] for value in x] == known.tolist()
    assert sorted(x.flatten().tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    monkeypatch.setattr(module, "MOST_LOSS_ITEMS", 2)
    assert len(setting().held_out[0]) == 2  # whatever the number of samples
    assert torch.equal(one.condition(known), known) and setting(num_classes=0).condition(known) is None


def test_labels_are_drawn_as_often_as_training_items_have_them():
    drawn = setting().random_labels(400)
    assert set(drawn.tolist()) == {0, 3} and 0.05 < drawn.eq(3).double().mean() < 0.15
    assert setting(num_classes=0).random_labels(400) is None


def test_items_are_encoded_in_batches_each_with_the_labels_of_its_own_items(calls, monkeypatch):
    monkeypatch.setattr(module, "ENCODE_BATCH", 4)
    one = setting(num_classes=0)  # labels are known, whatever a network is given
    index = torch.tensor([9, 0, 3, 2, 1, 8])
    for found in (
        one.encoded(TRAIN[index], TRAIN_LABELS[index], "use"),
        one.encoded_items(one.dataset.train, index, "use"),
    ):
        assert found.flatten().tolist() == (100 + index).tolist()
    for y, known, temperature, seed in calls.encoded:
        assert known.tolist() == TRAIN_LABELS[(y - 100).long().flatten()].tolist()
        assert temperature == 0.3 and seed == one.rng("encode", "use").initial_seed()
    assert [len(y) for y, *_ in calls.encoded] == [4, 2, 4, 2]


def test_z_is_of_the_source_that_is_asked_for(calls):
    one = setting(num_classes=0)
    assert sorted(one.train_codes[0].flatten().tolist()) == list(range(100, 110)) and one.train_codes[1] is None
    one.dataset.num_classes = 4
    one.marginal_prior = object()
    labels = torch.zeros(3, dtype=torch.int64)
    for source in ("prior", "marginal", "uniform"):
        one.drawn(source, labels, 3, 1)
    seed = one.rng("latents", 1).initial_seed()
    assert [row[:3] for row in calls.latents] == [(3, seed, "prior"), (3, seed, "prior"), (3, seed, "uniform")]
    assert [row[4] for row in calls.latents] == [None, one.marginal_prior, None]
    oracle = one.drawn("oracle", labels, 13, 1).flatten() - 100
    assert oracle.tolist() == [*one.chosen(one.dataset.train, 10).tolist(), *one.chosen(one.dataset.train, 3).tolist()]


def test_every_repeat_has_noise_and_z_of_its_own_and_is_drawn_once(calls):
    one = setting()
    first, again, second = (one.samples("ours", 9, repeat)[0] for repeat in (0, 0, 1))
    assert first is again and not torch.equal(first, second) and len(first) == 7
    noises = [noise.initial_seed() for _, noise, *_ in calls.samples]
    assert noises == [one.rng("noise", repeat).initial_seed() for repeat in (0, 1)] and len(set(noises)) == 2
    assert len({seed for _, seed, *_ in calls.latents}) == 2 and noises[0] not in {
        seed for _, seed, *_ in calls.latents
    }
    assert len(setting(num_samples=30).samples("ours", 9)[0]) == 10  # of so many training items


def test_a_guided_set_is_drawn_with_its_scale_and_is_not_kept(calls):
    one, null = setting(), object()
    one.config.sampling.cfg_scale = 0.25
    plain = one.samples("ours", 9)[0]
    guided = one.samples("ours", 9, cfg_scale=1.5, null_denoiser=null)[0]
    assert [row[2] for row in calls.samples] == [0.25, 1.5] and calls.samples[1][3] == {"null_denoiser": null}
    assert not torch.equal(guided, plain) and one.samples("ours", 9)[0] is plain
    one.samples("baseline", 9)
    assert calls.samples[-1][0] is None and calls.samples[0][0] is not None


def test_blocks_have_their_part_of_the_noise_and_z_of_their_own(calls, monkeypatch):
    monkeypatch.setattr(module, "MOST_KEPT_VALUES", 0)
    one = setting()
    one.samples("ours", 9, 1)
    whole = SampleNoise.of_generator(one.rng("noise", 1), 7).normal((7, 2))
    parts = [noise.normal((len(noise), 2)) for _, noise, *_ in calls.samples]
    assert [len(part) for part in parts] == [4, 3] and torch.equal(torch.cat(parts), whole)
    assert len({seed for _, seed, *_ in calls.latents}) == 2
    calls.samples.clear()
    one.samples("ours", 9, source="oracle")
    z = torch.cat([row[0] for row in calls.samples]).flatten() - 100
    assert z.tolist() == one.oracle_items(7).tolist()


def test_latents_reach_only_the_network_that_has_them():
    z = torch.zeros(2, 1)
    assert setting().denoise("ours", z, None)(None, None) is z
    assert setting().denoise("baseline", z, None)(None, None) is None


def test_a_ratio_to_nothing_is_infinite_and_of_nothing_no_number():
    assert ratio(3.0, 2.0) == 1.5 and ratio(1.0, 0.0) == math.inf and math.isnan(ratio(0.0, 0.0))
