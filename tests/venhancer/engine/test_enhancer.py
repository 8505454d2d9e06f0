"""The generative backend end to end: sizes, windows and tiles against the plain computation, resuming, refusals."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from tests.venhancer.networks import clip, tiny_pipeline
from toolkit.errors import JobError, UserError
from toolkit.venhancer.engine.enhancer import Enhancer
from toolkit.venhancer.engine.in_flight import Flight
from toolkit.venhancer.engine.layout import plan_layout
from toolkit.venhancer.engine.settings import EnhanceSettings
from toolkit.venhancer.model import residuals
from toolkit.venhancer.model.conditioning import key_frame_index
from toolkit.venhancer.pipeline import ArraySource, VideoEnhancePipeline

SETTINGS = EnhanceSettings(height=40, width=60, frame_factor=2, noise_level=50).changed(
    num_steps=2, tile_height_px=96, tile_width_px=96
)


def enhance(pipeline, video, folder, settings=SETTINGS, **changes):
    chunks = list(Enhancer(pipeline, settings.changed(**changes)).enhance(ArraySource(video), folder))
    assert [chunk.start for chunk in chunks] == list(
        itertools.accumulate((len(chunk.frames) for chunk in chunks[:-1]), initial=0)
    )
    return np.concatenate([chunk.frames for chunk in chunks])


def left(folder, pipeline, settings, video):
    """What an enhancement left in ``folder``."""
    geometry = plan_layout(pipeline, settings, ArraySource(video)).geometry
    return Flight(folder, geometry, json.loads((folder / "state.json").read_text())["fingerprint"])


def predict_nothing(pipeline, monkeypatch):
    """v of a perfect denoiser whose sample is zero: residuals vanish, what is left is the filled-in input."""
    schedule = pipeline.scheduler

    def forward(x, t, y, **conditions):
        return x * schedule.alphas[t] / schedule.sigmas[t]

    monkeypatch.setattr(pipeline.denoiser, "forward", forward)


@pytest.mark.parametrize("scale", [1, 1.37, 2, 2.5, 3.3, 4, 8])
def test_any_scale_is_the_size_delivered_and_nothing_predicted_is_the_plain_resize(scale, tmp_path, monkeypatch):
    pipeline, video = tiny_pipeline(), clip(3, 17, 23)
    predict_nothing(pipeline, monkeypatch)
    height, width = round(17 * scale), round(23 * scale)
    out = enhance(pipeline, video, tmp_path, height=height, width=width, tile_height_px=32, tile_width_px=48)
    assert out.shape == (5, height, width, 3) and out.dtype == np.uint8
    frames = torch.from_numpy(video).permute(0, 3, 1, 2).float() / 127.5 - 1
    large = F.interpolate(frames, size=(height, width), mode="bicubic", align_corners=False)
    blended = torch.stack([large[0], (large[0] + large[1]) / 2, large[1], (large[1] + large[2]) / 2, large[2]])
    expected = ((blended + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(out - expected).max() <= 0.501  # rounding to 8 bit


def plain(pipeline, video, settings):
    """Step by step over the whole latent in memory: every window of a step, blended, then the solver."""
    source = ArraySource(video)
    layout = plan_layout(pipeline, settings, source)
    g, k = layout.geometry, settings.frame_factor
    frames = torch.from_numpy(video).permute(0, 3, 1, 2).float() / 127.5 - 1
    large = F.interpolate(frames, size=(settings.height, settings.width), mode="bicubic", align_corners=False)
    pad = (0, 2 * g.columns - settings.width, 0, 2 * g.rows - settings.height)
    large = F.pad(large, pad, mode="replicate")
    parts = [pipeline.fill.parts(frame, k) for frame in range(layout.num_frames)]
    fill = pipeline.codec.encode(torch.stack([sum(weight * large[key] for key, weight in one) for one in parts]))

    def noise(purpose, count):
        rows = [(start, min(start + 16, g.rows)) for start in range(0, g.rows, 16)]
        return torch.stack(
            [torch.cat([Flight.noise_of(g, settings.seed, purpose, f, r)[0] for r in rows], 1) for f in range(count)]
        )

    keys = residuals.with_margin(pipeline.codec.encode(large))
    units = [residuals.expected([(keys[key, None], weight) for key, weight in one], layout.scale) for one in parts]
    hint = residuals.standardised(keys)
    hint = pipeline.scheduler.add_noise(hint, noise("hint", len(hint)), settings.noise_level - 1)
    z = pipeline.scheduler.at(pipeline.start_step - 1)[1] * noise("start", layout.num_frames)
    memory = None
    for number, one in enumerate(layout.evaluations):
        x0 = torch.zeros_like(z)
        for index, (start, end) in enumerate(layout.windows.spans):
            keys = hint[start // k : (end - 1) // k + 1].transpose(0, 1)[None]
            v = pipeline.denoiser(
                z[start:end].transpose(0, 1)[None],
                one.step,
                torch.zeros(1, 1, 4),
                hint=keys,
                t_hint=settings.noise_level - 1,
                up_scale=layout.scale,
                key_frame_index=key_frame_index(start, end, k),
            )[0].transpose(0, 1)
            for frame, value in enumerate(one.clean(z[start:end], v), start):
                shared = range(*layout.windows.overlap(index))
                weight = layout.windows.weight(index, frame) if frame in shared else 1.0
                x0[frame] = torch.lerp(x0[frame], value, weight)
        z, memory = one.advance(z, x0, memory, noise(f"step{number}", len(z)) if one.noise else None)
    picture = pipeline.codec.decode(z * torch.cat(units) + fill)
    return ((picture[:, :, : settings.height, : settings.width] + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy()


@torch.no_grad()
@pytest.mark.parametrize("solver", ["dpmpp_2m_sde", "heun", "ddim"])
def test_windows_in_flight_equal_whole_steps_in_memory(solver, tmp_path):
    pipeline, video = tiny_pipeline(), clip(10)
    settings = SETTINGS.changed(solver=solver, num_steps=2, num_frames=9)
    expected = plain(pipeline, video, settings)
    assert len(plan_layout(pipeline, settings, ArraySource(video)).windows) > 2
    out = enhance(pipeline, video, tmp_path, settings)
    assert np.abs(out - expected).max() <= 0.51


def gradient_ratio(video, places):
    """Mean gradient across given columns over the mean elsewhere."""
    steps = np.abs(np.diff(video.astype(float), axis=2)).mean(axis=(0, 1, 3))
    at = np.zeros(len(steps), bool)
    at[places] = True
    return steps[at].mean() / steps[~at].mean()


def test_tiles_leave_no_seams_and_stay_close_to_the_whole(tmp_path):
    """T14: same noise, tiled and untiled."""
    pipeline, video = tiny_pipeline(), clip(3, 32, 48)
    settings = SETTINGS.changed(height=64, width=96, num_steps=4)
    whole = enhance(pipeline, video, tmp_path / "whole", settings, tile_height_px=64, tile_width_px=96)
    tiled_settings = {"tile_height_px": 32, "tile_width_px": 48}
    tiled = enhance(pipeline, video, tmp_path / "tiled", settings, **tiled_settings)
    grid = plan_layout(pipeline, settings.changed(**tiled_settings), ArraySource(video)).grid(0.25, None)
    borders = sorted({2 * edge - 1 for tile in grid for edge in (tile.columns.start, tile.columns.stop)} - {-1, 95})
    assert len(grid) == 9 and len(borders) == 3
    assert 0.9 < gradient_ratio(tiled, borders) / gradient_ratio(whole, borders) < 1.1
    error = np.mean((whole.astype(float) - tiled) ** 2)
    assert 10 * np.log10(255**2 / error) > 30


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 7])
def test_a_killed_enhancement_goes_on_after_its_last_window(after, tmp_path):
    pipeline, video = tiny_pipeline(), clip(10, 10, 16)
    settings = SETTINGS.changed(height=20, width=32, num_steps=3, num_frames=9, chunk_mib=1)
    whole = enhance(pipeline, video, tmp_path / "whole", settings)
    got, seen = [], []

    def kill(progress):
        seen.append(progress.done)
        if len(seen) == after:
            raise Killed

    enhancer = Enhancer(pipeline, settings)
    with pytest.raises(Killed):
        for chunk in enhancer.enhance(ArraySource(video), tmp_path / "killed", progress=kill):
            got.append(chunk)
    for chunk in enhancer.enhance(ArraySource(video), tmp_path / "killed", progress=lambda p: seen.append(p.done)):
        got.append(chunk)
    assert seen == list(range(1, seen[-1] + 1))  # no window twice
    assert np.array_equal(np.concatenate([chunk.frames for chunk in got]), whole)


def test_a_chunk_that_was_not_acknowledged_comes_again(tmp_path):
    pipeline, video = tiny_pipeline(), clip(5)
    enhancer = Enhancer(pipeline, SETTINGS)
    frames = enhancer.enhance(ArraySource(video), tmp_path)
    first = next(frames)
    frames.close()
    again = list(enhancer.enhance(ArraySource(video), tmp_path))
    assert again[0].start == first.start and np.array_equal(again[0].frames, first.frames)
    assert list(enhancer.enhance(ArraySource(video), tmp_path)) == []


def test_same_seed_same_frames_and_another_seed_others(tmp_path):
    pipeline, video = tiny_pipeline(), clip(3)
    first, again, other = (
        enhance(pipeline, video, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_noise_does_not_depend_on_windows_or_tiles(tmp_path):
    video, pipeline = clip(9), tiny_pipeline()
    starts = []
    for number, changes in enumerate(({}, {"num_frames": 5}, {"tile_height_px": 32, "tile_width_px": 48})):
        settings = SETTINGS.changed(num_steps=1, **changes)
        list(Enhancer(pipeline, settings).enhance(ArraySource(video), tmp_path / str(number)))
        starts.append(left(tmp_path / str(number), pipeline, settings, video).latents[0].read([14, 15, 16]))
    assert torch.equal(starts[0], starts[1]) and torch.equal(starts[0], starts[2])


def test_no_noise_level_means_no_noise(tmp_path):
    """T17: the release's level 0 turns the hint into pure noise; ours leaves it alone."""
    pipeline, video = tiny_pipeline(), clip(3)
    for level in (0, 300):
        settings = SETTINGS.changed(noise_level=level)
        list(Enhancer(pipeline, settings).enhance(ArraySource(video), tmp_path / str(level)))
        hint = left(tmp_path / str(level), pipeline, settings, video).hints.read([1])
        frames = torch.from_numpy(video[1:2]).permute(0, 3, 1, 2).float() / 127.5 - 1
        large = F.interpolate(frames, size=(40, 60), mode="bicubic", align_corners=False)
        wanted = residuals.standardised(residuals.with_margin(pipeline.codec.encode(large)))
        error = (hint - wanted).abs().max()
        assert error < 1e-5 if level == 0 else error > 1


