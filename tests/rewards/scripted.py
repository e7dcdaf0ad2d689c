"""A server on loopback whose answers a test has written down, and which keeps what it was sent."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

HANG_UP = "hang up"  # an answer that is none: the connection is closed


class Sent(NamedTuple):
    """A request. body: the JSON value, None of a GET."""

    method: str
    path: str
    headers: Any
    body: Any
    connection: int


class Scripted:
    """Gives the answers of a list one after the other, then what ``otherwise`` makes of a request.

    An answer: HANG_UP, or (status, value, headers); value: JSON, or bytes as they are. /health is
    answered by ``health``, None: 404, and is not part of the list.
    """

    def __init__(self, *answers: Any) -> None:
        self.answers, self.requests, self.sockets = list(answers), [], []
        self.health: Any = None
        self.otherwise: Callable[[Any], Any] = lambda body: (200, {"scores": texts(body)}, {})
        self.url = ""

    @property
    def posts(self) -> list[Sent]:
        """Requests for scores."""
        return [sent for sent in self.requests if sent.method == "POST"]


def texts(body: Any) -> list[float]:
    """The score of the text "17" is 17.0; of the first text that a client sends, "!", 0."""
    return [float(item["completion"].replace("!", "0")) for item in body["items"]]


def _handler(script: Scripted) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            script.sockets.append(self.connection)

        def answer(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(size)) if size else None
            script.requests.append(
                Sent(self.command, self.path, self.headers, body, self.client_address[1])
            )
            if self.path.endswith("/health"):
                made = (404, {}, {}) if script.health is None else (200, script.health, {})
            elif script.answers:
                made = script.answers.pop(0)
            else:
                made = script.otherwise(body)
            if made == HANG_UP:
                self.close_connection = True
                return
            status, value, headers = made
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = headers.get("Connection") == "close"

        do_GET = do_POST = answer

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    return Handler


@contextmanager
def serving(script: Scripted, port: int = 0) -> Iterator[Scripted]:
    """Serves the script; its url is set. At the end its connections are closed, as a process's."""
    made = ThreadingHTTPServer(("127.0.0.1", port), _handler(script))
    made.daemon_threads = True
    script.url = f"http://127.0.0.1:{made.server_address[1]}"
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield script
    finally:
        made.shutdown()
        for used in script.sockets:
            with suppress(OSError):
                used.shutdown(socket.SHUT_RDWR)
        made.server_close()
        thread.join()
