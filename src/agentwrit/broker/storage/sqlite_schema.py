"""The file of the SQLite store: opening it, bringing its schema up to date, and what is known of it as a whole."""

import contextlib
import os
import secrets
import sqlite3
import sys
from pathlib import Path
from typing import Final

from agentwrit.broker.storage import migrations, sql_log, sqlite_objects, sqlite_rows
from agentwrit.broker.storage.base import Cluster
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain import checkpoint
from agentwrit.domain.errors import ConfigurationError
from agentwrit.durable import create

TREE_VERSION: Final = 5  # of the schema: from here on there is a tree over the audit log
HIGH_WATER_MARK: Final = "now"  # its row in `meta`: no later reading of the time is below it
WRITER: Final = "writer"  # likewise: which opening of it writes. Who was lent it by an earlier one finds so
SEALED_BY: Final = "sealed_by"  # likewise: which master key rows are sealed under
CLUSTER: Final = "cluster"  # likewise: the name of the brokers whose store it is
SEALED_BEFORE: Final = "sealed_before"  # which one they were, before it was changed
APPLICATION_ID: Final = 0x41675772  # "AgWr": tells `file` and us whose database this is
CHECKPOINT_PAGES: Final = 4096  # 16 MiB of write-ahead log: a page that is written again until then is copied once
OPENING_MS: Final = 5000  # to wait for what is left of a broker that was killed: one commit
BACKUP_ID: Final = 0x41675742  # "AgWB": a backup. It becomes a broker's database only by being restored


def open_database(path: Path, sealer: Sealer, cluster: Cluster | None = None) -> sqlite3.Connection:
    """A connection to the database in `path`, which is made or brought up to date.

    `cluster`: the name of the brokers that it has to be, for whoever is one of them.

    Raises:
        ConfigurationError: it is another program's, a newer version's, sealed under another master key, or another
            broker's.
        TamperedRecord: its schema is not the one that we make.
    """
    connection = connect(path, busy_timeout_ms=OPENING_MS)
    try:
        _migrate(connection, path, sealer)
        _check_seal(connection, sealer)
        if cluster is not None:
            _check_cluster(connection, cluster)
        _name_epoch(connection)
        connection.execute("PRAGMA busy_timeout = 0")
    except BaseException:
        connection.close()
        raise
    return connection


def connect(path: Path, *, busy_timeout_ms: int = 0) -> sqlite3.Connection:
    """A connection of our settings.

    Raises:
        ConfigurationError: the file is no database.
    """
    # Created by us first: SQLite gives its WAL and shared-memory files the mode of the database file. One that is there
    # must not be opened beside SQLite: closing it would drop the locks of every other connection of this process
    # (https://www.sqlite.org/howtocorrupt.html, section 2.2), and who looks in from outside would take the WAL away.
    with contextlib.suppress(FileExistsError):
        os.close(create(path))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        connection.execute(f"PRAGMA busy_timeout = {busy_timeout_ms}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute("PRAGMA fullfsync = ON")  # macOS: fsync alone does not reach the disk there
        connection.execute("PRAGMA checkpoint_fullfsync = ON")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        distrust(connection)
    except sqlite3.Error as error:
        connection.close()
        raise ConfigurationError(
            f"{path} cannot be opened as a database ({error}): restore it from a backup or use another data directory"
        ) from error
    return connection


def distrust(connection: sqlite3.Connection) -> None:
    """Have SQLite take nothing in the file for harmless: its schema calls no function that acts, its pages are checked
    as they are read, and where this can be asked for the schema's own tables cannot be written.
    """
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)


