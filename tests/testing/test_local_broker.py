"""The testing kit's broker, and its clock."""

import asyncio
import socket
import threading
import time

import httpx2
import pytest

from agentwrit import (
    AgentWritApp,
    AsyncAgentWritApp,
    AuthenticationError,
    AuthorizationError,
    InvalidToken,
    Verifier,
    validate,
)
from agentwrit.domain.errors import ConfigurationError
from agentwrit.testing import LocalBroker

SCOPE = ["read:data:1"]
START_SECONDS = 0.1
STALENESS_SECONDS = 5


@pytest.mark.alone
def test_it_starts_in_less_than_a_tenth_of_a_second() -> None:
    def started_in() -> float:
        begun_at = time.perf_counter()
        with LocalBroker() as broker:
            seconds = time.perf_counter() - begun_at
            assert broker.app().health().status == "ok"
            return seconds

    assert min(started_in() for _ in range(5)) < START_SECONDS


def test_it_is_a_broker_with_all_that_one_does() -> None:
    with LocalBroker() as broker, Verifier(broker.url, clock=broker.clock) as verifier:
        app = broker.app("read:data:*", audiences=["orders"])
        agent, other = app.create_agent("o", "t", SCOPE, bound=True), app.create_agent("o", "t", SCOPE)
        assert other.accept(app.create_agent("o", "t", SCOPE).delegate(other.agent_id, SCOPE)).scope == SCOPE
        url = "https://orders.example/1"
        proof = agent.proof("GET", url)
        assert verifier.verify(agent.access_token, proof=proof, htm="GET", htu=url).sub == agent.agent_id
        assert broker.revoke("agent", other.agent_id) > 0
        assert not app.validate(other.access_token).valid
        with pytest.raises(AuthorizationError):
            app.create_agent("o", "t", ["write:data:1"])


LOGIN_IS_OVER = 1_900  # seconds: a login lives 1,800


def test_an_app_whose_login_ended_and_whose_clock_differs_creates_agents_all_the_same() -> None:
    with LocalBroker() as broker:
        registered = broker.operator.register_app("elsewhere", ["read:data:*"])
        credentials = broker.url, registered["client_id"], registered["client_secret"]

        async def main() -> None:
            async with AsyncAgentWritApp(*credentials) as app:
                await app.create_agent("o", "t", SCOPE)
                broker.advance(LOGIN_IS_OVER)
                agent = await app.create_agent("o", "t", SCOPE)
                assert (await app.validate(agent.access_token)).valid

        with AgentWritApp(*credentials) as app:  # by the machine's own clock
            app.create_agent("o", "t", SCOPE)
            broker.advance(LOGIN_IS_OVER)
            assert app.validate(app.create_agent("o", "t", SCOPE).access_token).valid
        asyncio.run(main())


def test_what_is_over_when_the_clock_was_moved_is_dead_everywhere() -> None:
    with LocalBroker() as broker, Verifier(broker.url, clock=broker.clock) as verifier:
        agent = broker.app().create_agent("o", "t", SCOPE, max_ttl=600)
        broker.advance(595)
        assert validate(broker.url, agent.access_token).valid
        assert verifier.verify(agent.access_token).sub == agent.agent_id
        broker.advance(10)
        assert not validate(broker.url, agent.access_token).valid
        with pytest.raises(InvalidToken):
            verifier.verify(agent.access_token)
        with pytest.raises(AuthenticationError):
            agent.renew()


def test_an_agents_auth_renews_by_the_clock_that_was_moved() -> None:
    with LocalBroker() as broker:
        agent = broker.app().create_agent("o", "t", SCOPE, max_ttl=600)

        def service(request: httpx2.Request) -> httpx2.Response:
            token = request.headers["authorization"].removeprefix("Bearer ")
            return httpx2.Response(200 if validate(broker.url, token).valid else 401)

        with httpx2.Client(auth=agent.auth, transport=httpx2.MockTransport(service)) as client:
            tokens = []
            for _ in range(6):
                assert client.get("http://service").status_code == 200
                tokens.append(agent.access_token)
                broker.advance(460)  # beyond 75 % each time: together more than four lives
        assert len(set(tokens)) == 6


def test_a_bound_agent_goes_by_the_clock_that_was_moved() -> None:
    with LocalBroker() as broker, Verifier(broker.url, clock=broker.clock) as verifier:
        broker.advance(86_400)
        agent = broker.app(require_bound=True).create_agent("o", "t", SCOPE, bound=True)
        agent.renew()
        url = "https://orders.example/1"
        proof = agent.proof("GET", url)
        assert verifier.verify(agent.access_token, proof=proof, htm="GET", htu=url).sub == agent.agent_id


def test_it_serves_an_event_loop_of_its_caller() -> None:
    async def use(broker: LocalBroker) -> None:
        async with broker.async_app() as app, app.agent_for(task_id="t", scope=SCOPE) as agent:
            assert (await app.validate(agent.access_token)).valid

    with LocalBroker() as broker:
        asyncio.run(use(broker))


def test_two_brokers_know_nothing_of_each_other() -> None:
    with LocalBroker() as one, LocalBroker() as other:
        token = one.app().create_agent("o", "t", SCOPE).access_token
        assert validate(one.url, token).valid
        assert not validate(other.url, token).valid


def test_settings_are_the_brokers_own() -> None:
    with LocalBroker(trust_domain="orders.example", max_ttl=30, default_ttl=30) as broker:
        agent = broker.app().create_agent("o", "t", SCOPE)
        assert agent.agent_id.startswith("spiffe://orders.example/")
        assert agent.expires_in == 30
    with pytest.raises(ConfigurationError, match="COLOUR is not a setting"):
        LocalBroker(colour="red")
    with pytest.raises(ConfigurationError, match="MAX_TTL takes"):
        LocalBroker(max_ttl=0)


def test_a_broker_that_cannot_start_says_so() -> None:
    with LocalBroker() as broker:
        port = int(broker.url.rpartition(":")[2])
        with pytest.raises(ConfigurationError, match=f"port {port}"):
            LocalBroker(port=port)


def test_closed_it_leaves_nothing() -> None:
    broker = LocalBroker()
    broker.close()
    broker.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "agentwrit-broker"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(broker.url.rpartition(":")[2])))


def test_its_time_never_runs_backwards() -> None:
    with LocalBroker() as broker, pytest.raises(ValueError, match="backwards"):
        broker.advance(-1)


def test_nothing_it_shows_holds_its_secret() -> None:
    with LocalBroker() as broker:
        assert repr(broker) == f"LocalBroker({broker.url!r})"
