"""stage=train_keys: what the network is given and asked for, exact resuming, and what may not be trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.data.videos import moving, write
from toolkit import zoo
from toolkit.data.photo_downloads import PHOTO_DOWNLOADS
from toolkit.data.stills.crops import open_rgb, still_crops
from toolkit.data.stills.photographs import HELD_OUT, SETS
from toolkit.errors import UserError
from toolkit.launch import dry_run
from toolkit.plan import devices
from toolkit.plan.estimate import Tracer, plan_stage
from toolkit.runs.device import make_accelerator
from toolkit.runs.record import Run
from toolkit.venhancer import footprint
from toolkit.venhancer.config import EnhanceVideo
from toolkit.venhancer.train import keys
from toolkit.venhancer.train.config import ClipData, Optim, Upscaler
from toolkit.zoo.video.upscaler import FrameUpscaler


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "clips").mkdir()
    write(tmp_path / "clips" / "a.mp4", moving(30, 96, 64), rate=2)
    return tmp_path / "clips"


def config_for(folder, **upscaler):
    words = {"channels": 4, "num_blocks": 1, "photographs": False, "left_out_s": [], "patch_px": 16, "film_share": 0.5}
    return EnhanceVideo(
        stage="train_keys",
        upscaler=Upscaler(**words | {"drawn_share": 0.2} | upscaler),
        data=ClipData(name="clips_folder", path=str(folder), crop_px=32, num_crops=20),
        optim=Optim(num_steps=6, batch_size=2, lr=1e-2, ema_half_life_images=4.0),
        device="cpu",
        checkpoint_every_steps=2,
    )


def trained(config, path):
    run = Run(path, config)
    run.open([])
    try:
        with run.stage("train_keys"):
            keys.train(config, run, make_accelerator(config))
    finally:
        run.close("done")
    return load_file(run.dir / "model" / "diffusion_pytorch_model.safetensors")


def test_before_training_it_enlarges_as_bicubic_does():
    x = torch.rand(1, 3, 9, 11)
    expected = torch.nn.functional.interpolate(x, scale_factor=4, mode="bicubic", align_corners=False)
    assert torch.equal(FrameUpscaler(4, 8, 2)(x), expected)


def test_what_it_learned_is_added_to_bicubic_pixel_by_pixel():
    """A last bias of its own for each of the 16 places of each colour, and no weights: those are added as they lie."""
    network, x = FrameUpscaler(4, 8, 1), torch.rand(1, 3, 5, 6)
    places = torch.arange(48.0)  # colour, row, column
    torch.nn.init.zeros_(network.last.weight)
    network.last.bias.data = places
    plain = torch.nn.functional.interpolate(x, scale_factor=4, mode="bicubic", align_corners=False)
    added = places.view(3, 4, 4).repeat(1, 5, 6)
    assert torch.allclose(network(x), plain + added[None], atol=1e-5)


def test_what_lies_farther_than_its_convolutions_reach_changes_nothing():
    """One of the entry, two of the only block, the exit and the last one: five pixels."""
    network = FrameUpscaler(4, 4, 1)
    torch.nn.init.normal_(network.last.weight)
    torch.nn.init.normal_(network.blocks[0].second.weight)
    x = torch.rand(1, 3, 8, 24)
    other = x.clone()
    other[..., 0] += 1
    differs = (network(x) != network(other)).any(dim=1)[0].any(dim=0)
    reach = int(differs.nonzero().max()) // 4  # columns of the input, from the one that changed
    assert reach == 5


def test_inputs_are_what_pillow_makes_of_the_truth(folder):
    truth = torch.from_numpy(moving(2, 32, 24)).permute(0, 3, 1, 2)
    for made, whole in zip(keys.reduce(truth), truth, strict=True):
        image = Image.fromarray(whole.permute(1, 2, 0).numpy()).resize((8, 6), Image.Resampling.BICUBIC)
        assert np.abs(made.permute(1, 2, 0).numpy().astype(int) - np.asarray(image)).max() <= 1


def test_batches_are_a_function_of_the_step(folder):
    config = config_for(folder)
    one, other = (keys.Batches(config, keys.load_crops(config), torch.device("cpu")) for _ in range(2))
    small, truth = one(3)
    assert small.shape == (2, 3, 4, 4) and truth.shape == (2, 3, 16, 16) and 0 <= small.min() <= truth.max() <= 1
    assert all(torch.equal(a, b) for a, b in zip(one(3), other(3), strict=True))
    assert not torch.equal(truth, one(4)[1])


def test_a_killed_training_ends_as_an_uninterrupted_one(folder, tmp_path, monkeypatch):
    config = config_for(folder)
    whole = trained(config, tmp_path / "whole")
    batches = keys.Batches.__call__

    def dies(self, step):
        if step == 4:
            raise KeyboardInterrupt
        return batches(self, step)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(keys.Batches, "__call__", dies)
        trained(config, tmp_path / "killed")
    killed = trained(config, tmp_path / "killed")
    assert whole and all(torch.equal(killed[name], whole[name]) for name in whole)
    network = zoo.load(tmp_path / "killed")
    assert isinstance(network, FrameUpscaler) and network.last.weight.abs().max() > 0


def test_training_goes_on_from_the_weights_of_a_run_and_from_no_other_network(folder, tmp_path):
    first = trained(config_for(folder), tmp_path / "first")
    again = replace(config_for(folder), init=str(tmp_path / "first"))
    found = keys.first_network(again).state_dict()
    assert all(torch.equal(found[name], first[name]) for name in first)
    fresh = keys.first_network(config_for(folder)).state_dict()
    assert any(not torch.equal(found[name], fresh[name]) for name in fresh)
    with pytest.raises(UserError, match=r"'channels': 4.*upscaler.channels and upscaler.num_blocks must say the same"):
        keys.first_network(replace(again, upscaler=Upscaler(channels=8, num_blocks=1)))


def test_what_is_left_out_of_a_film_is_in_no_crop(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    frames = np.stack([np.full((32, 32, 3), 5 * second, np.uint8) for second in range(50)])
    film = write(tmp_path / "a.mp4", frames, rate=1, options={"crf": "0"})
    crops = still_crops([], [film], [20.0], 60, 16)
    seen = {round(float(crops.read([index]).float().mean()) / 5) for index in range(len(crops))}
    assert seen and not seen & set(range(21, 39)) and {45, 5} & seen


def test_transparent_parts_lie_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert open_rgb(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(UserError, match=r"b\.png: not a readable image"):
        open_rgb(tmp_path / "b.png")


def test_held_out_photographs_are_there_and_none_is_of_the_test_clips():
    files = [file for download in PHOTO_DOWNLOADS.values() for file in download.files]
    assert set(SETS) == set(PHOTO_DOWNLOADS)
    assert set(HELD_OUT) < set(files) and len(files) == len(set(files))
    assert not {"china.jpg", "flower.jpg", "motorcycle_right.png"} & set(files)


@pytest.mark.parametrize("patch", [18, 64])
def test_a_patch_that_does_not_fit_is_refused(patch, folder):
    with pytest.raises(UserError, match=f"upscaler.patch_px={patch}: must be a multiple of 4"):
        keys.load_crops(config_for(folder, patch_px=patch))


def test_something_must_be_trained_on():
    with pytest.raises(UserError, match="nothing to learn from"):
        EnhanceVideo(stage="train_keys", upscaler=Upscaler(photographs=False, films=False)).check()
    EnhanceVideo(stage="train_keys", upscaler=Upscaler(photographs=False, films=False, drawn_share=1.0)).check()


def test_muon_has_the_kernels_in_the_middle_and_adamw_all_else(folder):
    network = FrameUpscaler(4, 4, 2)
    named = {id(value): name for name, value in network.named_parameters()}
    found = keys.make_optimizers(config_for(folder, muon_lr=0.5), network)
    parts = {name: {named[id(one)] for one in each.param_groups[0]["params"]} for name, each in found.items()}
    blocks = {f"blocks.{block}.{conv}.weight" for block in (0, 1) for conv in ("first", "second")}
    assert parts["muon"] == blocks | {"exit.weight"}
    assert parts["optimizer"] == set(named.values()) - parts["muon"]
    assert (found["muon"].defaults["lr"], found["optimizer"].defaults["lr"]) == (0.5, 1e-2)
    alone = keys.make_optimizers(config_for(folder, muon_lr=None), network)
    assert list(alone) == ["optimizer"] and len(alone["optimizer"].param_groups[0]["params"]) == len(named)


def test_both_rates_follow_the_schedule(folder, tmp_path, monkeypatch):
    """Cosine over six steps, from the first on: the last step's factor is (1 + cos(5 pi / 6)) / 2."""
    config, rates = config_for(folder, muon_lr=0.5), []
    plain = keys.update

    def watched(optimizers, *rest):
        rates.append([one.param_groups[0]["lr"] for one in optimizers])
        return plain(optimizers, *rest)

    monkeypatch.setattr(keys, "update", watched)
    trained(replace(config, optim=replace(config.optim, schedule="cosine", warmup_steps=0)), tmp_path / "run")
    factors = [(1 + np.cos(np.pi * step / 6)) / 2 for step in range(6)]
    assert rates == [pytest.approx([1e-2 * factor, 0.5 * factor]) for factor in factors]


