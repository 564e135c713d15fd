"""The database of the PostgreSQL store: opening it, bringing its schema up to date, refusing one that is not ours."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import psycopg
import structlog

from agentwrit.broker.clock import MAX_STEP_SECONDS, DatabaseTime
from agentwrit.broker.storage import postgres_lineage, postgres_memory, sql_log
from agentwrit.broker.storage.postgres_lineage import Lineage, OtherHistory, OtherSystem, Seen, Survey
from agentwrit.broker.storage.postgres_link import IS_UNSAFE, POOLED, UNSAFE, Link, parameters, reason
from agentwrit.broker.storage.postgres_memory import Memory
from agentwrit.broker.storage.postgres_migration import in_transaction, prepare
from agentwrit.broker.storage.postgres_rows import SELECT_STATE, State
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain.errors import ConfigurationError

OLDEST_SERVER: Final = 14

_IN_USE: Final = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.QueryCanceled,
)

log = structlog.get_logger("agentwrit.storage")


class Opening(NamedTuple):
    """A database, ready to be used: the URL, what it holds when it is opened, and its time.

    `lineage`: what was seen of it before; `memory`: where that is kept, if it is; `is_settled`: whether the server is
    on the timeline that the store knows, and nothing that was seen is lost there.
    """

    url: str
    state: State
    time: DatabaseTime
    lineage: Lineage
    memory: Memory | None
    is_settled: bool


def open_database(url: str, sealer: Sealer, cluster: str, *, memory_in: Path | None = None) -> Opening:
    """Make the schema, or bring it up to date, unless the database is not for us. Then nothing is written.

    `cluster`: what all brokers of the database have in common; `memory_in`: the directory that knows what was seen of
    the database before. The store may have to be settled still, before anything else is done with it.

    Raises:
        TamperedRecord: the schema is not the one that we make, or the audit log does not end as the brokers left it.
        ConfigurationError: it cannot be reached or written, is too old, is another program's, another cluster's or a
            newer version's, was sealed under another master key, is a copy, or has another history than was seen.
    """
    link = connect(url)

    def check() -> tuple[State, Survey, _Remembered]:
        prepare(link, sealer, cluster)
        # With the lock that writers take: nobody adds to the log while it is looked at.
        state = State.opened(link.execute(f"{SELECT_STATE} FOR UPDATE").fetchone(), sealer)
        survey = postgres_lineage.survey(link, sealer)
        remembered = _check_lineage(link, sealer, survey, memory_in)
        sql_log.load_head(link, sealer, (state.sequence, state.hash))
        return state, survey, remembered

    try:
        _require_own_session(link, url)
        state, survey, remembered = in_transaction(link, check)
        asked_at = time.monotonic()
        [[now, is_unsafe]] = link.execute(
            f"SELECT extract(epoch FROM clock_timestamp())::float8, {IS_UNSAFE}"
        ).fetchall()
        heard_at = time.monotonic()
    except psycopg.Error as error:
        raise unusable(error) from error
    except (OtherHistory, OtherSystem) as error:
        raise ConfigurationError(str(error)) from error
    finally:
        link.close()
    if memory_in is not None:  # a broker that serves
        _doubt(is_unsafe, now - time.time())
    memory = None if memory_in is None else _open_memory(memory_in, survey.system)
    return Opening(
        url=url,
        state=state,
        time=DatabaseTime(now, asked_at, heard_at),
        lineage=Lineage(sealer, remembered.seen, None if memory is None else memory.keep, remembered.lost),
        memory=memory,
        is_settled=survey.timeline == survey.history.timeline and remembered.lost is None,
    )


class _Remembered(NamedTuple):
    """The newest that was seen of a database before; and what was seen, and was lost by a promotion."""

    seen: Seen | None
    lost: Seen | None


def _check_lineage(link: Link, sealer: Sealer, survey: Survey, memory_in: Path | None) -> _Remembered:
    """What was seen of this database before. What ended with a restore since then is no matter any more.

    Raises:
        OtherSystem, OtherHistory: this is not the database to go on with.
    """
    before: Sequence[Seen] = ()
    if memory_in is not None:
        with contextlib.suppress(OSError):  # who opens it for writing says so
            before = postgres_memory.recall(memory_in, survey.system)
    counts = [seen for seen in before if seen.state.now >= survey.history.ended_at]
    postgres_lineage.check(survey, None)
    there: list[Seen] = []
    lost: list[Seen] = []
    for seen in counts:
        try:
            postgres_lineage.check(postgres_lineage.survey(link, sealer, seen), seen)
        except OtherHistory:
            if not postgres_lineage.is_lost(survey, seen):
                raise
            lost.append(seen)
        else:
            there.append(seen)
    return _Remembered(*(max(each, key=lambda seen: seen.state, default=None) for each in (there, lost)))


def _doubt(is_unsafe: bool, ahead: float) -> None:
    """Warn of what a server has that is no reason to refuse it. `ahead`: its clock, in seconds."""
    if is_unsafe:
        log.warning(UNSAFE)
    if abs(ahead) > MAX_STEP_SECONDS:
        log.warning("the database's clock and this machine's differ, and the database's counts", ahead=round(ahead))


def _open_memory(directory: Path, system: str) -> Memory | None:
    try:
        return Memory.open(directory, system)
    except OSError as error:
        log.warning(
            "what this broker sees is forgotten when it stops: the data directory cannot be used",
            directory=str(directory),
            reason=error.strerror,
        )
        return None


def connect(url: str) -> Link:
    """A connection to a server that is new enough.

    Raises:
        ConfigurationError: there is none to be had.
    """
    parameters(url)  # a URL that is none is told as that
    link = _reach(url)
    try:
        check_version(link.connection.info.server_version)
    except BaseException:
        link.close()
        raise
    return link


def _reach(url: str) -> Link:
    try:
        return Link.connect(url)
    except psycopg.Error as error:
        raise ConfigurationError(
            f"the database cannot be reached ({reason(error)}): check AGENTWRIT_DATABASE_URL, and that the server is up"
        ) from error


def _require_own_session(link: Link, url: str) -> None:
    """A pooler that changes sessions between transactions gives the one that was used last to whoever comes next."""
    with contextlib.closing(_reach(url)) as other:
        for each in (link, other, link):
            if not each.is_own_session():
                raise ConfigurationError(f"the database cannot be used: {POOLED}")


def unusable(error: psycopg.Error) -> ConfigurationError:
    """What to say of a database that refuses what has to be done before it can be used."""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        advice = ": the user in AGENTWRIT_DATABASE_URL needs to own it, or to be allowed to create it"
    elif isinstance(error, _IN_USE):
        advice = ": what uses the database keeps it locked, so try it again, or stop the brokers first"
    else:
        advice = ""
    return ConfigurationError(f"the schema in the database cannot be brought up to date ({reason(error)}){advice}")


def check_version(server_version: int) -> None:
    """Refuse a server that is too old; `server_version` as libpq tells it, 150018 for 15.18.

    Raises:
        ConfigurationError: it is.
    """
    major = server_version // 10_000
    if major < OLDEST_SERVER:
        raise ConfigurationError(
            f"the database server is PostgreSQL {major}, and AgentWrit needs {OLDEST_SERVER} or newer: upgrade it"
        )
