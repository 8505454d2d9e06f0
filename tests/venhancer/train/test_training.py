"""Training: augmentation as the paper draws it, batches as a function of the step, exact resuming, and learning."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.venhancer.networks import clip
from toolkit.data.video.crops import clip_crops
from toolkit.errors import UserError
from toolkit.runs.device import make_accelerator
from toolkit.runs.record import Run
from toolkit.venhancer.build import build_pipeline
from toolkit.venhancer.config import EnhanceVideo
from toolkit.venhancer.model.conditioning import Fill
from toolkit.venhancer.pipeline import VideoEnhancePipeline
from toolkit.venhancer.train import augment
from toolkit.venhancer.train import stage as training
from toolkit.venhancer.train.batches import Batches
from toolkit.venhancer.train.config import ClipData, Optim, VideoUNetConfig


def write_video(path, frames, rate=24):
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=rate, options={"crf": "10"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two clips, one with a caption; the cache beside it."""
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "clips").mkdir()
    for number in range(2):
        write_video(tmp_path / "clips" / f"{number}.mp4", clip(60, 40, 48, seed=number)[:12])
    (tmp_path / "clips" / "1.txt").write_text("moving blobs\n")
    return tmp_path / "clips"


def config_for(folder, **changes):
    network = VideoUNetConfig(
        codec="unshuffle", codec_factor=4, block_out_channels=[16, 16], attention_levels=0, layers_per_block=1,
        cross_attention_dim=4, attention_head_dim=8, entry_heads=1, norm_num_groups=4, asymmetric=False, dropout=0.1,
    )  # fmt: skip
    data = ClipData("clips_folder", str(folder), num_frames=5, crop_px=16, num_crops=12, held_out=["clips_folder"])
    optim = {"num_steps": 6, "base_num_steps": 3, "batch_size": 2, "lr": 1e-3, "ema_half_life_images": 4.0}
    optim |= changes.pop("optim", {})
    for key, value in changes.pop("network", {}).items():
        setattr(network, key, value)
    return EnhanceVideo(
        stage="train",
        network=network,
        data=data,
        optim=Optim(**optim),
        device="cpu",
        checkpoint_every_steps=2,
        **changes,
    )


def start(config, path):
    run = Run(path, config)
    run.open([])
    return run, make_accelerator(config)


def test_frame_factors_and_scales_are_drawn_in_proportion():
    rng = np.random.default_rng(0)
    factors = np.bincount([augment.draw_frame_factor(rng, 8) for _ in range(7200)], minlength=9)[1:]
    assert factors / 7200 == pytest.approx(np.arange(1, 9) / 36, abs=0.02)
    scales = augment.draw_scales(rng, 20000, 8.0)
    assert scales.min() >= 1 and scales.max() <= 8
    near4, near8 = ((scales - 4).abs() < 0.25).sum(), (scales > 7.5).sum()
    assert near8 / near4 == pytest.approx(2 * 7.75 / 8, rel=0.1)  # 8x twice as often as 4x
    even = augment.draw_scales(rng, 20000, 8.0, "uniform")
    assert even.mean() == pytest.approx(4.5, abs=0.05)
    inverse = augment.draw_scales(rng, 20000, 8.0, "inverse")
    near2, near4 = ((inverse - 2).abs() < 0.25).sum(), ((inverse - 4).abs() < 0.25).sum()
    assert near2 / near4 == pytest.approx(2, rel=0.1) and inverse.log().mean() == pytest.approx(np.log(8) / 2, abs=0.02)
    factors = np.bincount([augment.draw_frame_factor(rng, 3, "inverse") for _ in range(6600)], minlength=4)[1:]
    assert factors / 6600 == pytest.approx(np.array([6, 3, 2]) / 11, abs=0.03)


@pytest.mark.parametrize(("frame_factor", "frames"), [(1, 9), (2, 9), (3, 7), (5, 6), (8, 9)])
def test_clips_start_and_end_on_key_frames(frame_factor, frames):
    assert augment.frames_for(frame_factor, 9) == frames
    assert (frames - 1) % frame_factor == 0
    assert augment.frames_for(frame_factor, 9, most_keys=2) == frame_factor + 1


def test_degrading():
    clips = torch.from_numpy(np.stack([clip(5, 16, 16)] * 2)).permute(0, 1, 4, 2, 3)
    scale, level = torch.tensor([1.0, 4.0]), torch.tensor([0, 7])
    batch = augment.degrade(clips, 2, scale, level, Fill("bicubic", blend=True))
    assert batch.clean.shape == batch.fill.shape == (2, 5, 3, 16, 16) and batch.keys.shape == (2, 3, 3, 16, 16)
    assert torch.equal(batch.keys[0], batch.clean[0, ::2])  # s = 1 is no down-scaling
    assert (batch.keys[1] - batch.clean[1, ::2]).abs().max() > 0.02
    torch.testing.assert_close(batch.fill[:, 1], (batch.keys[:, 0] + batch.keys[:, 1]) / 2)
    assert torch.equal(batch.fill[:, ::2], batch.keys)


def test_crops_are_what_is_in_the_clips_and_made_once(folder):
    paths = sorted(folder.glob("*.mp4"))
    crops = clip_crops(paths, 12, 5, 16, None, seed=0)
    assert crops.shape[1:] == (5, 16, 16, 3) and 8 <= len(crops) <= 12
    assert set(crops.captions) == {"", "moving blobs"} and len(crops.captions) == len(crops)
    made = crops.file.stat().st_mtime_ns
    again = clip_crops(paths, 12, 5, 16, None, seed=0)
    assert again.file.stat().st_mtime_ns == made
    assert crops.read([0, 3], 3).shape == (2, 3, 3, 16, 16)