def test_one_frame_is_a_clip_too(tmp_path):
    assert enhance(tiny_pipeline(), clip(1), tmp_path, frame_factor=8).shape == (1, 40, 60, 3)


def test_another_enhancements_folder_is_refused(tmp_path):
    pipeline, video = tiny_pipeline(), clip(3)
    enhance(pipeline, video, tmp_path)
    with pytest.raises(UserError, match="another enhancement in progress"):
        enhance(pipeline, video, tmp_path, seed=3)
    assert len(enhance(pipeline, video, tmp_path / "new", chunk_mib=3)) == 5


@pytest.mark.parametrize("part", ["denoiser", "vae"])
def test_one_number_of_one_weight_makes_it_another_enhancement(part):
    """Also the last one of a large tensor, and in the autoencoder; in bfloat16 too."""
    parts, source = tiny_pipeline(), ArraySource(clip(3))
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, layers_per_block=1, latent_channels=12)
    pipeline = VideoEnhancePipeline(parts.denoiser.bfloat16(), vae, parts.scheduler)
    before, again = (Enhancer(pipeline, SETTINGS)._fingerprint(source) for _ in range(2))
    largest = max(getattr(pipeline, part).parameters(), key=lambda one: one.numel())
    with torch.no_grad():
        largest.view(-1)[-1] += 1
    assert before == again != Enhancer(pipeline, SETTINGS)._fingerprint(source)


