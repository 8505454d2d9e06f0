"""What a config hands on to networks and to the network's run, means over clips, and times of the grid of frames."""

import contextlib
import dataclasses
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.data.videos import write
from tests.venhancer.networks import clip
from toolkit.data.video.scan import index_video
from toolkit.data.video.write import Encoding
from toolkit.runs.record import Run
from toolkit.venhancer import job, pipeline
from toolkit.venhancer.build import build_pipeline
from toolkit.venhancer.clips import backends, parts, prepare
from toolkit.venhancer.clips.backends import GenerativeBackend, _Grid
from toolkit.venhancer.clips.former import is_done
from toolkit.venhancer.clips.inputs import Task, _even, _exact_size
from toolkit.venhancer.clips.parts import Written
from toolkit.venhancer.clips.side_by_side import held_frames
from toolkit.venhancer.clips.timeline import Shot
from toolkit.venhancer.config import Classic, Degrade, EnhanceVideo, Sampling, Windows
from toolkit.venhancer.engine.frame_store import FrameStore
from toolkit.venhancer.engine.settings import EnhanceSettings
from toolkit.venhancer.model.loading import penultimate
from toolkit.venhancer.pipeline import ArraySource, VideoEnhancePipeline
from toolkit.venhancer.train.config import VideoUNetConfig


def test_every_key_of_the_network_reaches_it():
    network = VideoUNetConfig(
        codec="unshuffle", codec_factor=2, block_out_channels=[16, 24, 32], attention_levels=1, layers_per_block=1,
        cross_attention_dim=4, attention_head_dim=8, entry_heads=1, norm_num_groups=4, asymmetric=False, dropout=0.25,
        conditioning="shared", diffuses="residuals", data_std=0.7, resize="bicubic", blend=True, tile_rows=8,
        tile_columns=12,
    )  # fmt: skip
    config = EnhanceVideo(network=network)
    config.data.num_frames = 40
    made = build_pipeline(config)
    base, control = made.denoiser.unet.config, made.denoiser.controlnet.config
    assert list(base["attention_levels"]) == [True, False, False] and list(base["block_out_channels"]) == [16, 24, 32]
    for key in ("layers_per_block", "cross_attention_dim", "attention_head_dim", "entry_heads", "norm_num_groups"):
        assert base[key] == getattr(network, key), key
    assert (base["dropout"], base["asymmetric"], control["conditioning"]) == (0.25, False, "shared")
    for key in ("diffuses", "data_std", "resize", "blend", "tile_rows", "tile_columns"):
        assert made.config[key] == getattr(network, key), key
    assert made.config["max_frames"] == 40 and made.codec.factor == 2


def test_every_key_of_the_run_reaches_the_network():
    sampling, windows = Sampling(solver="ddim", guidance_scale=3.0), Windows(num_frames=9)
    asked = {"scale_condition": 3.0, "conditioning_scale": 0.5, "prompt": "a", "negative_prompt": "b", "seed": 7}
    config = EnhanceVideo(fidelity="creative", sampling=sampling, windows=windows, **asked)
    work = SimpleNamespace(size=(64, 48), timeline=SimpleNamespace(factor=4))
    made = prepare.enhance_settings(work, config)
    given = {"height": 48, "width": 64, "frame_factor": 4, "noise_level": 250, "sampling": sampling}
    for key, value in {**asked, **given, "windows": windows}.items():
        assert getattr(made, key) == value, key
    assert prepare.enhance_settings(work, dataclasses.replace(config, between="motion")).frame_factor == 1
    assert prepare.enhance_settings(work, dataclasses.replace(config, noise_level=20)).noise_level == 20
    fidelity = {word: EnhanceVideo(fidelity=word).noise for word in ("faithful", "balanced", "creative")}
    assert fidelity == {"faithful": 50, "balanced": 150, "creative": 250}


def test_a_number_of_steps_asks_for_the_mode_that_takes_it():
    assert EnhanceSettings(8, 8).changed(num_steps=5).sampling.mode == "normal"
    assert EnhanceSettings(8, 8).changed(num_steps=5, mode="fast").sampling.mode == "fast"
    assert EnhanceSettings(8, 8).changed(seed=5).sampling.mode == "fast"


