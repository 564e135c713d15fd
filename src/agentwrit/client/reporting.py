"""Reporting what was done with tokens, without I/O: what waits to be reported, in which batches, when, and until when.

The rules:

- Noting an access adds it to a table in memory. It never waits, and never fails for lack of space.
- Accesses that differ only in time are one entry, with a count and the times of the first and the last.
- At most `MAX_WAITING` entries wait. An access that finds no place is not reported, but counted.
- Waiting entries are reported in batches: a full batch at once, any other soon. A batch keeps its idempotency key until
  it has been reported, so that it is recorded once however often its answer is lost. The broker remembers keys for ten
  minutes; a batch is given up before that.
- An access that the broker refuses is not reported again.
- At the end, everything that waits is reported once, as far as time allows.
"""

import secrets
import threading
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from agentwrit.client import steps
from agentwrit.client.clock import Clock
from agentwrit.client.exchange import Plan, retry_delay
from agentwrit.client.policy import Login
from agentwrit.client.secrecy import Secret
from agentwrit.client.verification import check_scope
from agentwrit.domain import access, scope, text, timestamps
from agentwrit.errors import AgentWritError, ProblemResponseError, RateLimitError
from agentwrit.models import AgentClaims

GATHER_SECONDS: Final = 1.0
MAX_WAITING: Final = 1024
GIVE_UP_SECONDS: Final = 540.0
MAX_PAUSE_SECONDS: Final = 30.0
TELL_SECONDS: Final = 2.0  # for one batch, so that the end has time for one in progress and one more
END_SECONDS: Final = 5.0  # how long the end waits for unreported accesses

UNNAMED: Final = "make the verifier with client_id= and client_secret=: reports are an app's, by its own login"

_NEVER_TAKEN: Final = (400, 409, 413)

Done = Literal["success", "denied"]


def reporter_login(client_id: str | None, client_secret: str | None) -> Login | None:
    """The login of the app that reports, or None without an app.

    Raises:
        AgentWritError: only one of the two was given.
    """
    if client_id is None and client_secret is None:
        return None
    if client_id is None or client_secret is None:
        raise AgentWritError("client_id= goes with client_secret=")
    secret = Secret(client_secret)
    return Login(lambda: steps.app_login(client_id, secret))


class _Access(NamedTuple):
    sid: str
    jti: str
    scope: tuple[str, ...]
    resource: str
    outcome: Done


@dataclass
class _Times:
    count: int
    first: float
    last: float


@dataclass(frozen=True)
class _Batch:
    entries: Mapping[_Access, _Times]
    give_up_at: float
    key: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def count(self) -> int:
        return sum(times.count for times in self.entries.values())

    def count_at(self, places: Collection[int]) -> int:
        return sum(times.count for place, times in enumerate(self.entries.values()) if place in places)

    def members(self) -> list[dict[str, object]]:
        return [
            {
                **done._asdict(),
                "count": times.count,
                "first": timestamps.rfc3339_micros(times.first),
                "last": timestamps.rfc3339_micros(times.last),
            }
            for done, times in self.entries.items()
        ]


@dataclass(frozen=True)
class Tell:
    """Asks the driver to carry out these steps within `timeout` seconds, and to return their result."""

    steps: Plan[list[int]] = field(repr=False)
    timeout: float


@dataclass(frozen=True)
class Rest:
    """Asks the driver to wait for `seconds`, or without limit if None, and no longer than until it is woken."""

    seconds: float | None


Reporting: TypeAlias = Generator[Tell | Rest, Any, None]


