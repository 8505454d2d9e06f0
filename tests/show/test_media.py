"""What of pictures and films goes into a page, and what is said of the rest."""

import base64
import io
import re
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from toolkit.data.video.write import Encoding, write_part
from toolkit.show import media
from toolkit.show.media import Shelf, gallery, side_by_side


def picture(path, width=8, height=8, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def embedded(page):
    return [base64.b64decode(data) for data in re.findall(r'src="data:[\w/]+;base64,([^"]+)"', page)]


def test_a_small_picture_is_itself_and_a_large_one_is_reduced_and_says_so(tmp_path):
    small = picture(tmp_path / "samples" / "small.png")
    picture(tmp_path / "samples" / "wide.png", 3000, 20)
    page = gallery(tmp_path, "samples", Shelf())
    first, second = embedded(page)
    assert first == small.read_bytes() and 'width="8" height="8"' in page
    assert Image.open(io.BytesIO(second)).size == (1600, 11)
    assert f"shown at 1600x11 of 3000x20: the whole is {tmp_path}" in page


def test_a_page_holds_so_many_bytes_and_names_the_rest(tmp_path, monkeypatch):
    sizes = [picture(tmp_path / "samples" / f"{n}.png", seed=n).stat().st_size for n in range(4)]
    shelf = Shelf(left=sizes[0] + sizes[1])
    assert len(embedded(gallery(tmp_path, "samples", shelf))) == 2
    assert "2.png" in shelf.note() and "3.png" in shelf.note() and "32 MiB" in shelf.note()
    monkeypatch.setattr(media, "MOST_PIXELS", 10)
    shelf = Shelf()
    assert gallery(tmp_path, "samples", shelf) == "" and "(8x8 pixels)" in shelf.note()
    assert Shelf().note() == ""


def test_a_damaged_picture_does_not_stop_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "MOST_IMAGE", 100)
    whole = picture(tmp_path / "samples" / "cut.png").read_bytes()
    (tmp_path / "samples" / "cut.png").write_bytes(whole[:-60])
    (tmp_path / "samples" / "none.png").write_text("no picture")
    assert embedded(gallery(tmp_path, "samples", Shelf())) == [whole[:-60], b"no picture"]


def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path):
    secret = picture(tmp_path / "secret.png")
    (tmp_path / "run" / "samples").mkdir(parents=True)
    (tmp_path / "run" / "samples" / "link.png").symlink_to(secret)
    assert gallery(tmp_path / "run", "samples", Shelf()) == ""


def test_of_a_gif_that_is_a_film_too_the_film_is_shown(tmp_path):
    picture(tmp_path / "samples" / "roll.gif")
    picture(tmp_path / "samples" / "still.gif")
    (tmp_path / "samples" / "roll.mp4").write_bytes(b"a film")
    assert list(media.media_files(tmp_path)) == ["samples/roll.mp4", "samples/still.gif"]


def test_pictures_of_one_name_stand_in_a_row_and_the_first_runs_go_first(tmp_path, monkeypatch):
    runs = []
    for run in range(3):
        size = picture(tmp_path / str(run) / "samples" / "grid.png", seed=run).stat().st_size
        picture(tmp_path / str(run) / "figures" / "loss.png", seed=10 + run)
        runs.append((f"seed=<{run}>", tmp_path / str(run)))
    page = side_by_side(runs, Shelf())
    assert page.count('<div class="media row">') == 2 and len(embedded(page)) == 6
    assert page.count("seed=&lt;1&gt;</figcaption>") == 2 and "seed=<1>" not in page
    assert page.index("<h3>grid</h3>") < page.index("<h3>loss</h3>")
    page = side_by_side(runs, Shelf(left=2 * size + 20))
    assert page.count("seed=&lt;0&gt;</figcaption>") == 2 and "seed=&lt;1&gt;" not in page
    assert page.count("2 more run(s) have one that is not shown here") == 2
    monkeypatch.setattr(media, "MOST_IN_ROW", 2)
    assert len(embedded(side_by_side(runs, Shelf()))) == 4


@pytest.mark.parametrize("rate", [8, Fraction(30000, 1001)])
def test_films_of_one_name_are_players_that_know_their_rate(tmp_path, rate):
    frames = np.zeros((5, 32, 48, 3), np.uint8)
    for run in "ab":
        write_part(tmp_path / run / "samples" / "roll.mp4", frames, Encoding(48, 32, Fraction(rate)))
    page = side_by_side([(run, tmp_path / run) for run in "ab"], Shelf())
    assert page.count('<div class="media row players">') == 1 and page.count("<video controls") == 2
    assert page.count(f'data-rate="{float(rate):g}"') == 2
    assert page.count(f"48x32, 5 frames at {float(rate):g} a second") == 2
