"""The blocking driver: carries out calls over persistent HTTP connections.

It uses its own connections (`agentwrit.client.connections`), or httpx2's (`agentwrit.client.through_httpx2`) if the
caller supplies a client, if a proxy is needed, and for event streams.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from agentwrit.client.event_stream import EventStream
from agentwrit.client.exchange import AnswerTooLarge, HttpRequest, HttpResponse, Plan, Turn
from agentwrit.client.policy import Calling, Login, Policy, Send, Take, Wait
from agentwrit.client.secrecy import discreet
from agentwrit.errors import AgentWritError, TransportError

if TYPE_CHECKING:
    import httpx2

    from agentwrit.client.connections import Connections
    from agentwrit.client.through_httpx2 import Caller

T = TypeVar("T")

MAX_STREAMS: Final = 256


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
        self._given_client = http_client
        self._client: httpx2.Client | None = None
        self._caller: Caller | None = None
        self._connections: Connections | None = None
        self._is_direct = http_client is None
        # If the caller forgets to close, connections live no longer than the driver.
        self._finalizers: list[weakref.finalize[..., Driver]] = []
        _drivers.add(self)

    @discreet
    def run(self, steps: Plan[T], *, timeout: float | None = None) -> T:
        """Carry out steps within `timeout` seconds in all.

        Raises:
            TransportError: the broker was not reached in time.
            AgentWritError: what the steps raise.
        """
        return self._carry_out(self.calling(steps, self.deadline(timeout)))

    @discreet
    def send(self, request: HttpRequest) -> HttpResponse:
        """Make one request, once.

        Raises:
            TransportError: the broker was not reached in time.
        """
        return self._send(request, self.deadline())

    def event_stream(self, *, silence: float) -> EventStream:
        """An object that opens event streams, over this driver's connections."""
        return EventStream(self._http(), silence=silence)

    def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        with self._lock:
            self._client = self._caller = self._connections = None
            while self._finalizers:
                self._finalizers.pop()()

    def after_fork(self) -> None:
        """Leave the connections to the parent: two processes on one connection would read each other's answers.

        The connections are dropped, not closed: closing takes a lock that another thread of the parent may have held.
        The locks of turns are replaced for the same reason. A login remains valid in the child.
        """
        self._lock = threading.Lock()
        self._turns = weakref.WeakKeyDictionary()
        self._client = self._caller = self._connections = None
        while self._finalizers:
            self._finalizers.pop().detach()

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
                turn = self._turn(needed.turn)
                if not turn.acquire(timeout=self.remaining(needed.deadline)):
                    raise self.failure(TimeoutError())
                try:
                    return self._carry_out(needed.calling)
                finally:
                    turn.release()

    def _turn(self, turn: Turn) -> threading.Lock:
        with self._lock:
            return self._turns.setdefault(turn, threading.Lock())

    def _send(self, request: HttpRequest, deadline: float) -> HttpResponse:
        connections = self._connections or self._connect()
        if connections is None:
            return self._send_with_httpx2(request, deadline)
        from http.client import HTTPException

        try:
            return connections.send(
                request.method,
                request.path,
                self.headers(request),
                request.content(),
                remaining=lambda: self.remaining(deadline),
                max_bytes=request.max_bytes,
            )
        except (OSError, HTTPException, ValueError, TransportError) as error:
            failure = self.failure(error)
        raise failure

    def _send_with_httpx2(self, request: HttpRequest, deadline: float) -> HttpResponse:
        import httpx2  # here, so that importing the SDK does not load it

        caller, remaining = self._call_through(), self.remaining(deadline)
        try:
            return caller.send(
                lambda: self.arguments(request, remaining), timeout=remaining, max_bytes=request.max_bytes
            )
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, AnswerTooLarge) as error:
            failure = self.failure(error)
        raise failure

    def _connect(self) -> "Connections | None":
        """The driver's own connections, or None if httpx2 has to be used."""
        if not self._is_direct:
            return None
        from agentwrit.client.connections import Connections, is_proxied  # here, for the same reason

        with self._lock:
            if self._connections is None:
                self._is_direct = not is_proxied(self.broker_url)
            if self._connections is None and self._is_direct:
                self._connections = Connections(self.broker_url, self.tls_context)
                self._close_later(self._connections.close)
            return self._connections

    def _http(self) -> "httpx2.Client":
        client = self._given_client or self._client
        if client is None:
            import httpx2

            with self._lock:
                if self._client is None:
                    self._client = httpx2.Client(**self.client_options(MAX_STREAMS))
                    self._close_later(self._client.close)
                client = self._client
        self.check_open(client)
        return client

    def _call_through(self) -> "Caller":
        from agentwrit.client.through_httpx2 import Caller

        client = self._http()
        with self._lock:
            if self._caller is None:
                self._caller = Caller(client)
            return self._caller

    def _close_later(self, close: Callable[[], None]) -> None:
        self._finalizers.append(weakref.finalize(self, close))

    def __repr__(self) -> str:
        return f"Driver({self.broker_url!r})"


class Connected:
    """An object that talks to a broker through its own driver, and can be closed."""

    _driver: Driver

    @property
    def broker_url(self) -> str:
        """The broker's URL, without a trailing slash."""
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
