"""Bound agents of the SDK, blocking and on an event loop: against a real broker, services, and thieves."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from agentwrit import (
    AgentWritApp,
    AgentWritError,
    AsyncAgentWritApp,
    AsyncVerifier,
    AuthenticationError,
    AuthorizationError,
    InvalidToken,
    Verifier,
    validate,
)
from agentwrit.client import steps
from agentwrit.client.secrecy import Secret
from agentwrit.domain import jwk
from tests.client.libraries import Get
from tests.client.peer import Handler, answer, peer
from tests.proofs import present
from tests.support import BrokerProcess, TestApp, bearer

SCOPE = ["read:data:1"]
URL = "https://orders.example/customers/7"


@pytest.fixture
def registered(broker: BrokerProcess) -> TestApp:
    return broker.app()


@pytest.fixture
def app(registered: TestApp) -> Iterator[AgentWritApp]:
    with AgentWritApp(registered.broker.url, registered.client_id, registered.client_secret) as made:
        yield made


def test_the_life_of_a_bound_agent(app: AgentWritApp, broker: BrokerProcess) -> None:
    agent = app.create_agent("o", "t", SCOPE, bound=True)
    first = agent.access_token
    assert agent.is_bound
    assert not app.validate(first).valid  # whoever has nothing but the token has nothing
    proven = app.validate(first, proof=agent.proof("GET", URL), htm="GET", htu=URL)
    assert proven.claims is not None
    assert proven.claims.cnf is not None
    agent.renew()
    assert not app.validate(first, proof=agent.proof("GET", URL), htm="GET", htu=URL).valid
    second = agent.access_token
    assert validate(app.broker_url, second, proof=agent.proof("GET", URL), htm="GET", htu=URL).valid
    agent.release()
    agent.release()
    assert broker.events(agent_id=agent.agent_id)[-1]["event_type"] == "token_released"


def test_an_async_bound_agent_lives_likewise(registered: TestApp) -> None:
    async def life() -> None:
        async with (
            AsyncAgentWritApp(registered.broker.url, registered.client_id, registered.client_secret) as app,
            await app.create_agent("o", "t", SCOPE, bound=True) as agent,
        ):
            await agent.renew()
            assert not (await app.validate(agent.access_token)).valid
            proof = agent.proof("GET", URL)
            assert (await app.validate(agent.access_token, proof=proof, htm="GET", htu=URL)).valid

    asyncio.run(life())


def test_what_a_bound_agent_delegates_is_bound_to_the_delegates_key(app: AgentWritApp) -> None:
    delegator = app.create_agent("o", "t", ["read:data:*"], bound=True)
    delegate = app.create_agent("o", "t", SCOPE)
    delegated = delegator.delegate(delegate.agent_id, SCOPE)
    accepted = delegate.accept(delegated)
    assert accepted.is_bound
    assert not delegate.is_bound
    assert app.validate(accepted.access_token, proof=accepted.proof("GET", URL), htm="GET", htu=URL).valid
    theirs = delegator._life.proof("GET", URL, Secret(accepted.access_token)).reveal()  # who gave it cannot use it
    assert not app.validate(accepted.access_token, proof=theirs, htm="GET", htu=URL).valid
    accepted.release()


def test_a_bound_token_has_no_bearer_header(app: AgentWritApp) -> None:
    agent = app.create_agent("o", "t", SCOPE, bound=True)
    with pytest.raises(AgentWritError, match=r"headers\(method, url\)"):
        _ = agent.bearer_header
    shown = agent.headers("get", URL)
    assert shown["Authorization"] == f"DPoP {agent.access_token}"
    assert shown["DPoP"] != agent.headers("get", URL)["DPoP"]
    with pytest.raises(AgentWritError, match="absolute URL"):
        agent.proof("GET", "/customers/7")
    plain = app.create_agent("o", "t", SCOPE)
    assert plain.headers("GET", URL) == plain.bearer_header


def test_a_leaked_bound_token_is_of_no_use_at_the_broker(app: AgentWritApp, broker: BrokerProcess) -> None:
    agent = app.create_agent("o", "t", SCOPE, bound=True)
    thief = app.create_agent("o", "t", SCOPE, bound=True)
    for path in ("/v1/token/renew", "/v1/token/release"):
        url = broker.url + path
        assert broker.http.post(path, headers=bearer(agent.access_token)).status_code == 401
        forged = thief._life.proof("POST", url, Secret(agent.access_token)).reveal()
        assert present(broker, path, agent.access_token, forged).status_code == 401
    assert app.validate(agent.access_token, proof=agent.proof("GET", URL), htm="GET", htu=URL).valid


def test_an_app_that_requires_binding_lets_no_agent_be_unbound(app: AgentWritApp, registered: TestApp) -> None:
    broker = registered.broker
    changed = broker.http.put(
        f"/v1/admin/apps/{registered.app_id}", json={"require_bound": True}, headers=broker.admin()
    )
    assert changed.json()["require_bound"] is True
    with pytest.raises(AuthorizationError, match="bound=True"):
        app.create_agent("o", "t", SCOPE)
    assert app.create_agent("o", "t", SCOPE, bound=True).is_bound


def test_a_client_whose_clock_is_wrong_makes_up_for_it(app: AgentWritApp, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ahead:
        @staticmethod
        def time() -> float:
            return time.time() + 3600

    monkeypatch.setattr(steps, "time", Ahead)
    agent = app.create_agent("o", "t", SCOPE, bound=True)
    agent.renew()
    agent.release()


LOGIN = answer(200, {"access_token": "t", "expires_in": 600})
ABSENT = answer(404, {"title": "Not Found", "detail": "no such route"})
UNBOUND = answer(201, {"agent_id": "a", "access_token": "x", "expires_in": 60})
LAUNCHED = answer(201, {"launch_token": "l", "expires_at": "", "policy": {"allowed_scope": SCOPE, "max_ttl": 60}})


def test_a_broker_that_ignores_the_wish_is_found_out() -> None:
    with peer(LOGIN, UNBOUND, answer(204, b"")) as broker, AgentWritApp(broker.url, "i", "s") as app:
        with pytest.raises(AgentWritError, match="does not bind tokens"):
            app.create_agent("o", "t", SCOPE, bound=True)
        assert [path for path, _, _ in broker.seen] == ["/v1/app/auth", "/v1/agents", "/v1/token/release"]


def test_a_broker_of_the_first_protocol_is_found_out_before_there_is_an_agent() -> None:
    with peer(LOGIN, ABSENT, LAUNCHED) as broker, AgentWritApp(broker.url, "i", "s") as app:
        with pytest.raises(AgentWritError, match="does not bind tokens"):
            app.create_agent("o", "t", SCOPE, bound=True)
        assert broker.seen[-1][0] == "/v1/app/launch-tokens"


def test_in_three_steps_an_agent_is_bound_as_well(app: AgentWritApp) -> None:
    app._ceremony.is_one_step = False
    agent = app.create_agent("o", "t", SCOPE, bound=True)
    agent.renew()
    assert app.validate(agent.access_token, proof=agent.proof("GET", URL), htm="GET", htu=URL).valid


def test_a_release_whose_proof_was_not_taken_is_no_release() -> None:
    created = answer(201, {"agent_id": "a", "access_token": "x", "expires_in": 60, "token_type": "DPoP"})
    refused = answer(401, {}, www_authenticate='DPoP error="invalid_dpop_proof", algs="EdDSA Ed25519 ES256"')
    with peer(LOGIN, created, refused) as broker, AgentWritApp(broker.url, "i", "s") as app:
        agent = app.create_agent("o", "t", SCOPE, bound=True)
        with pytest.raises(AuthenticationError):
            agent.release()


# -- services -------------------------------------------------------------------------------------------------------


class Service:
    """A service that asks a Verifier, with the URL that it was asked for."""

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier

    def __call__(self, handler: Handler) -> None:
        scheme, _, token = handler.headers.get("authorization", "").partition(" ")
        proof = handler.headers.get("dpop") if scheme == "DPoP" else None
        url = f"{handler.server.url}{handler.path}"
        try:
            self.verifier.verify(token, scope=SCOPE, proof=proof, htm=handler.command, htu=url)
        except InvalidToken:
            answer(401, b"")(handler)
        else:
            answer(200, b"welcome")(handler)


@pytest.fixture
def verifier(broker: BrokerProcess) -> Iterator[Verifier]:
    with Verifier(broker.url) as made:
        yield made


def test_every_library_shows_a_bound_token_with_its_proof(
    get: Get,
    app: AgentWritApp,
    verifier: Verifier,
) -> None:
    agent = app.create_agent("o", "t", SCOPE, bound=True)
    with peer(Service(verifier)) as service:
        assert get(agent.auth_for, f"{service.url}/orders?page=2") == (200, b"welcome")
        assert get(agent.auth_for, f"{service.url}/orders?page=2") == (200, b"welcome")
        first, second = (
            {name.lower(): value for name, value in headers.items()}["dpop"] for *_, headers in service.seen
        )
        assert first != second


def test_a_request_whose_bound_token_was_replaced_is_repeated_with_a_proof_for_its_successor(
    get: Get,
    app: AgentWritApp,
    verifier: Verifier,
) -> None:
    agent = app.create_agent("o", "t", SCOPE, bound=True)
    serve = Service(verifier)

    def too_late(handler: Handler) -> None:
        agent.renew()
        answer(401, b"")(handler)

    with peer(too_late, serve) as service:
        assert get(agent.auth_for, service.url) == (200, b"welcome")


def test_a_service_takes_a_bound_token_from_its_holder_alone(app: AgentWritApp, verifier: Verifier) -> None:
    agent = app.create_agent("o", "t", SCOPE, bound=True)
    with peer(Service(verifier)) as service:
        url = f"{service.url}/customers/7"
        shown = agent.headers("GET", url)
        assert httpx2.get(url, headers=shown).status_code == 200
        assert httpx2.get(url, headers=shown).status_code == 401  # the same request, by whoever saw it
        assert httpx2.get(url, headers=bearer(agent.access_token)).status_code == 401
        assert httpx2.get(url, headers=agent.headers("POST", url)).status_code == 401
        assert httpx2.get(url, headers=agent.headers("GET", f"{service.url}/customers/8")).status_code == 401
        assert httpx2.get(url, headers=agent.headers("GET", url)).status_code == 200


def test_verifiers_need_the_proof_whoever_answers(app: AgentWritApp, broker: BrokerProcess) -> None:
    """On fresh knowledge, and where the broker has to be asked."""
    agent = app.create_agent("o", "t", SCOPE, bound=True)
    token = agent.access_token

    def check(verify: Callable[..., Any]) -> None:
        with pytest.raises(InvalidToken):
            verify(token)
        proof = agent.proof("GET", URL)
        assert verify(token, proof=proof, htm="GET", htu=URL).cnf == {"jkt": jwk.thumbprint(agent._life.key.public_key)}
        with pytest.raises(InvalidToken):
            verify(token, proof=proof, htm="GET", htu=URL)

    for staleness in (5.0, 0.0):
        with Verifier(broker.url, max_staleness=staleness) as verifier:
            check(verifier.verify)

        async def on_a_loop(staleness: float = staleness) -> None:
            verifier = AsyncVerifier(broker.url, max_staleness=staleness)
            proof = agent.proof("GET", URL)
            with pytest.raises(InvalidToken):
                await verifier.verify(token)
            claims = await verifier.verify(token, proof=proof, htm="GET", htu=URL)
            assert claims.sub == agent.agent_id
            with pytest.raises(InvalidToken):
                await verifier.verify(token, proof=proof, htm="GET", htu=URL)
            await verifier.aclose()

        asyncio.run(on_a_loop())
