"""How far an enhancement has come, what it is told apart by, and how it is cut up: plain numbers."""

import dataclasses
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.venhancer.networks import clip, tiny_pipeline
from toolkit.runs.seeds import derive
from toolkit.venhancer.clips import prepare
from toolkit.venhancer.clips.backends import GenerativeBackend, _Grid
from toolkit.venhancer.clips.timeline import Shot
from toolkit.venhancer.config import EnhanceVideo
from toolkit.venhancer.engine import tiles
from toolkit.venhancer.engine.enhancer import Enhancer, _Run
from toolkit.venhancer.engine.in_flight import Flight, Geometry
from toolkit.venhancer.engine.layout import _fit, _padded, _peak_bytes, plan_layout, summarise
from toolkit.venhancer.engine.settings import Chunk, EnhanceSettings, Progress
from toolkit.venhancer.engine.transcode import Transcoder
from toolkit.venhancer.engine.window_steps import WindowSteps
from toolkit.venhancer.engine.windows import Windows, plan_windows, schedule_pairs
from toolkit.venhancer.model import residuals
from toolkit.venhancer.model.conditioning import Fill
from toolkit.venhancer.pipeline import ArraySource

SETTINGS = EnhanceSettings(16, 16, frame_factor=2).changed(num_steps=2, num_frames=5)


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline(silent=True)


# -- how far -----------------------------------------------------------------------------------------------------------


def test_progress_counts_every_window_of_every_step_from_one_to_all(pipeline, tmp_path):
    told = []
    source = ArraySource(clip(7, 8, 8))
    list(Enhancer(pipeline, SETTINGS).enhance(source, tmp_path, progress=told.append))
    layout = plan_layout(pipeline, SETTINGS, source)
    pairs = list(schedule_pairs(len(layout.evaluations), len(layout.windows)))
    assert len(layout.windows) == 3 and len(layout.evaluations) == 2
    assert told == [Progress(number + 1, 6, step, window) for number, (step, window) in enumerate(pairs)]


def test_what_the_network_has_done_is_said_below_the_bar(monkeypatch, tmp_path):
    said, given = [], []
    monkeypatch.setattr(prepare, "VideoReader", lambda index: None)
    monkeypatch.setattr(prepare, "GenerativeBackend", lambda *words: given.extend(words))
    work = SimpleNamespace(index=None, size=(16, 16), timeline=SimpleNamespace(factor=4), folder=tmp_path)
    network = SimpleNamespace(enhancer=lambda work: "enhancer")
    bar = SimpleNamespace(tell=said.append)
    prepare.make_backend("generative", work, EnhanceVideo(), "cpu", network, bar)
    *_, factor, device, folder, report = given
    report(Progress(3, 6, 1, 2))
    assert said == ["network step 1, window 2: 3 of 6 windows"]
    assert (factor, device, folder) == (4, "cpu", tmp_path / "network")


def test_chunks_of_the_network_lie_on_disk_and_its_progress_is_passed_on(tmp_path):
    told = []

    def enhance(keys, folder, progress):
        progress("one window")
        yield Chunk(4, np.full((3, 4, 6, 3), 7, np.uint8))

    reader, config = SimpleNamespace(height=4, width=6), EnhanceVideo(color_fix="none")
    enhancer = SimpleNamespace(enhance=enhance)
    backend = GenerativeBackend(reader, enhancer, config, (6, 4), 4, "cpu", tmp_path, told.append)
    shot = Shot((3, 4, 5), tuple(Fraction(n, 2) for n in range(5)), 7)
    ((first, frames),) = _Grid(backend, shot)._made()
    assert told == ["one window"] and first == 4 and (frames == 7).all()
    assert [path.name for path in (tmp_path / "shot_00000007").glob("*.npy")] == ["chunk_00000004_0003.npy"]


def test_what_is_kept_of_an_enhancement_is_how_far_each_of_three_things_is(tmp_path):
    geometry = Geometry(1, 4, 4, 7, 5, 2, 2, 2)
    flight = Flight(tmp_path, geometry, "a" * 32)
    flight.done, flight.keys_read, flight.delivered = 5, 3, 2
    flight.save()
    again = Flight(tmp_path, geometry, "a" * 32)
    assert (again.done, again.keys_read, again.delivered) == (5, 3, 2) and geometry.keys_in_flight == 5
    for spoil in (lambda path: path.write_bytes(path.read_bytes() + b"0"), lambda path: path.unlink()):
        spoil(tmp_path / "hints")
        lost = Flight(tmp_path, geometry, "a" * 32)
        assert (lost.done, lost.keys_read, lost.delivered) == (0, 0, 0)
        flight.save()


