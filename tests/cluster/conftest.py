"""Brokers that share a database."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import postgres
from tests.cluster.support import member
from tests.support import BrokerProcess


@pytest.fixture(scope="module")
def brokers(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[BrokerProcess]]:
    """Three brokers of one database. Tests share them; none may end one."""
    with postgres.database(postgres_server) as database_url:
        yield from _three(database_url, tmp_path_factory.mktemp("cluster"))


@pytest.fixture
def own_brokers(database_url: str, tmp_path: Path) -> Iterator[Sequence[BrokerProcess]]:
    """Three brokers of one database, of a test's own."""
    yield from _three(database_url, tmp_path)


def _three(database_url: str, directory: Path) -> Iterator[Sequence[BrokerProcess]]:
    with ExitStack() as stack:
        yield [stack.enter_context(member(database_url, directory / f"broker-{number}")) for number in range(3)]
