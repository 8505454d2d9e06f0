"""``toolkit enhance-video`` with a network: a tiny one with random weights, every stage of it real."""

import os
import signal
import time
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.data.videos import moving, read, write
from tests.toyroom.harness import record, start
from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.data.video.scan import index_video
from toolkit.launch import dry_run, launch

NETWORK = [
    "network.codec=unshuffle",
    "network.codec_factor=4",
    "network.block_out_channels=[8,16]",
    "network.attention_levels=1",
    "network.layers_per_block=1",
    "network.cross_attention_dim=8",
    "network.attention_head_dim=8",
    "network.entry_heads=1",
    "network.norm_num_groups=4",
    "network.asymmetric=false",
]
SMALL = ["experiment=enhance_small", "sampling.num_steps=2", "windows.num_frames=9", "encode.speed=ultrafast"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved pipeline of a tiny network with random weights."""
    from toolkit.venhancer.build import build_pipeline

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    build_pipeline(compose(COMMANDS["enhance-video"], NETWORK)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "IN.mp4", moving(9, 90, 62))
    return tmp_path


def test_the_issues_command(folder, model):
    words = ["experiment=enhance_smoke", f"model={model}", "input=IN.mp4", "output=OUT.mp4", "scale=1.37", "fps=24"]
    assert launch("enhance-video", [*words, "hydra.run.dir=RUN"]) == 0
    made = index_video("OUT.mp4")
    assert (made.width, made.height, made.rate, made.num_frames) == (124, 84, 24, 18)
    assert sorted(path.name for path in folder.iterdir()) == ["IN.mp4", "OUT.mp4", "RUN"]
    assert not (folder / "RUN/work").exists()


def test_the_colour_fix_keeps_the_inputs_colours_and_a_rate_off_the_grid_is_met(folder, model):
    words = [f"model={model}", *SMALL, "input=IN.mp4", "scale=1", "side_by_side_s=0"]
    colour = moving(9, 90, 62).mean((0, 1, 2))
    away = {}
    for kind in ("none", "wavelet", "adain"):
        assert launch("enhance-video", [*words, f"color_fix={kind}", f"hydra.run.dir={kind}", "fps=29.97"]) == 0
        made = index_video(f"{kind}/samples/IN.mp4")
        assert made.rate == Fraction(30000, 1001) and made.num_frames == 22
        away[kind] = np.abs(read(folder / kind / "samples/IN.mp4").mean((0, 1, 2)) - colour).max()
    assert away["wavelet"] < 3 and away["adain"] < 3 and away["none"] > max(away["wavelet"], away["adain"])


def test_motion_between_enhanced_key_frames(folder, model):
    words = [f"model={model}", *SMALL, "input=IN.mp4", "scale=1", "side_by_side_s=0", "frame_factor=2"]
    assert launch("enhance-video", [*words, "between=motion", "hydra.run.dir=M"]) == 0
    assert launch("enhance-video", [*words, "frame_factor=1", "hydra.run.dir=K"]) == 0
    both, keys = read(folder / "M/samples/IN.mp4"), read(folder / "K/samples/IN.mp4")
    assert len(both) == 18 and len(keys) == 9
    assert np.abs(both[:17:2].astype(int) - keys).mean() < 6  # the same network output, each encoded by itself


@pytest.mark.slow
def test_seeds_decide_the_result(folder, model):
    words = [f"model={model}", *SMALL, "input=IN.mp4", "scale=1", "side_by_side_s=0"]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert launch("enhance-video", [*words, f"seed={seed}", f"hydra.run.dir={name}"]) == 0
    first, again, other = (read(folder / name / "samples/IN.mp4") for name in "abc")
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_killed_at_any_moment_it_goes_on_and_gives_the_same_frames(folder, model):
    write(folder / "LONG.mp4", moving(24, 90, 62))
    words = [
        f"model={model}",
        *SMALL,
        "input=LONG.mp4",
        "scale=1",
        "frame_factor=2",
        "part_frames=8",
        "side_by_side_s=0",
    ]
    assert launch("enhance-video", [*words, "hydra.run.dir=WHOLE"]) == 0
    network, parts = "RUN/work/LONG/network/**/*", "RUN/work/LONG/parts/part_*.mp4"
    for pattern, count in ((network, 4), (parts, 2)):
        process = start(*words, "hydra.run.dir=RUN", command="enhance-video")
        deadline = time.monotonic() + 90
        while len(list(folder.glob(pattern))) < count and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert launch("enhance-video", [*words, "hydra.run.dir=RUN"]) == 0
    assert np.array_equal(read(folder / "RUN/samples/LONG.mp4"), read(folder / "WHOLE/samples/LONG.mp4"))


def test_too_little_memory_is_refused_with_a_tile_that_fits(folder, model, capfd, monkeypatch):
    write(folder / "BIG.mp4", moving(3, 640, 360))
    words = [
        f"model={model}",
        *SMALL,
        "input=BIG.mp4",
        "scale=4",
        "windows.tile_height_px=1440",
        "windows.tile_width_px=2560",
    ]
    monkeypatch.setenv("TOOLKIT_MEMORY_GIB", "0.5")
    assert launch("enhance-video", [*words, "hydra.run.dir=RUN"]) == 2
    error = capfd.readouterr().err
    assert "BIG: 2560x1440 in these windows and tiles needs about" in error
    assert "windows.tile_height_px=" in error or "no tile fits" in error
    assert not (folder / "RUN").exists()


def test_too_little_disk_is_refused_with_windows_that_fit(folder, model, capfd, monkeypatch):
    write(folder / "BIG.mp4", moving(20, 64, 48))
    words = [f"model={model}", *SMALL, "windows.num_frames=16", "input=BIG.mp4", "scale=4"]
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=56 * 2**20))
    assert launch("enhance-video", [*words, "hydra.run.dir=RUN"]) == 2
    error = capfd.readouterr().err
    assert "BIG: 256x192 keeps" in error and "on disk while it works" in error and "windows.num_frames=" in error
    assert not (folder / "RUN").exists()


def test_a_model_that_is_not_there_is_named(folder, capfd):
    words = ["experiment=enhance_small", "model=nowhere/near", "input=IN.mp4", "hydra.run.dir=RUN"]
    assert launch("enhance-video", words) == 2
    error = capfd.readouterr().err.strip()
    assert "nowhere/near" in error and len(error.splitlines()) == 1 and not (folder / "RUN").exists()


def test_as_it_comes_the_shipped_upscaler_makes_the_key_frames_and_says_so(folder):
    from toolkit.venhancer.keys import load_upscaler
    from toolkit.venhancer.keys.tiled import enlarge_to

    assert launch("enhance-video", ["input=IN.mp4", "output=OUT.mp4", "frame_factor=2", "hydra.run.dir=RUN"]) == 0
    made, upscaler = read(folder / "OUT.mp4"), load_upscaler("upscaler", "cpu")
    keys = [enlarge_to(upscaler, frame, 180, 124, (256, 256)) for frame in read(folder / "IN.mp4")]
    assert made.shape == (18, 124, 180, 3) and np.abs(made[:17:2].astype(int) - keys).mean() < 4  # but for encoding
    said = (folder / "RUN/run.log").read_text()
    assert "keys=upscaler: the regression network in the package, 4 times; between=motion" in said


@pytest.mark.parametrize("word", ["between=network", "fidelity=creative", "sampling.num_steps=3", "model=mine"])
def test_what_only_the_diffusion_model_does_is_refused_as_it_comes(word, folder, capfd):
    assert launch("enhance-video", ["input=IN.mp4", word, "hydra.run.dir=RUN"]) == 2
    error = capfd.readouterr().err.strip()
    assert word.partition("=")[0].partition(".")[0] in error and "keys=network" in error
    assert len(error.splitlines()) == 1 and not (folder / "RUN").exists()


def test_dry_run_says_what_it_would_take(folder, model, capsys):
    assert dry_run("enhance-video", [f"model={model}", *SMALL, "input=IN.mp4"]) == 0
    said = capsys.readouterr().out
    assert "90x62, 9 frames at 12 fps -> 180x124" in said and "network evaluations" in said
    assert sorted(path.name for path in folder.iterdir()) == ["IN.mp4"]


@pytest.mark.slow
def test_train_then_enhance_with_what_was_trained(folder):
    (folder / "clips").mkdir()
    write(folder / "clips" / "a.mp4", moving(40, 96, 64), rate=24)
    data = ["data.name=clips_folder", "data.path=clips", "data.num_frames=5", "data.crop_px=32", "data.num_crops=8"]
    data += ["data.held_out=[clips_folder]", "data.held_out_crops=4"]
    optim = ["optim.joint=true", "optim.num_steps=3", "optim.batch_size=2"]
    words = [*NETWORK, *data, *optim, *SMALL, "stage=all", "input=IN.mp4", "side_by_side_s=0", "hydra.run.dir=RUN"]
    assert launch("enhance-video", words) == 0
    assert set(record("RUN")["stages"]) >= {"train", "evaluate", "enhance", "measure"}
    assert (folder / "RUN/samples/IN.mp4").exists() and (folder / "RUN/model/model_index.json").exists()