def test_a_network_without_blocks_for_it_is_refused_before_crops_are_cut(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "still_crops", lambda *rest: pytest.fail("crops were cut"))
    config = config_for(folder)
    with pytest.raises(UserError, match=r"optim\.gradient_checkpointing=true: FrameUpscaler has no blocks"):
        trained(replace(config, optim=replace(config.optim, gradient_checkpointing=True)), tmp_path / "run")


def test_a_dry_run_tells_of_the_training_and_of_no_clip(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=enhance_train_keys", "upscaler.channels=4", "upscaler.num_blocks=1", "optim.num_steps=7"]
    assert dry_run("enhance-video", words) == 0
    said = capsys.readouterr().out
    hidden, ends = 3 * (4 * 4 * 9 + 4), (3 * 4 * 9 + 4) + (4 * 48 * 9 + 48)  # kernels and biases
    assert f"{hidden + ends}" in said and "7 steps of 8 pictures" in said and "bikes" not in said
    assert not list(tmp_path.iterdir())


def test_the_plan_has_the_network_the_loss_and_the_crops_of_training():
    config = EnhanceVideo(stage="train_keys", upscaler=Upscaler(channels=4, num_blocks=1, patch_px=32))
    (stage,) = footprint.stages(config)
    networks = stage.build()
    networks.loss(3).backward()
    assert all(one.grad is not None for one in networks.trained.parameters())
    assert (stage.name, stage.num_steps, stage.batch_size) == (
        "train_keys",
        config.optim.num_steps,
        config.optim.batch_size,
    )
    assert stage.cache_bytes == config.data.num_crops * config.data.crop_px**2 * 3


def test_the_plan_counts_the_moments_that_the_optimisers_keep(folder):
    """Muon has one of a kernel, AdamW two of everything else."""
    config = config_for(folder, muon_lr=0.5)
    (stage,) = footprint.stages(config)
    network = keys.first_network(config)
    optimizers = keys.make_optimizers(config, network)
    keys.Enlarging(network)(torch.rand(2, 3, 4, 4), torch.rand(2, 3, 16, 16)).backward()
    for optimizer in optimizers.values():
        optimizer.step()
    states = [state for optimizer in optimizers.values() for state in optimizer.state.values()]
    kept = sum(one.nbytes for state in states for one in state.values() if torch.is_tensor(one) and one.dim())
    plan = plan_stage(stage, devices.parse("A100-40"), Tracer(True), keep_checkpoints=1)
    assert plan.memory.moments == kept < 8 * plan.trained
    assert plan.checkpoint_bytes == 4 * plan.trained + kept + 4 * plan.trained
