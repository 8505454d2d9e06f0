"""``toolkit play RUN``: a page on this machine's loopback where keys and sliders drive the imagined world.

The standard library's server, bound to 127.0.0.1 alone; requests that name another host are refused, so no other page
in the browser can reach it. Where the simulator that the data came from is here, the truth is shown beside.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from toolkit.data.config import EpisodeData
from toolkit.data.episodes.environments import ImageEnv, find, is_known, one_hot
from toolkit.data.episodes.episode import EpisodeSpec, read_episode
from toolkit.data.episodes.sets import PUSH_OPTIONS
from toolkit.errors import UserError
from toolkit.ivideogpt.build import load_world
from toolkit.ivideogpt.control.env import action_range
from toolkit.ivideogpt.control.packed import unpack
from toolkit.runs.reading import read_record
from toolkit.schema import check
from toolkit.zoo.world.model import WorldModel
from toolkit.zoo.world.state import State

HOST = "127.0.0.1"
SHIPPED = Path(__file__).parents[1] / "weights" / "push.safetensors"
MOST_BODY = 10_000  # bytes of a request
MOST_STARTS = 2**31  # worlds of a simulator
WAIT_S = 10  # for the next bytes of a request
KEYS = {  # by environment: which action the right and down arrows raise
    "push_sprite": (0, 1),
    "pusht": (0, 1),
    "kuka": (1, 0),
}


class Game:
    """One imagined world that a page drives, and the true one beside it where there is a simulator."""

    def __init__(self, world: WorldModel, env_name: str | None, env: ImageEnv | None, starts: NDArray[np.uint8] | None):
        self.world, self.env_name, self.env, self.starts = world, env_name, env, starts
        self.state: State | None = None
        self.t = 0
        self.lock = threading.Lock()

    def info(self) -> dict[str, Any]:
        """What the page needs to draw its controls."""
        spec = self.world.spec
        low, high = action_range(self.world)
        right, down = KEYS.get(self.env_name or "", (0, min(1, spec.action_dim - 1)))
        return {
            "resolution": spec.resolution,
            "low": low.tolist(),
            "high": high.tolist(),
            "discrete": self.world.config["discrete"],
            "right": right,
            "down": down,
            "truth": self.env is not None,
            "max_future": spec.max_future,
            "num_starts": self.num_starts,
        }

    @property
    def num_starts(self) -> int:
        """Starts are 0 .. ``num_starts`` - 1."""
        return MOST_STARTS if self.starts is None else len(self.starts)

    def reset(self, start: int, seed: int) -> dict[str, Any]:
        """Begin at a start (a seed of the simulator, or a number among the contexts) with luck ``seed``."""
        for name, value, most in (("start", start, self.num_starts), ("seed", seed, 2**63)):
            if not 0 <= value < most:
                raise UserError(f"{name}={value}: there are 0..{most - 1}")
        if self.env is None:
            assert self.starts is not None
            context = self.starts[start]
        else:
            frame, _ = self.env.reset(seed=start)
            still = np.zeros(self.world.spec.action_dim, np.float32)
            context = np.stack([frame] + [self.env.step(still)[0] for _ in range(self.world.spec.T0 - 1)])
        self.state, self.t = self.world.begin(context[None], [seed]), 0
        return {"t": 0, "frame": _png(context[-1]), "truth": _png(context[-1]) if self.env else None}

    def step(self, action: list[float]) -> dict[str, Any]:
        """One frame further."""
        if self.state is None:
            raise UserError("no world yet: /reset comes before /step")
        wanted = np.asarray(action, np.float64)
        if not np.isfinite(wanted).all():
            raise UserError("action: holds values that are not finite")
        rows = one_hot(wanted[None], self.world.config["discrete"])
        self.state, pred = self.world.step(self.state, rows, on_overflow="recontext")
        self.t += 1
        return {
            "t": self.t,
            "frame": _png(pred.frame[0].cpu().numpy()),
            "truth": _png(self.env.step(rows[0].astype(np.float32))[0]) if self.env else None,
            "reward": None if pred.reward is None else float(pred.reward[0]),
            "entropy": float(pred.entropy[0]),
            "recontextualised": pred.recontextualised,
        }


def _png(frame: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class _Handler(BaseHTTPRequestHandler):
    """GET / and /info, POST /reset and /step; everything else is refused."""

    game: Game
    timeout = WAIT_S

    def do_GET(self) -> None:
        if not self._trusted():
            return
        if self.path == "/":
            page = Path(__file__).with_name("play.html").read_bytes()
            self._send(HTTPStatus.OK, page, "text/html; charset=utf-8")
        elif self.path == "/info":
            self._json(HTTPStatus.OK, self.game.info())
        else:
            self._json(HTTPStatus.NOT_FOUND, {"error": f"{self.path}: no such page"})

    def do_POST(self) -> None:
        if not self._trusted():
            return
        try:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 <= length <= MOST_BODY:
                raise ValueError(f"Content-Length: {length}: expected 0..{MOST_BODY} bytes")
            body = json.loads(self.rfile.read(length))
            with self.game.lock:
                if self.path == "/reset":
                    answer = self.game.reset(int(body["start"]), int(body["seed"]))
                elif self.path == "/step":
                    answer = self.game.step([float(value) for value in body["action"]])
                else:
                    self._json(HTTPStatus.NOT_FOUND, {"error": f"{self.path}: no such page"})
                    return
        except TimeoutError:
            self._json(HTTPStatus.REQUEST_TIMEOUT, {"error": f"nothing came for {self.timeout} seconds"})
            return
        except RecursionError:
            self._json(HTTPStatus.BAD_REQUEST, {"error": "nested too deeply"})
            return
        except (UserError, ValueError, KeyError, TypeError, OverflowError) as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": " ".join(str(error).split())})
            return
        self._json(HTTPStatus.OK, answer)

    def _trusted(self) -> bool:
        """Refuse other hosts' names (DNS rebinding) and other pages' requests."""
        port = self.server.server_port  # type: ignore[attr-defined]
        own = {f"{name}:{port}" for name in (HOST, "localhost")}
        origin = self.headers.get("Origin")
        hosts = self.headers.get_all("Host", [])
        if len(hosts) == 1 and hosts[0] in own and (origin is None or origin.removeprefix("http://") in own):
            return True
        self._json(HTTPStatus.FORBIDDEN, {"error": "only this machine's own page may ask"})
        return False

    def _json(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal stays quiet."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that was closed while it waited for its answer is nothing to report."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def make_game(source: str | Path | None, episodes: str | Path | None = None, device: str = "cpu") -> Game:
    """The game of a run, a folder of weights or a hub id; None: the small model that comes with the toolkit.

    ``episodes``: a folder of npz episodes to start from; without it the simulator of the run's data is used.
    Raises UserError where the model takes no actions or there is nothing to start from.
    """
    folder = SHIPPED if source is None else source
    _check_device(device)
    world = (unpack(SHIPPED) if source is None else load_world(folder, "play")).to(device)
    if not world.spec.action_dim:
        raise UserError(f"{folder}: an action-free model; nothing can be driven in it")
    env_name, options = _simulator(Path(folder))
    if episodes is not None:
        return Game(world, env_name, None, _starts(Path(episodes), world))
    if env_name is None or not is_known(env_name):
        raise UserError(
            f"{folder}: its data came from no simulator that is here; give --episodes FOLDER of npz files to start from"
        )
    return Game(world, env_name, find(env_name).make(world.spec.resolution, **options), None)


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a name that is none; a build without it
        why = str(error).splitlines()[0]
        raise UserError(
            f"--device={device}: cannot be used here ({why}); use cpu, or cuda where there is one"
        ) from None


def _simulator(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Name and options of the environment that a run's data came from."""
    if folder == SHIPPED:
        return "push_sprite", {}
    data = (read_record(folder) or {}).get("data", {})
    options = data.get("env_options") or {}
    _check_options(f"{folder / 'run.json'}: data.env_options", data.get("env"), options)
    return data.get("env"), options


