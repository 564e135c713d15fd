"""The messages between protocol steps and drivers.

A step is a generator: it yields what it needs, is sent the answer, and returns its result. It does no I/O, so that
every driver (blocking, or for an event loop) carries out the same protocol.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from random import SystemRandom
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from agentwrit.client.secrecy import Secret
from agentwrit.errors import AgentWritError

T = TypeVar("T")


MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024

RANDOM: Final = SystemRandom()
"""Separate from the program's generator, which the program may have seeded for a reproducible sequence."""


@dataclass(frozen=True)
class HttpRequest:
    """A request to make. Its repr omits secrets.

    `is_idempotent`: it has the same effect if made twice, so it may be retried; `idempotency_key` tells the broker that
    it is the same request. `is_503_an_answer`: a 503 is a valid answer, not a reason to retry. `max_bytes`: the largest
    answer to accept.
    """

    method: str
    path: str
    json: object = field(default=None, repr=False)
    """The body, or a function that returns it, so that each attempt sends a new one (a proof can be used once)."""
    bearer: Secret[str] | None = None
    proof: Callable[[], Secret[str]] | None = field(default=None, repr=False)
    """For a bound token: makes the proof to send with it, a new one for each attempt."""
    is_idempotent: bool = False
    idempotency_key: str | None = None
    is_503_an_answer: bool = False
    max_bytes: int = MAX_ANSWER_BYTES

    def content(self) -> Secret[bytes] | None:
        """The body to send.

        Raises:
            AgentWritError: a text in it has no UTF-8 form (a lone surrogate).
        """
        if self.json is None:
            return None
        body = self.json() if callable(self.json) else self.json
        with suppress(UnicodeEncodeError):  # the exception would carry the whole body, secrets included
            return Secret(msgspec.json.encode(body, enc_hook=_reveal))
        raise AgentWritError("an argument holds characters that are no text: is it bytes of another encoding?")


@dataclass(frozen=True)
class HttpResponse:
    """A complete answer. `headers`: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class LoginNeeded:
    """Asks the driver for the login's token. `stale`: a token that was refused, and must not be returned again."""

    stale: Secret[str] | None = None


class ConnectFailed(OSError):
    """No connection could be made. Its text says why, and contains nothing of what would have been sent."""


class AnswerTooLarge(Exception):
    """The answer is larger than the limit."""


class Turn:
    """A turn that one caller at a time may have. Every driver keeps a lock for it: of threads, or of an event loop."""

    __slots__ = ("__weakref__",)


@dataclass(frozen=True)
class InTurn:
    """Asks the driver to carry out these steps when their turn has come, and to return their result."""

    turn: Turn
    steps: "Plan[Any]" = field(repr=False)


def _reveal(value: object) -> object:
    if isinstance(value, Secret):
        return value.reveal()
    raise TypeError(f"{type(value).__name__} has no place in a request")


Steps: TypeAlias = Generator[HttpRequest | LoginNeeded, Any, T]
Plan: TypeAlias = Generator[HttpRequest | LoginNeeded | InTurn, Any, T]


FIRST_DELAY_SECONDS: Final = 0.05
MAX_DELAY_SECONDS: Final = 2.0


def retry_delay(attempt: int, asked_for: float | None) -> float:
    """Seconds until the next attempt: exponential backoff with full jitter, plus what the broker asked for.

    The jitter also applies to what the broker asks for. Otherwise all the clients that it turns away would return at
    once.
    """
    jitter = RANDOM.uniform(0, min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**attempt))
    return jitter + (asked_for or 0.0)