def test_a_cut_of_a_degraded_clip_is_at_the_first_frame_of_the_new_scene_that_is_kept(tmp_path):
    """Scenes of 5, 6 and 9 frames, cuts at 5 and 11: of every second, number 3 is the first from 5 on, 6 from 11."""
    rng = np.random.default_rng(0)
    scenes = [np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(3)]
    frames = np.stack([scenes[0]] * 5 + [scenes[1]] * 6 + [scenes[2]] * 9)
    write(tmp_path / "a.mp4", frames, options={"crf": "10"})
    config = EnhanceVideo(input=str(tmp_path / "a.mp4"), backend="bicubic", degrade=Degrade(frame_step=2), scale=1.0)
    work = prepare.prepare(Task("a", tmp_path / "a.mp4", tmp_path / "b.mp4", None), config, tmp_path / "work")
    assert [shot.keys[0] for shot in work.timeline.shots] == [0, 3, 6] and work.index.num_frames == 10


def test_pixels_keep_the_shape_of_the_picture():
    """100 x 50 square pixels written as 300 x 100: each is two thirds as wide as high."""
    index = SimpleNamespace(
        aspect=Fraction(1), width=100, height=50, primaries=1, transfer=1, is_toned=False, deep=False
    )
    made = prepare._encoding(EnhanceVideo(), index, 300, 100, Fraction(24), "yuv420p")
    assert made.aspect == Fraction(2, 3) and (made.width, made.height) == (300, 100)
    index.aspect = Fraction(16, 11)
    assert prepare._encoding(EnhanceVideo(), index, 200, 100, Fraction(24), "yuv420p").aspect == Fraction(16, 11)


def test_a_side_that_is_not_given_follows_from_the_shape_and_even_sides_are_the_nearest():
    index = SimpleNamespace(width=100, height=50)
    assert _exact_size(EnhanceVideo(width=300), index, None) == (300, 150)
    assert _exact_size(EnhanceVideo(height=150), index, None) == (300, 150)
    assert _exact_size(EnhanceVideo(), index, None) == (200, 100)
    assert _exact_size(EnhanceVideo(), index, (400, 200)) == (400, 200)
    assert [_even(side) for side in (31.2, 33.0, 34.9, 35.1, 0.5)] == [32, 32, 34, 36, 2]


def test_means_are_over_clips_and_a_sweep_looks_for_the_largest(tmp_path, monkeypatch):
    run = Run(tmp_path, EnhanceVideo())
    run.record["metrics"] = {}
    found = {"a": {"ours": {"psnr": 20.0, "cut": 1.0}}, "b": {"ours": {"psnr": 30.0}}, "c": {"ours": {"psnr": 31.0}}}
    job._record(run, found)
    assert run.record["metrics"]["ours.psnr"] == 27 and "ours.cut" not in run.record["metrics"]
    assert run.record["metrics"]["clips.b.ours.psnr"] == 30
    monkeypatch.setattr(run, "stage_done", lambda name: True)
    monkeypatch.setattr(job, "accelerator_of", lambda run: None)
    monkeypatch.setattr(job, "_open_tasks", lambda *_: [])
    monkeypatch.setattr(job, "show_end", lambda *_, **__: None)
    assert job.main(EnhanceVideo(), run) == -27
    del run.record["metrics"]["ours.psnr"]
    assert job.main(EnhanceVideo(), run) is None


def test_what_a_run_trains_is_what_it_enhances_with(tmp_path):
    run = Run(tmp_path, EnhanceVideo())
    assert job._trained(EnhanceVideo(stage="all"), run).model == str(tmp_path / "model")
    assert job._trained(EnhanceVideo(stage="enhance"), run).model == "small"


@pytest.fixture
def backend(tmp_path):
    """Of a network that makes four steps between keys; its shot begins at output frame 7."""
    reader, config = SimpleNamespace(height=4, width=6), EnhanceVideo(color_fix="adain")
    return GenerativeBackend(reader, None, config, (6, 4), 4, "cpu", tmp_path)


SHOT = Shot((3, 4, 5), tuple(Fraction(n, 2) for n in range(5)), 7)  # half-way frames between three keys


def chunk(folder, first, *values):
    folder.mkdir(exist_ok=True)
    frames = np.stack([np.full((4, 6, 3), value, np.uint8) for value in values])
    np.save(folder / f"chunk_{first:08d}_{len(values):04d}.npy", frames)


def test_times_on_the_networks_grid_are_four_times_those_on_keys(backend):
    assert backend.places(SHOT) == [0, 2, 4, 6, 8]


def test_frames_of_the_grid_come_from_disk_once_then_from_the_network(backend, monkeypatch):
    chunk(backend.folder(SHOT), 0, 0, 1, 2)
    chunk(backend.folder(SHOT), 3, 3, 4)
    made = np.stack([np.full((4, 6, 3), value, np.uint8) for value in range(3, 9)])
    monkeypatch.setattr(_Grid, "_made", lambda self: iter([(3, made)]))
    for start in (0, 1, 4, 6):
        assert [frame[0, 0, 0] for frame in _Grid(backend, SHOT).frames(start)] == list(range(start, 9))


