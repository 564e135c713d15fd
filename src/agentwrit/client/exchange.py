"""What protocol steps and drivers say to each other.

A step is a generator: it yields what it needs, is sent the answer, and returns its result. It does no I/O, so that
every driver (blocking, or for an event loop) carries out the same protocol.
"""

import random
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class HttpRequest:
    """A request to make. The repr leaves out what is secret.

    `is_idempotent`: made twice it does what it does once, so it may be retried. `is_503_an_answer`: a 503 is what was
    asked for, and no reason to try again.
    """

    method: str
    path: str
    json: object = field(default=None, repr=False)
    bearer: str | None = field(default=None, repr=False)
    is_idempotent: bool = False
    is_503_an_answer: bool = False


@dataclass(frozen=True)
class HttpResponse:
    """An answer, whole. `headers`: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class LoginNeeded:
    """Asks the driver for the login's token; `stale` is one that was refused, and is not wanted again."""

    stale: str | None = field(default=None, repr=False)


Steps: TypeAlias = Generator[HttpRequest | LoginNeeded, Any, T]


FIRST_DELAY_SECONDS: Final = 0.05
MAX_DELAY_SECONDS: Final = 2.0


def retry_delay(attempt: int, asked_for: float | None) -> float:
    """Seconds to wait before the next attempt: what the broker asked for, else ever longer, with full jitter."""
    if asked_for is not None:
        return asked_for
    return random.uniform(0, min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**attempt))  # noqa: S311  # no secret
