"""The database of the PostgreSQL store: opening it, bringing its schema up to date, refusing one that is not ours."""

import secrets
import time
from typing import Final, NamedTuple

import psycopg

from agentwrit.broker.clock import DatabaseTime
from agentwrit.broker.storage import migrations, sql_log
from agentwrit.broker.storage.postgres_link import SCHEMA, Link, parameters, reason
from agentwrit.broker.storage.postgres_rows import SELECT_STATE, State
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain.errors import ConfigurationError

OLDEST_SERVER: Final = 14
MIGRATION_LOCK: Final = 0x41675772_0001  # "AgWr": one broker at a time brings the schema up to date
MIGRATION_MS: Final = 120_000


class Opening(NamedTuple):
    """A database, ready to be used: the URL, what it holds when it is opened, and its time."""

    url: str
    state: State
    time: DatabaseTime


def open_database(url: str, sealer: Sealer, cluster: str) -> Opening:
    """Make the schema, or bring it up to date, unless the database is not for us. Then nothing is written.

    `cluster`: what all brokers of the database have in common.

    Raises:
        TamperedRecord: the audit log does not end as the brokers left it.
        ConfigurationError: it cannot be reached or written, is too old, is another program's, another cluster's or a
            newer version's, or was sealed under another master key.
    """
    link = connect(url)
    try:
        with link.connection.transaction():
            prepare(link, sealer, cluster)
            # With the lock that writers take: nobody adds to the log while it is looked at.
            state = State.opened(link.execute(f"{SELECT_STATE} FOR UPDATE").fetchone(), sealer)
            sql_log.load_head(link, sealer, (state.sequence, state.hash))
        asked_at = time.monotonic()
        [[now]] = link.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchall()
        return Opening(url, state, DatabaseTime(now, asked_at, time.monotonic()))
    except psycopg.Error as error:
        raise unusable(error) from error
    finally:
        link.close()


def connect(url: str) -> Link:
    """A connection to a server that is new enough.

    Raises:
        ConfigurationError: there is none to be had.
    """
    parameters(url)  # a URL that is none is told as that
    try:
        link = Link.connect(url)
    except psycopg.Error as error:
        raise ConfigurationError(
            f"the database cannot be reached ({reason(error)}): check AGENTWRIT_DATABASE_URL, and that the server is up"
        ) from error
    try:
        check_version(link.connection.info.server_version)
    except BaseException:
        link.close()
        raise
    return link


def unusable(error: psycopg.Error) -> ConfigurationError:
    """What to say of a database that refuses what has to be done before it can be used."""
    return ConfigurationError(
        f"the schema in the database cannot be brought up to date ({reason(error)}):"
        " the user in AGENTWRIT_DATABASE_URL needs to own it, or to be allowed to create it"
    )


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


def prepare(link: Link, sealer: Sealer, cluster: str) -> None:
    """Make the schema, or bring it up to date, in the transaction that `link` is in; one broker at a time.

    Raises:
        ConfigurationError: the database is not for us.
    """
    link.execute(f"SET LOCAL lock_timeout = {MIGRATION_MS}")
    link.execute(f"SET LOCAL statement_timeout = {MIGRATION_MS}")
    link.execute("SELECT pg_advisory_xact_lock(?)", (MIGRATION_LOCK,))
    version = _version(link)
    steps = migrations.load("postgres")
    if version > steps[-1].version:
        raise ConfigurationError(
            f"the database was written by a newer version of AgentWrit (schema {version}, this one knows"
            f" {steps[-1].version}): upgrade agentwrit, or use another database"
        )
    if version:
        _check_meta(link, sealer, cluster)
    for step in steps:
        if step.version > version:
            if step.version == 1:
                link.execute(f"CREATE SCHEMA {SCHEMA}")
            link.connection.execute(step.script.encode("utf-8"))
            if step.version == 1:
                _fill_new(link, sealer, cluster)
            link.execute("UPDATE meta SET value = ? WHERE name = 'version'", (str(step.version),))


def _version(link: Link) -> int:
    """The version of the schema, 0 where there is none yet."""
    [[has_schema]] = link.execute("SELECT count(*) FROM pg_namespace WHERE nspname = ?", (SCHEMA,)).fetchall()
    if not has_schema:
        return 0
    [[meta]] = link.execute("SELECT to_regclass(?)::text", (f"{SCHEMA}.meta",)).fetchall()
    row = None if meta is None else link.execute("SELECT value FROM meta WHERE name = 'version'").fetchone()
    if row is None:
        raise ConfigurationError(
            f"the database has a schema {SCHEMA} of another program: use another database for AgentWrit"
        )
    return int(row[0])


def sealed_by(link: Link) -> str | None:
    """The name of the key that rows are sealed with; None where there is no schema yet.

    Raises:
        ConfigurationError: the database is another program's.
    """
    if not _version(link):
        return None
    [[name]] = link.execute("SELECT value FROM meta WHERE name = 'sealed_by'").fetchall()
    return str(name)


def seal(link: Link, sealer: Sealer, *, before: Sealer) -> None:
    """Say that rows are sealed with another key from now on."""
    for name, value in (("sealed_by", sealer.name), ("sealed_before", before.name)):
        link.execute(
            "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )


def _check_meta(link: Link, sealer: Sealer, cluster: str) -> None:
    meta = dict(link.execute("SELECT name, value FROM meta").fetchall())
    if meta.get("sealed_before") == sealer.name != meta.get("sealed_by"):
        raise ConfigurationError(
            "the master key is the one that this database had before `agentwrit keys rewrap`:"
            " set AGENTWRIT_MASTER_KEY to the new one"
        )
    if meta.get("sealed_by") != sealer.name:
        raise ConfigurationError(
            "the master key is not the one that this database was made with: check AGENTWRIT_MASTER_KEY"
        )
    if meta.get("cluster") != cluster:
        raise ConfigurationError(
            f"the database is that of another cluster, {meta.get('cluster')}, and this broker is one of {cluster}:"
            " give it the same AGENTWRIT_ISSUER and AGENTWRIT_TRUST_DOMAIN, or use another database"
        )


def _fill_new(link: Link, sealer: Sealer, cluster: str) -> None:
    """What a new schema holds from the beginning; the revocation feed gets a name of its own."""
    for name, value in (
        ("version", "1"),
        ("sealed_by", sealer.name),
        ("cluster", cluster),
        ("feed_epoch", secrets.token_hex(16)),
    ):
        link.execute("INSERT INTO meta (name, value) VALUES (?, ?)", (name, value))
    link.execute("INSERT INTO cluster (one, state) VALUES (1, ?)", (State().sealed(sealer),))
