"""``toolkit enhance-video`` on pictures, HDR, fields and odd names, from end to end without a network."""

import re
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.data.video.test_beside import fields
from tests.data.video.test_pictures import pictures
from tests.data.videos import moving, psnr, read, write
from tests.toyroom.harness import record
from toolkit.commands import COMMANDS
from toolkit.configs import compose
from toolkit.data.video.scan import index_video
from toolkit.data.video.write import Encoding, write_part
from toolkit.errors import UserError
from toolkit.launch import launch
from toolkit.resume import resume
from toolkit.runs import progress
from toolkit.venhancer.clips import rife
from toolkit.venhancer.clips.inputs import check_free, find_tasks
from toolkit.venhancer.clips.prepare import prepare
from toolkit.venhancer.config import parse_fps

CLIP = moving(6, 90, 62)
QUICK = ["backend=classic", "encode.speed=ultrafast", "side_by_side_s=0", "hydra.run.dir=RUN"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def enhance(*words):
    return launch("enhance-video", [*QUICK, *words])


def opened(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


def test_pictures_in_and_out_then_a_video_of_them(folder):
    pictures(folder / "shot", frames=CLIP)
    words = ["input=shot", "output=made", "scale=1", "encode.codec=png", "part_frames=4"]
    assert enhance(*words, "input_fps=12", "fps=24") == 0
    made = opened(folder / "made")
    assert len(made) == 12 and np.array_equal(made[::2], CLIP) and record("RUN")["clips"]["shot"]["rate"] == "24"
    assert resume(folder / "RUN", changes=["output=made.mp4", "encode.codec=h264", "encode.crf=1"]) == 0
    index = index_video("made.mp4")
    assert (index.rate, index.num_frames) == (24, 12) and psnr(read("made.mp4"), made) > 30


def test_a_video_becomes_pictures_without_sound_and_says_so(folder):
    write(folder / "IN.mp4", CLIP, sound="aac")
    assert enhance("input=IN.mp4", "scale=0.5", "encode.codec=png") == 0
    assert opened(folder / "RUN/samples/IN").shape == (6, 31, 45, 3)  # odd sides too
    assert "IN: sound is left out: pictures have none" in (folder / "RUN/run.log").read_text()


def prepared(folder, *words):
    """What the command does before it works."""
    config = compose(COMMANDS["enhance-video"], list(words))
    (task,) = find_tasks(config, folder / "samples")
    check_free(task, config)
    return prepare(task, config, folder / "work")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["input=shot"], "input=shot: numbered pictures have no rate; give fps=24, or input_fps=24 and fps=48"),
        (["input=shot/%05d.png"], "numbered pictures have no rate"),
        (["input=IN.mp4", "input_fps=24"], "input_fps=24: IN.mp4 has a rate of its own"),
        (["input=IN.mp4", "input_fps=x"], "input_fps=x: must be a number or a fraction"),
        (["input=IN.mp4", "output=f%05d.png"], "for numbered pictures name a folder, with encode.codec=png"),
        (["input=IN.mp4", "output=o.png", "encode.codec=png"], "it is a folder, as in output=frames"),
        (["input=shot", "fps=12", "output=shot", "encode.codec=png"], "output=shot: is the input"),
        (["input=IN.mp4", "output=mine", "encode.codec=png"], "output=mine: exists already"),
        (["input=IN.mp4", "output=mine", "encode.codec=png", "overwrite=true"], "holds other files than numbered"),
        (["input=IN.mp4", "encode.pix_fmt=yuv420p10le"], "encode.codec=h264 takes auto, yuv420p, yuv444p"),
    ],
)
def test_what_cannot_be_is_refused(folder, words, said):
    pictures(folder / "shot", frames=CLIP[:2])
    write(folder / "IN.mp4", CLIP[:2])
    (folder / "mine").mkdir()
    (folder / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=re.escape(said)):
        prepared(folder, "backend=classic", *words)


