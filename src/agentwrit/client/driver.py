"""The blocking driver: carries out protocol steps over HTTP connections that are kept."""

import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import urlsplit

from agentwrit._version import __version__
from agentwrit.client.exchange import HttpRequest, HttpResponse, LoginNeeded, Steps, retry_delay
from agentwrit.client.steps import AccessToken
from agentwrit.errors import AgentWritError, TransportError, retry_after

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
RENEW_LOGIN_AT: Final = 0.75  # of its life


def check_broker_url(url: str) -> str:
    """The URL of a broker, without a slash at its end.

    Raises:
        AgentWritError: it is not one.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise AgentWritError(f"{url!r} is not the URL of a broker: write it like https://broker.example.com")
    return url.rstrip("/")


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

    def __repr__(self) -> str:
        return "Login(…)"


class Driver:
    """Runs steps against one broker. Safe to share between threads. `timeout`: seconds for a whole call."""

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
        self._tls = {name: value for name, value in (("verify", verify), ("cert", cert)) if value is not None}

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

    def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        with self._lock:
            if self._client is not None and self._owns_client:
                self._client.close()
                self._client = None

    def _answer(self, needed: HttpRequest | LoginNeeded, deadline: float) -> HttpResponse | str:
        if isinstance(needed, LoginNeeded):
            if self._login is None:
                raise AgentWritError("this call needs a login")
            return self._login.token(self, needed.stale, deadline)
        return self._send_until(needed, deadline)

    def _send_until(self, request: HttpRequest, deadline: float) -> HttpResponse:
        """Send a request; again if it is idempotent and the broker is out of reach, as long as there is time."""
        attempt = 0
        while True:
            failure: TransportError | None = None
            response: HttpResponse | None = None
            try:
                response = self._send(request, deadline)
            except TransportError as error:
                failure = error
            is_final = response is not None and (response.status != 503 or request.is_503_an_answer)
            delay = retry_delay(attempt, None if response is None else retry_after(response.headers))
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
        try:
            with self._http().stream(
                request.method,
                self.broker_url + request.path,
                json=request.json,
                headers=headers,
                timeout=remaining,
                follow_redirects=False,
            ) as response:
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
                        raise TransportError(f"the broker at {self.broker_url} did not come to an end in time")
                return HttpResponse(response.status_code, dict(response.headers), bytes(body))
        # `from None`: the original holds the request, and with it the secret.
        except httpx2.TimeoutException:
            raise TransportError(f"the broker at {self.broker_url} did not answer in time") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise TransportError(f"the broker at {self.broker_url} cannot be reached: {reason}") from None

    def _http(self) -> "httpx2.Client":
        if self._client is None:
            with self._lock:
                if self._client is None:
                    import httpx2

                    limits = httpx2.Limits(max_connections=256, max_keepalive_connections=64, keepalive_expiry=30)
                    self._client = httpx2.Client(limits=limits, **self._tls)
                    # Whoever forgets to close loses no connection for longer than the driver lives.
                    weakref.finalize(self, self._client.close)
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
