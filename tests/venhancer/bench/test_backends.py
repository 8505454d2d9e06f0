"""What the benchmark of backends runs, and what it says of the rest."""

from tests.data import videos
from toolkit.errors import UserError
from toolkit.venhancer.bench import backends, classic


def test_what_is_not_there_is_said_and_the_others_are_run(monkeypatch):
    def absent(name, *rest):
        raise UserError("between=rife: pip install it") if name == "rife" else UserError("no")

    monkeypatch.setattr(backends, "make_between", lambda name, *rest: absent(name) if name == "rife" else None)
    makers, left_out = backends.makers("bikes", 3, None, "nowhere.pth")
    assert set(makers) == {"ours", "classic", "blend", "ffmpeg", "ffmpeg_blend"}
    assert left_out[0] == "ncnn: no model is named" and "rife: between=rife: pip install it" in left_out
    assert any(line.startswith("spandrel: ") for line in left_out) and len(left_out) == 3


def test_all_make_the_same_number_of_frames(tmp_path, monkeypatch):
    videos.write(tmp_path / "clip.mp4", videos.moving(9, 90, 62))
    monkeypatch.setattr(classic, "clip_path", lambda name: tmp_path / name)
    makers, _ = backends.makers("clip.mp4", 3, None, None)
    assert makers["classic"]().tasks["enhance"]() == makers["blend"]().tasks["enhance"]() == 6
