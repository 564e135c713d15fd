"""The requests of an agent's life by bare sockets: bytes that were prepared, and nothing of the SDK around them.

It is about what any client of this broker on this machine could reach: an answer is taken for whole when its first part
has come, and searched for the token as bytes.
"""

import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

from benchmarks.broker import Running
from benchmarks.create import bodies_in_one_trip

ANSWER_BYTES = 64 * 1024


class BareLives:
    """So many lives at a broker, of agents whose creation is ready to be sent. Each thread has a connection of its own.

    The proofs are good for half a minute: they are made when this is. To be closed.
    """

    def __init__(self, broker: Running, count: int) -> None:
        parts = urlsplit(broker.url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._host = parts.netloc
        token = broker.app_token()
        bodies = bodies_in_one_trip(f"{broker.url}/v1/agents", token, count)
        self._creations: Iterator[bytes] = iter([self._post("/v1/agents", body.encode(), token) for body in bodies])
        self._own = threading.local()
        self._connections: list[socket.socket] = []

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def live(self) -> None:
        created = self._ask(next(self._creations))
        token = created.partition(b'"access_token":"')[2].partition(b'"')[0].decode()
        validation = self._post("/v1/token/validate", b'{"token":"%s"}' % token.encode())
        if b'"valid":true' not in self._ask(validation):
            raise RuntimeError("a new agent's token does not hold")
        self._ask(self._post("/v1/token/release", b"", token))
        if b'"valid":false' not in self._ask(validation):
            raise RuntimeError("a released token holds")

    def _post(self, path: str, body: bytes, token: str | None = None) -> bytes:
        bearer = "" if token is None else f"authorization: Bearer {token}\r\n"
        head = f"POST {path} HTTP/1.1\r\nhost: {self._host}\r\n{bearer}content-type: application/json\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    def _ask(self, request: bytes) -> bytes:
        connection: socket.socket | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = socket.create_connection(self._address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.append(connection)
        connection.sendall(request)
        return connection.recv(ANSWER_BYTES)
