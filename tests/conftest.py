"""Fixtures that many tests share."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests import postgres
from tests.support import BrokerProcess
from tests.time_limit import pytest_runtest_teardown, pytest_timeout_set_timer

__all__ = ["broker", "database_url", "postgres_server", "pytest_runtest_teardown", "pytest_timeout_set_timer"]

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("suite")

# A shell gives what it starts in the background no Ctrl-C, and a process that ignores it hands that on to its children:
# tests that send it to some would wait for ever.
# So does `nohup` with SIGHUP.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker that tests share. Each test makes its own apps; none may change what others rely on."""
    with BrokerProcess(tmp_path_factory.mktemp("shared") / "data") as process:
        yield process


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL server that tests share. Each makes its own database."""
    with postgres.server() as url:
        yield url


@pytest.fixture
def database_url(postgres_server: str) -> Iterator[str]:
    """The URL of a new, empty database."""
    with postgres.database(postgres_server) as url:
        yield url
