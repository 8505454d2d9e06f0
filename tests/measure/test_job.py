"""Numbers against the official scripts' formulas, written out with NumPy and SciPy."""

import io
import json
import re
import zipfile

import numpy as np
import pytest
import scipy.linalg
import torch

from tests.measure.test_images import write_folder
from toolkit.errors import UserError
from toolkit.measure import job, statistics
from toolkit.measure.job import Plan, make_statistics, measure_images
from toolkit.measure.statistics import read_statistics
from toolkit.zoo.inception import InceptionFeatures

NUM_FEATURES = 12
PUBLISHED = "6726825d" + "0" * 56


class Toy(torch.nn.Module):
    """Fixed projections of the pixels in the place of Inception's features."""

    def forward(self, images):
        assert images.dtype == torch.uint8
        x = images.float().flatten(1) / 255
        draw = np.random.RandomState(3)
        pool, spatial, logits = (
            x @ torch.from_numpy(draw.standard_normal((x.shape[1], n)).astype(np.float32)) for n in (NUM_FEATURES, 5, 7)
        )
        return InceptionFeatures(pool, spatial, logits)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(job, "load_inception", lambda path: (Toy(), PUBLISHED))
    monkeypatch.setattr(statistics, "NUM_FEATURES", NUM_FEATURES)


def images(num, seed, most):
    return np.random.RandomState(seed).randint(0, most, (num, 6, 4, 3)).astype(np.uint8)


SAMPLES, REAL = images(50, 0, 256), images(37, 1, 220)


@pytest.fixture
def folders(tmp_path):
    return write_folder(tmp_path / "samples", SAMPLES), write_folder(tmp_path / "real", REAL)


def features(of):
    return [one.double().numpy() for one in Toy()(torch.from_numpy(of).permute(0, 3, 1, 2))]


def edm_fid(x, y):
    """fid.py of EDM: sums in float64, covariance over n - 1, the root by scipy."""
    stats = []
    for z in (x, y):
        mu = z.sum(0) / len(z)
        stats.append((mu, (z.T @ z - np.outer(mu, mu) * len(z)) / (len(z) - 1)))
    (mu, sigma), (mu_ref, sigma_ref) = stats
    root = scipy.linalg.sqrtm(sigma @ sigma_ref)
    return float(np.real(np.square(mu - mu_ref).sum() + np.trace(sigma + sigma_ref - root * 2)))


def adm_score(logits):
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return float(np.exp(np.mean(np.sum(p * (np.log(p) - np.log(p.mean(0, keepdims=True))), 1))))


def adm_precision(points, manifold, k=3):
    own = np.linalg.norm(manifold[:, None] - manifold[None], axis=-1)
    radii = np.sort(own, axis=1)[:, k]
    return float(np.mean((np.linalg.norm(points[:, None] - manifold[None], axis=-1) <= radii).any(1)))


def test_numbers_are_the_official_formulas(folders):
    found = measure_images(Plan(*folders, "weights", batch_size=8))
    ours, real = features(SAMPLES), features(REAL)
    expected = {
        "fid": edm_fid(ours[0], real[0]),
        "sfid": edm_fid(ours[1], real[1]),
        "inception_score": adm_score(ours[2]),
        "precision": adm_precision(ours[0], real[0]),
        "recall": adm_precision(real[0], ours[0]),
    }
    assert 0 < expected["precision"] < 1 and 0 < expected["recall"] < 1
    assert found["metrics"] == pytest.approx(expected, rel=1e-4)
    assert (found["num_samples"], found["num_reference"], found["published_weights"]) == (50, 37, True)


def test_the_first_samples_alone_can_be_measured(folders):
    found = measure_images(Plan(*folders, "weights", num=21, batch_size=8))
    assert found["num_samples"] == 21
    assert found["metrics"]["fid"] == pytest.approx(edm_fid(features(SAMPLES[:21])[0], features(REAL)[0]), rel=1e-4)


def test_statistics_are_written_as_edm_reads_them_and_measured_against(folders, tmp_path):
    made = make_statistics(folders[1], "weights", tmp_path / "ref.npz", "cpu", 8)
    with np.load(made) as arrays:
        np.testing.assert_allclose(arrays["sigma"], np.cov(features(REAL)[0], rowvar=False), rtol=1e-5)
        assert arrays["mu"].dtype == np.float64
    whole, against = (measure_images(Plan(folders[0], path, "weights"))["metrics"] for path in (folders[1], made))
    for name in ("fid", "sfid"):
        assert against[name] == pytest.approx(whole[name], rel=1e-9)
    assert "precision" not in against and "inception_score" in against


