import dataclasses

import pytest
import sklearn.cluster
import torch

from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.data.sets import Dataset, MemorySplit
from toolkit.disco.baselines import KMeansEncoder, LabelEncoder, build_baseline_encoder, code_logits
from toolkit.disco.discretize import sample_codes
from toolkit.errors import UserError
from toolkit.runs.seeds import derive


def corners(num_each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around the corners of two nested squares, and which corner (0 to 15)."""
    large = torch.cartesian_prod(torch.tensor([-4.0, 4.0]), torch.tensor([-4.0, 4.0]))
    places = (large[:, None] + large / 4).reshape(16, 2)
    which = torch.arange(16).repeat_interleave(num_each)
    return places[which] + 0.05 * torch.randn(len(which), 2, generator=torch.Generator().manual_seed(0)), which


def dataset(labels=True, num_each=20) -> Dataset:
    points, which = corners(num_each)
    split = MemorySplit(points, which.numpy() if labels else None, conditional=False)
    return Dataset("corners", split, split, split, 0, tuple(map(str, range(16))) if labels else (), "", "")


def config(kind: str, **latents):
    words = [f"latents.kind={kind}", *(f"latents.{key}={value}" for key, value in latents.items())]
    return compose(COMMANDS["train-disco"], ["experiment=disco_toy", *words])


def test_residual_kmeans_names_coarse_then_fine():
    points, which = corners(20)
    encoder = KMeansEncoder((2,), num_latents=2, codebook_size=4).fit(points)
    for slot, distance in enumerate((4, 1)):  # the middles of the quarters, then the corners around each of them
        torch.testing.assert_close(encoder.centroids[slot].abs(), torch.full((4, 2), float(distance)), atol=0.1, rtol=0)
    codes = sample_codes(encoder(points), generator=torch.Generator().manual_seed(1))
    # 2 x 2 bits name all 16 corners, and the first slot alone the large square's corner
    tuples = {corner: {tuple(code) for code in codes[which == corner].tolist()} for corner in range(16)}
    assert all(len(found) == 1 for found in tuples.values())
    assert len(set.union(*tuples.values())) == 16
    for quarter in range(4):
        assert len(codes[which // 4 == quarter, 0].unique()) == 1


def test_certain_codes_do_not_depend_on_the_draw():
    points, _ = corners(5)
    encoder = KMeansEncoder((2,), 2, 4).fit(points)
    first, second = (sample_codes(encoder(points), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(first, second)


def test_kmeans_encoder_travels_with_its_centroids(tmp_path):
    points, _ = corners(5)
    encoder = KMeansEncoder((2,), 2, 4).fit(points)
    encoder.save_pretrained(tmp_path)
    assert torch.equal(KMeansEncoder.from_pretrained(tmp_path)(points), encoder(points))


def test_same_seed_same_codes_and_too_few_items_are_refused():
    points, _ = corners(5)
    first, second = (KMeansEncoder((2,), 1, 4).fit(points, seed=3) for _ in range(2))
    assert torch.equal(first.centroids, second.centroids)
    with pytest.raises(UserError, match="codebook_size=100"):
        KMeansEncoder((2,), 1, 100).fit(points)


def test_every_slot_and_seed_has_random_starts_of_its_own(monkeypatch):
    points, _ = corners(5)
    starts, whole = [], sklearn.cluster.KMeans

    def noting(size, n_init, random_state):
        starts.append(random_state)
        return whole(size, n_init=1, random_state=random_state)

    monkeypatch.setattr(sklearn.cluster, "KMeans", noting)
    for seed in (0, 1):
        KMeansEncoder((2,), 2, 4).fit(points, seed)
    assert starts == [derive(seed, "kmeans", slot) % 2**32 for seed in (0, 1) for slot in (0, 1)]
    assert len(set(starts)) == 4


def test_kmeans_is_fitted_on_training_items():
    near = dataset()
    far = dataclasses.replace(near, test=MemorySplit(corners(20)[0] + 100), valid=MemorySplit(corners(20)[0] + 100))
    assert build_baseline_encoder(config("kmeans", num_latents=1, codebook_size=4), far).centroids.max() < 10


def test_labels_serve_as_latents_through_the_same_interface():
    encoder = build_baseline_encoder(config("labels"), dataset())
    points, which = corners(20)
    logits = code_logits(encoder, points, which)
    assert logits.shape == (len(points), 1, 16)
    assert torch.equal(sample_codes(logits)[:, 0], which)
    with pytest.raises(ValueError, match="labels must be given"):
        code_logits(encoder, points)
    with pytest.raises(ValueError, match="reads labels"):
        encoder(points)


def test_what_the_config_asks_for_is_built_and_fitted():
    encoder = build_baseline_encoder(config("kmeans", num_latents=1, codebook_size=16), dataset())
    points, _ = corners(20)
    codes = sample_codes(code_logits(encoder, points))[:, 0]
    assert len(codes.unique()) == 16
    assert not list(encoder.parameters())
    assert isinstance(build_baseline_encoder(config("labels"), dataset()), LabelEncoder)
    with pytest.raises(UserError, match="has no labels"):
        build_baseline_encoder(config("labels"), dataset(labels=False))
