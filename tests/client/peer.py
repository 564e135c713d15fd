"""A scripted HTTP server on a real socket: what brokers, and worse than brokers, may answer."""

import json
import socketserver
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers each request with the next reply of the script, and the last one for ever."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for the client's acknowledgement of its head
    server: "Peer"

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        with self.server.lock:
            headers = {**self.headers, "x-peer-port": str(self.client_address[1])}  # one connection, one port
            self.server.seen.append((self.path, json.loads(body) if body else None, headers))
            script = self.server.script
            reply = script.pop(0) if len(script) > 1 else script[0]
        reply(self)

    def log_message(self, *_: Any) -> None:
        """Nothing: tests look at `seen`."""


class Peer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Sequence[Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = list(script)
        self.seen: list[tuple[str, Any, dict[str, str]]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that a script broke off is no news."""


@contextmanager
def peer(*script: Reply) -> Iterator[Peer]:
    server = Peer(script)
    thread = threading.Thread(target=socketserver.BaseServer.serve_forever, args=(server, 0.01))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(status: int, content: object, **headers: str) -> Reply:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()

    def reply(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def hang_up(handler: Handler) -> None:
    """Close the connection without a word."""
    handler.close_connection = True
    handler.connection.close()


def break_off(handler: Handler) -> None:
    """Promise more than is sent."""
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"valid":')
    hang_up(handler)


def never(handler: Handler) -> None:
    """Read the request and say nothing until the client gives up."""
    handler.connection.settimeout(30)
    handler.rfile.read(1)
