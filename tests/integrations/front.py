"""What stands before a broker, as a proxy does: it passes connections on, or says what proxies say when it cannot."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

Way = bytes | Literal["well", "refused", "silent", "hung up"]


def page(status: int, phrase: str, *fields: str) -> bytes:
    """What a proxy says of its own: HTML, whatever was asked."""
    body = f"<html><head><title>{status} {phrase}</title></head></html>".encode()
    head = [f"HTTP/1.1 {status} {phrase}", "content-type: text/html", f"content-length: {len(body)}", *fields]
    return "\r\n".join([*head, "connection: close", "", ""]).encode() + body


class Front:
    """Listens on a port of its own, and keeps it. `heard`: the first lines of what came since it is not `well`."""

    def __init__(self, broker_url: str) -> None:
        parts = urlsplit(broker_url)
        self._broker = (parts.hostname or "", parts.port or 80)
        self._way: Way = "well"
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = self._listen(0)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.heard: list[str] = []

    def go(self, way: Way) -> None:
        """Do this from now on; what is open is cut off."""
        was, self._way = self._way, way
        self.heard = []
        if way == "refused":
            self._close_listener()
        elif was == "refused":
            self._listener = self._listen(self.port)
        self._cut_off()

    def close(self) -> None:
        self._close_listener()
        self._cut_off()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), backlog=128)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _close_listener(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _cut_off(self) -> None:
        with self._lock:
            cut_off, self._open = self._open, set()
        for each in cut_off:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            with self._lock:
                self._open.add(client)
            if self._way == "well":
                with socket.create_connection(self._broker, timeout=10) as broker:
                    with self._lock:
                        self._open.add(broker)
                    threading.Thread(target=_pass, args=(broker, client), daemon=True).start()
                    _pass(client, broker)
                return
            self.heard.append(client.recv(65536).partition(b"\r\n")[0].decode("latin-1"))
            if self._way == "silent":
                client.recv(1)
            elif isinstance(self._way, bytes):
                client.sendall(self._way)


def _pass(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        source.settimeout(60)
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def front(broker_url: str) -> Iterator[Front]:
    made = Front(broker_url)
    try:
        yield made
    finally:
        made.close()
