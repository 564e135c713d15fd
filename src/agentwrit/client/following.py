"""Following a broker's revocation feed, without I/O: what to fetch, when, and what to make of it."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec

from agentwrit.client.exchange import HttpRequest, HttpResponse, retry_delay
from agentwrit.client.verification import OutOfStep, TokenChecker
from agentwrit.errors import AgentWritError, TransportError, from_response

KEYS_SECONDS: Final = 300  # how long published keys are good for
MAX_SNAPSHOT_BYTES: Final = 1024 * 1024 * 1024
SILENCE_SECONDS: Final = 4.0  # heartbeats come each second: after this the connection is taken for dead

KEYS: Final = "/.well-known/jwks.json"
FEED_KEYS: Final = "/v1/revocations/jwks.json"
SNAPSHOT: Final = "/v1/revocations/snapshot"
FEED: Final = "/v1/revocations"


@dataclass(frozen=True)
class OpenFeed:
    """Asks the driver to open the stream of pages after this number, in place of one that is open."""

    after: int


@dataclass(frozen=True)
class NextPage:
    """Asks the driver for the next page of the stream. It throws TransportError where there is none."""


@dataclass(frozen=True)
class Pause:
    """Asks the driver to wait: the broker is out of reach. `seconds`: for how long."""

    seconds: float


Needed: TypeAlias = HttpRequest | OpenFeed | NextPage | Pause
Following: TypeAlias = Generator[Needed, Any, None]


def follow(checker: TokenChecker) -> Following:
    """Keep `checker` up to date, for ever. A broker that is out of reach is tried again, ever less often."""
    revocations = checker.revocations
    monotonic = revocations.clock.monotonic
    knows_history = revocations.have_begun
    failures = 0
    while True:
        try:
            fetched_at = monotonic()
            yield from fetch_keys(checker)
            revocations.set_keys((yield from _fetch_jwks(FEED_KEYS)))
            if not knows_history:
                snapshot = yield from _fetch(SNAPSHOT)
                revocations.begin(snapshot.body.decode("ascii", "replace"))
                knows_history = True
            yield OpenFeed(revocations.last)
            while monotonic() < fetched_at + KEYS_SECONDS:
                page = yield NextPage()
                revocations.advance(page)
                failures = 0
        except OutOfStep:
            knows_history = False
            yield Pause(retry_delay(failures, None))
            failures += 1
        except AgentWritError:
            yield Pause(retry_delay(failures, None))
            failures += 1


def fetch_keys(checker: TokenChecker) -> Generator[HttpRequest, HttpResponse, None]:
    """Take the keys that are published now."""
    checker.set_keys((yield from _fetch_jwks(KEYS)))


def _fetch_jwks(path: str) -> Generator[HttpRequest, HttpResponse, Mapping[str, object]]:
    response = yield from _fetch(path)
    try:
        return msgspec.json.decode(response.body, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise TransportError("the keys are not JSON: is this a broker?") from None


def _fetch(path: str) -> Generator[HttpRequest, HttpResponse, HttpResponse]:
    response = yield HttpRequest("GET", path, max_bytes=MAX_SNAPSHOT_BYTES)
    if response.status != 200:
        raise from_response(response.status, response.headers, response.body)
    return response
