"""The read barrier of brokers that share a database: what all of them committed before a check is known to it.

At most one query is under way in a process. Whoever comes while it is waits for the next one, because that under way
may have read before the commit that is asked about; so the database sees one query at a time, however many wait.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

import psycopg
import structlog

from agentwrit.broker.clock import DatabaseTime
from agentwrit.broker.measures import Durations
from agentwrit.broker.storage import postgres_link
from agentwrit.broker.storage.postgres_lineage import GLANCE, SURVEY, Lineage, Survey, Unsettled
from agentwrit.broker.storage.postgres_query import QueryConnection
from agentwrit.broker.storage.postgres_rows import State
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql_rows import SELECT_REVOCATIONS, open_revocation
from agentwrit.domain.errors import TamperedRecord, Unavailable
from agentwrit.domain.revocation import Revocation

QUERY_SECONDS: Final = 2  # beyond that the answer is not known
MAX_AT_ONCE: Final = 512  # revocations that are taken in before anybody else has a turn: some milliseconds

_GLANCE: Final = GLANCE.format("$1", "$2").encode("ascii")
_SURVEY: Final = SURVEY.format("$1::bigint").encode("ascii")
_SELECT_NEW: Final = (
    SELECT_REVOCATIONS.replace("SELECT ", "SELECT seq, ", 1) + f" WHERE seq > $1 ORDER BY seq LIMIT {MAX_AT_ONCE}"
).encode("ascii")

log = structlog.get_logger("agentwrit.storage")


class News(NamedTuple):
    """What a query found: the state, and the revocations that had not been announced."""

    state: State
    revocations: Sequence[Revocation]


class Barrier:
    """`announced` gives the number in the feed that all is known up to; `take` announces what is new; `settled` waits
    until a store that is not settled is, for a while.
    """

    def __init__(
        self,
        url: str,
        sealer: Sealer,
        lineage: Lineage,
        database_time: DatabaseTime,
        announced: Callable[[], int],
        take: Callable[[News], None],
        settled: Callable[[], Awaitable[None]],
        durations: Durations,
    ) -> None:
        self._url = url
        self._sealer = sealer
        self._time = database_time
        self._announced = announced
        self._take = take
        self._settled = settled
        self._durations = durations
        self._lineage = lineage
        self._kind_said: type[Exception] | None = None
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
                    self._take(await self._ask_when_settled())
                except BaseException as error:
                    # Whatever it is: everyone who waits is answered.
                    _refuse(waiting, error)
                    if not isinstance(error, (psycopg.Error, OSError, TamperedRecord, Unavailable)):
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

    def _say(self, error: psycopg.Error | OSError | TamperedRecord | Unavailable | None) -> None:
        """Log that the database was lost, is another one, or is there again: once, however many ask meanwhile."""
        kind = None if error is None else TamperedRecord if isinstance(error, TamperedRecord) else Exception
        if kind is not self._kind_said:
            if error is None:
                log.info("the database says again what was revoked")
            else:
                say = log.error if kind is TamperedRecord else log.warning
                say("the database does not say what was revoked", reason=postgres_link.reason(error))
        self._kind_said = kind

    async def _ask_when_settled(self) -> News:
        try:
            return await self._ask_again_if_lost()
        except Unsettled:
            await self._settled()
            return await self._ask_again_if_lost()

    async def _ask_again_if_lost(self) -> News:
        is_from_before = self._connection is not None
        started = time.monotonic()
        try:
            return await self._ask()
        except psycopg.OperationalError:
            if not is_from_before or time.monotonic() >= started + QUERY_SECONDS:
                raise
        # The server may have been restarted since that connection was used.
        return await self._ask()

    async def _ask(self) -> News:
        is_new = self._connection is None
        if self._connection is None:
            self._connection = await QueryConnection.connect(self._url)
        connection = self._connection
        try:
            if is_new:
                await self._admit(connection)
            seen = self._lineage.seen
            before = time.monotonic()
            rows = await _query(connection, _GLANCE, self._lineage.text.encode("ascii"), connection.mark)
            state, now, _ = self._lineage.glance(rows[0] if rows else None, seen)
            after = time.monotonic()
            self._time.observe(now, before, after)
            self._durations.add(after - before)
            new = await self._news(connection, state)
        except BaseException:
            await self._disconnect()
            raise
        return News(state, new)

    async def _news(self, connection: QueryConnection, state: State) -> Sequence[Revocation]:
        """What is to be announced of a state: where that is a great many, the last of them, for the others were."""
        while (known := self._announced()) < state.feed_head:
            rows = await _query(connection, _SELECT_NEW, str(known).encode("ascii"))
            new = [open_revocation(self._sealer, *row) for _, *row in rows]
            if len(rows) < MAX_AT_ONCE:
                return new
            # It may be behind the state already, which others have moved on since it was read.
            self._take(News(state._replace(feed_head=rows[-1][0]), new))
        return ()

    async def _admit(self, connection: QueryConnection) -> None:
        seen = self._lineage.seen
        place = 0 if seen is None else seen.state.sequence
        rows = await _query(connection, _SURVEY, str(place).encode("ascii"))
        self._lineage.admit(Survey.of(rows[0] if rows else None, self._sealer), seen)

    async def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()


async def _query(connection: QueryConnection, sql: bytes, *values: bytes) -> Sequence[tuple[Any, ...]]:
    timer = asyncio.get_running_loop().call_later(QUERY_SECONDS, connection.break_off)
    try:
        return await connection.query(sql, *values)
    finally:
        timer.cancel()


def _cause(error: BaseException) -> str:
    if isinstance(error, TamperedRecord):
        return "history"
    return "unsettled" if isinstance(error, Unsettled) else "store_read"


def _refuse(waiting: Sequence[asyncio.Future[None]], error: BaseException) -> None:
    for known in waiting:
        if not known.done():
            refusal = Unavailable("the store cannot be read", cause=_cause(error))
            refusal.__cause__ = error
            known.set_exception(refusal)
