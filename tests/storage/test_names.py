"""Whose store it is: a broker with another issuer or trust domain does not go on with it."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

from agentwrit.broker import stores
from agentwrit.broker.config import Config
from agentwrit.broker.offline import renaming
from agentwrit.broker.storage.base import EventQuery, Snapshot
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.checkpoint import Checkpoint
from agentwrit.domain.errors import ConfigurationError
from tests import postgres

T = TypeVar("T")

KEY = "5a" * 32


def settings(place: Path | str, **names: str) -> Config:
    where = {"data_dir": place} if isinstance(place, Path) else {"database_url": place}
    return Config(master_key=KEY, **where, **names)  # type: ignore[arg-type]


def ask(config: Config, query: Callable[[Snapshot], T]) -> T:
    """Open the store as a broker does, and ask it."""

    async def opened() -> T:
        async with stores.open_store(config) as store:
            await store.store.write(lambda t: t.record(Draft(event_type=EventType.TOKEN_ISSUED)))
            return await store.store.read(query)

    return asyncio.run(opened())


def cluster(config: Config) -> str:
    return ask(config, lambda snapshot: snapshot.cluster())


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a store is to be."""
    if request.param == "sqlite":
        return tmp_path / "data"
    url: str = request.getfixturevalue("database_url")
    return url


OTHERS = [{"issuer": "other"}, {"trust_domain": "other.example"}]


def test_a_broker_with_another_issuer_or_trust_domain_is_refused_until_the_store_is_renamed(place: Path | str) -> None:
    assert cluster(settings(place)) == "agentwrit in agentwrit.local"
    for names in OTHERS:
        with pytest.raises(ConfigurationError, match=r"agentwrit in agentwrit\.local.*other.*agentwrit store rename"):
            ask(settings(place, **names), lambda snapshot: None)
    other = settings(place, **OTHERS[1])
    assert renaming.rename(other) == ("agentwrit in agentwrit.local", "agentwrit in other.example")
    assert renaming.rename(other) == ("agentwrit in other.example", "agentwrit in other.example")
    assert cluster(other) == "agentwrit in other.example"
    with pytest.raises(ConfigurationError, match="agentwrit store rename"):
        ask(settings(place), lambda snapshot: None)
    [event] = ask(other, lambda snapshot: snapshot.events(EventQuery(event_type=EventType.STORE_RENAMED)))
    assert event.data == {"before": "agentwrit in agentwrit.local", "now": "agentwrit in other.example"}


def test_there_has_to_be_a_store_to_be_renamed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no store"):
        renaming.rename(settings(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_an_empty_database_is_not_made_a_store_by_renaming_it(database_url: str) -> None:
    with pytest.raises(ConfigurationError, match="no store"):
        renaming.rename(settings(database_url))
    assert postgres.ask(database_url, "SELECT nspname FROM pg_namespace WHERE nspname = 'agentwrit'") == []


def test_a_store_from_before_there_were_names_has_that_of_its_log(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"

    async def live() -> None:
        async with stores.open_store(settings(data_dir)) as opened:
            note = Checkpoint("agentwrit.local/audit", 1, bytes(32)).text + "\n— agentwrit.local/audit AAAA\n"
            await opened.store.write(lambda t: t.put_checkpoint(1, note))

    asyncio.run(live())
    with closing(sqlite3.connect(data_dir / "agentwrit.db")) as connection, connection:
        connection.execute("DELETE FROM meta WHERE name = 'cluster'")
    with pytest.raises(ConfigurationError, match=r"log agentwrit\.local/audit"):
        ask(settings(data_dir, trust_domain="other.example"), lambda snapshot: None)
    assert cluster(settings(data_dir, issuer="https://broker.example.com")) == (
        "https://broker.example.com in agentwrit.local"
    )