def test_a_shot_whose_latents_are_gone_starts_again(tmp_path):
    pipeline, video = tiny_pipeline(), clip(3)
    whole = enhance(pipeline, video, tmp_path)
    (tmp_path / "latents0").unlink()
    assert np.array_equal(enhance(pipeline, video, tmp_path), whole)


def test_what_an_earlier_version_left_in_flight_starts_again(tmp_path):
    pipeline, video = tiny_pipeline(), clip(3)
    enhance(pipeline, video, tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(state | {"fingerprint": "0123456789abcdef"}))
    assert len(enhance(pipeline, video, tmp_path)) == 5


def test_a_source_that_ends_early(tmp_path):
    source = ArraySource(clip(5))
    source.num_frames = 7
    with pytest.raises(JobError, match="ended after 5 of 7 frames"):
        list(Enhancer(tiny_pipeline(), SETTINGS).enhance(source, tmp_path))


def test_latents_that_stop_being_finite(tmp_path):
    pipeline = tiny_pipeline()
    pipeline.denoiser.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(JobError, match="step 0, window 0: the latents are not finite"):
        list(Enhancer(pipeline, SETTINGS).enhance(ArraySource(clip(3)), tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_factor": 9}, "frame_factor=9: must be at most 8"),
        ({"noise_level": 301}, "noise_level=301: must be at most 300"),
        ({"height": 0}, "height=0: must be at least 1"),
        ({"overlap": 0.6}, r"windows\.overlap=0\.6: must be at most 0\.5"),
        ({"steps": 2}, "steps: no such setting; did you mean 'num_steps'"),
        ({"solver": "euler"}, r"sampling\.solver=euler: .*choose one of"),
        ({"num_steps": 0}, r"sampling\.num_steps=0: must be at least 1"),
        ({"frame_factor": 8, "num_frames": 8}, "must hold two key frames"),
    ],
)
def test_settings_that_do_not_fit(change, message):
    with pytest.raises(UserError, match=message):
        Enhancer(tiny_pipeline(), SETTINGS.changed(**change)).plan(ArraySource(clip(9)))


def test_plan_counts_what_happens(tmp_path, monkeypatch):
    pipeline, video = tiny_pipeline(), clip(6)
    calls = []
    forward = pipeline.denoiser.forward
    monkeypatch.setattr(pipeline.denoiser, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    changes = {"num_frames": 9, "tile_height_px": 32, "tile_width_px": 48, "prompt": "a prompt", "guidance_scale": 7.5}
    plan = Enhancer(pipeline, SETTINGS.changed(**changes)).plan(ArraySource(video))
    enhance(pipeline, video, tmp_path, **changes)
    assert plan.forwards == len(calls) == plan.evaluations * plan.tiles * len(plan.windows)
    assert (plan.num_frames, plan.height, plan.width) == (11, 40, 60)
    assert len(plan.notes) == 2 and "null text" in plan.notes[0]
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir() if path.name != "state.json")
    assert plan.disk_bytes == on_disk