def test_no_crop_to_be_had(folder):
    with pytest.raises(UserError, match="no crop of 13 frames and 16 pixels"):
        clip_crops(sorted(folder.glob("*.mp4")), 4, 13, 16, None, seed=0)
    write_video(folder / "grey.mp4", np.full((9, 32, 32, 3), 128, np.uint8))
    with pytest.raises(UserError, match="no crop"):
        clip_crops([folder / "grey.mp4"], 4, 5, 16, None, seed=0)


def test_batches_depend_on_the_step_alone_and_every_crop_comes_once_an_epoch(folder):
    config = config_for(folder)
    crops, pipeline = training.load_crops(config), build_pipeline(config_for(folder, optim={"joint": True}))
    batches, other = (Batches(config, crops, pipeline, torch.device("cpu")) for _ in range(2))
    for step in (0, 1, 2, 5):
        first, _ = batches(step)
        second, _ = other(step)
        assert torch.equal(first.clean, second.clean) and first.frame_factor == second.frame_factor
    epoch = [index for step in range(len(crops) // 2) for index in batches._indices(step)]
    assert len(set(epoch)) == len(epoch)


def test_diffusion_steps_are_drawn_as_asked(folder, monkeypatch):
    pipeline, drawn = build_pipeline(config_for(folder)), []
    add_noise = pipeline.scheduler.add_noise

    def noting(x0, noise, step):
        drawn.extend(step.tolist())
        return add_noise(x0, noise, step)

    monkeypatch.setattr(pipeline.scheduler, "add_noise", noting)
    clips = torch.zeros(2000, 1, 3, 8, 8, dtype=torch.uint8)
    batch = augment.degrade(clips, 1, torch.ones(2000), torch.zeros(2000, dtype=torch.long), pipeline.fill)
    text = pipeline.encode_prompt("", "", guided=False).expand(2000, -1, -1)
    for weighting, mean in (("uniform", 499.5), ("proportional", 1000 * 2 / 3)):
        drawn.clear()
        torch.manual_seed(0)
        with torch.no_grad():
            training.Denoising(pipeline, controlled=False, step_weighting=weighting)(batch, text)
        assert np.mean(drawn) == pytest.approx(mean, abs=20) and min(drawn) >= 0 and max(drawn) <= 999


def weights(run):
    return load_file(run.dir / "model" / "denoiser" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("joint", [False, True])
def test_a_killed_training_ends_as_an_uninterrupted_one(joint, folder, tmp_path, monkeypatch):
    kind = {"network": {"diffuses": "residuals", "blend": True}} if joint else {}
    config = config_for(folder, optim={"joint": joint}, **kind)
    whole, accelerator = start(config, tmp_path / "whole")
    with whole.stage("train"):
        training.train(config, whole, accelerator)

    killed, accelerator = start(config, tmp_path / "killed")
    forward = training.Denoising.forward
    calls = []

    def dies(self, *arguments):
        calls.append(1)
        if len(calls) == (5 if joint else 8):
            raise KeyboardInterrupt
        return forward(self, *arguments)

    monkeypatch.setattr(training.Denoising, "forward", dies)
    with pytest.raises(KeyboardInterrupt), killed.stage("train"):
        training.train(config, killed, accelerator)
    with killed.stage("train"):
        training.train(config, killed, accelerator)
    ours, theirs = weights(killed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    pipeline = VideoEnhancePipeline.from_pretrained(killed.dir / "model")
    assert pipeline(clip(3, 8, 8), scale=2, num_steps=1).frames.shape == (3, 16, 16, 3)


def test_the_base_stays_frozen_while_its_control_network_learns(folder, tmp_path):
    config = config_for(folder)
    run, accelerator = start(config, tmp_path / "run")
    with run.stage("train"):
        training.train(config, run, accelerator)
    lines = [json.loads(line) for line in (run.dir / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"base", "train"}
    pipeline = VideoEnhancePipeline.from_pretrained(run.dir / "model")
    base, control = pipeline.denoiser.unet.state_dict(), pipeline.denoiser.controlnet.state_dict()
    zero_convs = [one for name, one in control.items() if "controlnet_" in name]
    assert any(one.any() for one in zero_convs)
    moved = [name for name in base if name in control and not torch.equal(base[name], control[name])]
    assert moved  # the copy left the base, which a run with no control steps would show
    config = config_for(folder, init=str(run.dir / "model" / "denoiser"))
    again, accelerator = start(config, tmp_path / "again")
    with again.stage("train"):
        training.train(config, again, accelerator)
    kept = weights(again)
    assert all(torch.equal(kept[f"unet.{name}"], one) for name, one in base.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"asymmetric": True, "block_out_channels": [16, 16, 16]}}, "data.crop_px=16: latent size 4x4"),
        ({"network": {"codec_factor": 3}}, "data.crop_px=16: must be a multiple of 3"),
        ({"network": {"codec": "vae"}}, "network.vae: must name an autoencoder"),
        ({"network": {"diffuses": "residuals"}}, "set optim.joint=true"),
        ({"init": "nothing/here/at/all"}, "nothing/here/at/all"),
    ],
)
def test_refused_before_the_first_step(changes, message, folder, tmp_path):
    config = config_for(folder, **changes)
    run, accelerator = start(config, tmp_path / "run")
    with pytest.raises(UserError, match=message), run.stage("train"):
        training.train(config, run, accelerator)


def test_a_held_out_clip_that_is_none_is_refused_before_training(folder, tmp_path):
    config = config_for(folder)
    config.data.held_out = ["clips_folder", "bikess"]
    run, accelerator = start(config, tmp_path / "run")
    with pytest.raises(UserError, match=r"data\.held_out: clip bikess: did you mean 'bikes'"), run.stage("train"):
        training.train(config, run, accelerator)
    assert not (run.dir / "checkpoints").exists()
