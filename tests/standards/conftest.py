"""A broker as those who know only the standards find it: by its issuer's URL."""

import socket
from collections.abc import Iterator

import pytest

from tests.support import PLAIN, BrokerProcess, TestApp


@pytest.fixture(scope="session")
def found_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker whose issuer is the URL at which it is reached."""
    with socket.socket() as probe:  # an issuer is chosen before the broker starts, and so is its port
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"AGENTWRIT_PORT": str(port), "AGENTWRIT_ISSUER": f"http://127.0.0.1:{port}"}
    with BrokerProcess(tmp_path_factory.mktemp("found") / "data", verify=PLAIN, **settings) as process:
        assert process.url == settings["AGENTWRIT_ISSUER"]
        yield process


@pytest.fixture
def app(found_broker: BrokerProcess) -> TestApp:
    return found_broker.app(audiences=["https://orders.example", "https://billing.example"])
