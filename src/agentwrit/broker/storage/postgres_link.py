"""Connections to PostgreSQL, with the settings that we rely on, and SQL as all our stores write it."""

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, Self

import psycopg
from psycopg import conninfo, pq
from psycopg.abc import Buffer

from agentwrit.broker.storage import migrations
from agentwrit.domain.errors import ConfigurationError

# It warns of each pipeline that ends with its connection. Whoever used that gets the error, and says what follows.
logging.getLogger("psycopg").setLevel(logging.ERROR)

SCHEMA: Final = "agentwrit"
SCHEMA_VERSION: Final = migrations.load("postgres")[-1].version  # that this program knows
APPLICATION: Final = "agentwrit"  # how a connection calls itself in pg_stat_activity

STATEMENTS_REMEMBERED: Final = 512
CONNECT_SECONDS: Final = 2  # for each address that the URL names
STATEMENT_MS: Final = 4000
LOCK_MS: Final = 3000
# Inside a transaction: a broker that hangs must not keep the others from theirs, nor one whose machine is gone.
IDLE_MS: Final = 5000
TRANSACTION_MS: Final = 8000
LOST_CLIENT_MS: Final = 10_000

# Whether the server would forget commits when its machine fails.
IS_UNSAFE: Final = "'off' IN (current_setting('fsync'), current_setting('full_page_writes'))"
UNSAFE: Final = (
    "fsync or full_page_writes is off at the database server: when its machine fails, commits are lost, or all of it"
)

NOT_A_URL: Final = (
    "AGENTWRIT_DATABASE_URL is not the URL of a PostgreSQL database:"
    " it looks like postgresql://user:password@host:5432/database"
)

POOLED: Final = (
    "a pooler changes sessions between transactions: let each connection have one of its own (pool_mode = session)"
)
_SIGNS_OF_A_POOLER: Final = (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement)

PRIMARIES: Final = ("read-write", "primary")  # what `target_session_attrs` may ask for
FIRST_WITH_TRANSACTION_TIMEOUT: Final = 170_000
FIRST_LIBPQ_THAT_BALANCES: Final = 160_000


class RolledBack(psycopg.OperationalError):
    """The server undid the transaction that it was told to commit."""


class LooseCommit(psycopg.OperationalError):
    """The server committed, and warned that it did not wait for the standby that it should have waited for."""


def _settings(mark: str, server_version: int) -> bytes:
    """What a session begins with.

    A commit is on disk before it is answered, whatever the server's default is, and whatever it is changed to while the
    session lasts; a stronger default stays. What the server warns of is heard, the time it says is not rounded, and it
    describes a schema in the same words to all. `mark` tells this session from any other that a pooler might put in its
    place, and a trigger reads which schema it knows.
    """
    has_transaction_timeout = server_version >= FIRST_WITH_TRANSACTION_TIMEOUT
    return f"""
SET search_path = {SCHEMA};
SET statement_timeout = {STATEMENT_MS};
SET lock_timeout = {LOCK_MS};
SET idle_in_transaction_session_timeout = {IDLE_MS};
{f"SET transaction_timeout = {TRANSACTION_MS};" if has_transaction_timeout else ""}
SET tcp_keepalives_idle = 5;
SET tcp_keepalives_interval = 2;
SET tcp_keepalives_count = 3;
SET tcp_user_timeout = {LOST_CLIENT_MS};
SET client_min_messages = warning;
SET default_transaction_isolation = 'read committed';
SET extra_float_digits = 1;
SET quote_all_identifiers = off;
SET agentwrit.schema = '{SCHEMA_VERSION}';
SET agentwrit.session = '{mark}';
SELECT set_config('synchronous_commit', CASE WHEN now IN ('off', 'local') THEN 'on' ELSE now END, false)
FROM current_setting('synchronous_commit') AS now;
""".encode("ascii")


def new_mark() -> str:
    """What tells a session from all others."""
    return secrets.token_hex(8)


class Statement(NamedTuple):
    """SQL as psycopg takes it, and whether it changes anything."""

    sql: bytes
    is_change: bool


@lru_cache(STATEMENTS_REMEMBERED)
def _statement(sql: str) -> Statement:
    is_change = sql.startswith(("INSERT", "UPDATE", "DELETE"))
    return Statement(sql.replace("%", "%%").replace("?", "%s").encode("utf-8"), is_change)


