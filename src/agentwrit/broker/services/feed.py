"""The revocation feed: signed pages and heartbeats for verifiers.

The feed is read from the store, where commits assign its numbers. While anyone follows it, a task signs each new entry
once for all followers, and a heartbeat each second.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from agentwrit.broker.clock import Clock
from agentwrit.broker.keystore import SigningKeys
from agentwrit.broker.services.background import Background, Work
from agentwrit.broker.services.feed_pages import Pages, Signed, SignedPage, log_end
from agentwrit.broker.services.feed_places import Asker, Places
from agentwrit.broker.storage.base import Snapshot, Store
from agentwrit.domain import feed
from agentwrit.domain.revocation import Revocation

MAX_WAITING_PAGES: Final = 64  # of a follower; a follower that does not keep up is dropped
COALESCE_SECONDS: Final = 0.01  # under load, commits within this time go into one page
SNAPSHOT_SECONDS: Final = 30  # the maximum age of a snapshot: its reader continues from there
SNAPSHOT_BYTES_A_SECOND: Final = 1024 * 1024  # a larger one may be older, so that there is time to read it

log = structlog.get_logger("agentwrit.feed")


@dataclass(frozen=True, eq=False)
class SignedSnapshot(Signed):
    """A snapshot. `made_at`: Unix seconds; `epoch`: the feed's."""

    made_at: float
    epoch: str

    @property
    def is_good_until(self) -> float:
        return self.made_at + max(SNAPSHOT_SECONDS, len(self.body) / SNAPSHOT_BYTES_A_SECOND)


class Follower:
    """A follower of the feed. `known`: the places in the audit log that its pages have to cover, if any."""

    def __init__(self, known: Sequence[int]) -> None:
        self.arriving: asyncio.Queue[SignedPage | None] = asyncio.Queue(MAX_WAITING_PAGES)
        self.known = tuple(known)

    def take(self, page: SignedPage) -> None:
        """Record that the follower has this page."""
        if self.known:
            self.known = (page.log.number,) if page.goes_on_from(self.known) else (*self.known, page.log.number)

    def is_behind(self, page: SignedPage) -> bool:
        """Whether the page, which was sent to other followers, was read after the follower's knowledge."""
        return page.log.number >= max(self.known, default=0)