def test_a_chunk_has_as_many_frames_as_its_mebibytes_hold_and_comes_from_the_last_steps_latents():
    taken = []

    def decode(frames, whole, latents):
        taken.append((frames.start, frames.stop, latents))
        return np.zeros((len(frames), 1, 1, 3), np.uint8)

    def run(num_evaluations, chunk_mib):
        return SimpleNamespace(
            layout=SimpleNamespace(num_frames=9, evaluations=[0] * num_evaluations),
            flight=SimpleNamespace(delivered=0, latents=["even", "odd"], save=lambda: None),
            pipeline=SimpleNamespace(codec=SimpleNamespace(context=0)),
            settings=EnhanceSettings(512, 512, chunk_mib=chunk_mib),
            transcoder=SimpleNamespace(decode=decode),
        )

    one = run(3, 3)  # a frame of 512 x 512 has three quarters of a mebibyte
    assert [chunk.start for chunk in _Run._deliver(one, 9)] == [0, 4, 8]
    assert taken == [(0, 4, "odd"), (4, 8, "odd"), (8, 9, "odd")] and one.flight.delivered == 9
    taken.clear()
    list(_Run._deliver(run(2, 1), 2))
    assert taken == [(0, 1, "even"), (1, 2, "even")]


# -- what an enhancement is told apart by ------------------------------------------------------------------------------


def test_another_length_size_seed_or_text_encoder_is_another_enhancement():
    pipeline = tiny_pipeline(silent=True)
    make = lambda settings, *shape: Enhancer(pipeline, settings)._fingerprint(ArraySource(clip(*shape)))  # noqa: E731
    found = {make(SETTINGS, 5, 8, 8), make(SETTINGS, 4, 8, 8), make(SETTINGS, 5, 6, 8), make(SETTINGS, 5, 8, 6)}
    found.add(make(SETTINGS.changed(seed=1), 5, 8, 8))
    assert len(found) == 5 and make(SETTINGS.changed(chunk_mib=2), 5, 8, 8) in found
    text = torch.nn.Linear(2, 2)
    pipeline.register_modules(text_encoder=text)
    before = make(SETTINGS, 5, 8, 8)
    assert before not in found
    with torch.no_grad():
        text.bias[1] += 1
    assert make(SETTINGS, 5, 8, 8) != before


# -- how it is cut up --------------------------------------------------------------------------------------------------


def network(multiple, asymmetric):
    unet = SimpleNamespace(size_multiple=multiple, config={"asymmetric": asymmetric})
    return SimpleNamespace(denoiser=SimpleNamespace(unet=unet))


def test_sizes_that_a_network_takes():
    """Multiples of 8; rows of the released base are 2 more than that."""
    plain, padded = network(8, False), network(8, True)
    assert [_fit(20, axis, plain, down=True) for axis in (0, 1)] == [16, 16]
    assert [_fit(20, axis, padded, down=True) for axis in (0, 1)] == [18, 16]
    assert [_fit(20, axis, padded, down=False) for axis in (0, 1)] == [26, 24]
    assert _fit(3, 1, plain, down=True) == 8
    assert [_padded(length, 16, 1, plain) for length in (17, 16, 9, 8)] == [17, 16, 16, 8]


def test_a_layout_by_hand(pipeline):
    """Five keys, every second frame made: nine frames in two windows of five that share one."""
    source = ArraySource(clip(5, 8, 12))
    layout = plan_layout(pipeline, dataclasses.replace(SETTINGS, height=16, width=18), source)
    assert layout.num_frames == 9 and layout.windows.spans == ((0, 5), (4, 9))
    assert layout.scale == pytest.approx((16 * 18 / (8 * 12)) ** 0.5) and not layout.guided
    assert layout.geometry.window_frames == 5 and layout.geometry.in_flight <= 9
    assert [one.step for one in layout.evaluations] == [999, 666]  # residuals start without a signal
    fast = plan_layout(pipeline, SETTINGS.changed(mode="fast"), source)
    assert len(fast.evaluations) == 15 and fast.evaluations[0].step == 999
    long = plan_layout(tiny_pipeline(silent=True, max_frames=5), SETTINGS.changed(num_frames=32), source)
    assert long.windows.spans[0] == (0, 5)
    notes = Enhancer(pipeline, SETTINGS.changed(num_frames=33)).plan(source).notes
    assert notes == ("windows.num_frames=33: this model takes 32 at most",)
    assert not Enhancer(pipeline, SETTINGS.changed(num_frames=32)).plan(source).notes
    texts = [summarise(pipeline, SETTINGS, dataclasses.replace(layout, guided=guided)) for guided in (False, True)]
    assert [(one.evaluations, one.forwards) for one in texts] == [(2, 4), (4, 8)]  # two windows, two steps