# PostgreSQL's text has no U+0000. It is written as two characters, the first of which is no character to anybody else;
# where that one stands itself, it is written as two as well, so nothing is mistaken for anything else.
ESCAPE: Final = "\ufdd0"


def escaped(value: Any) -> Any:
    """A value as it is written."""
    if isinstance(value, list | tuple):
        return [escaped(each) for each in value]
    if isinstance(value, str) and ("\0" in value or ESCAPE in value):
        return value.replace(ESCAPE, ESCAPE + "1").replace("\0", ESCAPE + "0")
    return value


class _TextLoader(psycopg.adapt.Loader):
    def load(self, data: Buffer) -> str:
        text = bytes(data).decode("utf-8")
        return text.replace(ESCAPE + "0", "\0").replace(ESCAPE + "1", ESCAPE) if ESCAPE in text else text


def parameters(url: str) -> dict[str, Any]:
    """What to connect with.

    Raises:
        ConfigurationError: it is no URL of a PostgreSQL database.
    """
    if not url.startswith(("postgresql://", "postgres://")):
        raise ConfigurationError(NOT_A_URL)
    try:
        given = conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:  # it quotes the URL, and with it a password
        raise ConfigurationError(NOT_A_URL) from None
    _require_one_primary(given)
    defaults = {
        "connect_timeout": CONNECT_SECONDS,
        "application_name": APPLICATION,
        # Of several hosts the one that is not a standby. Said here, neither the environment nor a service file says so.
        "target_session_attrs": PRIMARIES[0],
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": LOST_CLIENT_MS,
    }
    if pq.version() >= FIRST_LIBPQ_THAT_BALANCES:
        defaults["load_balance_hosts"] = "disable"
    return {**defaults, **given, "client_encoding": "UTF8", "autocommit": True}


def _require_one_primary(given: dict[str, Any]) -> None:
    """A standby lags: what is read there may be alive although it is dead."""
    target, balancing = given.get("target_session_attrs"), given.get("load_balance_hosts")
    if target is not None and target not in PRIMARIES:
        raise ConfigurationError(
            f"AGENTWRIT_DATABASE_URL has target_session_attrs={target}, which may lead to a standby: a broker has to"
            " ask the primary, so leave it away"
        )
    if balancing not in (None, "disable"):
        raise ConfigurationError(
            f"AGENTWRIT_DATABASE_URL has load_balance_hosts={balancing}: there is one primary, so leave it away"
        )
    if given.get("replication") is not None:
        raise ConfigurationError("AGENTWRIT_DATABASE_URL has replication=…, which is for standbys: leave it away")


