"""What a verifier knows of a revocation feed (`agentwrit.domain.feed`), without I/O: what is dead, and how fresh it is.

The rules:

- What is known to be dead stays so until no token can meet it any more, whatever snapshot, epoch or history comes next.
  Should the time turn out to be earlier than it was when something was forgotten, a snapshot tells it again.
- Fresh is who has all up to the head of a page that continues what is known: by its numbers, without a gap, and by the
  history that it belongs to.
- The history is that of all that was taken since a beginning. A page goes on from it that says what the broker's log
  was at each place of it that no page has covered yet. Under its epoch no other is gone on with: while a broker shows
  another one, nothing is fresh, and what was taken of that one does not count. A broker that knows of the break begins
  another epoch.
- The answer to a question of ours is as fresh as the question, whatever clocks say. Pages that come unasked are as old
  as their date makes them, by the broker's clock as its answers have shown it; a date that cannot be makes nobody
  fresh.
- Where nobody answers questions, a page looks as old by this machine's clock as well, but for what clocks may differ.
- A machine whose clock is far ahead of the broker's relies on nothing: one of the two is wrong, and so may be the
  times of tokens.
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
MAX_DIFFERENCE_SECONDS: Final = 300  # by which this machine's clock may be ahead of that of a broker that answers
KEPT_SECONDS: Final = 60  # for which is kept what no token can meet any more: it may be earlier than it seems
MAX_EPOCHS: Final = 16  # whose history is remembered

Names = tuple[tuple[RevocationKind, str], ...]


class OutOfStep(Exception):
    """A page does not continue what is known: what is missing has to be asked for."""


class BeginAgain(OutOfStep):
    """What is known is not enough for pages to continue it, or is of another epoch: a snapshot is needed."""


class OtherHistory(OutOfStep):
    """The broker goes on from a history that is not the one known under this epoch."""


class Question(NamedTuple):
    """A page that is asked for, and when."""

    nonce: str
    asked: Moment


class Revocations:
    """What is known to be dead, and how fresh that knowledge is. Fed by one thread or task, read by all."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._index = RevocationIndex()
        self._pages = Verifier({}, typ=REVOCATION_PAGE)
        self._snapshots = Verifier({}, typ=REVOCATION_SNAPSHOT)
        self._epoch = ""
        self._places: dict[str, Place] = {}  # by epoch: how far its history is known
        self._open: dict[int, Place] = {}  # places that what was taken since belongs to, which no page has covered yet
        self._sure = 0  # up to which number that history has brought us
        self._has_joined = False  # whether what was begun with belongs to it
        self._time = BrokerTime()
        self._fresh = LONG_AGO  # up to when everything is known
        self._forgotten_at = float("-inf")  # the time by which entries were forgotten
        self.issuer = ""
        self.last = 0  # the number of the newest entry that is known
        self.is_forked = False
        """Whether the broker, when it was last heard, showed another history than the one that is known."""

    def set_keys(self, jwks: Mapping[str, object]) -> None:
        """Take the keys that sign the feed.

        Raises:
            InvalidToken: they are none.
        """
        keys = jwk.public_keys(jwks)
        self._pages = Verifier(keys, typ=REVOCATION_PAGE, max_bytes=MAX_PAGE_BYTES)
        self._snapshots = Verifier(keys, typ=REVOCATION_SNAPSHOT, max_bytes=MAX_SNAPSHOT_BYTES)

    def begin(self, token: str) -> None:
        """Begin with a snapshot.

        Raises:
            InvalidToken: it is none.
            OtherHistory: it is of another history than the one that is known.
        """
        snapshot = feed.read_snapshot(token, self._snapshots)
        if snapshot.epoch == self._epoch and snapshot.head < self.last:
            return  # it is older than what is known, and says nothing new
        self._index.add(map(_revocation, snapshot.entries))
        self._forgotten_at = float("-inf")
        self._epoch, self.last, self.issuer = snapshot.epoch, snapshot.head, snapshot.iss
        self._fresh = LONG_AGO  # only a page that reaches the head says that this is all
        self._open, self._sure, self._has_joined = {}, self.last, False
        if snapshot.log is not UNSET:
            if self._wanted().get(snapshot.log.number, snapshot.log) != snapshot.log:
                raise self._other_history()
            self._open[snapshot.log.number] = snapshot.log

    @property
    def have_begun(self) -> bool:
        """Whether anything is known that a page could continue."""
        return bool(self._epoch)

    @property
    def places(self) -> list[int]:
        """The places in the broker's log that a page has to speak of, to go on from what is known."""
        return sorted(self._wanted())

    def question(self) -> Question:
        """A question, to be asked now."""
        return Question(secrets.token_urlsafe(16), moment(self.clock))

    def advance(self, token: str, question: Question | None = None) -> int:
        """Take a page that has just arrived, in answer to a question or unasked.

        Returns how many numbers are missing up to the head of the feed, as the page has it.

        Raises:
            InvalidToken: it is none.
            OutOfStep: it does not continue what is known.
        """
        page = feed.read_page(token, self._pages)
        # Whoever does not know of questions gives a page like any other.
        if question is not None and page.nonce == question.nonce:
            self._take_answer(page, question)
        else:
            self._take_unasked(page)
        return page.head - self.last

    def _take_answer(self, page: Page, question: Question) -> None:
        if page.epoch == self._epoch and page.log is not UNSET and page.log.number < max(self.places, default=0):
            raise self._other_history()  # it was made after the question, and ends before what has been seen
        self._time.answered(page.issued_at, question.asked.monotonic, self.clock.monotonic())
        if self._join(page):
            difference = question.asked.wall - page.issued_at - MAX_DIFFERENCE_SECONDS
            self._freshen(question.asked.before(max(0.0, difference)))

    def _take_unasked(self, page: Page) -> None:
        now = moment(self.clock)
        if self._join(page) and self._time.shown(page.issued_at, now.monotonic):
            # Older than the newest page by as much as it says, whatever our clock shows: who passes pages on late, or
            # again, gains nothing.
            tolerance = MAX_DIFFERENCE_SECONDS if self._time.was_asked_for else SKEW_SECONDS
            age = max(self._time.age(page.issued_at, now.monotonic), now.wall - page.issued_at - tolerance)
            self._freshen(now.before(age))

    @property
    def known_until(self) -> float:
        """Up to when all revocations are known, on the monotonic clock."""
        return self._fresh.monotonic

    def staleness(self, now: Moment | None = None) -> float:
        """How many seconds ago all revocations were known; infinite before the first time."""
        return self._fresh.seconds_until(now or moment(self.clock))

    def now(self, at: Moment | None = None) -> float:
        """What time it is at the broker (Unix seconds)."""
        return self._time.now(at or moment(self.clock))

    def is_revoked(self, names: Names, now: float) -> bool:
        """Whether any of these is dead at `now`."""
        is_revoked = self._index.is_revoked
        return any(is_revoked(kind, digest, now) for kind, digest in names)

    def __len__(self) -> int:
        return len(self._index)

    def _join(self, page: Page) -> bool:
        """Take what a page says is dead. Returns whether all up to its head is known by that, as its broker has it."""
        if page.epoch != self._epoch:
            self._epoch = ""
            raise BeginAgain
        self._index.add(map(_revocation, page.entries))  # whatever else is wrong with it
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
        """Whether a page shows that it goes on from the history that is known.

        Raises:
            OutOfStep: it shows that it does not.
        """
        if page.log is UNSET:
            return True  # brokers did not always say
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
