"""Fixtures that many tests share."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support import BrokerProcess

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker that tests share. Each test makes its own apps; none may change what others rely on."""
    with BrokerProcess(tmp_path_factory.mktemp("shared") / "data") as process:
        yield process
