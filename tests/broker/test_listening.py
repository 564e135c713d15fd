"""Where a broker listens: on one address or several, of both kinds, and on sockets in the file system."""

import contextlib
import socket
import stat
from pathlib import Path
from typing import Any

import httpx2
import pytest

from agentwrit.broker.config import load
from agentwrit.broker.server import check_health, listening
from agentwrit.domain.errors import ConfigurationError
from tests.support import BrokerProcess

PATH = "unix:/run/agentwrit.sock"


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def port_of(broker: BrokerProcess) -> int:
    return int(broker.url.rpartition(":")[2])


def denied_from(broker: BrokerProcess, url: str) -> str:
    """The address that the audit log has for who asks by this URL."""
    answer = httpx2.post(f"{url}/v1/app/auth", json={"client_id": "a", "client_secret": "b"}, trust_env=False)
    assert answer.status_code == 401
    return newest(broker)


def newest(broker: BrokerProcess) -> str:
    event: dict[str, Any] = broker.events(event_type="app_auth_failed")[-1]
    return str(event["client_address"])


@needs_ipv6
@pytest.mark.parametrize(
    ("hosts", "workers"), [("::", "1"), ("::, 0.0.0.0", "1"), ("127.0.0.1,[::1]", "1"), ("127.0.0.1,::1", "2")]
)
def test_addresses_of_both_kinds_are_served_at_one_port(tmp_path: Path, hosts: str, workers: str, request: Any) -> None:
    settings: Any = {"AGENTWRIT_HOST": hosts}
    if workers != "1":
        settings |= {"AGENTWRIT_WORKERS": workers, "AGENTWRIT_MASTER_KEY": "ab" * 32}
        settings |= {"AGENTWRIT_DATABASE_URL": request.getfixturevalue("database_url")}
    with BrokerProcess(tmp_path / "data", **settings) as broker:
        for host in ("127.0.0.1", "[::1]"):
            answer = httpx2.get(f"http://{host}:{port_of(broker)}/livez", trust_env=False)
            assert answer.status_code == 200


@needs_ipv6
def test_an_ipv4_client_of_a_socket_for_both_is_called_by_its_own_address(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_HOST="::") as broker:
        assert denied_from(broker, f"http://127.0.0.1:{port_of(broker)}") == "127.0.0.1"


def test_a_socket_in_the_file_system_is_served_beside_a_port(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with BrokerProcess(
        tmp_path / "data", AGENTWRIT_HOST=f"127.0.0.1,unix:{path}", AGENTWRIT_TRUSTED_PROXIES="127.0.0.1"
    ) as broker:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert broker.url.startswith("http://127.0.0.1:")
        assert broker.http.get("/livez").status_code == 200
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://broker") as client:
            assert client.get("/livez").status_code == 200
            body = {"client_id": "a", "client_secret": "b"}
            assert client.post("/v1/app/auth", json=body, headers={"x-forwarded-for": "192.0.2.7"}).status_code == 401
        assert newest(broker) == "192.0.2.7"
        assert check_health(load({"AGENTWRIT_HOST": f"unix:{path}"})) is None
        broker.kill()
        assert path.is_socket()  # nobody was there to remove it
        assert "does not answer" in str(check_health(load({"AGENTWRIT_HOST": f"unix:{path}"})))
        broker.start()
        assert check_health(load({"AGENTWRIT_HOST": f"unix:{path}"})) is None
        assert broker.stop() == 0
        assert not path.exists()


def test_a_path_that_somebody_listens_at_or_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with (
        listening([f"unix:{path}"], 0, "AGENTWRIT_PORT"),
        pytest.raises(ConfigurationError, match="socket"),
        listening([f"unix:{path}"], 0, "AGENTWRIT_PORT"),
    ):
        pass
    path.write_text("a file")
    with pytest.raises(ConfigurationError, match="socket"), listening([f"unix:{path}"], 0, "AGENTWRIT_PORT"):
        pass
    assert path.read_text() == "a file"


def test_a_port_in_use_is_named_and_nothing_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1 port {port} .* AGENTWRIT_PORT"),
            listening([f"unix:{path}", "127.0.0.1"], port, "AGENTWRIT_PORT"),
        ):
            pass
    assert not path.exists()


@pytest.mark.parametrize("hosts", ["", " , ", "unix:", "unix:socket"])
def test_hosts_that_are_none_are_refused(hosts: str) -> None:
    with pytest.raises(ConfigurationError, match="AGENTWRIT_HOST"):
        load({"AGENTWRIT_HOST": hosts})


def test_a_name_that_nobody_knows_is_said_to_be_one() -> None:
    with (
        pytest.raises(ConfigurationError, match="no name that is known here"),
        listening(("broker.invalid",), 0, "AGENTWRIT_PORT"),
    ):
        pass
