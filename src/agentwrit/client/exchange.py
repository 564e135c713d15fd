"""What protocol steps and drivers say to each other.

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
"""The program's own generator is its own: whoever seeded it counts on what comes next."""


@dataclass(frozen=True)
class HttpRequest:
    """A request to make. The repr leaves out what is secret.

    `is_idempotent`: made twice it does what it does once, so it may be retried; `idempotency_key` is what tells the
    broker that it is the same request. `is_503_an_answer`: a 503 is what was asked for, and no reason to try again.
    `max_bytes`: the largest answer to take.
    """

    method: str
    path: str
    json: object = field(default=None, repr=False)
    """What to send, or a function that says it: then each attempt sends something new (a proof is good once)."""
    bearer: Secret[str] | None = None
    proof: Callable[[], Secret[str]] | None = field(default=None, repr=False)
    """For a token that is bound: makes the proof that goes with it, a new one for each attempt."""
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
        with suppress(UnicodeEncodeError):  # it would carry the whole body with it, secrets included
            return Secret(msgspec.json.encode(body, enc_hook=_reveal))
        raise AgentWritError("an argument holds characters that are no text: is it bytes of another encoding?")


@dataclass(frozen=True)
class HttpResponse:
    """An answer, whole. `headers`: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class LoginNeeded:
    """Asks the driver for the login's token; `stale` is one that was refused, and is not wanted again."""

    stale: Secret[str] | None = None


class ConnectFailed(OSError):
    """No connection could be made. Its text says why, and holds nothing of what would have been sent."""


class AnswerTooLarge(Exception):
    """More came than is taken of an answer."""


class Turn:
    """Something that one at a time may do. Every driver keeps a lock for it: of threads, or of an event loop."""

    __slots__ = ("__weakref__",)


@dataclass(frozen=True)
class InTurn:
    """Asks the driver to carry out these steps when their turn has come, and for what they return."""

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
    """Seconds to wait before the next attempt: ever longer, with full jitter, on top of what the broker asked for.

    The jitter stays when the broker asks for something, or all that it sends away would come back at once.
    """
    jitter = RANDOM.uniform(0, min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**attempt))
    return jitter + (asked_for or 0.0)
