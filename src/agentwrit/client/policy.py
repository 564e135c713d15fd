"""How calls are made, without I/O: what is sent, when it is retried, until when, and how failures are reported.

The rules:

- A call has one deadline for everything that it needs: the login, waiting for a turn, retries.
- An idempotent request is retried if the broker is out of reach, or if the broker or a proxy answers that it cannot
  serve it now (502, 503, 504), with exponential backoff and jitter.
- A login is kept, and replaced before it expires or when the broker refuses it: once for all callers that need it.
- If the broker answered and a retry then failed, the answer is reported. Errors of the HTTP library become SDK errors,
  with messages that contain nothing of what was sent.

A driver carries out what `Policy` asks for: it sends, waits and takes turns, with threads or on an event loop.
"""

import ssl
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypeVar
from urllib.parse import urlsplit

from agentwrit._version import __version__
from agentwrit.client import tls
from agentwrit.client.exchange import (
    AnswerTooLarge,
    ConnectFailed,
    HttpRequest,
    HttpResponse,
    InTurn,
    LoginNeeded,
    Plan,
    Steps,
    Turn,
    retry_delay,
)
from agentwrit.client.log import logger
from agentwrit.client.secrecy import Secret, revealed
from agentwrit.client.steps import AccessToken
from agentwrit.errors import AgentWritError, TransportError, retry_after

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

RENEW_LOGIN_AT: Final = 0.75  # of its lifetime
KEEPALIVE_SECONDS: Final = 30
CALL_SECONDS: Final = 10.0  # the default for a whole call

_PASSING: Final = frozenset({502, 503, 504})  # RFC 9110 §15.6.3 to §15.6.5


@dataclass(frozen=True)
class Send:
    """Asks the driver to send a request once, and to return the answer. It throws TransportError if there is none."""

    request: HttpRequest
    deadline: float


@dataclass(frozen=True)
class Wait:
    """Asks the driver to wait."""

    seconds: float


@dataclass(frozen=True)
class Take:
    """Asks the driver to carry out `calling` alone in this turn, for which it waits until the deadline."""

    turn: Turn
    calling: "Calling[Any]"
    deadline: float


Calling: TypeAlias = Generator[Send | Wait | Take, Any, T]


class Login:
    """A login that is kept, and replaced before it expires: once, however many callers need it."""

    class _Kept(NamedTuple):
        token: Secret[str]
        renew_at: float

    def __init__(self, steps: Callable[[], Steps[AccessToken]]) -> None:
        self.steps = steps
        self.turn = Turn()
        self._kept = self._Kept(Secret(""), float("-inf"))

    def token(self, stale: Secret[str] | None, now: float) -> Secret[str] | None:
        """The kept token, unless it is `stale` or about to expire."""
        kept = self._kept
        return kept.token if now < kept.renew_at and kept.token != stale else None

    def keep(self, fresh: AccessToken, asked_at: float) -> None:
        self._kept = self._Kept(fresh.access_token, asked_at + RENEW_LOGIN_AT * fresh.expires_in)

    def __repr__(self) -> str:
        return "Login(…)"