def test_frames_that_no_later_output_needs_are_forgotten(backend):
    """Output frame 3 lies at 6 of the grid: what ends before that may go, what holds 6 stays."""
    folder = backend.folder(SHOT)
    for first in (0, 3, 6):
        chunk(folder, first, 0, 0, 0)
    chunk(folder, 5, 0)
    backend.stored(SHOT, 3)
    assert sorted(int(path.name[6:14]) for path in folder.glob("chunk_*")) == [6]
    backend.stored(SHOT, 5)
    assert not folder.exists()


def test_colours_of_a_grid_frame_are_those_of_the_input_at_its_own_time(backend, monkeypatch):
    asked = []

    def guides(keys, places, start, *_):
        asked.extend(places)
        return (np.zeros((2, 3, 3), np.uint8) for _ in places)

    monkeypatch.setattr(backends, "motion_frames", guides)
    _Grid(backend, SHOT)._coloured(3, np.ones((7, 4, 6, 3), np.uint8))
    assert asked == [Fraction(3, 4), 1, Fraction(5, 4), Fraction(3, 2), Fraction(7, 4), 2, 2]


def test_a_finished_clip_is_read_from_the_shots_own_first_frame():
    read = SimpleNamespace(frames=lambda start: start)
    made = object.__new__(Written)
    made.reader = read
    assert made.frames(SHOT, 2) == 9


def test_a_store_sets_adds_and_clears_slots_in_turn(tmp_path):
    store = FrameStore(tmp_path / "store", 3, 1, 2, 2)
    store.write([4], torch.full((1, 1, 2, 2), 2.0))
    store.write([4], torch.full((1, 1, 1, 2), 5.0), rows=(1, 2), add=True)
    assert store.read([4]).flatten().tolist() == store.read([1]).flatten().tolist() == [2, 2, 7, 7]
    store.write([7], torch.full((1, 1, 2, 1), 1.0), columns=(0, 1))
    assert store.read([1]).flatten().tolist() == [1, 2, 1, 7]
    store.clear([4])
    assert store.read([0, 1, 2]).abs().sum() == 0


def test_sizes_are_rounded_and_a_source_goes_on_where_it_is_asked_to(monkeypatch):
    asked = {}

    class Made:
        def __init__(self, parts, settings):
            asked.update(height=settings.height, width=settings.width, factor=settings.frame_factor)

        def enhance(self, source, folder, progress):
            yield SimpleNamespace(frames=np.stack(list(source.frames(3))))

    monkeypatch.setattr(pipeline, "Enhancer", Made)
    video = clip(5, 20, 30)
    found = VideoEnhancePipeline.__call__(None, video, scale=1.49, frame_factor=2).frames
    assert asked == {"height": 30, "width": 45, "factor": 2}  # 29.8 and 44.7
    assert np.array_equal(found, video[3:]) and ArraySource(video).num_frames == 5


def test_text_is_seen_as_the_last_layer_but_one_with_the_final_norm():
    """Of 24 layers; an encoder of 23 gives it as its last."""
    output = SimpleNamespace(hidden_states=[1, 2, 3], last_hidden_state=30)
    whole = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=24), final_layer_norm=lambda x: 10 * x)
    assert penultimate(whole, output) == 20
    whole.config.num_hidden_layers = 23
    assert penultimate(whole, output) == 30


@pytest.mark.parametrize(
    ("change", "done"), [({}, True), ({"output": "c.mp4"}, False), ({"written": {}}, False), ({"status": "x"}, False)]
)
def test_a_clip_is_done_where_it_is_written_as_and_to_where_it_should_be(tmp_path, change, done):
    config, task = EnhanceVideo(), Task("a", tmp_path / "a.mp4", tmp_path / "b.mp4", None)
    entry = {"status": "done", "output": str(task.output), "written": dataclasses.asdict(config.encode)}
    run = SimpleNamespace(record={"clips": {"a": entry | change}})
    assert is_done(run, task, config) is done
    assert not is_done(SimpleNamespace(record={}), task, config)


def test_the_input_stands_still_until_its_next_frame(tmp_path):
    """At 2 frames a second beside an output of 5: frames 0, 0, 0, 1, 1, 2, 2, 2, 3, 3."""
    greys = np.array([20, 90, 160, 230])
    frames = np.broadcast_to(greys.reshape(4, 1, 1, 1), (4, 32, 32, 3)).astype(np.uint8)
    index = index_video(write(tmp_path / "a.mp4", frames, rate=2, options={"crf": "5"}))
    shown = held_frames(index, SimpleNamespace(num_frames=10, rate=Fraction(5)))
    numbers = [int(np.abs(greys - frame.mean()).argmin()) for frame in shown]
    assert numbers == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]


