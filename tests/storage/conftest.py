"""All stores, behind one fixture."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentwrit.broker.clock import Clock
from agentwrit.broker.storage.base import Store
from agentwrit.broker.storage.memory import MemoryStore
from agentwrit.broker.storage.postgres import PostgresStore
from agentwrit.broker.storage.postgres_schema import open_database
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sqlite import SqliteStore
from tests.domain.records import NOW


class Time:
    """A clock's two sources, in the test's hands."""

    def __init__(self, wall: float = NOW) -> None:
        self.wall = wall
        self.monotonic = 0.0

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.monotonic)


class Subject:
    """A store under test, and the one event loop that it lives on."""

    def __init__(self, store: Store, runner: asyncio.Runner, time: Time) -> None:
        self.store = store
        self.time = time
        self._runner = runner

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    def write(self, unit: Callable[[Any], Any]) -> Any:
        return self.run(self.store.write(unit))

    def read(self, query: Callable[[Any], Any]) -> Any:
        return self.run(self.store.read(query))


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    """A new store."""
    time = Time()
    with asyncio.Runner() as runner:
        store: Store
        if request.param == "memory":
            store = MemoryStore(time.clock())
        elif request.param == "sqlite":
            store = SqliteStore(tmp_path / "agentwrit.db", time.clock(), Sealer(b"s" * 32))
        else:
            sealer = Sealer(b"s" * 32)
            opening = open_database(request.getfixturevalue("database_url"), sealer, "tests")
            store = PostgresStore(opening, time.clock(), sealer)
        yield Subject(store, runner, time)
        runner.run(store.close())