class Reports:
    """The accesses that wait to be reported. All threads note them; one thread or task reports them."""

    def __init__(self, clock: Clock) -> None:
        self.unreported = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[_Access, _Times] = {}
        self._batch: _Batch | None = None
        self._is_idle = False

    def note(self, claims: AgentClaims, used: str | Sequence[str], resource: str, outcome: Done) -> bool:
        """Note an access. Returns whether to wake the thread or task that reports.

        Raises:
            ScopeDenied: the token did not cover what was done.
            AgentWritError: `used` is not a scope, or the claims name no grant.
            ValueError: the outcome is unknown, or the resource has no name.
        """
        if outcome not in ("success", "denied"):
            raise ValueError('outcome takes "success" or "denied"')
        if not resource:
            raise ValueError("resource takes what was asked for, for example GET /orders/1")
        if not claims.sid:
            raise AgentWritError("the claims have no sid: only what is done with a broker's own tokens can be reported")
        scopes = scope.parse_list([used] if isinstance(used, str) else used, field="scope")
        if outcome == "success":
            check_scope(scopes, claims.scope)
        # A batch is encoded as UTF-8, which a lone surrogate does not allow.
        named = resource.encode("utf-8", "replace").decode()[: access.MAX_RESOURCE_LENGTH]
        named = text.escaped(named, access.MAX_RESOURCE_LENGTH)
        done, now = _Access(claims.sid, claims.jti, scopes, named, outcome), self._clock.wall()
        with self._lock:
            times = self._waiting.get(done)
            if times is not None:
                times.count, times.last = times.count + 1, max(times.last, now)
                return False
            if len(self._waiting) >= MAX_WAITING:
                self.unreported += 1
                return False
            self._waiting[done] = _Times(1, now, now)
            was_idle, self._is_idle = self._is_idle, False
            return was_idle or len(self._waiting) == access.MAX_ACCESSES

    def is_idle(self) -> bool:
        """Whether there is nothing to report. If so, the first access wakes the caller."""
        with self._lock:
            self._is_idle = not self.batches
            return self._is_idle

    @property
    def batches(self) -> int:
        """The number of waiting batches."""
        return -(-len(self._waiting) // access.MAX_ACCESSES) + (self._batch is not None)

    @property
    def has_full_batch(self) -> bool:
        return len(self._waiting) >= access.MAX_ACCESSES

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def batch(self) -> _Batch | None:
        """The batch to report, until it is `settled`."""
        with self._lock:
            if self._batch is None and self._waiting:
                entries = {done: self._waiting.pop(done) for done in list(self._waiting)[: access.MAX_ACCESSES]}
                self._batch = _Batch(entries, self.monotonic() + GIVE_UP_SECONDS)
            return self._batch

    def settled(self, batch: _Batch, *, unreported: int = 0) -> None:
        """This batch was reported, except for `unreported` accesses."""
        with self._lock:
            if self._batch is batch:
                self._batch = None
                self.unreported += unreported

    def abandon(self) -> None:
        """Give up everything that waits."""
        with self._lock:
            self.unreported += sum(times.count for times in self._waiting.values())
            self._waiting.clear()


def reporting(reports: Reports, is_ending: Callable[[], bool]) -> Reporting:
    """Report what is waiting, until the end."""
    while True:
        if reports.is_idle() and not is_ending():
            yield Rest(None)
        if not reports.has_full_batch and not is_ending():
            yield Rest(GATHER_SECONDS)
        for _ in range(reports.batches):
            yield from _tell(reports, is_ending)
        if is_ending() and not reports.batches:
            return


def _tell(reports: Reports, is_ending: Callable[[], bool]) -> Reporting:
    """Report one batch, with retries."""
    batch = reports.batch()
    attempt = 0
    while batch is not None:
        failure: AgentWritError
        try:
            plan = steps.report_accesses(batch.members(), batch.key)
            refused: list[int] = yield Tell(plan, TELL_SECONDS)
        except AgentWritError as error:
            failure = error
        else:
            reports.settled(batch, unreported=batch.count_at(refused))
            return
        if isinstance(failure, ProblemResponseError) and failure.status_code in _NEVER_TAKEN:
            reports.settled(batch, unreported=batch.count)
            return
        if is_ending() or reports.monotonic() > batch.give_up_at:
            reports.settled(batch, unreported=batch.count)
            if is_ending():
                reports.abandon()
            return
        asked_for = failure.retry_after if isinstance(failure, RateLimitError) else None
        yield Rest(min(MAX_PAUSE_SECONDS, retry_delay(attempt, asked_for or 2.0**attempt)))
        attempt = min(attempt + 1, 8)
