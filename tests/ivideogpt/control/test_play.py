"""``toolkit play``: the local page, its requests, and a real browser that drives it."""

import base64
import io
import json
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from tests.ivideogpt import tiny
from toolkit.data.episodes.environments import PushSpriteEnv
from toolkit.data.episodes.episode import Episode, write_episode
from toolkit.errors import UserError
from toolkit.ivideogpt.control import games, play
from toolkit.ivideogpt.control.games import MOST_WORLDS, Game, make_game
from toolkit.ivideogpt.control.play import _Handler, make_server


def push_sprite():
    return PushSpriteEnv(tiny.SIZE)


@pytest.fixture
def url():
    game = Game(tiny.world(), "push_sprite", push_sprite, None, "a model of a long name: " + "runs/" * 20)
    server = make_server([game], 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(url, body=None, **headers):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def refused(url, body=None, **headers):
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(url, body, **headers)
    return caught.value.code, json.loads(caught.value.read())["error"]


def test_the_world_is_driven_by_requests(url):
    info = ask(url + "/info")
    assert info["low"] == [-1, -1] and info["truth"] and info["right"] == 0
    begun = ask(url + "/reset", {"start": 3, "seed": 1})
    assert begun["t"] == 0 and begun["frame"].startswith("data:image/png;base64,") and begun["frame"] == begun["truth"]
    own = {"world": begun["world"]}
    seen = [ask(url + "/step", own | {"action": [1, 0]}) for _ in range(2)]
    assert [one["t"] for one in seen] == [1, 2] and isinstance(seen[0]["reward"], float)
    assert ask(url + "/reset", own | {"start": 3, "seed": 1})["world"] == begun["world"]
    assert ask(url + "/step", own | {"action": [1, 0]}) == seen[0]
    assert ask(url + "/step", own | {"action": [1, 0]}) == seen[1]
    back = ask(url + "/undo", own)
    assert (back["t"], back["frame"], back["truth"]) == (1, seen[0]["frame"], seen[0]["truth"])
    assert ask(url + "/undo", own)["frame"] == begun["frame"]
    assert refused(url + "/undo", own) == (400, "nothing to undo")
    assert ask(url + "/step", own | {"action": [-1, 0]})["frame"] != seen[0]["frame"]


def test_a_fork_goes_its_own_way_from_where_the_world_was(url):
    one = {"world": ask(url + "/reset", {"start": 3, "seed": 1})["world"]}
    seen = ask(url + "/step", one | {"action": [1, 0]})
    forked = ask(url + "/fork", one)
    two = {"world": forked.pop("world")}
    assert two != one and forked == seen
    same, other = (ask(url + "/step", which | {"action": [0, 1]}) for which in (one, two))
    assert same == other  # the same luck ahead, and the same truth
    apart = ask(url + "/step", one | {"action": [1, 0]}), ask(url + "/step", two | {"action": [-1, 0]})
    assert apart[0]["truth"] != apart[1]["truth"] and [one["t"] for one in apart] == [3, 3]
    for step in (same, seen):  # each steps back through what both have seen
        assert ask(url + "/undo", two) == step
    assert ask(url + "/step", one | {"action": [0, 0]})["t"] == 4
    assert refused(url + "/fork", {"world": "x"})[0] == 410


def test_the_error_is_that_of_the_two_frames_shown(url):
    own = {"world": ask(url + "/reset", {"start": 3, "seed": 1})["world"]}
    seen = ask(url + "/step", own | {"action": [1, 0]})
    frame, truth = (pixels(seen[key]).astype(float) for key in ("frame", "truth"))
    assert seen["psnr"] == pytest.approx(10 * np.log10(255**2 / np.square(frame - truth).mean()))
    assert pixels(seen["difference"]).shape == frame.shape


def pixels(source):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def test_a_drive_is_downloaded_as_a_clip(url):
    own = {"world": ask(url + "/reset", {"start": 3, "seed": 1})["world"]}
    assert refused(url + "/clip", own | {"format": "gif"}) == (400, "no clip yet: drive first")
    for _ in range(3):
        ask(url + "/step", own | {"action": [1, 0]})
    request = urllib.request.Request(url + "/clip", json.dumps(own | {"format": "gif"}).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers["Content-Type"] == "image/gif"
        assert Image.open(io.BytesIO(answer.read())).n_frames == 4
    assert refused(url + "/clip", own | {"format": "exe"}) == (400, "format=exe: choose one of gif, mp4")


def test_worlds_of_several_models_are_chosen_by_number(tmp_path):
    kinds = [
        Game(tiny.world(), "push_sprite", push_sprite, None, "one"),
        Game(tiny.world(action_dim=3), None, None, np.zeros((2, 1, tiny.SIZE, tiny.SIZE, 3), np.uint8), "two"),
    ]
    server = make_server(kinds, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        told = ask(url + "/info")["games"]
        assert [game["name"] for game in told] == ["one", "two"]
        assert told[0]["names"] == ["to the right", "down"] and told[1]["names"] == ["action 1", "action 2", "action 3"]
        own = {"world": ask(url + "/reset", {"start": 1, "seed": 0, "game": 1})["world"]}
        assert ask(url + "/step", own | {"action": [1, 0, 0]})["truth"] is None
        assert refused(url + "/reset", {"start": 0, "seed": 0, "game": 2}) == (400, "game=2: there are 0..1")
        assert refused(url + "/reset", {"start": 0, "seed": 0, "game": "x"}) == (400, "game: expected a whole number")
        assert "start=2: there are 0..1" in refused(url + "/reset", {"start": 2, "seed": 0, "game": 1})[1]
    finally:
        server.shutdown()
        server.server_close()


def test_a_long_drive_keeps_its_first_frame_and_the_newest(monkeypatch):
    monkeypatch.setattr(games, "MOST_SEEN", 3)
    game = Game(tiny.world(), "push_sprite", push_sprite, None)
    game.reset(0, 0)
    first = game.seen[0]
    for _ in range(5):
        game.step([1, 0])
    assert game.seen[0] is first and len(game.seen) == 4 and game.t == 5


def test_past_the_positions_the_context_is_renewed_and_said(url):
    own = {"world": ask(url + "/reset", {"start": 3, "seed": 1})["world"]}
    most = tiny.world().spec.max_future
    seen = [ask(url + "/step", own | {"action": [0, 0]}) for _ in range(most + 1)]
    assert [one["recontextualised"] for one in seen] == [False] * most + [True]
    assert ask(url + "/undo", own) == seen[-2]


def test_bad_requests_get_one_line(url):
    own = {"world": ask(url + "/reset", {"start": 3, "seed": 1})["world"]}
    assert refused(url + "/step", own | {"action": [1, 0, 0]})[0] == 400
    assert "not finite" in refused(url + "/step", own | {"action": [float("nan"), 0]})[1]
    for wrong in (None, 1, "1", {"a": 1}, [[1, 0]], ["1", "0"], [True, False], [None, 0]):
        assert refused(url + "/step", own | {"action": wrong}) == (400, "action: expected a list of numbers")
    assert refused(url + "/step", [1, 2]) == (400, "expected a JSON object, found list")
    for wrong in (None, 0.5, "3", [3], True, {}):
        assert refused(url + "/reset", own | {"start": wrong, "seed": 0}) == (400, "start: expected a whole number")
    for wrong in (7, None, ["x"]):
        assert refused(url + "/step", {"world": wrong, "action": [0, 0]})[0] == 400
    for path in ("/else", "/../../../../etc/passwd", "/play.py", "/%2e%2e/play.py", "/" + "x" * 5000):
        code, said = refused(url + path)
        assert code == 404 and said.endswith(": no such page") and len(said) < 250
        assert refused(url + path, {})[0] == 404


def test_whatever_is_sent_is_answered_in_one_line_of_json(url, capfd):
    rng = np.random.default_rng(0)
    heads = {
        "huge": "POST /reset HTTP/1.1\r\nContent-Length: 99999999",
        "word": "POST /reset HTTP/1.1\r\nContent-Length: 1e3",
        "signs": "POST /reset HTTP/1.1\r\nContent-Length: --5",
        "none": "POST /step HTTP/1.1",
        "put": "PUT / HTTP/1.1",
        "head": "HEAD / HTTP/1.1",
        "version": "GET /info HTTP/9.9",
        "words": "GET /info of yours HTTP/1.1",
        "endless": "GET /" + "a" * 70_000 + " HTTP/1.1",
        "headers": "GET /info HTTP/1.1\r\n" + "\r\n".join(f"X-{n}: 1" for n in range(200)),
        "lines": "GET /info HTTP/1.1\r\nX: " + "a" * 70_000,
    }
    for name, head in heads.items():
        answer = answers(url, *head.split("\r\n"))
        top, _, body = answer.partition("\r\n\r\n")
        assert top.split()[1].startswith("4"), (name, answer[:200])
        assert body.count("\n") == 0 and (name == "head" or json.loads(body)["error"]), (name, answer[:200])
    assert answers(url, *heads["huge"].split("\r\n")).startswith("HTTP/1.0 413")
    for _ in range(60):
        body = bytes(rng.integers(0, 256, rng.integers(0, 80), dtype=np.uint8))
        request = urllib.request.Request(url + rng.choice(["/reset", "/step", "/undo"]), body)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        assert caught.value.code == 400 and json.loads(caught.value.read())["error"].startswith(
            ("not JSON", "expected")
        )
    assert ask(url + "/info")["truth"] and capfd.readouterr().err == ""


def test_a_request_that_drips_in_for_ever_is_hung_up_on(url, monkeypatch):
    monkeypatch.setattr(play, "REQUEST_S", 0.3)
    host, port = url.removeprefix("http://").split(":")
    started = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall(f"POST /reset HTTP/1.0\r\nHost: {host}:{port}\r\nContent-Length: 100\r\n\r\n".encode())
        with pytest.raises(ConnectionError):
            while time.monotonic() - started < 8:  # less than the wait for the next byte
                link.sendall(b" ")
                time.sleep(0.03)


def test_every_page_has_a_world_of_its_own_and_the_longest_idle_one_ends(url):
    one, two = ({"world": ask(url + "/reset", {"start": start, "seed": 1})["world"]} for start in (3, 4))
    seen = ask(url + "/step", one | {"action": [1, 0]})
    ask(url + "/step", two | {"action": [0, 1]})
    assert ask(url + "/step", one | {"action": [1, 0]})["t"] == 2
    for start in range(MOST_WORLDS - 1):  # the second is idle longest now
        ask(url + "/reset", {"start": start, "seed": 0})
    code, said = refused(url + "/step", two | {"action": [0, 1]})
    assert code == 410 and said.startswith("this world is not open any more: 8 are at a time") and "begin anew" in said
    assert ask(url + "/undo", one)["frame"] == seen["frame"]
    assert refused(url + "/step", {"world": "x" * 9000, "action": [0, 0]})[0] == 410


def test_a_simulator_that_breaks_is_a_line_and_the_server_goes_on(url, monkeypatch, capfd):
    own = {"world": ask(url + "/reset", {"start": 3, "seed": 1})["world"]}
    with monkeypatch.context() as patch:
        patch.setattr(PushSpriteEnv, "step", lambda *_: 1 / 0)
        assert refused(url + "/step", own | {"action": [0, 0]}) == (500, "ZeroDivisionError: division by zero")
    assert capfd.readouterr().err == "play: ZeroDivisionError: division by zero\n"
    assert ask(url + "/step", own | {"action": [0, 0]})["t"] == 1


def test_only_this_machines_own_page_may_ask(url):
    assert refused(url + "/info", Host="evil.example")[0] == 403
    assert refused(url + "/reset", {"start": 0, "seed": 0}, Origin="http://evil.example")[0] == 403


def test_a_taken_port_and_models_that_cannot_be_driven_are_refused(url, tmp_path):
    port = int(url.rsplit(":", 1)[1])
    with pytest.raises(UserError, match=f"--port={port}: cannot be used"):
        make_server([Game(tiny.world(), "push_sprite", push_sprite, None)], port)
    tiny.world(action_dim=0).save_pretrained(tmp_path / "free")
    with pytest.raises(UserError, match="action-free model"):
        make_game(tmp_path / "free")
    with pytest.raises(UserError, match="--device=cpuu: cannot be used here"):
        make_game(tmp_path / "free", device="cpuu")
    tiny.world().save_pretrained(tmp_path / "world")
    with pytest.raises(UserError, match="give --episodes FOLDER"):
        make_game(tmp_path / "world")
    with pytest.raises(UserError, match="no npz episodes"):
        make_game(tmp_path / "world", tmp_path)
    write_episode(tmp_path / "episodes" / "a.npz", Episode(np.zeros((3, 32, 32, 3), np.uint8)))
    game = make_game(tmp_path / "world", tmp_path / "episodes")  # resized to the model's frames
    assert game.reset(0, 0)["truth"] is None and game.info()["num_starts"] == 1
    with pytest.raises(UserError, match=r"start=1: there are 0\.\.0"):
        game.reset(1, 0)


DRIVE = """
<script>
window.addEventListener("load", async () => {
  const said = document.body.dataset, all = selector => [...document.querySelectorAll(selector)];
  const wait = ms => new Promise(done => setTimeout(done, ms));
  const settled = async test => { for (let i = 0; i < 400 && !test(); i++) await wait(25); };
  const at = t => () => said.t === String(t) && !busy, frame = () => document.getElementById("frame").src;
  const press = key => document.dispatchEvent(new KeyboardEvent("keydown", { key: key, bubbles: true }));
  await settled(at(0));
  const frames = [frame()];
  let t = 0;
  for (const key of ["ArrowRight", "ArrowLeft", "ArrowDown", " "]) {
    press(key);
    await settled(at(++t));
    frames.push(frame());
  }
  said.frames = new Set(frames).size;
  press("z");
  await settled(at(3));
  said.back = frame() === frames[3];
  press("f");
  await settled(() => said.world === "B" && !busy);
  said.same = frame() === frames[3];
  press("ArrowUp");
  await settled(at(4));
  all("#worlds button")[0].click();
  said.worlds = all("#worlds button").length + " " + said.world + " " + said.t;
  const [down, up] = ["pointerdown", "pointerup"].map(name => new PointerEvent(name, { bubbles: true }));
  const key = document.querySelector('[aria-label="to the right"]');
  key.dispatchEvent(down);
  await settled(() => Number(said.t) >= 6);
  key.dispatchEvent(up);
  await settled(() => !busy);
  HTMLAnchorElement.prototype.click = () => {};  // a download can hold a headless browser up for ever
  press("g");
  await settled(() => said.clip);
  said.sliders = all("input[type=range]").length;
  said.keys = all(".pad button").map(one => one.getAttribute("aria-label")).join(", ");
  said.lines = all("#plot path").filter(line => line.getBoundingClientRect().width > 20).length;
  said.wide = document.documentElement.scrollWidth <= innerWidth;
  said.done = "yes";
});
</script>
"""


def test_a_drive_in_a_browser(url, tmp_path, monkeypatch):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    page = play.Path(play.__file__).with_name("play.html").read_text()
    original = play.Path.read_bytes
    monkeypatch.setattr(
        play.Path,
        "read_bytes",
        lambda path: (
            (page.replace("</body>", DRIVE + "</body>")).encode() if path.name == "play.html" else original(path)
        ),
    )
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-component-update"
    flags += " --disable-background-networking --disable-sync --virtual-time-budget=40000 --dump-dom"
    flags += " --window-size=360,740 --enable-logging=stderr"
    started = time.monotonic()
    command = [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", url + "/"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = dict(re.findall(r'data-(\w+)="([^"]*)"', re.search("<body[^>]*>", found.stdout)[0]))
    assert said.get("done") == "yes", (said, found.stderr[-2000:], time.monotonic() - started)
    assert int(said["frames"]) >= 4 and said["back"] == said["same"] == said["wide"] == "true"
    assert said["worlds"] == "2 A 3" and int(said["t"]) >= 6  # the fork went on, the first world stayed
    assert int(said["clip"]) > 1000 and said["sliders"] == said["lines"] == "2"
    assert said["keys"] == "up, to the left, down, to the right"
    assert "CONSOLE" not in found.stderr


def answers(url, *lines):
    """What the server says to bytes as they are."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall("\r\n".join([*lines, f"Host: {host}:{port}", "", ""]).encode())
        return link.makefile("rb").read().decode()


def test_no_world_before_reset_and_starts_that_are_none(url):
    assert refused(url + "/step", {"action": [1, 0]}) == (400, "world: expected the word that /reset gave")
    with pytest.raises(UserError, match="no world yet: /reset comes before /step"):
        Game(tiny.world(), None, push_sprite, None).step([1, 0])
    for start in (-1, 2**31, float("inf")):
        code, message = refused(url + "/reset", {"start": start, "seed": 0})
        assert code == 400 and message
    assert "seed=-1: there are" in refused(url + "/reset", {"start": 0, "seed": -1})[1]
    own = {"world": ask(url + "/reset", {"start": 0, "seed": 0})["world"]}
    assert "not finite" in refused(url + "/step", own | {"action": [10**400, 0]})[1]
    assert "not finite" in refused(url + "/step", own | {"action": [1e40, 0]})[1]


def test_a_request_says_how_long_it_is_and_does_not_stall(url, monkeypatch):
    answer = answers(url, "POST /reset HTTP/1.0", "Content-Length: -1")
    assert " 400 " in answer and "Content-Length: -1: expected 0..10000 bytes" in answer
    monkeypatch.setattr(_Handler, "timeout", 0.2)
    answer = answers(url, "POST /reset HTTP/1.0", "Content-Length: 9")
    assert " 408 " in answer and "nothing came for 0.2 seconds" in answer
    assert answers(url.replace("http://", ""), "GET /info HTTP/1.0").endswith("}")


def test_a_request_names_one_host(url):
    own = url.removeprefix("http://")
    assert " 200 " in answers(url, "GET /info HTTP/1.0")
    for other in ("elsewhere.example", own):
        assert " 403 " in answers(url, "GET /info HTTP/1.0", f"Host: {other}")
    assert " 403 " in answers(url, "GET /info HTTP/1.0", f"Host: {own}", "Host: elsewhere.example")


def test_a_page_that_is_closed_while_it_waits_leaves_the_terminal_quiet(url, capfd):
    host, port = url.removeprefix("http://").split(":")
    body = b'{"start": 0, "seed": 0}'
    request = f"POST /reset HTTP/1.0\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for sent in (request + body, request):
        with socket.create_connection((host, int(port)), timeout=10) as link:
            link.sendall(sent)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
    ask(url + "/reset", {"start": 0, "seed": 0})
    while any("process_request_thread" in thread.name for thread in threading.enumerate()):
        time.sleep(0.01)
    assert capfd.readouterr().err == ""


def test_deep_nesting_is_refused(url):
    body = "[" * 9000
    request = urllib.request.Request(url + "/reset", body.encode())
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert caught.value.code == 400
