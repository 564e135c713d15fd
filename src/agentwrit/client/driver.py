"""The blocking driver: carries out protocol steps over HTTP connections that are kept."""

import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import urlsplit

from agentwrit._version import __version__
from agentwrit.client.event_stream import EventStream
from agentwrit.client.exchange import HttpRequest, HttpResponse, LoginNeeded, Steps, retry_delay
from agentwrit.client.steps import AccessToken
from agentwrit.errors import AgentWritError, TransportError, retry_after

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

RENEW_LOGIN_AT: Final = 0.75  # of its life


def check_broker_url(url: str) -> str:
    """The URL of a broker, without a slash at its end.

    Raises:
        AgentWritError: it is not one.
    """
    if "@" in url:  # it would be sent in place of the token, and shown in every error
        raise AgentWritError("the broker's URL holds a user name: leave it, and any password, out")
    if not _is_broker_url(url):
        raise AgentWritError(f"{url!r} is not the URL of a broker: write it like https://broker.example.com")
    return url.rstrip("/")


def _is_broker_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_port = parts.port != 0  # reading it checks it
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and has_port
        and not (parts.query or parts.fragment or " " in url)
        and url.isprintable()
    )


class Login:
    """A login that is kept, and replaced ahead of its end: once, however many threads need it."""

    def __init__(self, steps: Callable[[], Steps[AccessToken]]) -> None:
        self._steps = steps
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = 0.0

    def token(self, driver: "Driver", stale: str | None, deadline: float) -> str:
        """A token that is not `stale` and not about to end."""
        with self._lock:
            if not self._token or self._token == stale or time.monotonic() >= self._renew_at:
                asked_at = time.monotonic()
                fresh = driver.carry_out(self._steps(), deadline)
                self._token = fresh.access_token
                self._renew_at = asked_at + RENEW_LOGIN_AT * fresh.expires_in
            return self._token

    def after_fork(self) -> None:
        """The token is as good in the child; a lock that another thread of the parent held is not."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return "Login(…)"


class Driver:
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
        self.broker_url = check_broker_url(broker_url)
        self._timeout = timeout
        self._user_agent = user_agent or f"agentwrit-python/{__version__}"
        self._login = login
        self._lock = threading.Lock()
        self._client = http_client
        self._owns_client = http_client is None
        self._finalizer: weakref.finalize[..., Driver] | None = None
        self._tls = {name: value for name, value in (("verify", verify), ("cert", cert)) if value is not None}
        _drivers.add(self)

    def run(self, steps: Steps[T], *, timeout: float | None = None) -> T:
        """Carry out steps within `timeout` seconds in all.

        Raises:
            TransportError: the broker was not reached in time.
            AgentWritError: what the steps raise.
        """
        return self.carry_out(steps, time.monotonic() + (self._timeout if timeout is None else timeout))

    def carry_out(self, steps: Steps[T], deadline: float) -> T:
        """Carry out steps until `deadline`, on the monotonic clock."""
        try:
            needed = next(steps)
            while True:
                try:
                    answer = self._answer(needed, deadline)
                except AgentWritError as error:
                    needed = steps.throw(error)
                else:
                    needed = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result

    def send(self, request: HttpRequest) -> HttpResponse:
        """Make one request, once.

        Raises:
            TransportError: the broker was not reached in time.
        """
        return self._send(request, time.monotonic() + self._timeout)

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

        They are dropped, not closed: closing takes a lock that another thread of the parent may have held.
        """
        self._lock = threading.Lock()
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None
            self._client = None
        if self._login is not None:
            self._login.after_fork()

    def _answer(self, needed: HttpRequest | LoginNeeded, deadline: float) -> HttpResponse | str:
        if isinstance(needed, LoginNeeded):
            if self._login is None:
                raise AgentWritError("this call needs a login")
            return self._login.token(self, needed.stale, deadline)
        return self._send_until(needed, deadline)

    def _send_until(self, request: HttpRequest, deadline: float) -> HttpResponse:
        """Send a request; again if it is idempotent and the broker is out of reach, as long as there is time."""
        attempt = 0
        response: HttpResponse | None = (
            None  # the last that came: what a broker says is told before that it fell silent
        )
        while True:
            failure: TransportError | None = None
            asked_for = None
            try:
                response = self._send(request, deadline)
                asked_for = retry_after(response.headers)
            except TransportError as error:
                failure = error
            is_final = failure is None and response is not None and (response.status != 503 or request.is_503_an_answer)
            delay = retry_delay(attempt, asked_for)
            if is_final or not request.is_idempotent or time.monotonic() + delay >= deadline:
                if response is not None:
                    return response
                assert failure is not None  # noqa: S101  # one of the two
                raise failure
            time.sleep(delay)
            attempt += 1

    def _send(self, request: HttpRequest, deadline: float) -> HttpResponse:
        import httpx2  # here, so that importing the SDK does not pay for it

        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TransportError(f"the broker at {self.broker_url} did not answer in time")
        headers = {"user-agent": self._user_agent, "accept": "application/json"}
        if request.bearer is not None:
            headers["authorization"] = f"Bearer {request.bearer}"
        if request.idempotency_key is not None:
            headers["idempotency-key"] = request.idempotency_key
        if request.json is not None:
            headers["content-type"] = "application/json"
        try:
            with self._http().stream(
                request.method,
                self.broker_url + request.path,
                content=request.content(),
                headers=headers,
                timeout=remaining,
                follow_redirects=False,
            ) as response:
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > request.max_bytes or time.monotonic() > deadline:
                        raise TransportError(f"the broker at {self.broker_url} did not come to an end in time")
                return HttpResponse(response.status_code, dict(response.headers), bytes(body))
        except httpx2.TimeoutException:
            failure = "did not answer in time"
        except httpx2.ConnectError as error:
            failure = f"cannot be reached: {error}"
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            # Its text may hold what was sent or received, and with it a token.
            failure = f"cannot be reached: the connection failed ({type(error).__name__})"
        # Not raised above: the original holds the request, and with it the secret, and would be the __context__.
        raise TransportError(f"the broker at {self.broker_url} {failure}")

    def _http(self) -> "httpx2.Client":
        client = self._client
        if client is None:
            with self._lock:
                client = self._client or self._connect()
        if client.is_closed:
            raise AgentWritError("the http_client of this app is closed: keep it open for as long as the app is used")
        return client

    def _connect(self) -> "httpx2.Client":
        import httpx2

        limits = httpx2.Limits(max_connections=256, max_keepalive_connections=64, keepalive_expiry=30)
        self._client = httpx2.Client(limits=limits, **self._tls)
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
