"""Connections to PostgreSQL, with the settings that we rely on, and SQL as all our stores write it."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, Self

import psycopg
from psycopg import conninfo
from psycopg.abc import Buffer

from agentwrit.domain.errors import ConfigurationError

# It warns of each pipeline that ends with its connection. Whoever used that gets the error, and says what follows.
logging.getLogger("psycopg").setLevel(logging.ERROR)

SCHEMA: Final = "agentwrit"
APPLICATION: Final = "agentwrit"  # how a connection calls itself in pg_stat_activity

CONNECT_SECONDS: Final = 2  # for each address that the URL names
STATEMENT_MS: Final = 4000
LOCK_MS: Final = 3000
IDLE_MS: Final = 10_000  # inside a transaction: a broker that hangs must not keep the others from theirs

NOT_A_URL: Final = (
    "AGENTWRIT_DATABASE_URL is not the URL of a PostgreSQL database:"
    " it looks like postgresql://user:password@host:5432/database"
)

# The commit is on disk before it is answered, whatever the server's default; a stronger default stays.
_SETTINGS: Final = f"""
SET search_path = {SCHEMA};
SET statement_timeout = {STATEMENT_MS};
SET lock_timeout = {LOCK_MS};
SET idle_in_transaction_session_timeout = {IDLE_MS};
SELECT set_config('synchronous_commit', 'on', false)
WHERE current_setting('synchronous_commit') IN ('off', 'local');
""".encode("ascii")


class Statement(NamedTuple):
    """SQL as psycopg takes it, and whether it changes anything."""

    sql: bytes
    is_change: bool


@lru_cache(maxsize=512)
def _statement(sql: str) -> Statement:
    is_change = sql.startswith(("INSERT", "UPDATE", "DELETE"))
    return Statement(sql.replace("%", "%%").replace("?", "%s").encode("utf-8"), is_change)


# PostgreSQL's text has no U+0000. It is written as two characters, the first of which is no character to anybody else;
# where that one stands itself, it is written as two as well, so nothing is mistaken for anything else.
ESCAPE: Final = "\ufdd0"


def escaped(value: Any) -> Any:
    """A value as it is written."""
    if isinstance(value, list):
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
    defaults = {
        "connect_timeout": CONNECT_SECONDS,
        "application_name": APPLICATION,
        "target_session_attrs": "read-write",  # of several hosts the one that is not a standby
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
    }
    return {**defaults, **given, "client_encoding": "UTF8", "autocommit": True}


class Link:
    """A connection that one thread uses, and any may break off."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self.connection = connection
        self.changes = 0  # statements so far that changed something
        self.is_in_charge = False  # has the lock of whoever keeps house
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
            connection.execute(_SETTINGS)
            return cls(connection)
        except BaseException:
            connection.close()
            raise

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> psycopg.Cursor[tuple[Any, ...]]:
        statement = _statement(sql)
        self.changes += statement.is_change
        return self.connection.execute(statement.sql, [escaped(value) for value in values] or None)

    @contextlib.contextmanager
    def pipeline(self) -> Iterator[None]:
        """Statements are sent without waiting for those before: only who reads waits. Ends when all are answered."""
        with self.connection.pipeline():
            yield

    @property
    def is_lost(self) -> bool:
        return self.connection.broken or self.connection.closed

    def break_off(self) -> None:
        """Make whatever waits for the server on this connection fail. From any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.connection.close()
        self._socket.close()


async def connect_async(url: str) -> psycopg.AsyncConnection[tuple[Any, ...]]:
    """A connection for the event loop.

    Raises:
        psycopg.Error: there is none to be had.
    """
    connection = await psycopg.AsyncConnection.connect(**parameters(url))
    try:
        connection.adapters.register_loader("text", _TextLoader)
        await connection.execute(_SETTINGS)
    except BaseException:
        await connection.close()
        raise
    return connection


def reason(error: BaseException) -> str:
    """What the server, the driver or the system says, in one line. It never holds a password."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines) if lines else type(error).__name__
