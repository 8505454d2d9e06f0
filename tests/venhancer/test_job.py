"""``toolkit enhance-video`` from end to end without a network: what comes out, what is refused, what a kill leaves."""

import json
import os
import signal
import time
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.data.videos import moving, psnr, read, sound_bytes, write
from tests.toyroom.harness import finish, record, start
from toolkit.data.video.scan import index_video
from toolkit.errors import UserError
from toolkit.launch import launch
from toolkit.resume import resume

CLIP = moving(9, 90, 62)
SHORT = ["part_frames=4", "side_by_side_s=0"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with the issue's IN.mp4."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "IN.mp4", CLIP, sound="aac")
    return tmp_path


def enhance(*words, backend="classic"):
    return launch("enhance-video", [f"backend={backend}", "encode.speed=ultrafast", *words])


def test_the_issues_command(folder):
    before = (folder / "IN.mp4").read_bytes()
    words = ["experiment=enhance_classic", "input=IN.mp4", "output=OUT.mp4", "scale=1.37", "fps=24"]
    assert enhance(*words, "hydra.run.dir=RUN") == 0
    made = index_video("OUT.mp4")
    assert (made.width, made.height, made.rate, made.num_frames) == (124, 84, 24, 18) and made.is_constant
    assert sound_bytes(folder / "OUT.mp4") == sound_bytes(folder / "IN.mp4")
    assert (folder / "IN.mp4").read_bytes() == before
    assert "123x85 becomes 124x84" in (folder / "RUN" / "run.log").read_text()
    assert sorted(path.name for path in folder.iterdir()) == ["IN.mp4", "OUT.mp4", "RUN"]
    assert (folder / "RUN/samples/IN_side_by_side.mp4").exists() and (folder / "RUN/samples/IN_frames.png").exists()
    assert not (folder / "RUN/work").exists()


@pytest.mark.parametrize("scale", [0.5, 1, 2, 2.5, 3.3, 4, 8])
def test_scales_and_rates_are_exact(folder, scale):
    fps, rate = {1: ("24", 24), 2: ("29.97", Fraction(30000, 1001)), 2.5: ("60", 60)}.get(scale, ("12", 12))
    words = [f"scale={scale}", f"fps={fps}", "encode.pix_fmt=yuv444p", "side_by_side_s=0", "hydra.run.dir=RUN"]
    assert enhance("input=IN.mp4", "output=OUT.mp4", *words) == 0
    made = index_video("OUT.mp4")
    assert (made.width, made.height, made.rate) == (round(90 * scale), round(62 * scale), rate)
    assert abs(made.duration_s - Fraction(9, 12)) <= 1 / made.rate
    if scale == 1 and fps == "12":
        assert psnr(read(folder / "OUT.mp4"), CLIP) > 30


def test_hevc_into_matroska(folder):
    words = ["input=IN.mp4", "output=OUT.mkv", "encode.codec=hevc", "scale=1", "hydra.run.dir=RUN"]
    assert enhance(*words) == 0
    with av.open("OUT.mkv") as container:
        assert container.streams.video[0].codec_context.name == "hevc" and len(container.streams.audio) == 1


def test_a_reference_gives_the_table_with_baselines(folder):
    good = moving(9, 128, 96)
    write(folder / "GOOD.mp4", good)
    write(folder / "LOW.mp4", good[::2, ::2, ::2], rate=6)
    words = ["input=LOW.mp4", "reference=GOOD.mp4", "output=OUT.mp4", "scale=2", "frame_factor=2", "hydra.run.dir=RUN"]
    assert enhance(*words) == 0
    metrics = record("RUN")["metrics"]
    assert metrics["ours.psnr"] > metrics["bicubic.psnr"] > 10 and 0 < metrics["ours.ssim"] < 1
    assert metrics["classic.psnr"] == metrics["ours.psnr"]  # the backend itself
    table = json.loads((folder / "RUN/tables/headline.json").read_text())
    assert table["columns"] == ["measure", "ours", "bicubic", "classic"]


def test_degrade_makes_the_input_its_own_reference(folder):
    write(folder / "GOOD.mp4", moving(12, 128, 96))
    words = ["input=GOOD.mp4", "degrade.scale=2", "degrade.frame_step=2", "degrade.noise=3", "degrade.crf=20"]
    assert enhance(*words, "hydra.run.dir=RUN") == 0
    made = index_video(folder / "RUN/samples/GOOD.mp4")
    assert (made.width, made.height, made.rate, made.num_frames) == (128, 96, 12, 12)
    assert record("RUN")["metrics"]["ours.psnr"] > 15


def test_a_folder_is_enhanced_clip_by_clip(folder):
    clips = folder / "clips"
    (clips / "more").mkdir(parents=True)
    write(clips / "a.mp4", CLIP[:3])
    write(clips / "more" / "b.mkv", CLIP[:4])
    for name in ("a.txt", "more/notes.odt", "take.clip", ".hidden"):
        (clips / name).write_text("no video")
    assert enhance("input=clips", "output=made", "scale=1", "hydra.run.dir=RUN") == 0
    assert sorted(path.name for path in (folder / "made").iterdir()) == ["a.mp4", "more__b.mp4"]
    assert {name: entry["frames"] for name, entry in record("RUN")["clips"].items()} == {"a": 3, "more__b": 4}
    said = (folder / "RUN/run.log").read_text()
    assert "input=clips: passed over, no videos by their suffix: more/notes.odt, take.clip\n" in said
    write(clips / "a.mkv", CLIP[:3])
    assert enhance("input=clips", "output=more", "hydra.run.dir=RUN2") == 2


def test_bad_clips_of_a_folder_are_all_named_and_do_not_stop_the_others(folder, capfd):
    clips = folder / "clips"
    clips.mkdir()
    write(clips / "a.mp4", CLIP[:3])
    (clips / "b.m2v").write_text("no video")
    (clips / "c.mp4").write_bytes((folder / "IN.mp4").read_bytes()[:2000])
    words = ["input=clips", "output=made", "scale=1", "side_by_side_s=0"]
    assert enhance(*words, "hydra.run.dir=R1") == 2
    said = capfd.readouterr().err.strip()
    assert "2 of 3 files cannot be used (skip_bad=true leaves such files out)" in said
    assert "clips/b.m2v: not a video" in said and "clips/c.mp4: not a video" in said
    assert not (folder / "made").exists() and not (folder / "R1").exists()
    assert enhance(*words, "skip_bad=true", "hydra.run.dir=R2") == 1
    said = capfd.readouterr().err
    assert "1 of 3 clips are made; not made, and tried again when the run is resumed: " in said
    assert [path.name for path in (folder / "made").iterdir()] == ["a.mp4"] and record("R2")["status"] == "failed"
    (folder / "made/a.mp4").rename(folder / "mine.mp4")  # it is done, wherever it is now
    write(clips / "c.mp4", CLIP[:4])
    (clips / "b.m2v").unlink()
    assert resume(folder / "R2") == 0
    assert len(read(folder / "made/c.mp4")) == 4 and not (folder / "made/a.mp4").exists()


def test_a_clip_that_breaks_while_it_is_made_does_not_stop_a_folder(folder, monkeypatch):
    from toolkit.venhancer.clips.backends import ClassicBackend

    def breaks(self, shot, start):
        if "a.mp4" in self.reader.index.path:
            raise av.error.InvalidDataError(1, "bad", "a.mp4")
        return whole(self, shot, start)

    whole = ClassicBackend.frames
    monkeypatch.setattr(ClassicBackend, "frames", breaks)
    (folder / "clips").mkdir()
    for name in ("a.mp4", "b.mp4"):
        write(folder / "clips" / name, CLIP[:2])
    words = ["input=clips", "output=made", "scale=1", "side_by_side_s=0", "skip_bad=true"]
    assert enhance(*words, "hydra.run.dir=RUN") == 1
    assert [path.name for path in (folder / "made").iterdir()] == ["b.mp4"]


def test_a_sweep_over_inputs(folder):
    write(folder / "B.mp4", CLIP[:3])
    assert enhance("-m", "input=IN.mp4,B.mp4", "scale=1", "hydra.sweep.dir=S") == 0
    assert (folder / "S/0/samples/IN.mp4").exists() and (folder / "S/1/samples/B.mp4").exists()


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["input=none.mp4"], "input=none.mp4: no such file"),
        (["input=text.mp4"], "not a video that can be read"),
        (["input=sound.mp4"], "has only sound"),
        (["input=IN.mp4", "output=IN.mp4", "overwrite=true"], "is the input; the input is never written to"),
        (["input=IN.mp4", "output=taken.mp4"], "output=taken.mp4: exists already; give another name or overwrite=true"),
        (["input=IN.mp4", "output=o.webm"], "the name must end in one of .mp4"),
        (["input=IN.mp4", "output=text.mp4/o.mp4"], "cannot be written into"),
        (["input=IN.mp4", "output=/proc/none/o.mp4"], "output=/proc/none/o.mp4: "),
        (["input=IN.mp4", "fps=97"], "more than 8 times the input's 12"),
        (["input=IN.mp4", "start_s=5"], "no frame after start_s=5"),
        (["input=IN.mp4", "reference=none.mp4"], "reference=none.mp4: no such file"),
        (["input=empty_folder"], "no video in it"),
        (["input=bike"], "did you mean 'bikes'?"),
        (["input=IN.mp4", "degrade.scale=6"], "leaves 15x10 of 90x62"),
        (["input=IN.mp4", "height=1000"], "scales from 0.125 to 8 can be done"),
        (["input=IN.mp4", "scale=0.2"], "18x12 is too small; sides of 16 at least"),
        (["input=IN.mp4", "scale=0.5", "backend=generative"], "the network enlarges; below 1 take backend=classic"),
    ],
)
def test_bad_input_is_one_line_before_any_work(folder, capfd, words, said):
    (folder / "text.mp4").write_text("no video")
    (folder / "empty_folder").mkdir()
    (folder / "taken.mp4").write_bytes(b"mine")
    with av.open("sound.mp4", "w") as container:
        from tests.data.videos import tone

        container.mux(tone(container.add_stream("aac", rate=48000), 0.3))
    before = sorted(folder.iterdir())
    assert enhance(*words, "hydra.run.dir=RUN") == 2
    error = capfd.readouterr().err.strip()
    assert error.startswith("toolkit: error: ") and said in error and len(error.splitlines()) == 1, error
    assert sorted(folder.iterdir()) == before and (folder / "taken.mp4").read_bytes() == b"mine"