def test_frames_in_flight_include_those_that_help_to_decode_on_either_side(monkeypatch):
    """Of 25 frames; a decoder that sees three more on either side needs six more."""
    source, found = ArraySource(clip(13, 8, 8)), []
    for context in (0, 3):
        pipeline = tiny_pipeline(silent=True)
        monkeypatch.setattr(type(pipeline.codec), "context", context)
        found.append(plan_layout(pipeline, SETTINGS, source).geometry.in_flight)
    assert found[1] == found[0] + 6 < 25


def test_memory_grows_with_texts_and_with_the_frames_handed_out(pipeline):
    """Two levels of 16 features with one layer: 16 (1 + 1 + 1 / 4 + 1 / 4 ...) numbers a token, kept twice."""
    source = ArraySource(clip(5, 8, 8))
    layout = plan_layout(pipeline, SETTINGS, source)
    from toolkit.zoo.video.controlnet import skip_widths

    widths = skip_widths([16, 16], 1)
    level, kept = 0, 0.0
    for index, width in enumerate(widths):
        kept += width / 4**level
        level += index in (2, 4)
    weights = sum(one.numel() for one in pipeline.denoiser.parameters())
    for texts in (1, 2):
        tokens = 8 * 8 * layout.geometry.window_frames
        numbers = weights + (texts * (2 * kept + 12 * 16) + 3 * 12) * tokens
        wanted = 4 * numbers + 2 * SETTINGS.chunk_mib * 2**20
        assert _peak_bytes(pipeline, SETTINGS, layout, texts) == pytest.approx(wanted, rel=1e-6)


def test_tiles_by_hand():
    """Of 20 rows in tiles of 8 that share a quarter: steps of 6, so three; their places are spread evenly."""
    assert [tiles.count(length, 8, 0.25) for length in (8, 9, 14, 15, 20, 21)] == [1, 2, 2, 3, 3, 4]
    assert tiles.count(10, 3, 0.5) == 8  # steps of one
    assert [span.start for span in tiles.spans(23, 8, 0.25)] == [0, 5, 10, 15]
    assert [span.start for span in tiles.spans(22, 8, 0.25)] == [0, 5, 9, 14]  # 4.67 and 9.33
    assert [span.start for span in tiles.spans(21, 8, 0.0)] == [0, 6, 13]  # 6.5 is even
    middle = tiles.spans(12, 8, 0.25)[0].weight  # four are shared, two of them fade, one stays on either side
    assert middle[:5] == (1, 1, 1, 1, 1) and middle[7] == 0 and 0 < middle[6] < 0.5 < middle[5] < 1
    grid = tiles.grid((12, 12), (8, 8), 0.25, 3)
    for axis, name in enumerate(("rows", "columns")):
        wanted = tiles.spans(12, 8, 0.25, derive(3, axis) % 2**32)
        assert {getattr(one, name) for one in grid} == set(wanted)
    seeds = [
        tuple(span.weight for span in tiles.spans(30, 16, 0.25, derive(seed, axis) % 2**32))
        for seed in range(6)
        for axis in (0, 1)
    ]
    assert len(set(seeds)) > 6


def test_windows_by_hand():
    """At most eleven frames of every second: eleven; half is shared: five, of which one and four are a step apart."""
    assert plan_windows(25, 2, 11, 0.5).spans == ((0, 11), (6, 17), (12, 23), (18, 25))
    assert plan_windows(20, 1, 10, 0.5).spans == ((0, 10), (5, 15), (10, 20))  # no more than a half
    assert plan_windows(25, 3, 11, 0.3).spans == ((0, 10), (9, 19), (18, 25))
    windows = Windows(9, 2, ((0, 5), (2, 7), (4, 9)))
    assert [windows.weight(1, frame) for frame in (2, 3, 4)] == [0, 1 / 3, 2 / 3]
    assert (windows.settled(0), windows.settled(2), windows.overlap(0), windows.overlap(2)) == (
        (0, 2),
        (4, 9),
        (0, 0),
        (4, 7),
    )
    assert [windows.in_flight(steps) for steps in (1, 2, 3)] == [5, 7, 9]
    assert list(schedule_pairs(2, 3)) == [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (1, 2)]


def test_a_fade_takes_no_more_than_the_overlap_asked_for():
    assert plan_windows(9, 1, 5, 0.5).spans == ((0, 5), (3, 8), (6, 9))


# -- one step of one window --------------------------------------------------------------------------------------------


def steps_of(pipeline, layout, settings):
    return WindowSteps(pipeline, settings, layout, SimpleNamespace())


