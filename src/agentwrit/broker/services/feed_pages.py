"""Pages of the revocation feed: read, signed once, and shared by identical requests."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from msgspec import UNSET

from agentwrit.broker.clock import Clock
from agentwrit.broker.keystore import SigningKeys
from agentwrit.broker.services.turns import FEED_AT_ONCE, Asker, Turns
from agentwrit.broker.storage.base import Snapshot, Store
from agentwrit.domain import feed
from agentwrit.domain.feed import Place

SEALED_PAGES_KEPT: Final = 64
PAGES_SHARED: Final = 64  # of one second
TAG_CHARACTERS: Final = 32


@dataclass(frozen=True, eq=False)
class Signed:
    """A signed part of the feed, as it is sent: one copy and one hash for all readers."""

    body: bytes

    @cached_property
    def tag(self) -> str:
        """Its entity tag (RFC 9110 §8.8.3)."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:TAG_CHARACTERS]}"'


@dataclass(frozen=True, eq=False)
class SignedPage(Signed):
    """A page. `is_sealed`: it is full, and never changes again."""

    page: feed.Page
    is_sealed: bool

    @cached_property
    def event(self) -> bytes:
        """The page as a server-sent event (WHATWG HTML §9.2)."""
        return b"id: %d\nevent: page\ndata: %b\n\n" % (self.page.last, self.body)

    @property
    def log(self) -> Place:
        """Where the audit log ended."""
        assert isinstance(self.page.log, Place)  # noqa: S101  # set in all pages that are made here
        return self.page.log

    def goes_on_from(self, known: Sequence[int]) -> bool:
        """Whether the page states what the log was at all these places."""
        places = {place.number for place in (self.log, *(self.page.since or ()))}
        return places.issuperset(known)


class Pages:
    """The pages of one broker's feed."""

    def __init__(self, store: Store, keys: SigningKeys, issuer: str, clock: Clock) -> None:
        self._turns = Turns(FEED_AT_ONCE, FEED_AT_ONCE)
        self._store = store
        self._keys = keys
        self._issuer = issuer
        self._clock = clock
        self._sealed: OrderedDict[tuple[str, int], SignedPage] = OrderedDict()
        self._shared: OrderedDict[tuple[str, int, tuple[int, ...]], asyncio.Task[SignedPage]] = OrderedDict()
        self._second = 0  # the second in which those were made

    async def shared(self, after: int, since: tuple[int, ...] = (), *, asker: Asker) -> SignedPage:
        """The page after the number `after`, possibly made earlier in this second. `since`: more log places to cover.

        Raises:
            Unavailable: the store cannot be read, or whoever asks has asked too much.
        """
        kid = self._keys.signer.kid
        sealed = self._sealed.get((kid, after + 1))
        # A follower that has taken many sealed pages has to be shown from time to time that they are one history.
        if sealed is not None and len(since) <= feed.MAX_PLACES // 2:
            self._sealed.move_to_end((kid, after + 1))
            return sealed
        second = int(self._clock.now())
        if second != self._second:
            self._second = second
            self._shared.clear()
        making = self._shared.get((kid, after, since))
        if making is None:
            making = self._shared[kid, after, since] = asyncio.ensure_future(self.asked(after, since, asker=asker))
            making.add_done_callback(self._forget_failure)
            if len(self._shared) > PAGES_SHARED:
                self._shared.popitem(last=False)
        return await asyncio.shield(making)

    async def asked(
        self, after: int, since: Sequence[int] = (), *, asker: Asker, nonce: str | None = None
    ) -> SignedPage:
        """As `make`, when it is the turn of whoever asks."""
        async with self._turns.turn(asker):
            return await self.make(after, since, nonce=nonce)

    async def make(self, after: int, since: Sequence[int] = (), *, nonce: str | None = None) -> SignedPage:
        """The page after the number `after`, made now. `nonce`: the question that it answers.

        Raises:
            Unavailable: the store cannot be read.
        """
        # Before the store is read, so that the page contains everything that was committed by then.
        issued_at = int(self._clock.now())
        signer = self._keys.signer

        def take(snapshot: Snapshot) -> SignedPage:
            # Signing happens here too, not on the event loop.
            head = snapshot.feed_head()
            first = min(after, head) + 1
            last = min(feed.page_end(first), head)
            log = log_end(snapshot)
            places = tuple(feed.place(number, snapshot.event_hash(number)) for number in since if number <= log.number)
            page = feed.Page(
                iss=self._issuer,
                epoch=snapshot.feed_epoch(),
                first=first,
                last=last,
                head=head,
                issued_at=issued_at,
                entries=feed.entries(snapshot.feed(first, last)),
                log=log,
                since=places or UNSET,
                nonce=nonce or UNSET,
            )
            token = feed.sign_page(page, signer)
            return SignedPage(token.encode("ascii"), page, is_sealed=last == first - 1 + feed.PAGE_SIZE)

        made = await self._store.read(take)
        if made.is_sealed and nonce is None:
            self._sealed[signer.kid, made.page.first] = made
            if len(self._sealed) > SEALED_PAGES_KEPT:
                self._sealed.popitem(last=False)
        return made

    def forget_shared(self) -> None:
        """Forget shared pages after news, so that later requests get it."""
        self._shared.clear()

    def _forget_failure(self, making: asyncio.Task[SignedPage]) -> None:
        if making.cancelled() or making.exception() is not None:
            for key in [key for key, each in self._shared.items() if each is making]:
                del self._shared[key]


def log_end(snapshot: Snapshot) -> Place:
    """Where the audit log ends."""
    number = snapshot.event_head()
    return feed.place(number, snapshot.event_hash(number))
