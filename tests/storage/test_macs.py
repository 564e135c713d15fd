"""A row that the broker did not write is refused in each table, by whoever reads it, in a file as in a database."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import pytest

from agentwrit.broker.storage.base import GrantQuery, Snapshot, Store, Transaction
from agentwrit.broker.storage.sql_rewrap import TABLES
from agentwrit.domain.audit_archive import Archive
from agentwrit.domain.ending import Ending
from agentwrit.domain.errors import TamperedRecord, Unavailable
from agentwrit.domain.grant import EndReason
from agentwrit.domain.idempotency import FirstAnswer
from agentwrit.domain.limits import AppUsage
from agentwrit.domain.operator import Operator
from agentwrit.domain.revocation import RevocationKind
from tests.domain.records import NOW, make_app, make_grant, make_launch_token
from tests.storage.conftest import Time
from tests.storage.test_conformance import make_key, revocation
from tests.storage.test_rewrap import OLD, Place, place

__all__ = ["place"]

KEY: Final = b"k" * 32
ENDING: Final = Ending(id="ending-1", at=1, began_at=NOW, reason=EndReason.REVOKED.value, actor="admin")

Read = Callable[[Snapshot], Any]

READS: Final[dict[str, list[Read]]] = {
    "operators": [lambda s: s.operator("admin"), lambda s: s.operators()],
    "apps": [
        lambda s: s.app("app-1"),
        lambda s: s.app_by_client_id("client-1"),
        lambda s: s.active_app_by_name("orders"),
        lambda s: s.apps(),
    ],
    "app_usage": [lambda s: s.app_usage("app-1")],
    "endings": [lambda s: s.ending("ending-1"), lambda s: s.endings()],
    "launch_tokens": [lambda s: s.launch_token(b"t" * 32)],
    "grants": [
        lambda s: s.grant("sid-1"),
        lambda s: s.grants(GrantQuery(subject=make_grant().subject)),
        lambda s: s.grant_page(GrantQuery(task_id="t"), behind=0, limit=10),
        lambda s: s.expired("app-1", NOW, NOW + 301),
    ],
    "first_answers": [lambda s: s.first_answer(KEY)],
    "revocations": [
        lambda s: list(s.revocations(NOW)),
        lambda s: s.revocation(RevocationKind.GRANT, "sid-1"),
        lambda s: s.feed(1, 1),
    ],
    "signing_keys": [lambda s: s.signing_keys()],
    "archives": [lambda s: s.archives()],
}


def fill(transaction: Transaction) -> None:
    transaction.put(Operator(name="admin", password_hash="$argon2id$", created_at=NOW, updated_at=NOW))
    transaction.put(make_app())
    transaction.put(AppUsage(app_id="app-1", live_agents=1))
    transaction.put(ENDING)
    transaction.put(make_launch_token())
    transaction.put(make_grant(is_counted=True))
    transaction.put(FirstAnswer(key=KEY, request=KEY, grant=make_grant(), expires_at=NOW + 600))
    transaction.revoke(revocation("sid-1", last_exp=NOW + 300))
    transaction.put(make_key("kid-1", NOW))
    transaction.put(Archive(first=1, last=256, root="r" * 64, file="f", sha256="s" * 64, archived_at=NOW, event=256))


def in_store(place: Place, work: Callable[[Store], Any]) -> Any:
    """Open the store, and do something with it."""

    async def run() -> Any:
        store = place.open(OLD, Time().clock())
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


async def refused(store: Store, read: Read) -> None:
    """Whoever reads it is told, outside of a unit of work and in one."""
    for ask in (store.read, store.write):
        with pytest.raises((TamperedRecord, Unavailable)) as error:
            await ask(read)
        assert isinstance(error.value, TamperedRecord) or isinstance(error.value.__cause__, TamperedRecord)


# What every table has, so that it can be said in the SQL of both.
EDITS: Final = {table: f"UPDATE {table} SET mac = body" for table in READS}
EDITS["revocations"] = "UPDATE revocations SET last_exp = last_exp + 1"


def test_there_is_an_edit_for_each_table_whose_rows_are_the_brokers_alone() -> None:
    assert {table.name for table in TABLES} == {*READS, "tiles"}  # those are edited in tests/attacks


def test_an_edited_row_of_any_table_is_refused_by_whoever_reads_it(place: Place) -> None:
    async def all_read(store: Store) -> None:
        await store.write(fill)
        for reads in READS.values():
            for read in reads:
                assert await store.read(read)

    async def all_refuse(store: Store) -> None:
        for reads in READS.values():
            for read in reads:
                await refused(store, read)

    in_store(place, all_read)
    for edit in EDITS.values():
        place.change(edit)
    in_store(place, all_refuse)