def test_a_reference_batch_gives_its_own_statistics_and_its_images(folders, tmp_path):
    shift = features(REAL)[0].mean(0) + 1
    np.savez(tmp_path / "batch.npz", arr_0=REAL, mu=shift, sigma=np.eye(NUM_FEATURES))
    found = measure_images(Plan(folders[0], tmp_path / "batch.npz", "weights"))["metrics"]
    ours = features(SAMPLES)[0]
    root = np.real(scipy.linalg.sqrtm(np.cov(ours, rowvar=False)))
    expected = np.square(ours.mean(0) - shift).sum() + np.trace(
        np.cov(ours, rowvar=False) + np.eye(NUM_FEATURES) - 2 * root
    )
    assert found["fid"] == pytest.approx(expected, rel=1e-4)
    assert found["precision"] == pytest.approx(adm_precision(ours, features(REAL)[0])) and "sfid" not in found
    other = features(images(40, 7, 200))[1]
    mean, covariance = other.mean(0), np.cov(other, rowvar=False)
    np.savez(tmp_path / "both.npz", arr_0=REAL, mu=shift, sigma=np.eye(NUM_FEATURES), mu_s=mean, sigma_s=covariance)
    found = measure_images(Plan(folders[0], tmp_path / "both.npz", "weights"))["metrics"]
    assert found["fid"] == pytest.approx(expected, rel=1e-4)
    assert found["sfid"] == pytest.approx(edm_fid(features(SAMPLES)[1], other), rel=1e-4)


def test_other_weights_give_numbers_of_another_name(folders, monkeypatch):
    monkeypatch.setattr(job, "load_inception", lambda path: (Toy(), "0" * 64))
    found = measure_images(Plan(*folders, "weights"))
    assert set(found["metrics"]) == {
        "frechet_distance",
        "spatial_frechet_distance",
        "class_score",
        "precision",
        "recall",
    }
    assert not found["published_weights"] and "not FID" in json.dumps(job.table(found).rows)


def test_damaged_encrypted_and_lying_statistics_are_one_line(tmp_path):
    path = tmp_path / "s.npz"
    np.savez_compressed(path, mu=np.random.RandomState(0).rand(NUM_FEATURES), sigma=np.eye(NUM_FEATURES))
    whole = path.read_bytes()
    start = whole.index(b"mu.npy") + 30
    encrypted = bytearray(whole)  # the flag of it, in the headers of both members and in the directory
    for mark, flag in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for found in re.finditer(mark, whole):
            encrypted[found.start() + flag] |= 1
    damaged = whole[:start] + b"\xff" * 20 + whole[start + 20 :]
    with zipfile.ZipFile(path, "w") as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"shape": (10**14,), "fortran_order": False, "descr": "<f8"})
        for name in ("mu.npy", "sigma.npy"):
            archive.writestr(name, header.getvalue())
    for content, reason in ((damaged, "Error -3|invalid"), (encrypted, "encrypted"), (path.read_bytes(), "allocate")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"^{path}: not an \.npz of statistics \(.*({reason})"):
            read_statistics(path)


def test_bad_input_is_named_before_anything_is_read(folders, tmp_path):
    for plan, match in (
        (Plan(tmp_path / "no", folders[1], "w"), "no: no such file or folder"),
        (Plan(*folders, "w", num=1), "--num 1: expected two or more"),
        (Plan(*folders, "w", device="nowhere"), "--device nowhere"),
    ):
        with pytest.raises(UserError, match=match):
            measure_images(plan)
    with pytest.raises(UserError, match=r"ref\.txt: expected a name that ends in \.npz"):
        make_statistics(folders[1], "w", tmp_path / "ref.txt", "cpu", 8)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"mu": np.zeros(5), "sigma": np.eye(5)}, "mu has 5 values; expected 12"),
        ({"mu": np.zeros(12), "sigma": np.eye(11)}, r"mu \(12,\) and sigma \(11, 11\) do not fit"),
        ({"mu": np.full(12, np.nan), "sigma": np.eye(12)}, "mu must hold finite"),
        ({"mu": np.array([{}] * 12, dtype=object), "sigma": np.eye(12)}, "not an .npz of statistics"),
    ],
)
def test_statistics_of_other_kinds_are_refused(tmp_path, arrays, match):
    np.savez(tmp_path / "ref.npz", **arrays)
    with pytest.raises(UserError, match=match):
        read_statistics(tmp_path / "ref.npz")
