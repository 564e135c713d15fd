"""What brokers of one store were started with, and whether that is the same."""

import asyncio

from agentwrit.broker.clock import Clock
from agentwrit.broker.config import Config
from agentwrit.broker.services.agreement import Agreement
from agentwrit.broker.storage.memory import MemoryStore

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
SECRET = "a-secret-that-nobody-is-shown"


def test_the_last_that_was_started_counts_and_nobody_learns_what_it_was_started_with() -> None:
    async def claim() -> None:
        store = MemoryStore(Clock())
        before = Agreement(store, Config(admin_secret=SECRET), KEY)
        await before.declare()
        await before.look()
        assert before.differing == []
        changed = Config(admin_secret="another", audience=("orders",), port=9)
        since = Agreement(store, changed, KEY)
        await since.declare()
        for agreement in (before, since):
            await agreement.look()
        assert before.differing == ["AGENTWRIT_ADMIN_SECRET", "AGENTWRIT_AUDIENCE"]
        assert since.differing == []
        text = await store.read(lambda snapshot: snapshot.settings())
        assert SECRET not in text
        assert "orders" not in text
        await Agreement(store, Config(admin_secret=SECRET), KEY).declare()
        await before.look()
        assert before.differing == []

    asyncio.run(claim())


def test_under_a_new_master_key_nothing_differs_and_nonsense_says_nothing() -> None:
    async def claim() -> None:
        store = MemoryStore(Clock())
        agreement = Agreement(store, Config(), KEY)
        for text in ("", "nonsense", "[]", '{"audience": 1}', '{"audience": "no key"}'):
            await store.write(lambda transaction, text=text: transaction.put_settings(text))  # type: ignore[misc]
            await agreement.look()
            assert agreement.differing == []
        await Agreement(store, Config(audience=("orders",)), OTHER_KEY).declare()
        await agreement.look()
        assert agreement.differing == []

    asyncio.run(claim())
