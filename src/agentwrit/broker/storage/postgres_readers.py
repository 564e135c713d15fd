"""The reading half of the PostgreSQL store: threads, each with a connection of its own."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import psycopg

from agentwrit.broker.storage.base import Snapshot
from agentwrit.broker.storage.postgres_lineage import GLANCE, Lineage, Seen, Stale
from agentwrit.broker.storage.postgres_link import Link
from agentwrit.broker.storage.postgres_rows import PostgresSnapshot
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain.errors import TamperedRecord, Unavailable

CANNOT_READ: Final = "the store cannot be read"

_GLANCE: Final = GLANCE.format("?", "?")

T = TypeVar("T")

READERS: Final = 5
READ_SECONDS: Final = 6  # waiting for a thread and connecting included


class _Call:
    """A reading under way, which may be told to give up. Shared by its thread and the event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._link: Link | None = None
        self.is_given_up = False

    def use(self, link: Link) -> None:
        with self._lock:
            self._link = link
            if self.is_given_up:
                link.break_off()

    def done(self) -> None:
        with self._lock:
            self._link = None

    def give_up(self) -> None:
        with self._lock:
            self.is_given_up = True
            if self._link is not None:
                self._link.break_off()


class Readers:
    """Answers queries, each from one committed state."""

    def __init__(self, url: str, sealer: Sealer, lineage: Lineage) -> None:
        self._url = url
        self._sealer = sealer
        self._lineage = lineage
        self._threads = ThreadPoolExecutor(READERS, "postgres-read")
        self._own = threading.local()
        self._links: set[Link] = set()

    async def read(self, query: Callable[[Snapshot], T]) -> T:
        """What `query` makes of the state as it is.

        Raises:
            Unavailable: the database does not answer, is not the one to ask, or too many read.
            Unsettled: nobody may ask it yet.
        """
        call = _Call()
        loop = asyncio.get_running_loop()
        timer = loop.call_later(READ_SECONDS, call.give_up)

        def done(answer: asyncio.Future[T]) -> None:
            timer.cancel()
            answer.exception()  # whoever asked may be gone

        answer = loop.run_in_executor(self._threads, self._read, call, query)
        answer.add_done_callback(done)
        try:
            return await asyncio.shield(answer)  # who is gone leaves the thread at work, and the timer with it
        except psycopg.Error as error:
            raise Unavailable(CANNOT_READ, cause="store_read") from error

    def close(self) -> None:
        self._threads.shutdown()
        for link in self._links:
            link.close()

    def _read(self, call: _Call, query: Callable[[Snapshot], T]) -> T:
        link: Link | None = getattr(self._own, "link", None)
        if link is not None:
            try:
                return self._ask(link, call, query)
            except psycopg.Error as error:
                if not (link.is_lost or isinstance(error, Stale)) or call.is_given_up:
                    raise
        # There was none yet, or the server was restarted since it was used.
        if call.is_given_up:
            raise psycopg.OperationalError("it took too long")
        return self._ask(self._connect(), call, query)

    def _ask(self, link: Link, call: _Call, query: Callable[[Snapshot], T]) -> T:
        call.use(link)
        try:
            seen = self._lineage.seen
            with link.pipeline():
                link.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                glance = link.execute(_GLANCE, (self._lineage.text, link.mark))
                answer = query(PostgresSnapshot(link, self._sealer))
            self._look(glance.fetchone(), seen)  # before anybody is told of it
            return answer
        finally:
            call.done()
            with contextlib.suppress(psycopg.Error):  # a connection that is lost has no transaction either
                link.execute("ROLLBACK")

    def _connect(self) -> Link:
        self._let_go()
        try:
            link = self._lineage.connect(self._url)
        except TamperedRecord as error:
            raise Unavailable(CANNOT_READ, cause="store_read") from error
        self._own.link = link
        self._links.add(link)
        return link

    def _look(self, row: Sequence[Any] | None, seen: Seen | None) -> None:
        try:
            self._lineage.glance(row, seen)
        except TamperedRecord as error:
            self._let_go()
            raise Unavailable(CANNOT_READ, cause="store_read") from error

    def _let_go(self) -> None:
        before: Link | None = getattr(self._own, "link", None)
        if before is not None:
            self._own.link = None
            self._links.discard(before)
            before.close()
