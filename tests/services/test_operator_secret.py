"""The first operator's secret, as it comes from where a broker is started."""

import asyncio

import pytest

from agentwrit.broker import passwords
from agentwrit.broker.services.operators import set_secret
from agentwrit.broker.storage.base import Transaction
from agentwrit.broker.storage.memory import MemoryStore
from agentwrit.domain.errors import ConfigurationError
from agentwrit.domain.operator import Operator
from tests.domain.records import NOW
from tests.storage.conftest import Time

ANAS = "a-secret-of-anas"


@pytest.mark.parametrize("is_hash", [False, True])
def test_the_secret_of_an_operator_with_a_name_is_never_made_the_first_ones(is_hash: bool) -> None:
    password_hash = passwords.hash_password(ANAS)
    secret = password_hash if is_hash else ANAS

    def add(transaction: Transaction) -> None:
        transaction.put(Operator(name="ana", password_hash=password_hash, created_at=NOW, updated_at=NOW))
        transaction.put(Operator(name="bo", password_hash="", created_at=NOW, updated_at=NOW, removed_at=NOW))

    async def claim() -> None:
        store = MemoryStore(Time().clock())
        await store.write(add)
        for is_new in (True, False):
            with pytest.raises(ConfigurationError, match="the secret of the operator ana"):
                await set_secret(store, secret)
            assert await set_secret(store, "a-secret-of-the-firsts") is is_new
        assert await set_secret(store, "another-secret-of-the-firsts")

    asyncio.run(claim())


class NewerOperator(Operator, frozen=True, kw_only=True):
    """With a member that this version does not know."""

    colour: str = ""


def test_a_new_secret_leaves_what_a_newer_version_knows_of_the_operator() -> None:
    def add(transaction: Transaction) -> None:
        transaction.put(
            NewerOperator(name="admin", password_hash="", created_at=NOW, updated_at=NOW, removed_at=NOW, colour="blue")
        )

    async def claim() -> None:
        store = MemoryStore(Time().clock())
        await store.write(add)
        assert await set_secret(store, "a-secret-of-the-firsts")
        found = await store.read(lambda snapshot: snapshot.operator("admin"))
        assert isinstance(found, NewerOperator)
        assert (found.colour, found.is_active, found.revision, found.created_at) == ("blue", True, 1, NOW)

    asyncio.run(claim())
