"""The names by which a broker is known: agents are created, renew, delegate and are released by each of them."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agentwrit import AgentWritApp, AgentWritError
from agentwrit.client import steps
from tests.e2e.test_settings import free_port
from tests.proofs import Creation, Holder
from tests.support import BrokerProcess, TestApp, problem

PUBLIC, INSIDE = "https://agentwrit.example.com", "http://agentwrit.agentwrit.svc"


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    directory = tmp_path_factory.mktemp("named") / "data"
    urls = f"{PUBLIC}/, {INSIDE}"
    with BrokerProcess(directory, AGENTWRIT_PUBLIC_URL=urls, AGENTWRIT_ISSUER=PUBLIC) as process:
        yield process


@pytest.fixture
def app(named: BrokerProcess) -> TestApp:
    return named.app()


@pytest.mark.parametrize("url", [PUBLIC, INSIDE])
def test_a_life_by_each_name(app: TestApp, url: str) -> None:
    assert Creation(app, url=url).post().status_code == 201  # not bound: the proof is of the key alone
    holder = Holder(app, url=url)
    delegate = {"delegate_to": holder.agent_id, "scope": ["read:data:1"]}
    assert holder.post("/v1/delegate", json=delegate).status_code == 200
    holder.token = holder.post("/v1/token/renew").json()["access_token"]
    assert holder.post("/v1/token/release").status_code == 204


def test_an_agent_made_by_one_name_goes_on_by_another(app: TestApp) -> None:
    holder = Holder(app, url=PUBLIC)
    holder.url = INSIDE
    assert holder.post("/v1/token/renew").status_code == 200
    assert holder.post("/v1/token/release").status_code == 204


def test_a_proof_is_good_once_whatever_the_name(app: TestApp) -> None:
    holder = Holder(app, url=PUBLIC)
    for url in (PUBLIC, INSIDE):
        answer = holder.post("/v1/token/renew", htu=f"{url}/v1/token/renew", jti="the-same")
        assert answer.status_code == (200 if url == PUBLIC else 401)


@pytest.mark.parametrize("path", ["/v1/token/renew", "/v1/token/release", "/v1/delegate"])
def test_who_asks_by_another_name_is_told_which_are_known(app: TestApp, path: str) -> None:
    holder = Holder(app, url=PUBLIC)
    holder.url = app.broker.url
    hint = problem(holder.post(path), 401, "unauthorized")["hint"]
    expected = f"this is '{PUBLIC}{path}' or '{INSIDE}{path}'"
    assert hint.startswith(f"the proof is for '{app.broker.url}{path}', and {expected}: ")
    assert "AGENTWRIT_PUBLIC_URL" in hint
    event = app.broker.events(agent_id=holder.agent_id)[-1]
    assert event["outcome"] == "denied"
    assert event["detail"].startswith(f"the proof is for '{app.broker.url}{path}': ")


def test_clients_are_told_the_first_of_the_names(named: BrokerProcess) -> None:
    metadata = named.http.get("/.well-known/oauth-authorization-server").json()
    assert metadata["token_endpoint"] == f"{PUBLIC}/oauth2/token"


def test_the_sdk_lives_by_localhost_where_the_address_is_set_or_listened_at(tmp_path: Path) -> None:
    port = str(free_port())
    with ExitStack() as stack:
        named = BrokerProcess(tmp_path / "set", AGENTWRIT_PORT=port, AGENTWRIT_PUBLIC_URL=f"http://127.0.0.1:{port}")
        plain = BrokerProcess(tmp_path / "plain")
        for broker in (stack.enter_context(named), stack.enter_context(plain)):
            app, url = broker.app(), broker.url.replace("127.0.0.1", "localhost")
            with AgentWritApp(url, app.client_id, app.client_secret) as sdk:
                with sdk.create_agent("o", "t", ["read:data:1"]) as agent:
                    agent.renew()
                with sdk.create_agent("o", "t", ["read:data:1"], bound=True) as agent:
                    agent.renew()
                    agent._life._binding = steps.Binding(agent._life.key, broker.url)  # and back to the address
                    agent.renew()


def test_the_sdk_says_what_the_broker_is_called(app: TestApp) -> None:
    with (
        AgentWritApp(app.broker.url, app.client_id, app.client_secret) as sdk,
        pytest.raises(AgentWritError, match=rf"the proof is for '{app.broker.url}/v1/agents'.*{INSIDE}"),
    ):
        sdk.create_agent("o", "t", ["read:data:1"])


def test_a_broker_on_every_address_is_known_by_the_one_that_is_asked(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_HOST="0.0.0.0") as broker:
        app, port = broker.app(), broker.url.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost", "0.0.0.0", "127.0.0.2"):
            with AgentWritApp(f"http://{host}:{port}", app.client_id, app.client_secret) as sdk:
                sdk.create_agent("o", "t", ["read:data:1"], bound=True).release()
        broker.stop()
        assert "AGENTWRIT_PUBLIC_URL is not set" in broker.log.read_text()


def test_a_broker_on_ipv6_is_known_by_its_address_and_as_localhost(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_HOST="::1") as broker:
        app, port = broker.app(), broker.url.rpartition(":")[2]
        assert broker.url == f"http://[::1]:{port}"
        for url in (broker.url, f"http://[0:0::1]:{port}", f"http://localhost:{port}"):
            assert Creation(app, url=url).post().status_code == 201
        assert Creation(app, url=f"http://127.0.0.1:{port}").post().status_code == 401