def test_memory_that_is_not_there_is_refused_with_what_fits(folder, capfd, monkeypatch):
    monkeypatch.setenv("TOOLKIT_MEMORY_GIB", "0.003")
    assert enhance("input=IN.mp4", "scale=8", "hydra.run.dir=RUN") == 2
    assert "are free; at most scale=" in capfd.readouterr().err


def test_overwriting_is_done_when_asked(folder):
    (folder / "OUT.mp4").write_bytes(b"old")
    assert enhance("input=IN.mp4", "output=OUT.mp4", "scale=1", "overwrite=true", "hydra.run.dir=RUN") == 0
    assert len(read(folder / "OUT.mp4")) == 9


def test_clips_cut_short_and_of_one_frame_are_done_and_said(folder):
    noise = np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), dtype=np.uint8)
    whole = write(folder / "t.mkv", noise, options={"g": "4"}).read_bytes()
    (folder / "t.mkv").write_bytes(whole[: len(whole) // 2])
    assert enhance("input=t.mkv", "scale=1", "hydra.run.dir=RUN") == 0
    assert "damaged or cut short" in (folder / "RUN/run.log").read_text()
    write(folder / "one.mp4", CLIP[:1])
    assert enhance("input=one.mp4", "scale=2", "fps=24", "hydra.run.dir=R1") == 0
    assert index_video(folder / "R1/samples/one.mp4").num_frames == 2


# -- what is written once more ---------------------------------------------------------------------------------------


@pytest.fixture
def made(folder, monkeypatch):
    """A finished run in RUN, after which nothing can be made any more."""
    from toolkit.venhancer.clips.backends import ClassicBackend

    assert enhance("input=IN.mp4", "output=OUT.mp4", "scale=2", *SHORT, "hydra.run.dir=RUN") == 0
    monkeypatch.setattr(ClassicBackend, "frames", lambda *_: pytest.fail("a frame was made again"))
    return folder


def packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]


def test_a_finished_run_is_written_elsewhere_and_without_sound_from_the_frames_that_it_made(made):
    assert resume(made / "RUN", changes=["output=more/OTHER.mkv", "encode.audio=false"]) == 0
    assert packets("more/OTHER.mkv") == packets("OUT.mp4")
    assert sound_bytes("OUT.mp4") and not av.open("more/OTHER.mkv").streams.audio
    assert record("RUN")["clips"]["IN"]["output"] == "more/OTHER.mkv" and not (made / "RUN/work").exists()
    assert resume(made / "RUN") == 0 and record("RUN")["status"] == "done"


def test_a_finished_run_is_encoded_anew_in_its_place(made):
    before = read(made / "OUT.mp4")
    assert resume(made / "RUN", changes=["encode.codec=hevc", "encode.crf=1"]) == 0
    assert av.open("OUT.mp4").streams.video[0].codec_context.name == "hevc"
    assert psnr(read(made / "OUT.mp4"), before) > 40 and sound_bytes("OUT.mp4") == sound_bytes("IN.mp4")


def test_what_may_not_change_and_a_result_that_is_gone_are_refused(made, capfd):
    assert resume(made / "RUN", changes=["scale=3"]) == 2
    assert "scale is 2.0 there, 3.0 here" in capfd.readouterr().err
    (made / "taken.mp4").write_bytes(b"mine")
    assert resume(made / "RUN", changes=["output=taken.mp4"]) == 2
    assert "taken.mp4: exists already" in capfd.readouterr().err and (made / "taken.mp4").read_bytes() == b"mine"
    with pytest.raises(UserError, match="nonsense: is no KEY=VALUE"):
        resume(made / "RUN", changes=["nonsense"])
    (made / "OUT.mp4").unlink()
    assert resume(made / "RUN", changes=["output=OTHER.mp4"]) == 2
    assert "OUT.mp4, of which it is to be written, is no longer there" in capfd.readouterr().err


def test_a_run_that_failed_goes_on_with_other_writing_and_its_finished_parts(folder, monkeypatch):
    from toolkit.venhancer import job
    from toolkit.venhancer.clips.backends import ClassicBackend

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(job, "join_parts", fail)
        assert enhance("input=IN.mp4", "output=OUT.mp4", "scale=2", *SHORT, "hydra.run.dir=RUN") == 1
    monkeypatch.setattr(ClassicBackend, "frames", lambda *_: pytest.fail("a frame was made again"))
    assert resume(folder / "RUN", changes=["output=OTHER.mov", "encode.crf=12"]) == 0
    assert len(read(folder / "OTHER.mov")) == 9 and not (folder / "OUT.mp4").exists()


# -- what a kill, a signal and a full disk leave ---------------------------------------------------------------------


LONG = ["input=LONG.mp4", "output=OUT.mp4", "scale=2", "frame_factor=2", "part_frames=10", "side_by_side_s=0"]


def test_killed_at_any_moment_it_goes_on_after_its_last_part(folder):
    write(folder / "LONG.mp4", moving(60, 128, 96), rate=12)
    assert enhance(*LONG, "hydra.run.dir=WHOLE") == 0
    (folder / "OUT.mp4").rename(folder / "whole.mp4")
    words = ["backend=classic", "encode.speed=ultrafast", *LONG, "hydra.run.dir=RUN"]
    seen = set()
    for parts in (1, 5, 9):
        process = start(*words, command="enhance-video")
        deadline = time.monotonic() + 60
        while len(list(folder.glob("RUN/work/LONG/parts/part_*.mp4"))) < parts and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        seen |= {path.stat().st_mtime_ns for path in folder.glob("RUN/work/LONG/parts/part_*.mp4")}
        assert not (folder / "OUT.mp4").exists()
    assert launch("enhance-video", words) == 0
    assert np.array_equal(read(folder / "OUT.mp4"), read(folder / "whole.mp4"))
    assert len(seen) < 12 + 3 and [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
    assert launch("enhance-video", words) == 0  # done: nothing to do, and the output is no obstacle


def test_stopped_after_the_result_is_in_place_it_knows_it_for_its_own(folder, monkeypatch):
    from toolkit.errors import Interrupted
    from toolkit.venhancer import job

    def stop(*_):
        raise Interrupted(130)

    words = ["input=IN.mp4", "output=OUT.mp4", "scale=1", "hydra.run.dir=RUN"]
    with monkeypatch.context() as patched:
        patched.setattr(job, "_side_by_side", stop)
        assert enhance(*words) == 130
    made = (folder / "OUT.mp4").read_bytes()
    assert enhance(*words) == 0
    assert (folder / "OUT.mp4").read_bytes() == made and (folder / "RUN/samples/IN_side_by_side.mp4").exists()
    assert enhance("input=IN.mp4", "output=OUT.mp4", "scale=1", "hydra.run.dir=OTHER") == 2


def test_a_signal_stops_it_cleanly(folder):
    write(folder / "LONG.mp4", moving(60, 128, 96), rate=12)
    process = start("backend=classic", *LONG, "hydra.run.dir=RUN", command="enhance-video")
    while not list(folder.glob("RUN/work/LONG/parts/part_*.mp4")) and process.is_alive():
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == [143]
    assert "toolkit runs resume RUN" in (folder / "output.txt").read_text()
    assert launch("enhance-video", ["backend=classic", *LONG, "hydra.run.dir=RUN"]) == 0
    assert len(read(folder / "OUT.mp4")) == 120


@pytest.mark.parametrize("limit", [3_000, 60_000])
def test_a_full_disk_is_one_line_and_leaves_nothing_under_the_final_name(folder, limit):
    noise = np.random.default_rng(0).integers(0, 255, (24, 62, 90, 3), dtype=np.uint8)
    write(folder / "LONG.mp4", noise, rate=12)
    words = [*LONG, "hydra.run.dir=RUN"]
    assert finish(start("backend=classic", *words, command="enhance-video", file_limit=limit)) == [1]
    said = (folder / "output.txt").read_text()
    assert "Traceback" not in said and "toolkit: error: " in said and "too large" in said.lower(), said
    left = [path.name for path in folder.iterdir()]
    assert "OUT.mp4" not in left and not any(name.startswith(".OUT") for name in left)
    assert launch("enhance-video", ["backend=classic", *words]) == 0
    assert len(read(folder / "OUT.mp4")) == 48
