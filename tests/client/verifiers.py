"""Verifiers of both kinds behind one face, and what tests ask of them."""

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from agentwrit import AsyncVerifier, InvalidToken, TransportError, Verifier
from tests.loop_thread import LoopThread
from tests.support import TestApp

T = TypeVar("T")

STALENESS = 2.5  # heartbeats come each second, and name whole seconds
PATIENCE = 15.0


class OnLoop:
    """An AsyncVerifier with the face of a Verifier."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._loop = LoopThread()
        self.verifier = AsyncVerifier(*arguments, **options)

    def verify(self, token: str, **options: Any) -> Any:
        return self._loop.run(self.verifier.verify(token, **options))

    def on_loop(self, call: Callable[[AsyncVerifier], T]) -> T:
        """Make a call that is not awaited."""

        async def calling() -> T:
            return call(self.verifier)

        return self._loop.run(calling())

    @property
    def staleness(self) -> float:
        return self.verifier.staleness

    @property
    def unreported(self) -> int:
        return self.verifier.unreported

    def close(self) -> None:
        self._loop.run(self.verifier.aclose())

    def end(self) -> None:
        self.close()
        self._loop.close()


class Direct(Verifier):
    def end(self) -> None:
        self.close()


Either = Direct | OnLoop
Make = Callable[..., Either]


@pytest.fixture(params=[Direct, OnLoop], ids=["threads", "loop"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[Either] = []

    def make(url: str, **options: Any) -> Either:
        made.append(
            request.param(url, **{"max_staleness": STALENESS, "on_stale": "refuse", "timeout": 10.0, **options})
        )
        return made[-1]

    yield make
    for verifier in made:
        verifier.end()


def token_of(app: TestApp, *scopes: str, **policy: Any) -> str:
    return str(app.agent(*scopes, **policy)["access_token"])


def eventually(holds: Callable[[], bool], patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def refused(verifier: Either, token: str, reason: str = "") -> bool:
    try:
        verifier.verify(token)
    except InvalidToken as error:
        return reason in str(error)
    return False


def comes_to_refuse(verifier: Either, token: str) -> bool:
    """The same, while the verifier may not be able to tell yet."""
    try:
        return refused(verifier, token)
    except TransportError:
        return False


def is_up(verifier: Either, token: str) -> bool:
    """Whether the verifier accepts the token: false while it cannot tell."""
    try:
        verifier.verify(token)
    except TransportError:
        return False
    return True


def accepts(verifier: Either, token: str) -> bool:
    try:
        verifier.verify(token)
    except (InvalidToken, TransportError):
        return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
