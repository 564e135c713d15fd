"""The errors of the SDK.

::

    AgentWritError
    ├── ProblemResponseError     the broker refused: .problem (ProblemDetail), .status_code
    │   ├── AuthenticationError  401: a credential was not accepted
    │   ├── AuthorizationError   403: the credential does not reach that far
    │   ├── RateLimitError       429: too many failed attempts, or too much at once; .retry_after, seconds
    │   └── BrokerUnavailable    it cannot answer now, or a proxy before it said so; .retry_after, seconds
    ├── TransportError           the broker was not reached, or what answered is no broker
    │   ├── BrokerUnavailable    the same: of either kind
    │   └── Unverifiable         whether a token holds cannot be told: revocations may be missing
    ├── CryptoError              a key that cannot be used
    ├── NoCurrentAgent           code that acts as an agent runs where there is none
    ├── InvalidToken             a token that does not hold; .reason
    │   └── Unproven             whoever shows it has not shown to hold the key that it is bound to; .code
    └── ScopeDenied              a token that holds, and does not reach that far; .needed, .held
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
    """The broker refused a request, and said why as far as it says."""

    def __init__(self, problem: ProblemDetail, status_code: int) -> None:
        hint = f" ({_line(problem.hint)})" if problem.hint else ""
        super().__init__(f"{_line(problem.title)}: {_line(problem.detail)}{hint}")
        self.problem = problem
        self.status_code = status_code

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problem, self.status_code)


class AuthenticationError(ProblemResponseError):
    """A credential was not accepted (401)."""


class AuthorizationError(ProblemResponseError):
    """The credential does not reach that far, or its grant has ended (403)."""


class RateLimitError(ProblemResponseError):
    """Too many failed attempts, or too much at once (429). `retry_after`: seconds to wait, if the broker said."""

    def __init__(self, problem: ProblemDetail, status_code: int, retry_after: float | None = None) -> None:
        super().__init__(problem, status_code)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problem, self.status_code, self.retry_after)


class TransportError(AgentWritError):
    """The broker was not reached in time, or what answered does not speak its protocol."""


class BrokerUnavailable(ProblemResponseError, TransportError):
    """The broker cannot answer now, or a proxy before it said so (any 5xx). `retry_after`: seconds, if it was said.

    Where a broker never refuses anything, any other refusal is one of these too: it is not the broker's.
    """

    def __init__(self, problem: ProblemDetail, status_code: int, retry_after: float | None = None) -> None:
        super().__init__(problem, status_code)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problem, self.status_code, self.retry_after)


class Unverifiable(TransportError):
    """Whether a token holds cannot be told: the broker was not heard of for too long. Nothing is accepted then."""


class ScopeDenied(AgentWritError):
    """The token holds, and does not cover what is needed. `needed`, `held`: lists of scopes."""

    def __init__(self, needed: list[str], held: list[str]) -> None:
        super().__init__(f"needed {' '.join(needed)}, held {' '.join(held)}")
        self.needed = needed
        self.held = held

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.needed, self.held)


class CryptoError(AgentWritError):
    """A private key that cannot be used."""


class NoCurrentAgent(AgentWritError):
    """Code that acts as the current agent runs where there is none."""


_BY_STATUS: dict[int, type[ProblemResponseError]] = {401: AuthenticationError, 403: AuthorizationError}


def from_response(status: int, headers: Mapping[str, str], body: bytes) -> ProblemResponseError:
    """The error that an HTTP answer stands for. `headers`: names in lower case."""
    problem = _problem(status, body)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return RateLimitError(problem, status, retry_after(headers))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return BrokerUnavailable(problem, status, retry_after(headers))
    return _BY_STATUS.get(status, ProblemResponseError)(problem, status)


def unavailable(error: ProblemResponseError) -> BrokerUnavailable:
    """A refusal where a broker refuses nothing."""
    return BrokerUnavailable(error.problem, error.status_code, getattr(error, "retry_after", None))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait (RFC 9110 §10.2.3), where they are given as such: a year at most."""
    text = headers.get("retry-after", "")
    return min(float(text), MAX_RETRY_AFTER) if text.isascii() and text.isdigit() else None


def _line(text: str) -> str:
    """What the other side wrote, fit for a terminal: no line ends, no escape sequences, no more than can be read."""
    return "".join(character if character.isprintable() else " " for character in text[:MAX_TEXT])


def _problem(status: int, body: bytes) -> ProblemDetail:
    """The problem document in a body, or for a body that holds none what can be said of it."""
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
