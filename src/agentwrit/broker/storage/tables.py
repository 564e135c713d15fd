"""The catalogue of the SQL stores' tables. Every list of tables or columns in this package is derived from it.

A new table takes an entry here, a migration for each engine, and its queries.

A sealed table holds one record per row: `body` is the record as JSON, `mac` covers the body (see `sealing`), and the
columns before them are copies of members, to find rows by.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import msgspec

from agentwrit.broker.storage.base import Record
from agentwrit.domain import audit
from agentwrit.domain.app import App
from agentwrit.domain.audit_archive import Archive
from agentwrit.domain.ending import Ending
from agentwrit.domain.grant import Grant
from agentwrit.domain.idempotency import FirstAnswer
from agentwrit.domain.launch_token import LaunchToken
from agentwrit.domain.limits import AppUsage
from agentwrit.domain.operator import Operator
from agentwrit.domain.revocation import RETENTION_SECONDS
from agentwrit.domain.signing_key import StoredKey

Columns = tuple[object, ...]
"""The values of a row, in the order of its table's `columns`."""

SEALED: Final = ("body", "mac")


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """A table and how its rows are written, found, checked and forgotten.

    `key`: the columns by which a row replaces another one; empty if rows never replace each other.
    `columns`: all columns that are written, the key first.
    `record`, `lookup`: for a sealed table, the type of its records, and the columns of one before body and MAC.
    `authenticated`: the columns that the MAC covers; empty if rows carry none.
    `constant`: columns that never change. An update leaves them, and so their indexes, alone.
    `place`: the columns that give the order in which rows were made, if that is not the key's.
    `in_memory`: whether units write it in memory; `found_by_key`: the columns read there by key, if any.
    `expiry`: an SQL expression for the time (Unix seconds) after which a row is deleted, if ever; `kept_seconds`:
    how much later. `condition`: what else holds for rows that are deleted.
    """

    name: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    record: type[Record] | None = None
    lookup: Callable[[Any], Columns] = lambda record: ()
    authenticated: tuple[str, ...] = ()
    constant: frozenset[str] = frozenset()
    place: tuple[str, ...] = ()
    in_memory: bool = False
    found_by_key: tuple[str, ...] = ()
    expiry: str = ""
    kept_seconds: int = 0
    condition: str = ""

    @property
    def order(self) -> str:
        """The order in which rows were made, for ORDER BY."""
        return ", ".join(self.place or self.key)

    @cached_property
    def lookup_columns(self) -> tuple[str, ...]:
        """The columns of a sealed table before body and MAC."""
        return self.columns[: -len(SEALED)]

    @cached_property
    def on_conflict(self) -> str:
        """The clause by which an INSERT replaces the row that has the same key."""
        if not self.key:
            return ""
        changed = (name for name in self.columns if name not in self.key and name not in self.constant)
        changes = ", ".join(f"{name} = excluded.{name}" for name in changed)
        return f"ON CONFLICT ({', '.join(self.key)}) DO UPDATE SET {changes}"


def _sealed(name: str, record: type[Record], lookup: Callable[[Any], Columns], *columns: str, **more: Any) -> Table:
    """A sealed table whose key is its first column."""
    return Table(
        name=name,
        key=columns[:1],
        columns=(*columns, *SEALED),
        record=record,
        lookup=lookup,
        authenticated=("body",),
        **more,
    )


def _of_grant(grant: Grant) -> Columns:
    chain = grant.chain
    return (
        grant.sid,
        grant.kind._value_,
        grant.app_id,
        grant.ended_at,
        grant.exp,
        grant.subject,
        grant.task_id,
        grant.orch_id,
        grant.jti,
        chain[-1].sid if chain else "",
        grant.kid,
        int(grant.is_counted),
        chain[0].sid if chain else "",
    )


