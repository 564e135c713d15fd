"""Requests that are sent when their time has come, whether or not those before were answered."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import uvloop

TICK_SECONDS = 0.005


@dataclass
class Found:
    """What came of it: how long each answer took, by its status; `lost`: requests without one."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    lost: int = 0
    without_retry_after: int = 0

    @property
    def counts(self) -> Counter[int]:
        return Counter({status: len(taken) for status, taken in self.seconds.items()})

    def quantile(self, status: int, part: float) -> float:
        taken = sorted(self.seconds[status])
        return taken[min(len(taken) - 1, int(part * len(taken)))]


class _Connection(asyncio.Protocol):
    """One request at a time. `idle`: where it goes when its answer has come."""

    def __init__(self, found: Found, idle: list["_Connection"]) -> None:
        self._found = found
        self._idle = idle
        self._sent_at: float | None = None
        self._received = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def ask(self, request: bytes, since: float) -> None:
        self._sent_at = since
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or self._sent_at is None:
            return
        fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
        if len(body) < int(fields.get(b"content-length", b"0")):
            return
        status = int(head[9:12])
        self._found.seconds.setdefault(status, []).append(time.perf_counter() - self._sent_at)
        self._found.without_retry_after += status == 503 and b"retry-after" not in fields
        self._received, self._sent_at = b"", None
        if fields.get(b"connection") != b"close":
            self._idle.append(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._found.lost += self._sent_at is not None
        self._sent_at = None
        if self in self._idle:
            self._idle.remove(self)

    def close(self) -> None:
        self._transport.close()

    @property
    def is_waiting(self) -> bool:
        return self._sent_at is not None


def ask_at(url: str, request: bytes, *, rate: float, seconds: float, connections: int = 1024) -> Found:
    """Send `request` so many times a second, on up to so many connections, and wait for all answers.

    Times count from when a request was due: also for one that has to wait for a connection.
    """
    return uvloop.run(_ask_at(url, request, rate, seconds, connections))


async def _ask_at(url: str, request: bytes, rate: float, seconds: float, connections: int) -> Found:
    loop = asyncio.get_running_loop()
    host, port = url.removeprefix("http://").split(":")
    found, idle = Found(), list[_Connection]()
    made = [
        (await loop.create_connection(lambda: _Connection(found, idle), host, int(port)))[1] for _ in range(connections)
    ]
    idle += made
    started = time.perf_counter()
    total = int(rate * seconds)
    sent = 0
    while sent < total:
        due = min(total, int((time.perf_counter() - started) * rate))
        while sent < due and idle:
            idle.pop().ask(request, started + sent / rate)
            sent += 1
        await asyncio.sleep(TICK_SECONDS)
    while any(connection.is_waiting for connection in made):
        await asyncio.sleep(TICK_SECONDS)
    for connection in made:
        connection.close()
    return found
