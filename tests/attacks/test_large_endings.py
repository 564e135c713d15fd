"""What is large can be ended: by whoever may, in whatever state the broker is, and what can be made has a bound."""

import asyncio
import concurrent.futures
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import psutil
import pytest

from agentwrit.broker import stores
from agentwrit.broker.config import Config
from agentwrit.broker.keystore import KeyWrap
from agentwrit.broker.offline import verification
from agentwrit.broker.services.context import Caller, EventData
from agentwrit.broker.services.ending import AT_ONCE
from agentwrit.broker.services.issuing import TokenIssuer, holder
from agentwrit.broker.services.keys import KeyRings
from agentwrit.broker.storage.base import Transaction
from agentwrit.domain import delegation
from agentwrit.domain.audit import EventType
from agentwrit.domain.grant import Grant, GrantKind
from tests.services.test_faults import Setup, run
from tests.support import BrokerProcess, TestApp, bearer, problem

MASTER_KEY = "11" * 32
TASK = "a-large-task"
AGENTS = 12 * AT_ONCE
IN_A_UNIT = 200
PAGE = 1000


class Large:
    """A broker with an app that has a great many agents, put into its store while it was stopped.

    `tokens`: some of theirs, from the first to the last; `other`: another app's.
    """

    def __init__(self, broker: BrokerProcess, app: TestApp, tokens: list[str], other: str) -> None:
        self.broker = broker
        self.app = app
        self.tokens = tokens
        self.other = other

    def are_refused(self) -> bool:
        return not any(self.broker.is_valid(token) for token in self.tokens)

    def check_store(self) -> None:
        """Stop the broker, and check all that it has left."""
        assert self.broker.stop() == 0
        settings = self.broker.settings
        config = Config(
            data_dir=self.broker.data_dir,
            master_key=MASTER_KEY,
            database_url=settings.get("AGENTWRIT_DATABASE_URL"),
        )
        directory = None if config.database_url is not None else config.data_dir
        verification.verify_store(directory, config, progress=lambda done, total: None)

    def until_recorded(self) -> int:
        """Wait until an ending is over. Returns how many grants it ended."""
        while True:
            for event in self.broker.events(event_type="ending_completed"):
                return int(event["data"]["count"])


@pytest.fixture(params=["sqlite", "postgres"])
def large(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Large]:
    settings: dict[str, Any] = {"AGENTWRIT_MASTER_KEY": MASTER_KEY}
    if request.param == "postgres":
        settings["AGENTWRIT_DATABASE_URL"] = request.getfixturevalue("database_url")
    with BrokerProcess(tmp_path / "data", **settings) as broker:
        app = broker.app("read:data:*")
        other = broker.app().agent(max_ttl=3600)["access_token"]
        broker.stop()
        config = Config(
            data_dir=tmp_path / "data",
            master_key=MASTER_KEY,
            database_url=settings.get("AGENTWRIT_DATABASE_URL"),
        )
        tokens = asyncio.run(fill(config, app.app_id))
        broker.start()
        yield Large(broker, app, tokens, other)


async def fill(config: Config, app_id: str) -> list[str]:
    """Make agents of an app, every tenth with a chain below it. Returns the token of every hundredth grant."""
    async with stores.open_store(config) as (store, _, master_key):
        rings = await KeyRings.load(store, KeyWrap(master_key))
        issuer = TokenIssuer(config, rings.access_tokens)
        app = await store.read(lambda snapshot: snapshot.app(app_id))
        grants: list[Grant] = []

        def unit(transaction: Transaction) -> list[Grant]:
            made: list[Grant] = []
            for number in range(len(grants), len(grants) + IN_A_UNIT):
                now, born = transaction.now, transaction.head.sequence
                agent_id = f"spiffe://agentwrit.local/agent/o/{TASK}/{number:016x}"
                grant = issuer.new_grant(
                    GrantKind.AGENT, agent_id, ["read:data:1"], ttl=3600, now=now, born=born, app=app
                )
                made.append(msgspec.structs.replace(grant, orch_id="o", task_id=TASK, agent_name="tester"))
                for _ in range(delegation.MAX_DEPTH if number % 10 == 0 else 0):
                    ends_at = int(now) + 3600
                    made.append(issuer.delegated(made[-1], grant, ["read:data:1"], ends_at=ends_at, now=now, born=born))
            for grant in made:
                transaction.put(grant)
                data: EventData = {"jti": grant.jti, "exp": grant.exp}
                transaction.record(Caller().event(EventType.TOKEN_ISSUED, **holder(grant), data=data))
            return made

        while len(grants) < AGENTS:
            grants += await store.write(unit)
        return [issuer.token(grant, grant.iat).access_token for grant in grants[::100]]


def ask(large: Large, how: str) -> Any:
    """Ask for the end of all of an app's agents."""
    http, headers = large.broker.http, large.broker.admin()
    match how:
        case "task":
            return http.post("/v1/revoke", json={"level": "task", "target": TASK}, headers=headers, timeout=120)
        case "suspension":
            return http.post(f"/v1/admin/apps/{large.app.app_id}/suspend", headers=headers, timeout=120)
        case "removal":
            return http.delete(f"/v1/admin/apps/{large.app.app_id}", headers=headers, timeout=120)
        case "ceiling":
            body = {"scopes": ["read:other:1"]}
            return http.put(f"/v1/admin/apps/{large.app.app_id}", json=body, headers=headers, timeout=120)
        case _:
            keys = http.get("/v1/admin/keys", headers=headers).json()["keys"]
            [kid] = [key["kid"] for key in keys if (key["purpose"], key["state"]) == ("access_token", "active")]
            return http.post(f"/v1/admin/keys/{kid}/revoke", json={"reason": "r"}, headers=headers, timeout=120)