def _migrate(connection: sqlite3.Connection, path: Path, sealer: Sealer) -> None:
    """Bring the schema up to date, each step in one transaction."""
    [version] = connection.execute("PRAGMA user_version").fetchone()
    [application_id] = connection.execute("PRAGMA application_id").fetchone()
    [has_tables] = connection.execute("SELECT count(*) > 0 FROM sqlite_schema").fetchone()
    if application_id == BACKUP_ID:
        raise ConfigurationError(
            f"{path} is a backup, in which what has ended may be alive: move it elsewhere, and run `agentwrit restore`"
        )
    if application_id != APPLICATION_ID and (version or application_id or has_tables):
        raise ConfigurationError(f"{path} is a database of another program: use another data directory")
    steps = migrations.load("sqlite")
    if version > steps[-1].version:
        raise ConfigurationError(
            f"{path} was written by a newer version of AgentWrit (schema {version}, this one knows"
            f" {steps[-1].version}): upgrade agentwrit, or use another data directory"
        )
    sqlite_objects.check(connection)
    for step in steps:
        if step.version > version:
            connection.executescript(f"BEGIN IMMEDIATE;\n{step.script}")
            if step.version == TREE_VERSION:
                _check_seal(connection, sealer)
                sqlite_rows.grow_tree(connection, sealer)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {step.version}")
            connection.execute("COMMIT")


def _check_seal(connection: sqlite3.Connection, sealer: Sealer) -> None:
    """Refuse to open a database that was sealed under another master key; a new one is sealed under this."""
    meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    if SEALED_BY not in meta:
        connection.execute("INSERT INTO meta (name, value) VALUES (?, ?)", (SEALED_BY, sealer.name))
    elif meta.get(SEALED_BEFORE) == sealer.name != meta[SEALED_BY]:
        raise ConfigurationError(
            "the master key is the one that this data directory had before `agentwrit keys rewrap`:"
            " set AGENTWRIT_MASTER_KEY to the new one"
        )
    elif meta[SEALED_BY] != sealer.name:
        raise ConfigurationError(
            "the master key is not the one that this data directory was made with:"
            " check AGENTWRIT_MASTER_KEY, or put its master.key back"
        )


def _check_cluster(connection: sqlite3.Connection, cluster: Cluster) -> None:
    """Refuse a database whose broker has another name; one that has none yet gets this one."""
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (CLUSTER,)).fetchone()
    named = str(cluster) if row is None else str(row[0])
    signed = sql_log.checkpoint(connection) if row is None else None
    if signed is not None:  # from before there were names: of these, the log has one
        log = checkpoint.unverified(signed).origin
        named = named if log == checkpoint.origin(cluster.trust_domain) else f"that of the log {log}"
    if named != str(cluster):
        raise ConfigurationError(
            f"the store is that of another broker, {named}, and this one is {cluster}: give it the same"
            " AGENTWRIT_ISSUER and AGENTWRIT_TRUST_DOMAIN; or, if it is to have these, run `agentwrit store rename`"
        )
    if row is None:
        connection.execute("INSERT INTO meta (name, value) VALUES (?, ?)", (CLUSTER, named))


def sealed_by(connection: sqlite3.Connection) -> str | None:
    """The name of the sealer of a database; None for a new one."""
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (SEALED_BY,)).fetchone()
    return None if row is None else str(row[0])


def _name_epoch(connection: sqlite3.Connection) -> None:
    """Give the revocation feed of a new database a name of its own."""
    connection.execute(
        "INSERT INTO meta (name, value) VALUES ('feed_epoch', ?) ON CONFLICT DO NOTHING", (secrets.token_hex(16),)
    )


def take_over(connection: sqlite3.Connection) -> str:
    """Be the one who writes the database from now on: nobody commits any more whom another one lent it. Returns by
    what name.
    """
    name = secrets.token_hex(16)
    connection.execute(f"PRAGMA busy_timeout = {OPENING_MS}")
    connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (WRITER, name))
    connection.execute("PRAGMA busy_timeout = 0")
    return name


def writer(connection: sqlite3.Connection) -> str:
    """The name of who writes the database; empty if nobody ever has by a name."""
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (WRITER,)).fetchone()
    return "" if row is None else str(row[0])


def load_high_water_mark(connection: sqlite3.Connection) -> float:
    """The highest time that was ever committed (Unix seconds), or 0."""
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (HIGH_WATER_MARK,)).fetchone()
    return float(row[0]) if row is not None else 0.0