OPERATORS: Final = _sealed("operators", Operator, lambda each: (each.name,), "name")
APPS: Final = _sealed(
    "apps",
    App,
    lambda app: (app.app_id, app.client_id, app.name, app.status.value),
    "app_id",
    "client_id",
    "name",
    "status",
    place=("position",),
    found_by_key=SEALED,
)
APP_USAGE: Final = _sealed(
    "app_usage", AppUsage, lambda usage: (usage.app_id,), "app_id", in_memory=True, found_by_key=SEALED
)
ENDINGS: Final = _sealed(
    "endings",
    Ending,
    lambda ending: (ending.id, ending.done_at),
    "id",
    "done_at",
    in_memory=True,
    found_by_key=SEALED,
    expiry="done_at",
    kept_seconds=RETENTION_SECONDS,
    condition="done_at > 0",
)
LAUNCH_TOKENS: Final = _sealed(
    "launch_tokens",
    LaunchToken,
    lambda token: (token.token_hash, token.expires_at),
    "token_hash",
    "expires_at",
    in_memory=True,
    found_by_key=SEALED,
    expiry="expires_at",
)
NONCES: Final = Table(
    name="nonces",
    key=("nonce",),
    columns=("nonce", "expires_at"),
    in_memory=True,
    found_by_key=("expires_at",),
    expiry="expires_at",
)
GRANTS: Final = _sealed(
    "grants",
    Grant,
    _of_grant,
    "sid",
    "kind",
    "app_id",
    "ended_at",
    "exp",
    "subject",
    "task_id",
    "orch_id",
    "jti",
    "parent_sid",
    "kid",
    "counted",
    "tree",
    constant=frozenset({"kind", "app_id", "subject", "task_id", "orch_id", "parent_sid", "tree"}),
    place=("rowid",),
    in_memory=True,
    found_by_key=SEALED,
    expiry="exp",
    kept_seconds=RETENTION_SECONDS,
)
FIRST_ANSWERS: Final = _sealed(
    "first_answers",
    FirstAnswer,
    lambda answer: (answer.key, answer.expires_at),
    "key",
    "expires_at",
    in_memory=True,
    found_by_key=SEALED,
    expiry="expires_at",
)
REVOCATIONS: Final = Table(
    name="revocations",
    key=("kind", "id"),
    columns=("kind", "id", "effective_at", "last_exp", "mac", "seq"),
    authenticated=("kind", "id", "effective_at", "last_exp"),
    place=("seq",),
    in_memory=True,
    expiry="last_exp",
    kept_seconds=RETENTION_SECONDS,
    # Not "<": for that there is an index, by which all entries would be looked at.
    condition="seq <> (SELECT max(seq) FROM revocations)",
)
SIGNING_KEYS: Final = _sealed("signing_keys", StoredKey, lambda key: (key.kid, key.created_at), "kid", "created_at")
EVENTS: Final = Table(
    name="events",
    key=(),
    columns=tuple(field.name for field in msgspec.structs.fields(audit.Event)),
    place=("sequence",),
    in_memory=True,
)
TILES: Final = Table(
    name="tiles",
    key=("level", "number"),
    columns=("level", "number", "hashes", "mac"),
    authenticated=("level", "number", "hashes"),
    in_memory=True,
)
CHECKPOINT: Final = Table(name="checkpoint", key=("one",), columns=("one", "size", "note"))
ARCHIVES: Final = _sealed("archives", Archive, lambda archive: (archive.last,), "last")
META: Final = Table(name="meta", key=("name",), columns=("name", "value"), in_memory=True)

ALL: Final = (
    OPERATORS,
    APPS,
    APP_USAGE,
    ENDINGS,
    LAUNCH_TOKENS,
    NONCES,
    GRANTS,
    FIRST_ANSWERS,
    REVOCATIONS,
    SIGNING_KEYS,
    EVENTS,
    TILES,
    CHECKPOINT,
    ARCHIVES,
    META,
)

_BY_RECORD: Final[Mapping[type, Table]] = {table.record: table for table in ALL if table.record is not None}


def table_of(record: Record) -> Table:
    """The table of a record, also of a record with members that a newer version wrote (see `sealing`)."""
    kind = type(record)
    found = _BY_RECORD.get(kind)
    return found if found is not None else next(_BY_RECORD[base] for base in kind.__mro__ if base in _BY_RECORD)