def test_empty_folders_are_filled_and_own_pictures_replaced_when_asked(folder):
    write(folder / "IN.mp4", CLIP[:2])
    (folder / "made").mkdir()
    assert enhance("input=IN.mp4", "output=made", "scale=1", "encode.codec=png") == 0
    words = ["input=IN.mp4", "output=made", "scale=2", "encode.codec=png", "hydra.run.dir=R2"]
    assert enhance(*words) == 2 and enhance(*words, "overwrite=true") == 0
    assert opened(folder / "made").shape == (2, 124, 180, 3)
    assert sorted(path.name for path in folder.iterdir()) == ["IN.mp4", "R2", "RUN", "made"]


def pq(folder):
    """A clip of six frames as phones make it: HEVC, 10 bits, BT.2020, PQ."""
    encoding = Encoding(90, 62, Fraction(12), "hevc", 1, "ultrafast", "yuv420p10le", Fraction(1), 9, 16, 9)
    write_part(folder / "pq.mp4", CLIP.astype(np.uint16) * 257, encoding)


@pytest.mark.parametrize(
    ("words", "format_of_result", "tags", "said"),
    [
        (["encode.codec=hevc"], "yuv420p10le", (9, 16, 9), "HDR (PQ) is kept, with 10 bits"),
        (["encode.codec=h264"], "yuv420p", (9, 16, 1), "HDR (PQ) is kept, with 8 bits a colour: smooth surfaces may"),
        (["encode.codec=hevc", "encode.hdr=tonemap"], "yuv420p", (1, 1, 1), "HDR (PQ) becomes BT.709"),
    ],
)
def test_hdr_is_kept_or_brought_to_what_screens_show(folder, words, format_of_result, tags, said):
    pq(folder)
    assert enhance("input=pq.mp4", "output=o.mp4", "scale=1", "frame_factor=2", *words) == 0
    with av.open("o.mp4") as container:
        frame = next(container.decode(video=0))
        assert frame.format.name == format_of_result
        assert (frame.color_primaries, frame.color_trc, frame.colorspace) == tags
    assert said in (folder / "RUN/run.log").read_text()
    near = psnr(read("o.mp4")[::2], CLIP)
    assert near > 24 if tags[0] == 9 else near < 20


@pytest.mark.parametrize("crf", ["null", "20"])
@pytest.mark.parametrize(
    ("hdr", "tags", "said"), [("keep", (9, 16), "HDR (PQ) is kept"), ("tonemap", (1, 1), "becomes BT.709")]
)
def test_a_degraded_clip_keeps_the_meaning_of_its_colours(folder, hdr, tags, said, crf):
    pq(folder)
    words = ["input=pq.mp4", "backend=classic", "degrade.scale=2", f"degrade.crf={crf}", f"encode.hdr={hdr}"]
    work = prepared(folder, *words)
    assert (work.encoding.primaries, work.encoding.transfer) == (work.index.primaries, work.index.transfer) == tags
    assert any(said in note and "codec=hevc" not in note for note in work.notes)


def test_ten_bits_without_hdr_become_eight_with_a_line_unless_they_are_asked_for(folder):
    encoding = Encoding(90, 62, Fraction(12), "hevc", 1, "ultrafast", "yuv420p10le")
    write_part(folder / "ten.mp4", CLIP[:2].astype(np.uint16) * 257, encoding)
    words = ["input=ten.mp4", "backend=classic", "scale=1", "encode.codec=hevc"]
    assert any("10 bits a colour become 8" in note for note in prepared(folder, *words).notes)
    kept = prepared(folder, *words, "encode.pix_fmt=yuv420p10le")
    assert kept.index.deep and not any("bits" in note for note in kept.notes)


