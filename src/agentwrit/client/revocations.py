"""What a verifier knows from a revocation feed (`agentwrit.domain.feed`), without I/O: revocations and freshness.

The rules:

- A revocation is kept until no token can be affected by it, whatever snapshot, epoch or history follows. If the time
  turns out to be earlier than it was when a revocation was forgotten, a snapshot brings it back.
- Knowledge is fresh if it extends to the head of a page that continues it: by its numbers, without a gap, and by the
  history that it belongs to.
- The history covers everything that was taken since a snapshot. A page continues it if it states what the broker's log
  was at each place that no page has covered yet. Within an epoch, no other history is accepted: while the broker shows
  another one, nothing is fresh, and what was taken from that one does not count. A broker that knows of the break
  starts a new epoch.
- The answer to a question of the verifier is as fresh as the question, whatever any clock says. A page that arrives
  unasked is as old as its date makes it, by the broker's clock as known from its answers. A page with an impossible
  date makes nothing fresh.
- If the broker answers no questions, a page's age is measured by this machine's clock as well, with a tolerance for
  clock differences.
- A verifier whose clock is far ahead of the broker's relies on nothing: one of the two clocks is wrong, and so may be
  the times in tokens.
"""

import secrets
from collections.abc import Mapping
from typing import Final, NamedTuple

from msgspec import UNSET

from agentwrit.client.broker_time import BrokerTime
from agentwrit.client.clock import LONG_AGO, Clock, Moment, moment
from agentwrit.domain import feed, jwk
from agentwrit.domain.feed import MAX_PAGE_BYTES, MAX_SNAPSHOT_BYTES, Page, Place
from agentwrit.domain.jws import REVOCATION_PAGE, REVOCATION_SNAPSHOT, Verifier
from agentwrit.domain.revocation import Revocation, RevocationIndex, RevocationKind

SKEW_SECONDS: Final = 5  # by which clocks may differ before a page looks older than it is
MAX_DIFFERENCE_SECONDS: Final = 300  # by which this machine's clock may be ahead of an answering broker's
KEPT_SECONDS: Final = 60  # for which an expired revocation is kept: it may be earlier than it seems
MAX_EPOCHS: Final = 16  # whose history is remembered

Names = tuple[tuple[RevocationKind, str], ...]


class OutOfStep(Exception):
    """A page does not continue what is known: the gap has to be asked for."""


class BeginAgain(OutOfStep):
    """Pages cannot continue what is known, or it is of another epoch: a snapshot is needed."""


class OtherHistory(OutOfStep):
    """The broker continues another history than the one known under this epoch."""


class Question(NamedTuple):
    """A page that was asked for, and when."""

    nonce: str
    asked: Moment


