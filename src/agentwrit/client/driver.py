"""The blocking driver: carries out calls over HTTP connections that are kept."""

import os
import threading
import time
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from agentwrit.client.event_stream import EventStream
from agentwrit.client.exchange import HttpRequest, HttpResponse, Plan, Turn
from agentwrit.client.policy import Calling, Login, Policy, Send, Take, Wait
from agentwrit.errors import AgentWritError

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

MAX_CONNECTIONS: Final = 256


class Driver(Policy):
    """Runs steps against one broker. Safe to share between threads, and to use on both sides of a fork.

    `timeout`: seconds for a whole call.
    """

    def __init__(
        self,
        broker_url: str,
        *,
        timeout: float,
        user_agent: str | None = None,
        login: Login | None = None,
        http_client: "httpx2.Client | None" = None,
        verify: Any = None,
        cert: Any = None,
    ) -> None:
        super().__init__(broker_url, timeout=timeout, user_agent=user_agent, login=login, verify=verify, cert=cert)
        self._lock = threading.Lock()
        self._turns: weakref.WeakKeyDictionary[Turn, threading.Lock] = weakref.WeakKeyDictionary()
        self._client = http_client
        self._finalizer: weakref.finalize[..., Driver] | None = None
        _drivers.add(self)

    def run(self, steps: Plan[T], *, timeout: float | None = None) -> T:
        """Carry out steps within `timeout` seconds in all.

        Raises:
            TransportError: the broker was not reached in time.
            AgentWritError: what the steps raise.
        """
        return self._carry_out(self.calling(steps, self.deadline(timeout)))

    def send(self, request: HttpRequest) -> HttpResponse:
        """Make one request, once.

        Raises:
            TransportError: the broker was not reached in time.
        """
        return self._send(request, self.deadline())

    def event_stream(self, *, silence: float) -> EventStream:
        """Something to open streams of events with, over the connections of this driver."""
        return EventStream(self._http(), silence=silence)

    def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        with self._lock:
            if self._finalizer is not None:
                self._client = None
                self._finalizer()
                self._finalizer = None

    def after_fork(self) -> None:
        """Leave the connections to the parent: two processes on one would read each other's answers.

        They are dropped, not closed: closing takes a lock that another thread of the parent may have held. So may one
        have had a turn; a login, on the other hand, is as good in the child.
        """
        self._lock = threading.Lock()
        self._turns = weakref.WeakKeyDictionary()
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None
            self._client = None

    def _carry_out(self, calling: Calling[T]) -> T:
        try:
            needed = next(calling)
            while True:
                try:
                    answer = self._answer_to(needed)
                except AgentWritError as error:
                    needed = calling.throw(error)
                else:
                    needed = calling.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result

    def _answer_to(self, needed: Send | Wait | Take) -> object:
        match needed:
            case Send():
                return self._send(needed.request, needed.deadline)
            case Wait():
                time.sleep(needed.seconds)
                return None
            case Take():
                with self._turn(needed.turn):
                    return self._carry_out(needed.calling)

    def _turn(self, turn: Turn) -> threading.Lock:
        with self._lock:
            return self._turns.setdefault(turn, threading.Lock())

    def _send(self, request: HttpRequest, deadline: float) -> HttpResponse:
        import httpx2  # here, so that importing the SDK does not pay for it

        remaining = self.remaining(deadline)
        try:
            # The arguments hold the secret: no variable does, which a traceback could show.
            with self._http().stream(**self.arguments(request, remaining)) as response:
                body = bytearray()
                for chunk in response.iter_bytes():
                    self.collect(body, chunk, request, deadline)
                return HttpResponse(response.status_code, dict(response.headers), bytes(body))
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            failure = self.failure(error)
        raise failure

    def _http(self) -> "httpx2.Client":
        client = self._client
        if client is None:
            with self._lock:
                client = self._client or self._connect()
        self.check_open(client)
        return client

    def _connect(self) -> "httpx2.Client":
        import httpx2

        self._client = httpx2.Client(**self.client_options(MAX_CONNECTIONS))
        # Whoever forgets to close loses no connection for longer than the driver lives.
        self._finalizer = weakref.finalize(self, self._client.close)
        return self._client

    def __repr__(self) -> str:
        return f"Driver({self.broker_url!r})"


class Connected:
    """Something that talks to a broker through a driver of its own, and can be closed."""

    _driver: Driver

    @property
    def broker_url(self) -> str:
        """The broker's URL, without a slash at its end."""
        return self._driver.broker_url

    def close(self) -> None:
        """Close the connections."""
        self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_drivers: "weakref.WeakSet[Driver]" = weakref.WeakSet()


def _after_fork() -> None:
    for driver in list(_drivers):
        driver.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
