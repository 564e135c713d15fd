"""Making the schema of the PostgreSQL store, and bringing it up to date beside brokers that run.

The rules:

- One process at a time does it, in one transaction.
- It takes the table of the cluster's state first, as each batch does, and the others behind it: so no batch and no step
  of it wait for each other. The row in it would not do: a batch that waits for the row has its table already.
- Readings take locks of tables in any order. So a step waits for them only for a moment; then all of it is undone, and
  tried again a little later. The server, which would end one of the two, does not come to it.
"""

import random
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import psycopg

from agentwrit.broker.storage import migrations, postgres_lineage, postgres_objects, postgres_rows, sql_log
from agentwrit.broker.storage.migrations import Migration
from agentwrit.broker.storage.postgres_lineage import History
from agentwrit.broker.storage.postgres_link import POOLED, SCHEMA, SCHEMA_VERSION, Link
from agentwrit.broker.storage.postgres_rows import SELECT_STATE, State
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain.errors import ConfigurationError

T = TypeVar("T")

MIGRATION_LOCK: Final = 0x41675772_0001  # "AgWr": one broker at a time brings the schema up to date
MIGRATION_MS: Final = 120_000
STEP_LOCK_MS: Final = 500  # less than the server takes to look for a deadlock
AGAIN_SECONDS: Final = (0.1, 0.5)
ENCODINGS: Final = ("UTF8", "SQL_ASCII")  # those that every text of ours can be written in

_LOCK: Final = "LOCK TABLE cluster IN ACCESS EXCLUSIVE MODE"
_IN_THE_WAY: Final = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)


def in_transaction(link: Link, work: Callable[[], T]) -> T:
    """Run what begins with `prepare` in a transaction, and again as long as locks of brokers that run are in its way.

    Raises:
        psycopg.Error: they were for too long, or something else is wrong.
    """
    give_up_at = time.monotonic() + MIGRATION_MS / 1000
    while True:
        try:
            with link.transaction():
                return work()
        except _IN_THE_WAY:
            if time.monotonic() >= give_up_at:
                raise
        time.sleep(random.uniform(*AGAIN_SECONDS))  # noqa: S311  # nobody gains by knowing it


def prepare(link: Link, sealer: Sealer, cluster: str | None) -> None:
    """Make the schema, or bring it up to date, in the transaction that `link` is in; one broker at a time.

    `cluster`: what all brokers of the database have in common, None for whoever may find any.

    Raises:
        ConfigurationError: the database is not for us.
        TamperedRecord: the schema is not the one that we make.
    """
    if not link.is_own_session():
        raise ConfigurationError(f"the database cannot be used: {POOLED}")
    link.execute(f"SET LOCAL lock_timeout = {MIGRATION_MS}")
    link.execute(f"SET LOCAL statement_timeout = {MIGRATION_MS}")
    link.execute("SELECT pg_advisory_xact_lock(?)", (MIGRATION_LOCK,))
    version = version_of(link)
    steps = migrations.load("postgres")
    if version > steps[-1].version:
        raise ConfigurationError(
            f"the database was written by a newer version of AgentWrit (schema {version}, this one knows"
            f" {steps[-1].version}): upgrade agentwrit, or use another database"
        )
    postgres_objects.check_events(link)
    if version:
        _check_meta(link, sealer, cluster)
        postgres_objects.check(link, sealer, version)
    if version < steps[-1].version:
        _require_what_it_takes(link)
        _migrate(link, sealer, cluster, [step for step in steps if step.version > version])


def go_back(link: Link, sealer: Sealer, version: int) -> None:
    """Make the schema that of an older version again, in the transaction that `link` is in. Nobody may use the store.

    Raises:
        ConfigurationError: there is no way back to it, or the database is not for us.
        TamperedRecord: the schema is not the one that we make.
    """
    link.execute("SELECT pg_advisory_xact_lock(?)", (MIGRATION_LOCK,))
    check_current(link, sealer)
    steps = [step for step in migrations.load("postgres") if step.version > version]
    if not steps or any(step.way_back is None for step in steps):
        possible = _ways_back()
        raise ConfigurationError(
            f"there is no way back to schema {version}: "
            + (f"from {SCHEMA_VERSION} there is one to {possible}" if possible else "put a dump from before back")
        )
    link.execute(_LOCK)
    for step in reversed(steps):
        postgres_objects.undo(link, step)
    link.execute("UPDATE meta SET value = ? WHERE name = 'version'", (str(version),))
    postgres_objects.check(link, sealer, version)


def _ways_back() -> str:
    """The versions that there is a way back to."""
    found: list[int] = []
    steps = migrations.load("postgres")
    for before, step in zip(steps[-2::-1], steps[::-1], strict=False):
        if step.way_back is None:
            break
        found.append(before.version)
    return ", ".join(map(str, found))


def check_current(link: Link, sealer: Sealer) -> None:
    """Refuse a database that is not as this version makes it, and change nothing that is not undone.

    Raises:
        ConfigurationError: there is no store, or one of another version, or under another master key.
        TamperedRecord: the schema is not the one that we make.
    """
    version = version_of(link)
    if not version:
        raise ConfigurationError("there is no store in the database")
    if version != SCHEMA_VERSION:
        raise ConfigurationError(
            f"the schema of the database is that of another version of AgentWrit ({version}, and this one knows"
            f" {SCHEMA_VERSION}): use that version, or run `agentwrit store migrate`"
        )
    postgres_objects.check_events(link)
    _check_meta(link, sealer, None)
    postgres_objects.check(link, sealer, version)