class RevocationFeed:
    """The feed of one broker. `is_stopping`: whether to disconnect the followers."""

    def __init__(
        self, store: Store, keys: SigningKeys, issuer: str, clock: Clock, *, is_stopping: Callable[[], bool]
    ) -> None:
        self._store = store
        self._keys = keys
        self._issuer = issuer
        self._clock = clock
        self._is_stopping = is_stopping
        self._pages = Pages(store, keys, issuer, clock)
        self._places = Places()
        self._news = asyncio.Event()
        self._followers: set[Follower] = set()
        self._head: int | None = None  # the last number that was sent to all followers; None while there are none
        self._snapshot: SignedSnapshot | None = None
        self._snapshot_lock = asyncio.Lock()
        store.listen(self._announced)

    @property
    def follower_count(self) -> int:
        return len(self._places)

    async def run(self, background: Background) -> None:
        """Send news and heartbeats to all followers, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(feed.HEARTBEAT_SECONDS):
                    await self._news.wait()
                    await asyncio.sleep(COALESCE_SECONDS)
            self._news.clear()
            # After a failure there is no heartbeat, which tells followers that they may be missing something.
            await background.attempt(Work.FEED, self._go_on)

    async def _go_on(self) -> None:
        if self._is_stopping():
            self._send(None)
        elif not self._followers:
            self._head = None
        else:
            await self._advance()

    async def page(
        self, after: int, asker: Asker, *, known: Sequence[int] = (), nonce: str | None = None
    ) -> SignedPage:
        """The page after the number `after`; at the head of the feed, a heartbeat.

        `known`: the places in the audit log that the page has to cover. `nonce`: the question that the page answers.
        Without it, the page is shared by all identical requests within a second, until there is news.

        Raises:
            Unavailable: the store cannot be read, or whoever asks has asked too much.
        """
        if nonce is None:
            page = await self._pages.shared(after, tuple(known), asker=asker.in_turn)
        else:
            page = await self._pages.asked(after, known, asker=asker.in_turn, nonce=nonce)
        if self._snapshot is not None and self._snapshot.epoch != page.page.epoch:
            self._snapshot = None
        return page

    async def wait(self, after: int, asker: Asker, *, known: Sequence[int] = (), seconds: float) -> SignedPage:
        """As `page`, after at most `seconds`, or as soon as there are entries after `after`.

        Raises:
            Unavailable: the store cannot be read, or there is no place to wait.
        """
        page = await self.page(after, asker, known=known)
        if page.page.last > after:
            return page
        with self._following(asker, known) as follower, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                arrived: SignedPage | None = page
                while arrived is not None and arrived.page.last <= after:
                    arrived = await follower.arriving.get()
        return await self.page(after, asker, known=known)

    async def follow(self, after: int, asker: Asker, *, known: Sequence[int] = ()) -> AsyncGenerator[SignedPage, None]:
        """All pages after the number `after`, and heartbeats, as long as the reader keeps up.

        The place is held from the first page until the generator is closed.

        Raises:
            Unavailable: the store cannot be read, or there is no place to follow.
        """
        with self._following(asker, known) as follower:
            page: SignedPage | None = await self.page(after, asker, known=known)
            while page is not None:
                yield page
                # A follower beyond the head knows another history, and notices by the epoch or the log.
                after = page.page.last
                follower.take(page)
                if after < page.page.head:
                    page = await self._pages.shared(after, follower.known, asker=asker.in_turn)
                else:
                    page = await self._next(after, follower, asker)

    async def snapshot(self) -> SignedSnapshot:
        """All revocations that cannot be forgotten yet, signed. The snapshot may be some seconds old.

        Raises:
            Unavailable: the store cannot be read.
        """
        async with self._snapshot_lock:  # callers in the meantime get the same one
            now = self._clock.now()
            if self._snapshot is None or now >= self._snapshot.is_good_until:
                signer = self._keys.signer

                def take(snapshot: Snapshot) -> SignedSnapshot:
                    # Not on the event loop, because there may be very many.
                    content = feed.Snapshot(
                        iss=self._issuer,
                        epoch=snapshot.feed_epoch(),
                        head=snapshot.feed_head(),
                        issued_at=int(now),
                        entries=feed.entries(snapshot.revocations(now)),
                        log=log_end(snapshot),
                    )
                    token = feed.sign_snapshot(content, signer)
                    return SignedSnapshot(token.encode("ascii"), now, content.epoch)

                self._snapshot = await self._store.read(take)
            return self._snapshot

    def _announced(self, revocations: Sequence[Revocation]) -> None:
        self._pages.forget_shared()
        self._news.set()

    @contextlib.contextmanager
    def _following(self, asker: Asker, known: Sequence[int]) -> Iterator[Follower]:
        with self._places.place(asker):
            follower = Follower(known)
            self._followers.add(follower)
            try:
                yield follower
            finally:
                self._followers.discard(follower)

    async def _next(self, after: int, follower: Follower, asker: Asker) -> SignedPage | None:
        """The next page for a follower that has everything up to `after`; None at the end."""
        while True:
            arrived = await follower.arriving.get()
            if arrived is None:
                return None
            if arrived.page.last >= after and follower.is_behind(arrived):
                is_next = arrived.page.first == after + 1
                # The page for all may not continue what a new follower knows.
                is_for_them = is_next and arrived.goes_on_from(follower.known)
                if is_for_them:
                    return arrived
                return await self._pages.shared(after, follower.known, asker=asker.in_turn)

    async def _advance(self) -> None:
        """Send the pages since the last time, or a heartbeat if there are none."""
        if self._head is None:
            self._head = await self._store.read(lambda snapshot: snapshot.feed_head())
        while True:
            page = await self._pages.make(self._head, self._places_known())
            self._send(page)
            self._head = page.page.last
            if self._head >= page.page.head:
                return

    def _places_known(self) -> Sequence[int]:
        """The places in the log that followers know: usually one, except for new followers."""
        known = Counter(follower.known[0] for follower in self._followers if len(follower.known) == 1)
        return [number for number, _ in known.most_common(feed.MAX_PLACES)]

    def _send(self, page: SignedPage | None) -> None:
        for follower in list(self._followers):
            if page is None or follower.arriving.full():
                self._followers.discard(follower)
                while not follower.arriving.empty():
                    follower.arriving.get_nowait()
                follower.arriving.put_nowait(None)
            else:
                follower.arriving.put_nowait(page)
