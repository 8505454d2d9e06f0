"""Requests to ``toolkit play`` that no page would make."""

import json
import socket
import threading

import pytest

from tests.fuzz.harness import VALUES, Fuzz, damaged_bytes
from toolkit.errors import UserError
from toolkit.ivideogpt.control import play

NUM = 150


@pytest.fixture(scope="module")
def port():
    """A server of the small model; it waits a second for the rest of a request."""
    with pytest.MonkeyPatch.context() as during:
        during.setattr(play._Handler, "timeout", 1)
        server = play.make_server([play.make_game(None)], 0)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        server.server_close()


def ask(port, content):
    """Send bytes; UserError with the answer where that is no 200."""
    with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    status = answer.split(b"\r\n")[0].split()
    assert len(status) > 1 or not content.strip(), answer[:200]
    if status[1:2] != [b"200"]:
        assert not status or 400 <= int(status[1]) < 600, status
        raise UserError(answer[-200:].decode(errors="replace"))
    if b"application/json" in answer:
        json.loads(answer.partition(b"\r\n\r\n")[2])


def request(port, path, body, headers=""):
    text = json.dumps(body).encode() if not isinstance(body, bytes) else body
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(text)}\r\n{headers}\r\n"
    return head.encode() + text


def bodies(dice):
    for value in VALUES:
        text = 10**400 if value == 10**400 else value
        yield "/reset", {"start": text, "seed": 0}
        yield "/reset", {"start": 0, "seed": text}
        yield "/step", {"action": text}
        yield "/step", {"action": [text, 0]}
        yield "/step", text
        yield "/reset", {"start": 0, "seed": 0, "game": text}
        yield "/fork", {"world": text}
        yield "/clip", {"world": text, "format": text}
    yield from (("/step", b"[" * 9000), ("/step", b'{"action": [1e999, 0]}'), ("/step", b"\xff"), ("/../step", {}))


def heads(port):
    whole = request(port, "/step", {"action": [0, 0]})
    for line in (
        "Content-Length: -1",
        "Content-Length: x",
        "Content-Length: 99999999999",
        "Transfer-Encoding: chunked",
    ):
        yield f"POST /step HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{line}\r\n\r\n".encode() + b"x" * 50
    for host in ("evil.example", f"127.0.0.1:{port}.evil", "", f"127.0.0.1:{port}\r\nHost: evil"):
        yield f"GET /info HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    yield f"GET /info HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://evil.example\r\n\r\n".encode()
    yield from (
        b"",
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"A" * 70_000,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 300,
    )
    yield from (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        for path in ("/../../etc/passwd", "/%00", "//")
    )
    yield whole[:-3]


def test_requests(port, capfd):
    fuzz = Fuzz("requests to play")
    ask(port, request(port, "/reset", {"start": 0, "seed": 0}))
    contents = [request(port, path, body) for path, body in bodies(fuzz.random)]
    contents += [*heads(port), *(damaged_bytes(contents[-1 - n % 9], fuzz.random) for n in range(NUM))]
    for content in contents:
        fuzz.attempt(content[:200], lambda content=content: ask(port, content))
    ask(port, request(port, "/reset", {"start": 0, "seed": 0}))  # it still answers
    assert "Traceback" not in capfd.readouterr().err
    fuzz.check(least=NUM)