class Policy:
    """The rules for one broker. `timeout`: seconds for a whole call."""

    def __init__(
        self,
        broker_url: str,
        *,
        timeout: float,
        user_agent: str | None = None,
        login: Login | None = None,
        verify: Any = None,
        cert: Any = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.broker_url = check_broker_url(broker_url)
        self._timeout = timeout
        self._user_agent = user_agent or f"agentwrit-python/{__version__}"
        self._login = login
        self._verify, self._cert = verify, cert
        self._monotonic = monotonic

    def deadline(self, timeout: float | None = None) -> float:
        """The deadline of a call that begins now, on the monotonic clock."""
        return self._monotonic() + (self._timeout if timeout is None else timeout)

    def calling(self, steps: Plan[T], deadline: float) -> Calling[T]:
        """The actions that carry out steps until `deadline`."""
        try:
            needed = next(steps)
            while True:
                try:
                    answer = yield from self._answer(needed, deadline)
                except AgentWritError as error:
                    needed = steps.throw(error)
                else:
                    needed = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result

    def remaining(self, deadline: float) -> float:
        """The seconds until `deadline`.

        Raises:
            TransportError: the deadline has passed.
        """
        remaining = deadline - self._monotonic()
        if remaining <= 0:
            raise TransportError(f"the broker at {self.broker_url} did not answer in time")
        return remaining

    def headers(self, request: HttpRequest) -> dict[str, str | Secret[str]]:
        """The header fields of a request, with names in lower case."""
        headers: dict[str, str | Secret[str]] = {"user-agent": self._user_agent, "accept": "application/json"}
        if request.bearer is not None:
            scheme = "Bearer" if request.proof is None else "DPoP"
            headers["authorization"] = Secret(f"{scheme} {request.bearer.reveal()}")
        if request.proof is not None:
            headers["dpop"] = request.proof()
        if request.idempotency_key is not None:
            headers["idempotency-key"] = request.idempotency_key
        if request.json is not None:
            headers["content-type"] = "application/json"
        return headers

    def arguments(self, request: HttpRequest, timeout: float) -> dict[str, Any]:
        """The arguments of httpx2's `stream` for a request, with its secrets in plain text.

        Raises:
            AgentWritError: the body contains characters that are not text.
        """
        content = request.content()
        return {
            "method": request.method,
            "url": self.broker_url + request.path,
            "content": None if content is None else content.reveal(),
            "headers": {
                "accept-encoding": "identity",
                **{name: revealed(value) for name, value in self.headers(request).items()},
            },
            "timeout": timeout,
            "follow_redirects": False,
        }

    def failure(self, error: Exception) -> TransportError:
        """The SDK's error for an error of an HTTP library.

        Raise it outside of the `except`: the original holds the request, and with it the secret. It would be the
        `__context__`, or its frames would be in the traceback.
        """
        if isinstance(error, TransportError):
            return TransportError(str(error))
        if isinstance(error, TimeoutError) or _is_of_httpx2(error, "TimeoutException"):
            text = "did not answer in time"
        elif isinstance(error, AnswerTooLarge):
            text = "sent more than any answer of a broker"
        elif isinstance(error, ConnectFailed) or _is_of_httpx2(error, "ConnectError"):
            text = f"cannot be reached: {error}"
        else:
            # The error's text may contain what was sent or received, such as a token.
            text = f"cannot be reached: the connection failed ({type(error).__name__})"
        return TransportError(f"the broker at {self.broker_url} {text}")

    def tls_context(self) -> ssl.SSLContext:
        """The TLS settings.

        Raises:
            AgentWritError: a configured file cannot be loaded.
        """
        return tls.context(self._verify, self._cert)

    def client_options(self, connections: int) -> dict[str, Any]:
        """The options for httpx2 clients that the driver creates."""
        import httpx2

        limits = httpx2.Limits(
            max_connections=connections,
            max_keepalive_connections=min(connections, 64),
            keepalive_expiry=KEEPALIVE_SECONDS,
        )
        is_default = self._verify is None and self._cert is None
        return {"limits": limits} if is_default else {"limits": limits, "verify": self.tls_context()}

    def check_open(self, client: "httpx2.Client | httpx2.AsyncClient") -> None:
        """Refuse a closed client, because it belongs to the caller.

        Raises:
            AgentWritError: the client is closed.
        """
        if client.is_closed:
            raise AgentWritError("the http_client of this app is closed: keep it open for as long as the app is used")

    def _answer(self, needed: HttpRequest | LoginNeeded | InTurn, deadline: float) -> Calling[Any]:
        match needed:
            case HttpRequest():
                return (yield from self._send_until(needed, deadline))
            case LoginNeeded():
                return (yield from self._login_token(needed.stale, deadline))
            case InTurn():
                return (yield Take(needed.turn, self.calling(needed.steps, deadline), deadline))

    def _login_token(self, stale: Secret[str] | None, deadline: float) -> Calling[Secret[str]]:
        if self._login is None:
            raise AgentWritError("this call needs a login")
        token = self._login.token(stale, self._monotonic())
        if token is None:
            token = yield Take(self._login.turn, self._log_in(self._login, stale, deadline), deadline)
        return token

    def _log_in(self, login: Login, stale: Secret[str] | None, deadline: float) -> Calling[Secret[str]]:
        asked_at = self._monotonic()
        token = login.token(stale, asked_at)  # another caller may just have logged in
        if token is None:
            fresh = yield from self.calling(login.steps(), deadline)
            login.keep(fresh, asked_at)
            token = fresh.access_token
        return token

    def _send_until(self, request: HttpRequest, deadline: float) -> Calling[HttpResponse]:
        """Send a request. Retry it until the deadline if it is idempotent and the broker is out of reach."""
        attempt = 0
        response: HttpResponse | None = None  # the last one received
        while True:
            failure: TransportError | None = None
            asked_for = None
            try:
                response = yield Send(request, deadline)
                asked_for = retry_after(response.headers)
            except TransportError as error:
                failure = error
            is_final = failure is None and response is not None and not _is_passing(response, request)
            delay = retry_delay(attempt, asked_for)
            if is_final or not request.is_idempotent or self._monotonic() + delay >= deadline:
                if response is not None:
                    return response
                assert failure is not None  # noqa: S101  # there is one of the two
                raise failure
            why = failure if response is None or failure is not None else f"the answer is {response.status}"
            logger.info("%s %s: %s; retrying in %.2f s", request.method, request.path, why, delay)
            yield Wait(delay)
            attempt += 1


def _is_passing(response: HttpResponse, request: HttpRequest) -> bool:
    """Whether an answer says only that the broker cannot answer now."""
    return response.status in _PASSING and not (response.status == 503 and request.is_503_an_answer)


def _is_of_httpx2(error: Exception, name: str) -> bool:
    """Whether an error is of an httpx2 class, without loading httpx2 to find out."""
    library = sys.modules.get("httpx2")
    return library is not None and isinstance(error, getattr(library, name))


def check_broker_url(url: str) -> str:
    """The URL of a broker, without a trailing slash.

    Raises:
        AgentWritError: it is not the URL of a broker.
    """
    if "@" in url:  # it would be sent in place of the token, and appear in every error
        raise AgentWritError("the broker's URL holds a user name: leave it, and any password, out")
    if not _is_broker_url(url):
        raise AgentWritError(f"{url!r} is not the URL of a broker: write it like https://broker.example.com")
    return url.rstrip("/")


def _is_broker_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_port = parts.port != 0  # reading it validates it
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and has_port
        and not (parts.query or parts.fragment or " " in url)
        and url.isprintable()
    )
