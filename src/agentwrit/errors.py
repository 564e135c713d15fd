"""The errors of the SDK.

::

    AgentWritError
    ├── ProblemResponseError     the broker refused: .problem (ProblemDetail), .status_code
    │   ├── AuthenticationError  401: a credential was not accepted
    │   ├── AuthorizationError   403: the credential does not allow the request
    │   ├── RateLimitError       429: too many failed attempts or requests; .retry_after, seconds
    │   └── BrokerUnavailable    5xx: the broker, or a proxy before it, cannot respond now; .retry_after, seconds
    ├── TransportError           the broker was not reached, or the response is not a broker's
    │   ├── BrokerUnavailable    the same class: it has both bases
    │   └── Unverifiable         a token cannot be checked: revocations may be missing
    ├── CryptoError              a private key cannot be used
    ├── NoCurrentAgent           code that needs the current agent runs without one
    ├── InvalidToken             a token is not valid; .reason
    │   └── Unproven             the caller has not proven to hold the key that the token is bound to; .code
    └── ScopeDenied              a valid token does not cover the required scope; .needed, .held

A program that calls the broker usually tells three cases apart:

    try:
        agent = app.create_agent("orders", "order-4823", ["read:data:customer-7291"])
    except AuthorizationError as error:  # the scope exceeds the app's ceiling: a retry cannot succeed
        raise SystemExit(str(error)) from None
    except TransportError:  # the SDK's own retries have failed: try again later
        ...
    except ProblemResponseError as error:  # any other refusal
        log.error("%s (request %s)", error, error.problem.request_id)
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import msgspec

from agentwrit.domain.errors import AgentWritError, InvalidToken, Unproven
from agentwrit.models import ProblemDetail

__all__ = [
    "AgentWritError",
    "AuthenticationError",
    "AuthorizationError",
    "BrokerUnavailable",
    "CryptoError",
    "InvalidToken",
    "NoCurrentAgent",
    "ProblemResponseError",
    "RateLimitError",
    "ScopeDenied",
    "TransportError",
    "Unproven",
    "Unverifiable",
]

MAX_TEXT: Final = 1000
MAX_RETRY_AFTER: Final = 365 * 86400.0


class ProblemResponseError(AgentWritError):
    """The broker refused a request.

    `problem`: the broker's description of the error (`ProblemDetail`); `status_code`: the HTTP status. Branch on
    `problem.error_code`, which is stable:

        try:
            agent.delegate(helper.agent_id, scope, ttl=ttl)
        except ProblemResponseError as error:
            is_gone = error.problem.error_code == "not_found"
    """

    def __init__(self, problem: ProblemDetail, status_code: int) -> None:
        hint = f" ({_line(problem.hint)})" if problem.hint else ""
        super().__init__(f"{_line(problem.title)}: {_line(problem.detail)}{hint}")
        self.problem = problem
        self.status_code = status_code

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problem, self.status_code)


class AuthenticationError(ProblemResponseError):
    """A credential was not accepted (401).

    For an app that is a wrong client id or secret, for an agent a token that has expired or whose grant has ended:

        try:
            agent.renew()
        except AuthenticationError:
            agent = app.create_agent("orders", "order-4823", scope)
    """


class AuthorizationError(ProblemResponseError):
    """The credential does not allow the request, or its grant has ended (403).

    The message names what exceeds which limit:

        try:
            agent = app.create_agent("orders", "order-4823", scope)
        except AuthorizationError as error:
            log.error("%s", error)
    """


class RateLimitError(ProblemResponseError):
    """Too many failed attempts, or too many requests at once (429).

    `retry_after`: seconds to wait, or None if the broker did not say:

        try:
            agent = app.create_agent("orders", "order-4823", scope)
        except RateLimitError as error:
            time.sleep(error.retry_after or 1)
    """

    def __init__(self, problem: ProblemDetail, status_code: int, retry_after: float | None = None) -> None:
        super().__init__(problem, status_code)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problem, self.status_code, self.retry_after)


class TransportError(AgentWritError):
    """The broker was not reached in time, or the response does not follow its protocol.

    The broker may have carried out the request all the same:

        try:
            agent.renew()
        except TransportError:
            agent.renew()  # the first response may have been lost
    """


class BrokerUnavailable(ProblemResponseError, TransportError):
    """The broker, or a proxy before it, cannot respond now (any 5xx).

    It is also raised for any other refusal of a request that a broker never refuses, because then something else
    responded. `retry_after`: seconds to wait, or None if the response did not say:

        try:
            agent.renew()
        except BrokerUnavailable as error:
            time.sleep(error.retry_after or 1)
    """

    def __init__(self, problem: ProblemDetail, status_code: int, retry_after: float | None = None) -> None:
        super().__init__(problem, status_code)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problem, self.status_code, self.retry_after)


class Unverifiable(TransportError):
    """A token cannot be checked, because the verifier has had no news from the broker for too long.

    The token must not be accepted. It may be valid, so respond with 503 rather than 401:

        try:
            claims = verifier.verify(token)
        except Unverifiable:
            return 503
    """


class ScopeDenied(AgentWritError):
    """A valid token does not cover the required scope.

    `needed`, `held`: the required scopes and those of the token. A service responds with 403:

        try:
            claims = verifier.verify(token, scope="read:data:customer-7291")
        except ScopeDenied as error:
            return 403, f"requires {' '.join(error.needed)}"
    """

    def __init__(self, needed: list[str], held: list[str]) -> None:
        super().__init__(f"needed {' '.join(needed)}, held {' '.join(held)}")
        self.needed = needed
        self.held = held

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.needed, self.held)


class CryptoError(AgentWritError):
    """A private key that was given to the SDK cannot be used.

    It is not an Ed25519 key, or does not give a signature:

        try:
            agent = app.create_agent("orders", "order-4823", scope, private_key=key)
        except CryptoError as error:
            raise SystemExit(str(error)) from None
    """


class NoCurrentAgent(AgentWritError):
    """Code that needs the current agent (`current_agent`, `requires`) runs without one.

    Begin the task with `app.agent_for` or `acting_as`:

        with app.agent_for(task_id="order-4823", scope=["read:data:customer-7291"]):
            read_customer("7291")
    """


_BY_STATUS: dict[int, type[ProblemResponseError]] = {401: AuthenticationError, 403: AuthorizationError}


def from_response(status: int, headers: Mapping[str, str], body: bytes) -> ProblemResponseError:
    """The error for an HTTP response that is not a success. `headers`: names in lower case."""
    problem = _problem(status, body)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return RateLimitError(problem, status, retry_after(headers))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return BrokerUnavailable(problem, status, retry_after(headers))
    return _BY_STATUS.get(status, ProblemResponseError)(problem, status)


def unavailable(error: ProblemResponseError) -> BrokerUnavailable:
    """The error for a refusal of a request that a broker never refuses."""
    return BrokerUnavailable(error.problem, error.status_code, getattr(error, "retry_after", None))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds to wait (RFC 9110 §10.2.3), at most a year; None if the header does not give a number of seconds."""
    text = headers.get("retry-after", "")
    return min(float(text), MAX_RETRY_AFTER) if text.isascii() and text.isdigit() else None


def _line(text: str) -> str:
    """Text from the other side, safe for a terminal: no line ends or escape sequences, at most 1,000 characters."""
    return "".join(character if character.isprintable() else " " for character in text[:MAX_TEXT])


def _problem(status: int, body: bytes) -> ProblemDetail:
    """The problem document in a body, or a substitute with the HTTP status if the body has none."""
    try:
        members = msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        members = {}

    def text(name: str) -> str | None:
        value = members.get(name)
        return value if isinstance(value, str) else None

    phrase = HTTPStatus(status).phrase if status in HTTPStatus.__members__.values() else f"HTTP status {status}"
    return ProblemDetail(
        type=text("type") or "about:blank",
        title=text("title") or phrase,
        detail=text("detail") or "the answer has no description of the error",
        instance=text("instance") or "",
        status=status,
        error_code=text("error_code"),
        request_id=text("request_id"),
        hint=text("hint"),
    )