@pytest.mark.parametrize("how", ["task", "suspension", "removal", "ceiling", "key"])
def test_every_sharp_tool_ends_a_large_set(large: Large, how: str) -> None:
    assert not large.are_refused()
    answer = ask(large, how)
    assert answer.status_code == 200, answer.text
    assert large.are_refused()
    assert large.broker.is_valid(large.other) is (how != "key")
    listed = large.broker.http.get("/v1/agents", params={"app_id": large.app.app_id}, headers=large.broker.admin())
    assert listed.json()["agents"] == []


def test_a_broker_that_is_killed_in_the_middle_refuses_all_of_it_and_goes_on(large: Large) -> None:
    headers = large.broker.admin()
    body = {"level": "task", "target": TASK}
    [beside] = psutil.Process(large.broker.pid).children()

    def revoke() -> None:
        with contextlib.suppress(Exception):  # it is killed before it answers
            large.broker.http.post("/v1/revoke", json=body, headers=headers, timeout=120)

    with httpx2.Client(base_url=large.broker.url, timeout=60, trust_env=False) as client:
        asking = threading.Thread(target=revoke)
        asking.start()
        while client.post("/v1/token/validate", json={"token": large.tokens[-1]}).json()["valid"]:
            pass
        large.broker.kill()
    asking.join()
    beside.wait(30)
    large.broker.start()
    assert large.are_refused()
    assert large.broker.is_valid(large.other)
    assert large.until_recorded() >= AGENTS
    assert large.are_refused()
    # A later agent of the same task has nothing to do with it.
    assert large.broker.is_valid(large.app.agent(task_id=TASK)["access_token"])


def test_an_ending_whose_own_process_is_killed_in_the_middle_ends_all_the_same(large: Large) -> None:
    [beside] = psutil.Process(large.broker.pid).children()
    with (
        concurrent.futures.ThreadPoolExecutor(1) as asking,
        httpx2.Client(base_url=large.broker.url, timeout=60, trust_env=False) as client,
    ):
        answer = asking.submit(ask, large, "suspension")
        while client.post("/v1/token/validate", json={"token": large.tokens[-1]}).json()["valid"]:
            pass
        beside.kill()
        assert answer.result().status_code == 200
    assert large.are_refused()
    assert large.broker.is_valid(large.other)
    listed = large.broker.http.get("/v1/agents", params={"app_id": large.app.app_id}, headers=large.broker.admin())
    assert listed.json()["agents"] == []
    # What it ended before and what the broker ended itself are one log, and each grant is in it once.
    ended = [
        event["sid"]
        for page in range(1 + 2 * AGENTS // PAGE)
        for event in large.broker.events(event_type="token_revoked", limit=PAGE, offset=page * PAGE)
    ]
    assert len(ended) == len(set(ended)) >= AGENTS
    large.check_store()


def test_an_ending_is_seen_through_beside_the_broker(large: Large) -> None:
    [beside] = psutil.Process(large.broker.pid).children()
    before = beside.cpu_times()
    assert ask(large, "task").status_code == 200
    assert beside.cpu_times().user > before.user
    assert "gone on with by the broker itself" not in large.broker.logged()
    large.check_store()
    assert not beside.is_running()


def test_a_grant_makes_no_more_delegations_than_can_be_ended_at_once() -> None:
    async def claim(made: Setup) -> None:
        token = await made.agent(max_ttl=300)
        claims = (await made.http.post("/v1/token/validate", json={"token": token})).json()["claims"]
        body = {"delegate_to": claims["sub"], "scope": ["read:data:1"], "ttl": 100}
        ask = json.dumps(body)
        for _ in range(delegation.MAX_FROM_GRANT):
            answer = await made.http.post("/v1/delegate", content=ask, headers=bearer(token))
            assert answer.status_code == 200, answer.text
        refused = problem(await made.http.post("/v1/delegate", content=ask, headers=bearer(token)), 429, "rate_limited")
        assert "1000 delegations from this grant are alive" in refused["detail"]
        # The grants below have a bound each, and all together another one.
        below = answer.json()["access_token"]
        assert (await made.http.post("/v1/delegate", content=ask, headers=bearer(below))).status_code == 200
        made.time.now += 100
        assert (await made.http.post("/v1/delegate", content=ask, headers=bearer(token))).status_code == 200

    run(claim)


def test_all_chains_of_an_agent_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delegation, "MAX_IN_TREE", 20)

    async def claim(made: Setup) -> None:
        token = await made.agent(max_ttl=300)
        claims = (await made.http.post("/v1/token/validate", json={"token": token})).json()["claims"]
        ask = json.dumps({"delegate_to": claims["sub"], "scope": ["read:data:1"]})
        tokens = [token]
        for number in range(20):
            answer = await made.http.post("/v1/delegate", content=ask, headers=bearer(tokens[number // 8]))
            assert answer.status_code == 200, answer.text
            tokens.append(answer.json()["access_token"])
        for holder_of_one in (tokens[0], tokens[1], tokens[-1]):
            answer = await made.http.post("/v1/delegate", content=ask, headers=bearer(holder_of_one))
            problem(answer, 429, "rate_limited")
        await made.http.post("/v1/token/release", headers=bearer(tokens[-1]))
        assert (await made.http.post("/v1/delegate", content=ask, headers=bearer(token))).status_code == 200

    run(claim)