class Link:
    """A connection that one thread uses, and any may break off. `mark` is what its session is told by."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]], mark: str) -> None:
        self.connection = connection
        self.mark = mark
        self.changes = 0  # statements so far that changed something
        self.is_in_charge = False  # has the lock of whoever keeps house
        self._pipeline: psycopg.Pipeline | None = None  # from the first time on that one was wanted
        self._pipelines_under_way = 0
        self._is_unanswered = False  # something was sent in the pipeline since it was synchronised
        self._is_warned = False
        self._until_closed = contextlib.ExitStack()
        connection.add_notice_handler(self._hear)
        # A descriptor of its own: that of the connection may be another file's by the time that it is broken off.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))

    @classmethod
    def connect(cls, url: str) -> Self:
        """A new connection.

        Raises:
            psycopg.Error: there is none to be had.
        """
        connection = psycopg.connect(**parameters(url))
        try:
            connection.adapters.register_loader("text", _TextLoader)
            mark = new_mark()
            connection.execute(_settings(mark, connection.info.server_version))
            return cls(connection, mark)
        except BaseException:
            connection.close()
            raise

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> "Answer":
        statement = _statement(sql)
        self.changes += statement.is_change
        self._is_unanswered = self._pipeline is not None
        cursor = self.connection.execute(statement.sql, [escaped(value) for value in values] or None)
        if not self._pipelines_under_way:
            self.sync()
        return Answer(cursor, self)

    @contextlib.contextmanager
    def pipeline(self) -> Iterator[None]:
        """Statements are sent without waiting for those before: only who reads waits. Ends when all are answered.

        The connection stays in this mode, because of what the driver sends on its way out of it: see `sync`.
        """
        if self._pipeline is None:
            self._pipeline = self._until_closed.enter_context(self.connection.pipeline())
        self._pipelines_under_way += 1
        try:
            yield
            self.sync()
        except BaseException:
            with contextlib.suppress(psycopg.Error):
                self.sync()
            raise
        finally:
            self._pipelines_under_way -= 1

    def sync(self) -> None:
        """Wait for the answers to all that was sent.

        The last message is a Sync then, and never a Flush. Behind a Flush the server takes the session for busy, and no
        timeout of a transaction that is idle begins: a broker that hangs there would keep its locks without end.
        """
        if self._pipeline is not None and self._is_unanswered:
            self._is_unanswered = False
            self._pipeline.sync()

    def commit(self) -> None:
        """End a transaction that `execute` began.

        Raises:
            RolledBack: it was not done.
            LooseCommit: it is done here, and may not be on the standby that it should have waited for.
            psycopg.Error: it was not done, or if the connection was lost, it is not known.
        """
        self._is_warned = False
        answer = self.execute("COMMIT").message
        if answer != "COMMIT":
            raise RolledBack("the transaction was rolled back")
        self._check_commit()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction, committed at the end and undone by an error.

        Raises:
            LooseCommit: see `commit`.
        """
        with self.connection.transaction():
            yield
            self._is_warned = False
        self._check_commit()

    def is_own_session(self) -> bool:
        """Whether the session is the one that this connection began with."""
        [[mark]] = self.execute("SELECT current_setting('agentwrit.session', true)").fetchall()
        return bool(mark == self.mark)

    def take_time(self, *, idle_ms: int = 0) -> None:
        """Let nothing but the wait for locks be bounded in the transaction that it is in, or also its idleness."""
        self.execute("SET LOCAL statement_timeout = 0")
        self.execute(f"SET LOCAL idle_in_transaction_session_timeout = {idle_ms}")
        if self.connection.info.server_version >= FIRST_WITH_TRANSACTION_TIMEOUT:
            self.execute("SET LOCAL transaction_timeout = 0")

    @property
    def is_lost(self) -> bool:
        return self.connection.broken or self.connection.closed

    def break_off(self) -> None:
        """Make whatever waits for the server on this connection fail. From any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.connection.close()
        with contextlib.suppress(psycopg.Error):
            self._until_closed.close()
        self._socket.close()

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        self._is_warned = True

    def _check_commit(self) -> None:
        if self._is_warned:
            raise LooseCommit("the server did not wait for its standby")


class Answer:
    """What a statement gave, once it is read."""

    def __init__(self, cursor: psycopg.Cursor[tuple[Any, ...]], link: Link) -> None:
        self._cursor = cursor
        self._link = link

    def fetchone(self) -> tuple[Any, ...] | None:
        self._link.sync()
        return self._cursor.fetchone()

    def fetchall(self) -> list[tuple[Any, ...]]:
        self._link.sync()
        return self._cursor.fetchall()

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        self._link.sync()
        return iter(self._cursor)

    @property
    def count(self) -> int:
        """How many rows were changed."""
        self._link.sync()
        return self._cursor.rowcount

    @property
    def message(self) -> str | None:
        """What the server says that it did."""
        self._link.sync()
        return self._cursor.statusmessage


async def connect_async(url: str, mark: str = "") -> psycopg.AsyncConnection[tuple[Any, ...]]:
    """A connection for the event loop. `mark`: what its session is to be told by.

    Raises:
        psycopg.Error: there is none to be had.
    """
    connection = await psycopg.AsyncConnection.connect(**parameters(url))
    try:
        connection.adapters.register_loader("text", _TextLoader)
        await connection.execute(_settings(mark, connection.info.server_version))
    except BaseException:
        await connection.close()
        raise
    return connection


def reason(error: BaseException) -> str:
    """What the server, the driver or the system says, in one line. It never holds a password."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, _SIGNS_OF_A_POOLER):
        lines.append(POOLED)
    return "; ".join(lines) if lines else type(error).__name__
