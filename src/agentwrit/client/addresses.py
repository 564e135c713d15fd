"""Connecting to a host within a deadline, whatever the system or the network does."""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, TypeAlias

from agentwrit.client.exchange import ConnectFailed

ADDRESS_SECONDS: Final = 1.0  # for each address of a host but the last

Remaining: TypeAlias = Callable[[], float]
"""Returns the remaining seconds, or raises if none remain."""
Address: TypeAlias = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]
"""In the form that `socket.getaddrinfo` returns."""


def within(seconds: float) -> Remaining:
    """A countdown of `seconds` that starts now. It raises TimeoutError once the time is up."""
    deadline = time.monotonic() + seconds

    def remaining() -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    return remaining


class Addresses:
    """The addresses of a host. A thread looks them up, because the system may take longer than the caller can wait.

    All callers share one lookup thread, so at most one exists at a time.
    """

    def __init__(self, host: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
        self._host = host
        self._port = port
        self._kind = kind
        self._lock = threading.Lock()
        self._asked: Future[list[Address]] | None = None

    def get(self, timeout: float) -> list[Address]:
        """The addresses, in the order in which to try them.

        Raises:
            ConnectFailed: the host has no address.
            TimeoutError: the lookup did not finish in time.
        """
        with suppress(socket.gaierror):
            return self._look_up(socket.AI_NUMERICHOST)  # a numeric address needs no lookup
        with self._lock:
            asked = self._asked
            if asked is None:
                asked = self._asked = Future()
                threading.Thread(target=self._ask, args=(asked,), name="agentwrit-addresses", daemon=True).start()
        try:
            return asked.result(timeout)
        except socket.gaierror as error:
            failure = str(error)
        raise ConnectFailed(failure)

    def connect(self, remaining: Remaining) -> socket.socket:
        """A connection to the first address that accepts one.

        Raises:
            ConnectFailed: no address accepts one.
            TimeoutError: no address accepted one in time.
        """
        addresses = self.get(remaining())
        failure = OSError("the host has no address")
        for place, address in enumerate(addresses):
            seconds = seconds_for(place, len(addresses), remaining())
            try:
                return _connected(address, seconds)
            except OSError as error:
                failure = error
        if isinstance(failure, TimeoutError):
            raise TimeoutError("timed out")
        raise ConnectFailed(str(failure))

    def _ask(self, asked: "Future[list[Address]]") -> None:
        try:
            found = self._look_up(0)
        except Exception as error:
            self._asked = None
            asked.set_exception(error)
        else:
            self._asked = None
            asked.set_result(found)

    def _look_up(self, flags: int) -> list[Address]:
        return list(socket.getaddrinfo(self._host, self._port, type=self._kind, flags=flags))


def seconds_for(place: int, addresses: int, remaining: float) -> float:
    """Seconds to spend on one of several addresses, so that an unreachable address leaves time for the others."""
    left = addresses - place
    return remaining if left == 1 else min(ADDRESS_SECONDS, remaining / left)


def _connected(address: Address, seconds: float) -> socket.socket:
    family, kind, protocol, _, place = address
    connection = socket.socket(family, kind, protocol)
    try:
        connection.settimeout(seconds)
        connection.connect(place)
    except BaseException:
        connection.close()
        raise
    return connection