def _require_what_it_takes(link: Link) -> None:
    [[encoding, has_language]] = link.execute(
        "SELECT getdatabaseencoding(), EXISTS (SELECT 1 FROM pg_language WHERE lanname = 'plpgsql')"
    ).fetchall()
    if encoding not in ENCODINGS:
        raise ConfigurationError(
            f"the encoding of the database is {encoding}, in which not every text can be written:"
            " make one with ENCODING 'UTF8' TEMPLATE template0"
        )
    if not has_language:
        raise ConfigurationError(
            "the database has no PL/pgSQL, which the schema needs: CREATE EXTENSION plpgsql, as its owner"
        )


def _migrate(link: Link, sealer: Sealer, cluster: str | None, steps: Sequence[Migration]) -> None:
    is_new = steps[0].version == 1
    link.execute(f"SET LOCAL lock_timeout = {STEP_LOCK_MS}")
    if not is_new:
        link.execute(_LOCK)
    elif not _has_schema(link):
        link.execute(f"CREATE SCHEMA {SCHEMA}")
    for step in steps:
        postgres_objects.apply(link, step)
        if step.version == 1:
            _fill_new(link, sealer, cluster)
        link.execute("UPDATE meta SET value = ? WHERE name = 'version'", (str(step.version),))
    _begin_history(link, sealer)
    _begin_covered(link, sealer)
    if is_new:
        postgres_objects.keep(link, sealer, steps[-1].version)  # nobody but us has seen it yet
    else:
        postgres_objects.check(link, sealer, steps[-1].version)
    link.execute(f"SET LOCAL lock_timeout = {MIGRATION_MS}")


def _has_schema(link: Link) -> bool:
    [[count]] = link.execute("SELECT count(*) FROM pg_namespace WHERE nspname = ?", (SCHEMA,)).fetchall()
    return bool(count)


def version_of(link: Link) -> int:
    """The version of the schema, 0 where there is none yet, or one that is empty.

    Raises:
        ConfigurationError: it is another program's.
    """
    if not _has_schema(link):
        return 0
    # A table, and no view or whatever else would do something of its own when it is read.
    [[is_there]] = link.execute(
        "SELECT count(*) FROM pg_class WHERE oid = to_regclass(?) AND relkind = 'r' AND NOT relrowsecurity",
        (f"{SCHEMA}.meta",),
    ).fetchall()
    row = link.execute("SELECT value FROM meta WHERE name = 'version'").fetchone() if is_there else None
    if row is not None:
        return int(row[0])
    if postgres_objects.is_empty(link):  # whoever runs the server made it for us
        return 0
    raise ConfigurationError(
        f"the database has a schema {SCHEMA} of another program: use another database for AgentWrit"
    )


def sealed_by(link: Link) -> str | None:
    """The name of the key that rows are sealed with; None where there is no schema yet.

    Raises:
        ConfigurationError: the database is another program's.
    """
    if not version_of(link):
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
    postgres_objects.keep(link, sealer, version_of(link))


def _check_meta(link: Link, sealer: Sealer, cluster: str | None) -> None:
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
    if cluster not in (None, meta.get("cluster")):
        raise ConfigurationError(
            f"the database is that of another cluster, {meta.get('cluster')}, and this broker is one of {cluster}:"
            " give it the same AGENTWRIT_ISSUER and AGENTWRIT_TRUST_DOMAIN, or use another database; or, if the cluster"
            " is to have these, run `agentwrit store rename`"
        )


def _fill_new(link: Link, sealer: Sealer, cluster: str | None) -> None:
    """What a new schema holds from the beginning; the revocation feed gets a name of its own."""
    for name, value in (
        ("version", "1"),
        ("sealed_by", sealer.name),
        ("cluster", cluster or ""),
        ("feed_epoch", secrets.token_hex(16)),
    ):
        link.execute("INSERT INTO meta (name, value) VALUES (?, ?)", (name, value))
    link.execute("INSERT INTO cluster (one, state) VALUES (1, ?)", (State().sealed(sealer),))


def _begin_history(link: Link, sealer: Sealer) -> None:
    """A store that has never said where it is, is here."""
    [[system, timeline]] = link.execute(f"SELECT {postgres_lineage.SYSTEM}, {postgres_lineage.TIMELINE}").fetchall()
    history = History(system, int(timeline, 16)).sealed(sealer)
    link.execute("UPDATE cluster SET history = ? WHERE history IS NULL", (history,))


def _begin_covered(link: Link, sealer: Sealer) -> None:
    """A store that has never said up to where a checkpoint covers its log, has the checkpoint that is there."""
    state = State.opened(link.execute(SELECT_STATE).fetchone(), sealer)
    _, covered = postgres_rows.columns(state, sql_log.covered(link), sealer)
    link.execute("UPDATE cluster SET covered = ? WHERE covered IS NULL", (covered,))
