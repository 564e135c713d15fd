"""The revocation feed: signed pages and heartbeats for whoever verifies tokens without asking.

The feed is read from the store, where commits give its numbers. While somebody follows it, a task signs what is new
once, however many follow, and a heartbeat each second.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Final

import msgspec
import structlog

from agentwrit.broker.clock import Clock
from agentwrit.broker.keystore import SigningKeys
from agentwrit.broker.storage.base import Snapshot, Store
from agentwrit.domain import feed
from agentwrit.domain.errors import Unavailable
from agentwrit.domain.revocation import Revocation

MAX_FOLLOWERS: Final = 1024
MAX_WAITING_PAGES: Final = 64  # of a follower; one that does not keep up is dropped
COALESCE_SECONDS: Final = 0.01  # under load what is committed within it goes into one page
SNAPSHOT_SECONDS: Final = 30  # how old a snapshot may be: its reader goes on from there
SEALED_PAGES_KEPT: Final = 64

log = structlog.get_logger("agentwrit.feed")


class SignedPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page, ready to be sent. `is_sealed`: it is full, and never changes again."""

    token: str
    first: int
    last: int
    is_sealed: bool


_Follower = asyncio.Queue[SignedPage | None]


class RevocationFeed:
    """The feed of one broker. `is_stopping`: whether those who follow are to be let go."""

    def __init__(
        self, store: Store, keys: SigningKeys, issuer: str, clock: Clock, *, is_stopping: Callable[[], bool]
    ) -> None:
        self._store = store
        self._keys = keys
        self._issuer = issuer
        self._clock = clock
        self._is_stopping = is_stopping
        self._news = asyncio.Event()
        self._followers: set[_Follower] = set()
        self._head: int | None = None  # of what all who follow were sent; None while nobody does
        self._sealed: OrderedDict[tuple[str, int], SignedPage] = OrderedDict()
        self._snapshot: tuple[float, str] = (0.0, "")
        self._snapshot_lock = asyncio.Lock()
        store.listen(self._announced)

    @property
    def follower_count(self) -> int:
        return len(self._followers)

    async def run(self) -> None:
        """Send what is new to all who follow, and heartbeats, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(feed.HEARTBEAT_SECONDS):
                    await self._news.wait()
                    await asyncio.sleep(COALESCE_SECONDS)
            self._news.clear()
            if self._is_stopping():
                self._send(None)
            elif not self._followers:
                self._head = None
            else:
                try:
                    await self._advance()
                except Unavailable as error:
                    # No heartbeat either: who follows learns by its absence that something may be missing.
                    log.warning("the feed has to wait", reason=error.detail)

    async def page(self, after: int, *, wait: float = 0) -> SignedPage:
        """The page after the number `after`: at the head of the feed, a heartbeat.

        `wait`: how many seconds to wait for entries if there are none yet.

        Raises:
            Unavailable: the store cannot be read, or too many wait.
        """
        page = await self._page_after(after)
        if not wait or page.last > after:
            return page
        with self._following() as arriving, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                arrived: SignedPage | None = page
                while arrived is not None and arrived.last <= after:
                    arrived = await arriving.get()
        return await self._page_after(after)

    async def follow(self, after: int) -> AsyncIterator[SignedPage]:
        """All pages after the number `after`, and heartbeats, for as long as the reader keeps up.

        Raises:
            Unavailable: the store cannot be read, or too many follow.
        """
        with self._following() as arriving:
            page = await self._page_after(after)
            after = min(after, page.last)  # who is beyond the head knows another history, and learns so by the epoch
            arrived: SignedPage | None = page
            while arrived is not None:
                while arrived.first > after + 1:
                    missed = await self._page_after(after)
                    yield missed
                    after = missed.last
                if arrived.last >= after:
                    yield arrived
                    after = arrived.last
                arrived = await arriving.get()

    async def snapshot(self) -> str:
        """All that is dead and cannot be forgotten yet, signed. It may be some seconds old.

        Raises:
            Unavailable: the store cannot be read.
        """
        async with self._snapshot_lock:  # whoever comes meanwhile gets the same one
            now = self._clock.now()
            made_at, token = self._snapshot
            if not token or now >= made_at + SNAPSHOT_SECONDS:
                signer = self._keys.signer

                def take(snapshot: Snapshot) -> str:
                    # Here and not on the event loop: there may be a great many.
                    return feed.sign_snapshot(
                        feed.Snapshot(
                            iss=self._issuer,
                            epoch=snapshot.feed_epoch(),
                            head=snapshot.feed_head(),
                            issued_at=int(now),
                            entries=tuple(map(feed.entry, snapshot.revocations(now))),
                        ),
                        signer,
                    )

                self._snapshot = now, await self._store.read(take)
            return self._snapshot[1]

    def _announced(self, revocations: Sequence[Revocation]) -> None:
        self._news.set()

    @contextlib.contextmanager
    def _following(self) -> Iterator[_Follower]:
        if len(self._followers) >= MAX_FOLLOWERS:
            raise Unavailable("too many follow the feed", hint="ask for pages instead, or follow a mirror")
        follower: _Follower = asyncio.Queue(MAX_WAITING_PAGES)
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    async def _advance(self) -> None:
        """Send the pages since the last time, or if there are none a heartbeat."""
        if self._head is None:
            self._head = await self._store.read(lambda snapshot: snapshot.feed_head())
        while True:
            page = await self._page_after(self._head)
            self._send(page)
            if page.last <= self._head:
                return
            self._head = page.last
            if not page.is_sealed:
                return

    def _send(self, page: SignedPage | None) -> None:
        for follower in list(self._followers):
            if page is None or follower.full():
                self._followers.discard(follower)
                while not follower.empty():
                    follower.get_nowait()
                follower.put_nowait(None)
            else:
                follower.put_nowait(page)

    async def _page_after(self, after: int) -> SignedPage:
        # Before the store is read: everything that was committed by then is in what it shows.
        issued_at = int(self._clock.now())

        def find(snapshot: Snapshot) -> feed.Page:
            head = snapshot.feed_head()
            first = min(after, head) + 1
            last = min(feed.page_end(first), head)
            entries = tuple(map(feed.entry, snapshot.feed(first, last)))
            return feed.Page(
                iss=self._issuer,
                epoch=snapshot.feed_epoch(),
                first=first,
                last=last,
                head=head,
                issued_at=issued_at,
                entries=entries,
            )

        known = self._sealed.get((self._keys.signer.kid, after + 1))
        if known is not None:
            self._sealed.move_to_end((self._keys.signer.kid, after + 1))
            return known
        page = await self._store.read(find)
        signer = self._keys.signer
        is_sealed = page.last == page.first - 1 + feed.PAGE_SIZE
        signed = SignedPage(token=feed.sign_page(page, signer), first=page.first, last=page.last, is_sealed=is_sealed)
        if is_sealed:
            self._sealed[signer.kid, page.first] = signed
            if len(self._sealed) > SEALED_PAGES_KEPT:
                self._sealed.popitem(last=False)
        return signed
