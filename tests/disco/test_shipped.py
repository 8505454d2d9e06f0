"""The models that ship: whole, small, described by their cards, and good pictures from nothing but the package."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch.nn import functional as F

import toolkit
from toolkit import zoo
from toolkit.disco.artefact import PARTS
from toolkit.icg.config import SampleICG, Sampling
from toolkit.icg.methods import ICG, NoGuidance
from toolkit.icg.sources.base import Request
from toolkit.icg.sources.denoiser import DenoiserSource
from toolkit.runs.reading import read_record

PACKAGE = Path(toolkit.__file__).parent
NAMES = [name for name, one in zoo.SHIPPED.items() if one.folder.startswith("disco/")]


def bytes_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_is_small_whole_and_told_by_its_card(name):
    folder = zoo.local(name)
    assert folder.is_relative_to(PACKAGE) and bytes_of(folder) < 10_000_000
    card, record = (folder / "README.md").read_text(), read_record(folder)
    assert record["status"] == "done" and record["config"]["data"]["path"] is None
    assert f"seed {record['seed']}" in card and record["git_commit"][:7] in card and "icence" in card
    parts = toolkit.load_parts(name)
    sizes = {part: zoo.count_parameters(getattr(parts, part)) for part in PARTS}
    assert set(re.findall(r"\d{1,3}(?:,\d{3})+", card)) >= {f"{size:,}" for size in sizes.values()}
    [row] = [row for row in zoo.list_shipped() if row["name"] == name]
    assert row["parameters"] == sum(sizes.values()) and zoo.show_network(name)["parameters"] == sizes["denoiser"]
    for part in PARTS:
        weights = list(getattr(parts, part).parameters())
        assert all(one.dtype == torch.float32 and one.isfinite().all() for one in weights)
    assert bytes_of(PACKAGE) - sum(path.stat().st_size for path in PACKAGE.rglob("*.pyc")) < 60_000_000


def test_a_folder_that_is_called_as_a_shipped_model_is_a_folder():
    for folder in ("./mnist28", "elsewhere/mnist28", Path("mnist28")):
        assert zoo.local(folder) == Path(folder)
    with pytest.raises(toolkit.UserError, match="did you mean 'mnist28'"):
        zoo.show_network("mnist2")


@pytest.fixture(scope="module", params=["disco_shipped", "disco_faces_shipped"])
def from_nothing(request, tmp_path_factory):
    """The folder of a run of the preset, with few steps, where no data set and no package that draws one is."""
    folder = tmp_path_factory.mktemp("nothing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOOLKIT_CACHE", str(folder / "cache"))
        patch.setitem(sys.modules, "python_avatars", None)
        patch.chdir(folder)
        keys = {"num_samples": 24, "num_steps": 6, "show_latents": False}
        toolkit.run("train-disco", experiment=request.param, sampling=keys, folder=folder / "run")
    return folder / "run"


def boxed(image):
    """The digit (H, W) alone, in the middle of a square, at 8x8 as scikit-learn's are."""
    ink = image > 0
    rows, columns = (ink.any(dim).nonzero().flatten() for dim in (1, 0))
    digit = image[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
    lacks = [max(digit.shape) - side for side in reversed(digit.shape)]
    square = F.pad(digit, (lacks[0] // 2, -(-lacks[0] // 2), lacks[1] // 2, -(-lacks[1] // 2)), value=-1.0)
    return F.adaptive_avg_pool2d(F.interpolate(square[None, None], (32, 32)), 8).flatten()


def read_by_strangers(images):
    """The class of digits (n, 1, 28, 28) by the nearest five of scikit-learn's, which no network here has seen."""
    bunch = load_digits()
    known, labels = torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target)
    seen, known = (
        F.normalize(one - one.mean(1, keepdim=True)) for one in (torch.stack([*map(boxed, images[:, 0])]), known)
    )
    return labels[(seen @ known.T).topk(5).indices].mode(1).values


# of hair and face in rows 1, 4, 8, 20 and 24 of the drawings, by hair style: they tell every drawing's
WIDTHS = torch.tensor(
    [
        *([0, 13, 17, 16, 11], [5, 4, 14, 16, 11], [7, 11, 16, 16, 11], [0, 14, 19, 16, 18]),
        *([0, 16, 20, 28, 26], [0, 15, 20, 22, 22], [6, 16, 21, 29, 31], [14, 19, 28, 32, 29]),
    ]
)


def styles_of(images):
    """The hair style of faces (n, 3, 32, 32) by their outlines."""
    widths = (images.amin(1) < 200 / 127.5 - 1)[:, [1, 4, 8, 20, 24]].sum(-1)
    return (widths[:, None] - WIDTHS).square().sum(-1).argmin(1)


# by chance 0.1 and 0.12; of real pictures 0.63 and 1
READERS = {"mnist28": (read_by_strangers, 0.35), "faces32": (styles_of, 0.6)}


def test_pictures_of_the_class_asked_for_come_from_the_package_alone(from_nothing):
    drawn = load_file(from_nothing / "samples" / "samples.safetensors")
    assert "real" not in drawn and not list((from_nothing.parent / "cache").rglob("*idx3*"))
    read, least = READERS[read_record(from_nothing)["config"]["model"]]
    for network in ("ours", "baseline"):
        right = read(drawn[network]) == drawn["class_labels"]
        assert right.float().mean() > least


@pytest.mark.parametrize(("name", "data"), [("mnist28", "mnist"), ("faces32", "drawn_faces")])
def test_guidance_on_a_shipped_model_by_its_name(name, data):
    keys = {"part": "baseline", "sampling": Sampling(num_steps=3)}
    source = DenoiserSource(name, SampleICG(model=name, **keys), torch.device("cpu"))
    plain, calls = source.draw(NoGuidance(), 1.0, Request(0, 0, 0, 4))
    guided, twice = source.draw(ICG(), 2.0, Request(0, 0, 0, 4))
    assert (calls, twice) == (5, 10) and not torch.allclose(plain, guided)
    assert plain.shape == (4, *toolkit.load_parts(name).denoiser.shape)
    assert source.training["class_labels_dropped"] is False and source.training["data"]["name"] == data


def test_a_dry_run_with_a_model_tells_of_that_model_and_of_no_training(capfd):
    from toolkit.launch import dry_run

    assert dry_run("train-disco", ["model=mnist28", "stage=sample"]) == 0  # the data's default is 8x8
    out = capfd.readouterr().out
    assert "864497" in out and "(1, 28, 28)" in out and "Adam" not in out