def test_random_words_stand_second_and_are_new_at_every_step(monkeypatch):
    drawn = []
    text = torch.ones(1, 3, 4)
    stub = SimpleNamespace(
        compute_device="cpu",
        encode_prompt=lambda prompt, negative, guided: drawn.append((prompt, negative, guided)) or text,
    )
    stub.encode_random_prompt = lambda luck: torch.full((1, 3, 4), float(luck.initial_seed()))
    settings = dataclasses.replace(SETTINGS, seed=5, prompt="a", negative_prompt="b")
    layout = SimpleNamespace(guided=True, evaluations=[0, 0, 0])
    made = steps_of(stub, layout, settings.changed(guidance="icg")).texts
    lucks = [torch.Generator().manual_seed(derive(5, "icg", step)).initial_seed() for step in range(3)]
    for one, luck in zip(made, lucks, strict=True):
        assert torch.equal(one, torch.cat([text, torch.full((1, 3, 4), float(luck))]))
    assert drawn == [("a", "b", False)] and len(steps_of(stub, layout, settings).texts) == 3
    assert drawn[-1] == ("a", "b", True)


@pytest.mark.parametrize("shift", [True, False])
def test_seams_are_drawn_for_each_step_where_they_may_move(pipeline, tmp_path, monkeypatch, shift):
    settings = SETTINGS.changed(num_steps=3, shift_tiles=shift)
    source = ArraySource(clip(5, 8, 8))
    layout, asked = plan_layout(pipeline, settings, source), []
    flight = Flight(tmp_path, layout.geometry, "by hand")
    monkeypatch.setattr(
        type(layout),
        "grid",
        lambda self, overlap, seed: asked.append(seed) or tiles.grid((8, 8), (8, 8), overlap, seed),
    )
    made = WindowSteps(pipeline, settings, layout, flight)
    for step in range(3):
        made._denoise(step, 0)
    assert asked == [derive(0, "tiles", step) if shift else None for step in range(3)]


def test_guidance_is_rescaled_as_asked(pipeline, monkeypatch):
    """The deviation of 1 + w (v - 1) back to that of v, half of the way."""
    torch.manual_seed(0)
    v = torch.randn(2, 12, 3, 4, 4)
    settings = SETTINGS.changed(guidance_scale=4.0, guidance_rescale=0.5)
    layout = dataclasses.replace(plan_layout(pipeline, settings, ArraySource(clip(5, 8, 8))), guided=True)
    monkeypatch.setattr(pipeline, "velocity", lambda *_, **__: v)
    found = steps_of(pipeline, layout, settings)._velocity(
        torch.zeros(3, 12, 4, 4), torch.zeros(2, 12, 4, 4), 5, range(3), None
    )
    guided = v[1] + 4 * (v[0] - v[1])
    wanted = guided * (0.5 * v[0].std() / guided.std() + 0.5)
    torch.testing.assert_close(found, wanted.transpose(0, 1), rtol=1e-4, atol=1e-4)


# -- latents and pictures ----------------------------------------------------------------------------------------------


def test_around_a_rectangle_lie_its_neighbours_and_around_the_frame_its_border(tmp_path):
    """Of a frame of 6 x 5 latents whose value is 10 row + column."""
    made = object.__new__(Transcoder)
    made.flight = SimpleNamespace(geometry=SimpleNamespace(rows=6, columns=5, frame_factor=2))
    values = 10 * torch.arange(6.0)[:, None] + torch.arange(5.0)
    made._encode = lambda parts, rows, columns: values[None, None, slice(*rows), slice(*columns)] * parts[0][1]
    clamp = lambda span, most: [min(max(place, 0), most) for place in range(span[0] - 1, span[1] + 1)]  # noqa: E731
    for rows, columns in (((0, 3), (2, 5)), ((2, 4), (1, 3)), ((4, 6), (0, 2)), ((0, 6), (0, 5))):
        found = made._key_with_margin(0, rows, columns)[0, 0]
        assert torch.equal(found, values[clamp(rows, 5)][:, clamp(columns, 4)])
    made.scale, made.fill = 3.0, Fill("bicubic", blend=True)
    asked = []
    made._key_with_margin = lambda key, *_: asked.append(key) or torch.full((1, 1, 4, 4), float(key))
    unit = made._unit(3, (0, 2), (0, 2))  # between keys 1 and 2
    assert asked == [1, 2] and torch.allclose(
        unit, residuals.expected([(torch.full((1, 1, 4, 4), 1.0), 0.5), (torch.full((1, 1, 4, 4), 2.0), 0.5)], 3.0)
    )
