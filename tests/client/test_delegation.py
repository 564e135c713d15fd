"""Delegation in the SDK, against a real broker."""

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from agentwrit import (
    Agent,
    AgentWritApp,
    AgentWritError,
    AuthorizationError,
    DelegatedToken,
    InvalidToken,
    ProblemResponseError,
    Verifier,
    verify_delegation,
)
from agentwrit.client.keys import AgentKey
from agentwrit.client.life import AgentLife
from agentwrit.models import AgentClaims, RegisterResult
from tests.client.peer import Handler, peer
from tests.support import BrokerProcess

OTHER_TIMES = ("", "now", "2026-01-01", "2026-01-01T00:00:00", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00")


@pytest.fixture
def app(broker: BrokerProcess) -> AgentWritApp:
    registered = broker.app()
    return AgentWritApp(broker.url, registered.client_id, registered.client_secret)


def agents(app: AgentWritApp, *scopes: str) -> list[Agent]:
    return [app.create_agent("o", f"t-{number}", [scope]) for number, scope in enumerate(scopes)]


def claims(app: AgentWritApp, token: str) -> AgentClaims:
    found = app.validate(token).claims
    assert found is not None
    return found


def test_three_hops_need_no_raw_http(app: AgentWritApp) -> None:
    root, middle, leaf = agents(app, "read:data:*", "read:data:m", "read:data:l")
    first = root.delegate(middle.agent_id, ["read:data:*"], ttl=120)
    assert isinstance(first, DelegatedToken)
    assert (first.expires_in, len(first.delegation_chain)) == (120, 1)
    acting = middle.accept(first)
    assert (acting.agent_id, acting.scope, acting.task_id) == (middle.agent_id, ["read:data:*"], "t-0")
    second = acting.delegate(leaf.agent_id, ["read:data:7"])
    assert (second.expires_in, len(second.delegation_chain)) == (60, 2)
    with leaf.accept(second.access_token) as last:
        assert last.expires_in == 60
        known = claims(app, last.access_token)
        assert known.sub == leaf.agent_id
        assert known.delegation_chain == second.delegation_chain
        before = last.access_token
        last.renew()
        assert not app.validate(before).valid
        assert app.validate(last.access_token).valid
    assert not app.validate(last.access_token).valid
    assert app.validate(acting.access_token).valid
    acting.release()
    assert app.validate(middle.access_token).valid  # its own grant is another
    assert app.validate(root.access_token).valid


def test_only_the_delegate_accepts(app: AgentWritApp) -> None:
    root, middle, leaf = agents(app, "read:data:*", "read:data:m", "read:data:l")
    token = root.delegate(middle.agent_id, ["read:data:1"])
    with pytest.raises(AgentWritError, match="delegated to"):
        leaf.accept(token)
    with pytest.raises(AgentWritError, match="not delegated"):
        root.accept(root.access_token)
    for nonsense in ("", "a", "a.b.c", "a.é.c", "\ud800", "." * 10):
        with pytest.raises(AgentWritError, match="not a token"):
            root.accept(nonsense)


def test_refusals_are_typed(app: AgentWritApp, broker: BrokerProcess) -> None:
    root, other = agents(app, "read:data:1", "read:data:2")
    with pytest.raises(AuthorizationError) as wider:
        root.delegate(other.agent_id, ["read:data:*"])
    assert wider.value.problem.error_code == "scope_violation"
    stranger = broker.app().agent()["agent_id"]
    with pytest.raises(ProblemResponseError) as nobody:
        root.delegate(stranger, ["read:data:1"])
    assert (nobody.value.status_code, nobody.value.problem.error_code) == (404, "not_found")
    with pytest.raises(ProblemResponseError) as empty:
        root.delegate(other.agent_id, [])
    assert empty.value.status_code == 400
    with pytest.raises(TypeError):
        root.delegate(other.agent_id, "read:data:1")
    root.release()
    with pytest.raises(AgentWritError, match="released"):
        root.delegate(other.agent_id, ["read:data:1"])


def test_neither_token_nor_key_is_shown_or_pickled(app: AgentWritApp) -> None:
    root, other = agents(app, "read:data:1", "read:data:2")
    token = root.delegate(other.agent_id, ["read:data:1"])
    acting = other.accept(token)
    for shown in (repr(token), str(token), repr(acting), repr([token])):
        assert token.access_token not in shown
    with pytest.raises(TypeError):
        pickle.dumps(acting)


def test_delegating_while_another_thread_renews_gets_through(app: AgentWritApp) -> None:
    root, other = agents(app, "read:data:1", "read:data:2")
    stop = threading.Event()

    def renew() -> None:
        while not stop.is_set():
            root.renew()

    with ThreadPoolExecutor(4) as threads:
        renewing = threads.submit(renew)
        try:
            tokens = list(threads.map(lambda _: root.delegate(other.agent_id, ["read:data:1"]), range(30)))
        finally:
            stop.set()
        renewing.result()
    assert all(app.validate(token.access_token).valid for token in tokens)


def test_a_lost_answer_is_asked_for_again_under_the_same_key(broker: BrokerProcess) -> None:
    registered = broker.app()
    root, other = registered.agent(), registered.agent()

    def lose(handler: Handler) -> None:
        """Do it, and say nothing."""
        _, body, headers = handler.server.seen[-1]
        forward(body, headers)
        handler.close_connection = True

    def pass_on(handler: Handler) -> None:
        _, body, headers = handler.server.seen[-1]
        answer = forward(body, headers)
        handler.send_response(answer.status_code)
        handler.send_header("content-length", str(len(answer.content)))
        handler.end_headers()
        handler.wfile.write(answer.content)

    def forward(body: Any, headers: dict[str, str]) -> httpx2.Response:
        kept = {name: headers[name] for name in ("authorization", "idempotency-key")}
        return broker.http.post("/v1/delegate", json=body, headers=kept)

    with peer(lose, pass_on) as mirror:
        app = AgentWritApp(mirror.url, "client", "secret")
        agent = _agent_of(app, root)
        token = agent.delegate(other["agent_id"], ["read:data:1"])
        assert len(mirror.seen) == 2
    assert broker.is_valid(token.access_token)
    assert len(broker.events(event_type="delegation_created", agent_id=root["agent_id"])) == 1


def _agent_of(app: AgentWritApp, registered: dict[str, Any]) -> Agent:
    """An agent that was registered by hand."""

    result = RegisterResult(registered["agent_id"], registered["access_token"], registered["expires_in"])
    life = AgentLife(AgentKey(), result, scope=["read:data:1"], orch_id="o", task_id="t", asked_at=time.monotonic())
    return Agent(app._driver, life)


def test_whoever_holds_the_keys_can_check_a_chain(app: AgentWritApp, broker: BrokerProcess) -> None:
    root, middle, leaf = agents(app, "read:data:*", "read:data:m", "read:data:l")
    acting = middle.accept(root.delegate(middle.agent_id, ["read:data:7"]))
    known = claims(app, acting.delegate(leaf.agent_id, ["read:data:7"]).access_token)
    jwks = broker.http.get("/.well-known/jwks.json").json()
    chain = verify_delegation(known, jwks)
    assert [(record.agent, record.delegate) for record in chain] == [
        (root.agent_id, middle.agent_id),
        (middle.agent_id, leaf.agent_id),
    ]
    with Verifier(broker.url) as verifier:
        read = verifier.verify(acting.delegate(leaf.agent_id, ["read:data:7"]).access_token).delegation_chain
    for record in (*chain, *(read or [])):
        assert abs(datetime.fromisoformat(record.delegated_at) - datetime.now(UTC)) < timedelta(minutes=5)
    assert verify_delegation(claims(app, root.access_token), jwks) == []
    for forged in (
        replace(known, delegation_chain=chain[:1]),
        replace(known, delegation_chain=None),
        replace(known, delegation_chain=[replace(chain[0], scope=["x:y:z"]), chain[1]]),
        replace(known, chain_hash="0" * 64),
        replace(known, sub=root.agent_id),
        replace(known, scope=["read:data:*"]),
        *(replace(known, delegation_chain=[replace(chain[0], delegated_at=at), chain[1]]) for at in OTHER_TIMES),
    ):
        with pytest.raises(InvalidToken):
            verify_delegation(forged, jwks)
    others: list[dict[str, Any]] = [{}, {"keys": []}, {"keys": [{**jwks["keys"][0], "kid": "x"}]}, {"keys": "x"}]
    for keys in others:
        with pytest.raises(InvalidToken):
            verify_delegation(known, keys)