def test_parts_that_are_there_are_not_made_again_and_the_next_begin_where_they_are_missing(tmp_path, monkeypatch):
    """Two shots of five and three frames in parts of two: the first part is there, so the shot goes on at frame 2."""
    shots = (Shot((0,), tuple(map(Fraction, range(5))), 0), Shot((1,), tuple(map(Fraction, range(3))), 5))
    asked, written, stored = [], {}, []

    class Backend:
        def frames(self, shot, start):
            asked.append((shot.first, start))
            return iter(range(10 * shot.first + start, 10 * shot.first + len(shot.positions)))

        def stored(self, shot, stop):
            stored.append((shot.first, stop))

    monkeypatch.setattr(parts, "write_part", lambda path, frames, encoding: written.update({path: list(frames)}))
    encoding = Encoding(4, 4, Fraction(24))
    timeline = SimpleNamespace(shots=shots)
    paths = parts.write_parts(Backend(), timeline, encoding, 2, tmp_path, None)
    assert list(written.values()) == [[0, 1], [2, 3], [4], [50, 51], [52]] and list(written) == paths
    assert asked == [(0, 0), (5, 0)] and stored == [(0, 2), (0, 4), (0, 5), (5, 2), (5, 3)]
    for there, begun, made in [
        ([0], [(0, 2), (5, 0)], [[2, 3], [4], [50, 51], [52]]),
        ([1], [(0, 0), (0, 4), (5, 0)], [[0, 1], [4], [50, 51], [52]]),
        ([2, 3], [(0, 0), (5, 2)], [[0, 1], [2, 3], [52]]),
    ]:
        asked.clear(), written.clear()
        for number, path in enumerate(paths):
            path.touch() if number in there else path.unlink(missing_ok=True)
        parts.write_parts(Backend(), timeline, encoding, 2, tmp_path, None)
        assert asked == begun and list(written.values()) == made


@pytest.mark.parametrize("rank", [0, 1])
def test_clips_are_made_and_cleared_away_by_the_first_process_alone(rank, monkeypatch, tmp_path):
    did = []
    monkeypatch.setattr(job, "rank", lambda: rank)
    monkeypatch.setattr(job, "accelerator_of", lambda _: SimpleNamespace(device="cpu"))
    monkeypatch.setattr(job, "_open_tasks", lambda *_: ["a clip"])
    monkeypatch.setattr(job, "_enhance", lambda config, run, tasks, device: did.append(("made", tasks)))
    monkeypatch.setattr(job, "_training", lambda name, *_: did.append(("trained", name)))
    monkeypatch.setattr(job, "show_end", lambda *_, **__: did.append(("shown",)))
    run = Run(tmp_path / "run", EnhanceVideo())
    (run.dir / "work").mkdir(parents=True)
    monkeypatch.setattr(EnhanceVideo, "stages", lambda _: ["train", "enhance"])
    run.record = {"metrics": {f"{job.OURS}.psnr": 30.5}, "stages": {}}
    monkeypatch.setattr(run, "stage", lambda name: contextlib.nullcontext())
    monkeypatch.setattr(run, "stage_done", lambda name: False)
    assert job.main(EnhanceVideo(input="a"), run) == -30.5
    first = [("made", ["a clip"]), ("shown",)]
    assert did == [("trained", "train"), *(first if rank == 0 else [])]
    assert (run.dir / "work").exists() == (rank == 1)


def test_small_is_the_word_for_the_model_in_the_package_and_no_other_is(monkeypatch):
    monkeypatch.setattr(pipeline.zoo, "local", lambda model: f"local {model}")
    assert [pipeline._folder(model) for model in ("small", "mine")] == ["local video_small", "local mine"]


@pytest.mark.parametrize(("device", "threads"), [("cpu", 3), ("cuda", 1), ("cuda:1", 1)])
@pytest.mark.parametrize("blend", [False, True])
def test_the_classic_backends_frames_are_made_at_once_on_a_processor_and_one_by_one_on_a_card(
    monkeypatch, device, threads, blend
):
    monkeypatch.setattr(backends, "in_order", lambda tasks, at_once: at_once)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    made = backends.ClassicBackend(SimpleNamespace(height=4, width=6), 12, 8, Classic(), device, blend)
    assert made.frames(Shot((0, 1), (Fraction(0), Fraction(1)), 0), 0) == threads