def test_frames_that_rife_has_no_memory_for_are_refused_before_any_work(folder, monkeypatch, capfd):
    write(folder / "IN.mp4", CLIP[:3])
    monkeypatch.setattr(rife, "load", lambda device: None)
    monkeypatch.setenv("TOOLKIT_MEMORY_GIB", "0.02")
    words = ["input=IN.mp4", "output=o.mp4", "scale=2", "frame_factor=2", "keys=lanczos", "backend=generative"]
    assert enhance(*words, "between=rife") == 2
    said = capfd.readouterr().err
    assert "between=rife: 180x124 pixels at a time need about" in said and "windows.tile_height_px" in said
    assert not (folder / "o.mp4").exists() and enhance(*words, "between=motion", "hydra.run.dir=R2") == 0


def test_the_network_gets_eight_bits(folder):
    pq(folder)
    work = prepared(folder, "input=pq.mp4", "encode.codec=hevc", "scale=1")
    assert not work.index.deep and work.encoding.pix_fmt == "yuv420p"
    assert any("encode.codec=hevc without the network keeps 10" in note for note in work.notes)


@pytest.mark.parametrize(("how", "said"), [("auto", "one full picture is made"), ("off", "interlaced, and left so")])
def test_fields_become_full_pictures_unless_left(folder, how, said):
    fields(folder / "i.ts", 5)
    assert enhance("input=i.ts", "output=o.mp4", "scale=1", f"deinterlace={how}") == 0
    assert said in (folder / "RUN/run.log").read_text()


def test_names_that_look_like_markup_are_shown_as_they_are(folder, capfd, monkeypatch):
    write(folder / "[red] a [b].mp4", CLIP[:2])
    assert enhance(r"input='[red] a [b].mp4'", "scale=1") == 0
    assert "[red] a [b].mp4" in capfd.readouterr().out
    console = Console(force_terminal=True, width=80)
    monkeypatch.setattr(progress, "console", lambda: console)
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True)))
    with console.capture() as shown, progress.bar("[red] a", 0, 2, "frame") as bar:
        bar.advance(2)
    assert "[red] a" in shown.get()


def test_a_log_says_how_long_the_rest_takes(monkeypatch):
    said, now = [], [0.0]
    monkeypatch.setattr(progress, "say", said.append)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.Bar("clip", 10, 110, None, "frame")  # ten were done before
    now[0] = 30.0
    bar.advance(30)  # 20 frames in 30 s, 80 are left
    now[0] = 60.0
    bar.advance(110)
    assert said == ["clip: frame 30/110, 2 min left  ", "clip: frame 110/110  "]


def test_names_and_places_that_the_system_refuses_are_one_line(folder, capfd, monkeypatch):
    write(folder / "IN.mp4", CLIP[:2])
    name = f"{'x' * 300}.mp4"
    for words, said in [
        ([f"input={name}"], f"{name}: File name too long"),
        (["input=IN.mp4", f"output={name}"], f"{name}: File name too long"),
        (["input=IN.mp4", "output=/proc/o.mp4"], "output=/proc/o.mp4: cannot be written ("),
        (["input=''"], "input='': is empty; give a value, or input=null for none"),
    ]:
        assert enhance(*words) == 2
        assert said in (line := capfd.readouterr().err.strip()) and line.count("\n") < 3 and "Traceback" not in line
        assert not (folder / "RUN").exists()
    monkeypatch.setenv("TOOLKIT_MEMORY_GIB", "much")
    assert enhance("input=IN.mp4") == 2 and "TOOLKIT_MEMORY_GIB=much: expected a number" in capfd.readouterr().err


def test_a_rate_near_none_is_not_rounded_to_none():
    assert parse_fps("0.001") == Fraction(1, 1000) and parse_fps("29.97") == Fraction(30000, 1001)


def test_the_rate_of_pictures_is_asked_for_in_the_config_too():
    with pytest.raises(UserError, match=r"input_fps=0: must be from 0\.001 to 1000"):
        compose(COMMANDS["enhance-video"], ["input=a", "input_fps=0"])