def _check_options(where: str, env: Any, options: Any) -> None:
    """Only push_sprite takes options: keys of EpisodeData, of their types and in their ranges. Raises UserError."""
    known = {name: getattr(EpisodeData(), name) for name in PUSH_OPTIONS} if env == "push_sprite" else {}
    if not isinstance(options, dict) or not options.keys() <= known.keys():
        raise UserError(f"{where}={options}: expected {', '.join(known) or 'none'}")
    for name, value in options.items():
        if not isinstance(value, (int, float) if isinstance(known[name], float) else type(known[name])):
            raise UserError(f"{where}: {name}={value}: expected a value such as {known[name]}")
    try:
        check(EpisodeData(**options))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _starts(folder: Path, world: WorldModel) -> NDArray[np.uint8]:
    files = sorted(folder.expanduser().rglob("*.npz"))
    if not files:
        raise UserError(f"{folder}: no npz episodes in it")
    spec = EpisodeSpec(size_px=world.spec.resolution, least_frames=world.spec.T0)
    return np.stack([read_episode(path, spec).image[: world.spec.T0] for path in files])


def make_server(game: Game, port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1; port 0 takes a free one. Raises UserError where the port is taken."""
    handler = type("Handler", (_Handler,), {"game": game})
    try:
        return _Server((HOST, port), handler)
    except OSError as error:
        raise UserError(
            f"--port={port}: cannot be used ({error.strerror}); choose another, or 0 for any free one"
        ) from None


def main(source: str | Path | None, episodes: str | Path | None, port: int, device: str) -> int:
    """Serve until Ctrl-C; returns the exit code."""
    server = make_server(make_game(source, episodes, device), port)
    print(f"drive the imagined world at http://{HOST}:{server.server_port}/ (Ctrl-C ends)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0
    finally:
        server.server_close()
    return 0
