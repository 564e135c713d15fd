"""The read barrier of brokers that share a database: what all of them committed before a check is known to it.

At most one query is under way in a process. Whoever comes while it is waits for the next one, because that under way
may have read before the commit that is asked about; so the database sees one query at a time, however many wait.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import psycopg
import structlog

from agentwrit.broker.clock import DatabaseTime
from agentwrit.broker.storage import postgres_link
from agentwrit.broker.storage.postgres_query import QueryConnection
from agentwrit.broker.storage.postgres_rows import State
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql_rows import SELECT_REVOCATIONS, open_revocation
from agentwrit.domain.errors import TamperedRecord, Unavailable
from agentwrit.domain.revocation import Revocation

QUERY_SECONDS: Final = 2  # beyond that the answer is not known

_SELECT_STATE: Final = b"SELECT state, extract(epoch FROM clock_timestamp())::float8 FROM cluster WHERE one = 1"
_SELECT_NEW: Final = f"{SELECT_REVOCATIONS} WHERE seq > $1 ORDER BY seq".encode("ascii")

log = structlog.get_logger("agentwrit.storage")


class News(NamedTuple):
    """What a query found: the state, and the revocations that had not been announced."""

    state: State
    revocations: Sequence[Revocation]


class Barrier:
    """`announced` gives the number in the feed that all is known up to; `take` announces what is new."""

    def __init__(
        self,
        url: str,
        sealer: Sealer,
        known: State,
        database_time: DatabaseTime,
        announced: Callable[[], int],
        take: Callable[[News], None],
    ) -> None:
        self._url = url
        self._sealer = sealer
        self._time = database_time
        self._announced = announced
        self._take = take
        self._known = known
        self._is_lost = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: QueryConnection | None = None
        self._waiting: list[asyncio.Future[None]] = []  # for the next query: one each, so that each can be cancelled
        self._runner: asyncio.Task[None] | None = None

    async def wait(self) -> None:
        """Wait for a query that begins after this call.

        Raises:
            Unavailable: the database does not answer, or what it says is not what brokers left there.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()  # which asks the system, each time
        known: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(known)
        if self._runner is None:
            self._runner = self._loop.create_task(self._run())
        await known

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner
        await self._disconnect()

    async def _run(self) -> None:
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                try:
                    self._take(await self._ask_again_if_lost())
                except BaseException as error:
                    # Whatever it is: everyone who waits is answered.
                    _refuse(waiting, error)
                    if not isinstance(error, (psycopg.Error, OSError, TamperedRecord)):
                        _refuse(self._waiting, error)
                        self._waiting = []
                        raise
                    self._say(error)
                else:
                    for known in waiting:
                        if not known.done():
                            known.set_result(None)
                    self._say(None)
        finally:
            self._runner = None

    def _say(self, error: psycopg.Error | OSError | TamperedRecord | None) -> None:
        """Log that the database was lost, or is there again: once, however many ask meanwhile."""
        if error is not None and not self._is_lost:
            log.warning("the database does not say what was revoked", reason=postgres_link.reason(error))
        elif error is None and self._is_lost:
            log.info("the database says again what was revoked")
        self._is_lost = error is not None

    async def _ask_again_if_lost(self) -> News:
        is_from_before = self._connection is not None
        started = time.monotonic()
        try:
            return await self._ask()
        except psycopg.OperationalError:
            await self._disconnect()
            if not is_from_before or time.monotonic() >= started + QUERY_SECONDS:
                raise
        except BaseException:
            await self._disconnect()
            raise
        # The server may have been restarted since that connection was used.
        return await self._ask()

    async def _ask(self) -> News:
        if self._connection is None:
            self._connection = await QueryConnection.connect(self._url)
        timer = asyncio.get_running_loop().call_later(QUERY_SECONDS, self._connection.break_off)
        try:
            before = time.monotonic()
            rows = await self._connection.query(_SELECT_STATE)
            for _, now in rows:
                self._time.observe(now, before, time.monotonic())
            state = State.opened(rows[0] if rows else None, self._sealer)
            state.check_follows(self._known)
            new = []
            if state.feed_head > self._announced():
                rows = await self._connection.query(_SELECT_NEW, str(self._announced()).encode("ascii"))
                new = [open_revocation(self._sealer, *row) for row in rows]
        finally:
            timer.cancel()
        self._known = state
        return News(state, new)

    async def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()


def _refuse(waiting: Sequence[asyncio.Future[None]], error: BaseException) -> None:
    for known in waiting:
        if not known.done():
            refusal = Unavailable("the store cannot be read")
            refusal.__cause__ = error
            known.set_exception(refusal)