class Revocations:
    """What is known to be dead, and how fresh that knowledge is. Updated by one thread or task, read by all."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._index = RevocationIndex()
        self._pages = Verifier({}, typ=REVOCATION_PAGE)
        self._snapshots = Verifier({}, typ=REVOCATION_SNAPSHOT)
        self._epoch = ""
        self._places: dict[str, Place] = {}  # by epoch: how far its history is known
        self._open: dict[int, Place] = {}  # places of what was taken since that no page has covered yet
        self._sure = 0  # the number up to which that history has brought the verifier
        self._has_joined = False  # whether the snapshot belongs to it
        self._time = BrokerTime()
        self._fresh = LONG_AGO  # the time up to which everything is known
        self._forgotten_at = float("-inf")  # the time by which entries were forgotten
        self.issuer = ""
        self.last = 0  # the number of the newest known entry
        self.is_forked = False
        """Whether the broker, when last heard, showed another history than the known one."""

    def set_keys(self, jwks: Mapping[str, object]) -> None:
        """Set the keys that sign the feed.

        Raises:
            InvalidToken: they are not a valid JWK set.
        """
        keys = jwk.public_keys(jwks)
        self._pages = Verifier(keys, typ=REVOCATION_PAGE, max_bytes=MAX_PAGE_BYTES)
        self._snapshots = Verifier(keys, typ=REVOCATION_SNAPSHOT, max_bytes=MAX_SNAPSHOT_BYTES)

    def begin(self, token: str) -> None:
        """Begin with a snapshot.

        Raises:
            InvalidToken: it is not a valid snapshot.
            OtherHistory: it is of another history than the known one.
        """
        snapshot = feed.read_snapshot(token, self._snapshots)
        if snapshot.epoch == self._epoch and snapshot.head < self.last:
            return  # it is older than what is known, and adds nothing
        self._index.add(map(_revocation, snapshot.entries))
        self._forgotten_at = float("-inf")
        self._epoch, self.last, self.issuer = snapshot.epoch, snapshot.head, snapshot.iss
        self._fresh = LONG_AGO  # only a page that reaches the head shows that this is everything
        self._open, self._sure, self._has_joined = {}, self.last, False
        if snapshot.log is not UNSET:
            if self._wanted().get(snapshot.log.number, snapshot.log) != snapshot.log:
                raise self._other_history()
            self._open[snapshot.log.number] = snapshot.log

    @property
    def have_begun(self) -> bool:
        """Whether there is anything that a page could continue."""
        return bool(self._epoch)

    @property
    def places(self) -> list[int]:
        """The places in the broker's log that a page has to cover to continue what is known."""
        return sorted(self._wanted())

    def question(self) -> Question:
        """A question, to be asked now."""
        return Question(secrets.token_urlsafe(16), moment(self.clock))

    def advance(self, token: str, question: Question | None = None) -> int:
        """Take a page that has just arrived, unasked or in answer to a question.

        Returns how many numbers are missing up to the head of the feed, as of the page.

        Raises:
            InvalidToken: it is not a valid page.
            OutOfStep: it does not continue what is known.
        """
        page = feed.read_page(token, self._pages)
        # A broker that does not support questions returns an ordinary page.
        if question is not None and page.nonce == question.nonce:
            self._take_answer(page, question)
        else:
            self._take_unasked(page)
        return page.head - self.last

    def _take_answer(self, page: Page, question: Question) -> None:
        if page.epoch == self._epoch and page.log is not UNSET and page.log.number < max(self.places, default=0):
            raise self._other_history()  # made after the question, but ends before what has been seen
        self._time.answered(page.issued_at, question.asked.monotonic, self.clock.monotonic())
        if self._join(page):
            difference = question.asked.wall - page.issued_at - MAX_DIFFERENCE_SECONDS
            self._freshen(question.asked.before(max(0.0, difference)))

    def _take_unasked(self, page: Page) -> None:
        now = moment(self.clock)
        if self._join(page) and self._time.shown(page.issued_at, now.monotonic):
            # Older than the newest page by as much as its date says, whatever the local clock shows: delaying or
            # replaying pages gains an attacker nothing.
            tolerance = MAX_DIFFERENCE_SECONDS if self._time.was_asked_for else SKEW_SECONDS
            age = max(self._time.age(page.issued_at, now.monotonic), now.wall - page.issued_at - tolerance)
            self._freshen(now.before(age))

    @property
    def known_until(self) -> float:
        """The time up to which all revocations are known, on the monotonic clock."""
        return self._fresh.monotonic

    def staleness(self, now: Moment | None = None) -> float:
        """The seconds since all revocations were known; infinite before the first time."""
        return self._fresh.seconds_until(now or moment(self.clock))

    def now(self, at: Moment | None = None) -> float:
        """The broker's time (Unix seconds)."""
        return self._time.now(at or moment(self.clock))

    def is_revoked(self, names: Names, now: float) -> bool:
        """Whether any of these names is dead at `now`."""
        is_revoked = self._index.is_revoked
        return any(is_revoked(kind, digest, now) for kind, digest in names)

    def __len__(self) -> int:
        return len(self._index)

    def _join(self, page: Page) -> bool:
        """Take the revocations of a page. Returns whether everything up to the broker's head is then known."""
        if page.epoch != self._epoch:
            self._epoch = ""
            raise BeginAgain
        self._index.add(map(_revocation, page.entries))  # even if the page is otherwise not usable
        self._forget()
        goes_on = self._goes_on(page)
        if page.first > self.last + 1:
            raise OutOfStep
        has_news, self.last = page.last > self.last, max(self.last, page.last)
        if page.log is not UNSET:
            if goes_on:
                self._open, self._sure, self._has_joined, self.is_forked = {}, self.last, True, False
                self._know(page.log)
            elif has_news:
                self._open[page.log.number] = page.log
        return goes_on and self.last == page.head

    def _goes_on(self, page: Page) -> bool:
        """Whether a page shows that it continues the known history.

        Raises:
            OutOfStep: it shows that it does not.
        """
        if page.log is UNSET:
            return True  # older brokers do not state it
        shown = {place.number: place.digest for place in (page.log, *(page.since or ()))}
        wanted = self._wanted()
        if any(shown.get(number, "") not in (place.digest, "") for number, place in wanted.items()):
            raise self._other_history()
        return wanted.keys() <= shown.keys()

    def _know(self, place: Place) -> None:
        self._places[self._epoch] = place
        if len(self._places) > MAX_EPOCHS:
            del self._places[next(iter(self._places))]

    def _wanted(self) -> dict[int, Place]:
        known = self._places.get(self._epoch)
        return self._open if known is None else {known.number: known, **self._open}

    def _other_history(self) -> OutOfStep:
        self._fresh, self.last, self._open = LONG_AGO, self._sure, {}
        is_known = self._epoch in self._places
        if not self._has_joined:
            self._epoch = ""  # the snapshot may be what is of the other history
        if not is_known:
            return BeginAgain()
        self.is_forked = True
        return OtherHistory()

    def _forget(self) -> None:
        now = self.now()
        if now < self._forgotten_at - KEPT_SECONDS:
            self._epoch, self._fresh = "", LONG_AGO
            raise BeginAgain
        self._forgotten_at = max(self._forgotten_at, now)
        self._index.forget(now - KEPT_SECONDS)

    def _freshen(self, up_to: Moment) -> None:
        if up_to.monotonic > self._fresh.monotonic:
            self._fresh = up_to


def _revocation(entry: feed.FeedEntry) -> Revocation:
    """An entry of the feed, in an index by digest."""
    return Revocation(kind=entry.kind, id=entry.digest, effective_at=entry.effective_at, last_exp=entry.forget_at)
