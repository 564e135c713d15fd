"""What the SDK makes of a proxy without a broker, and of a broker without its store, and what it logs of that."""

import asyncio
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from agentwrit import (
    AgentWritApp,
    AsyncAgentWritApp,
    BrokerUnavailable,
    ProblemResponseError,
    TransportError,
    validate,
)
from agentwrit.client.exchange import HttpResponse
from agentwrit.client.life import AgentLife
from agentwrit.errors import AgentWritError
from tests.client.peer import Peer, answer, peer
from tests.client.test_life import OUT_OF_REACH, REFUSED, Scene, renewed

PAGE = b"<html><head><title>Bad Gateway</title></head></html>"
DEAD = answer(200, {"valid": False, "error": "token is invalid or expired"})
WELL = answer(200, {"status": "ok", "version": "1", "uptime": 1, "db_connected": True, "audit_events_count": 1})
LOGIN = answer(200, {"access_token": "app.token.x", "expires_in": 300, "token_type": "Bearer", "scopes": []})
CREATED = answer(201, {"agent_id": "spiffe://x/a/b/c", "access_token": "a.b.c", "expires_in": 300})
GONE = answer(204, b"")
PASSING = [502, 503, 504]

Call = Callable[[AgentWritApp], object]


def page(status: int, **headers: str) -> Any:
    return answer(status, PAGE, content_type="text/html", **headers)


def agent_of(app: AgentWritApp) -> Any:
    return app.create_agent("o", "t", ["read:data:1"])


@pytest.mark.parametrize("status", PASSING)
def test_what_a_proxy_says_in_place_of_a_broker_is_asked_again(status: int) -> None:
    def blocking(broker: Peer) -> None:
        with AgentWritApp(broker.url, "id", "secret") as app:
            assert not app.validate("x").valid
            agent_of(app).release()
            if status != 503:  # which is how a broker says that it is not well
                assert app.health().status == "ok"

    async def asynchronous(broker: Peer) -> None:
        async with AsyncAgentWritApp(broker.url, "id", "secret") as app:
            assert not (await app.validate("x")).valid
            await (await app.create_agent("o", "t", ["read:data:1"])).release()
            if status != 503:
                assert (await app.health()).status == "ok"

    for live in (blocking, lambda broker: asyncio.run(asynchronous(broker))):
        script = [page(status), DEAD, LOGIN, page(status), CREATED, page(status), GONE, page(status), WELL]
        with peer(*script) as broker:
            live(broker)
            assert len(broker.seen) == (len(script) if status != 503 else len(script) - 2)


@pytest.mark.parametrize("status", [*PASSING, 500, 404, 405, 418])
def test_where_a_broker_refuses_nothing_a_refusal_is_an_error_of_transport(status: int) -> None:
    script = LOGIN, CREATED, page(status, retry_after="7")
    with peer(*script) as broker, AgentWritApp(broker.url, "id", "secret", timeout=0.5) as app:
        agent = agent_of(app)
        calls: list[Call] = [
            lambda app: app.validate("x"),
            lambda app: validate(app.broker_url, "x", timeout=0.3),
            lambda _: agent.release(),
        ]
        if status != 503:
            calls.append(lambda app: app.health())
        for call in calls:
            with pytest.raises(TransportError) as caught:
                call(app)
            assert isinstance(caught.value, BrokerUnavailable)
            assert isinstance(caught.value, ProblemResponseError)  # as which it was known before
            assert caught.value.status_code == status
            assert caught.value.retry_after == (7 if status >= 500 else None)
            again = pickle.loads(pickle.dumps(caught.value))  # our own
            assert (again.status_code, again.retry_after) == (status, caught.value.retry_after)


@pytest.mark.parametrize("status", PASSING)
def test_a_renewal_is_made_once_and_fails_as_one_that_did_not_reach_the_broker(status: int) -> None:
    with peer(LOGIN, CREATED, page(status)) as broker, AgentWritApp(broker.url, "id", "secret") as app:
        agent = agent_of(app)
        with pytest.raises(TransportError):
            agent.renew()
        assert len(broker.seen) == 3


# -- what is logged ---------------------------------------------------------------------------------------------------


def test_what_is_asked_again_is_logged_without_what_is_secret(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, "agentwrit"),
        peer(page(502), DEAD, LOGIN, page(504), CREATED) as broker,
        AgentWritApp(broker.url, "id", "the-secret") as app,
    ):
        app.validate("the.token.shown")
        agent_of(app)
    said = [record.getMessage() for record in caplog.records if record.name == "agentwrit"]
    assert [line.split(";")[0] for line in said] == [
        "POST /v1/token/validate: the answer is 502",
        "POST /v1/agents: the answer is 504",
    ]
    assert not any(secret in caplog.text for secret in ("the-secret", "the.token.shown", "app.token.x", "a.b.c"))


def test_a_broker_of_the_first_protocol_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    three = (
        answer(201, {"launch_token": "ab" * 32}),
        answer(200, {"nonce": "00" * 32, "expires_in": 30}),
        answer(200, {"agent_id": "spiffe://x/a/b/c", "access_token": "a.b.c", "expires_in": 300}),
    )
    with (
        caplog.at_level(logging.INFO, "agentwrit"),
        peer(LOGIN, page(404), *three, *three) as broker,
        AgentWritApp(broker.url, "id", "secret") as app,
    ):
        agent_of(app)
        agent_of(app)
        assert [record.getMessage() for record in caplog.records if record.name == "agentwrit"] == [
            f"the broker at {broker.url} registers agents in three steps"
        ]


def test_renewals_that_fail_are_logged_and_that_they_work_again_once_each(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    outcomes: list[HttpResponse | Exception] = [
        OUT_OF_REACH,
        OUT_OF_REACH,
        renewed("second"),
        renewed("third"),
        REFUSED,
    ]
    with caplog.at_level(logging.INFO, "agentwrit"):
        for number, outcome in enumerate(outcomes):
            life: AgentLife = scene.life
            try:
                scene.run(life.renew(), outcome)
            except AgentWritError:
                assert number in (0, 1, 4)
    said = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in said] == [logging.WARNING] * 3
    assert "was not renewed: out of reach" in said[0][1]
    assert "was renewed again" in said[1][1]
    assert "was not renewed" in said[2][1]
    assert not {"first", "second", "third"} & set(caplog.text.split())
