"""``toolkit play [RUN ...]``: a page on this machine's loopback where keys and sliders drive the imagined world.

The standard library's server, bound to 127.0.0.1 alone; requests that name another host are refused, so no other page
in the browser can reach it. Every page has a world of its own. Whatever is sent, the answer is one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from toolkit.errors import Interrupted, UserError, with_kind
from toolkit.ivideogpt.control.beside import clip
from toolkit.ivideogpt.control.games import Game, Games, Gone, make_game

HOST = "127.0.0.1"
MOST_BODY = 10_000  # bytes of a request
MOST_CONNECTIONS = 64  # at a time
WAIT_S = 10  # for the next bytes of a request
REQUEST_S = 20  # for all bytes of a request
SHOWN = 200  # characters of what was sent that an answer repeats
MOVES = ("/reset", "/step", "/undo", "/fork", "/clip")


class _Refused(UserError):
    """A request that is answered with ``status``."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """GET / and /info; POST ``MOVES``; everything else is refused in a line."""

    games: Games
    timeout = WAIT_S

    def setup(self) -> None:
        """Start the clock of the whole request: bytes that drip in for ever do not hold a thread for ever."""
        super().setup()
        self.clock = threading.Timer(REQUEST_S, self._hang_up)
        self.clock.daemon = True
        self.clock.start()

    def finish(self) -> None:
        """The clock ends with the request."""
        self.clock.cancel()
        super().finish()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)  # whoever waits for bytes reads an end

    def do_GET(self) -> None:
        """The page, or what it needs to know."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """A move of one world."""
        self._answer(self._post)

    def _answer(self, work: Callable[[], tuple[bytes, str]]) -> None:
        """Send what ``work`` gives, or one line of what was wrong."""
        try:
            self._trust()
            content, kind = work()
        except _Refused as error:
            self._error(error.status, str(error))
        except TimeoutError:
            self._error(HTTPStatus.REQUEST_TIMEOUT, f"nothing came for {self.timeout} seconds")
        except RecursionError:
            self._error(HTTPStatus.BAD_REQUEST, "nested too deeply")
        except Gone as error:
            self._error(HTTPStatus.GONE, str(error))
        except UserError as error:
            self._error(HTTPStatus.BAD_REQUEST, str(error))
        except ConnectionError:
            raise
        except Exception as error:  # of a simulator or of ours: said here and there, and the server goes on
            line = with_kind(error, SHOWN)
            print(f"play: {line}", file=sys.stderr, flush=True)
            self._error(HTTPStatus.INTERNAL_SERVER_ERROR, line)
        else:
            self._send(HTTPStatus.OK, content, kind)

    def _get(self) -> tuple[bytes, str]:
        path = self.path.partition("?")[0]
        if path == "/":
            return Path(__file__).with_name("play.html").read_bytes(), "text/html; charset=utf-8"
        if path == "/info":
            kinds = [game.info() for game in self.games.kinds]
            return _json(kinds[0] | {"games": kinds})
        raise _Refused(HTTPStatus.NOT_FOUND, f"{path[:SHOWN]}: no such page")

    def _post(self) -> tuple[bytes, str]:
        path = self.path.partition("?")[0]
        body = self._body()
        self.clock.cancel()
        if path not in MOVES:
            raise _Refused(HTTPStatus.NOT_FOUND, f"{path[:SHOWN]}: no such page")
        word = body.get("world")
        if not isinstance(word, str) and not (word is None and path == "/reset"):
            raise UserError("world: expected the word that /reset gave")
        if path == "/reset" or word is None:
            return _json(self._reset(body, word))
        action = _numbers(body, "action") if path == "/step" else []
        with self.games.lock:
            game = self.games.game(word)
            if path == "/fork":
                twin = game.fork()
                return _json(twin.shown() | {"world": self.games.open(twin)})
            if path != "/clip":
                return _json(game.step(action) if path == "/step" else game.undo())
            seen = [*game.seen]
        return clip(seen, str(body.get("format"))[:SHOWN])

    def _reset(self, body: dict[str, Any], word: str | None) -> dict[str, Any]:
        """A world begins anew, or one more of the kind that ``game`` numbers."""
        start, seed = _whole(body, "start"), _whole(body, "seed")
        kind = self.games.kind(_whole(body, "game") if "game" in body else 0)
        with self.games.lock:
            (kind if word is None else self.games.game(word)).check(start, seed)
            word = self.games.open(kind.another()) if word is None else word
            return self.games.game(word).reset(start, seed) | {"world": word}

    def _body(self) -> dict[str, Any]:
        """The object that was sent. Raises UserError on anything else."""
        told = self.headers.get("Content-Length", "0")
        if not re.fullmatch(r"\s*-?[0-9]+\s*", told):
            raise UserError(f"Content-Length: {told[:SHOWN]}: expected a number of bytes")
        length = int(told[:20])
        if not 0 <= length <= MOST_BODY:
            status = HTTPStatus.BAD_REQUEST if length < 0 else HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            raise _Refused(status, f"Content-Length: {length}: expected 0..{MOST_BODY} bytes")
        try:
            body = json.loads(self.rfile.read(length))
        except ValueError as error:
            raise UserError(f"not JSON: {error}") from None
        if not isinstance(body, dict):
            raise UserError(f"expected a JSON object, found {type(body).__name__}")
        return body

    def _trust(self) -> None:
        """Refuse other hosts' names (DNS rebinding) and other pages' requests."""
        port = self.server.server_port  # type: ignore[attr-defined]
        own = {f"{name}:{port}" for name in (HOST, "localhost")}
        origin, hosts = self.headers.get("Origin"), self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0] not in own or (origin is not None and origin.removeprefix("http://") not in own):
            raise _Refused(
                HTTPStatus.FORBIDDEN,
                "only this machine's own page may ask; from another machine, tunnel to the same port: "
                f"ssh -L {port}:{HOST}:{port}",
            )

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses (no request line, other methods, endless headers), as JSON too."""
        known = {HTTPStatus.NOT_IMPLEMENTED: HTTPStatus.METHOD_NOT_ALLOWED}
        status = known.get(HTTPStatus(code), HTTPStatus(code))
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:  # another version of HTTP
            status = HTTPStatus.BAD_REQUEST
        self._error(status, message or status.phrase)

    def _error(self, status: HTTPStatus, message: str) -> None:
        self._send(status, *_json({"error": " ".join(message.split())[: 2 * SHOWN]}))

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.close_connection = True
        self.request_version = self.protocol_version  # a status line even for HTTP/0.9, which has none
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal stays quiet."""


def _json(value: dict[str, Any]) -> tuple[bytes, str]:
    return json.dumps(value).encode(), "application/json"


def _whole(body: dict[str, Any], key: str) -> int:
    value = body.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{key}: expected a whole number")
    return value


def _numbers(body: dict[str, Any], key: str) -> list[float]:
    values = body.get(key)
    if not isinstance(values, list) or any(
        isinstance(one, bool) or not isinstance(one, (int, float)) for one in values
    ):
        raise UserError(f"{key}: expected a list of numbers")
    try:
        return [float(one) for one in values]
    except OverflowError:
        raise UserError(f"{key}: holds values that are not finite") from None


class _Server(ThreadingHTTPServer):
    """Of bounded threads: a connection more than MOST_CONNECTIONS waits until one ends."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[_Handler]):
        super().__init__(address, handler)
        self.room = threading.BoundedSemaphore(MOST_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, once there is room."""
        self.room.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """As the standard library does, and the room is free again."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that was closed while it waited for its answer, or was too slow to take it, is nothing to report."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def make_server(kinds: Sequence[Game], port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1 for worlds of ``kinds``; port 0 takes a free one. Raises UserError where it is taken."""
    handler = type("Handler", (_Handler,), {"games": Games(kinds)})
    try:
        return _Server((HOST, port), handler)
    except OSError as error:
        raise UserError(
            f"--port={port}: cannot be used ({error.strerror}); choose another, or 0 for any free one"
        ) from None


def main(sources: Sequence[str | Path], episodes: str | Path | None, port: int, device: str) -> int:
    """Serve worlds of ``sources``, of none the small model that comes along, until Ctrl-C; returns the exit code."""
    server = make_server([make_game(source, episodes, device) for source in sources or (None,)], port)
    print(f"drive the imagined world at http://{HOST}:{server.server_port}/ (Ctrl-C ends)", flush=True)
    try:
        server.serve_forever()
    except (Interrupted, KeyboardInterrupt):
        return 0
    finally:
        server.server_close()
    return 0
