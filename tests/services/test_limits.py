"""Limits and suspension with the broker's time and the store's faults in the test's hand."""

from typing import Any

import pytest

from agentwrit.broker.services import limits
from agentwrit.broker.storage.base import Transaction
from agentwrit.domain.audit import EventType
from agentwrit.domain.revocation import RETENTION_SECONDS
from tests.services.test_faults import Setup, run
from tests.support import bearer, problem


async def limited(made: Setup, **limits: int) -> dict[str, Any]:
    app = await made.app(f"app-{len(made.events())}")
    await put(made, app, **limits)
    return app


async def put(made: Setup, app: dict[str, Any], **limits: int | None) -> None:
    answer = await made.http.put(f"/v1/admin/apps/{app['app_id']}", json=limits, headers=await made.admin())
    assert answer.status_code == 200, answer.text


async def ask(made: Setup, app: dict[str, Any], **policy: Any) -> Any:
    return await made.http.post("/v1/register", json=await made.registration(await made.launch_token(app, **policy)))


async def live(made: Setup, app: dict[str, Any]) -> int:
    usage = await made.store.read(lambda snapshot: snapshot.app_usage(app["app_id"]))
    assert usage is not None
    return usage.live_agents


def test_agents_that_expire_make_room_second_by_second() -> None:
    async def claim(made: Setup) -> None:
        app = await limited(made, max_live_agents=3)
        for ttl in (10, 20, 20):
            assert (await ask(made, app, max_ttl=ttl)).status_code == 200
        made.time.now += 9.9
        problem(await ask(made, app), 429, "rate_limited")
        made.time.now += 0.1
        assert (await ask(made, app, max_ttl=100)).status_code == 200
        problem(await ask(made, app), 429, "rate_limited")
        made.time.now += 10
        assert [(await ask(made, app, max_ttl=100)).status_code for _ in range(3)] == [200, 200, 429]

    run(claim)


def test_a_renewed_agent_counts_to_the_end_of_its_last_token() -> None:
    async def claim(made: Setup) -> None:
        app = await limited(made, max_live_agents=1)
        token = (await ask(made, app, max_ttl=100)).json()["access_token"]
        made.time.now += 90
        token = (await made.http.post("/v1/token/renew", headers=bearer(token))).json()["access_token"]
        for _ in range(2):
            made.time.now += 45
            problem(await ask(made, app), 429, "rate_limited")
        made.time.now += 10
        assert (await ask(made, app)).status_code == 200
        problem(await made.http.post("/v1/token/renew", headers=bearer(token)), 401, "unauthorized")
        problem(await ask(made, app), 429, "rate_limited")

    run(claim)


def test_an_app_that_was_idle_for_long_is_counted_anew() -> None:
    """What expired meanwhile is forgotten by the store, so it cannot be taken away one by one."""

    async def claim(made: Setup) -> None:
        app = await limited(made, max_live_agents=3)
        for _ in range(3):
            assert (await ask(made, app)).status_code == 200
        made.time.now += 300 + RETENTION_SECONDS
        await made.housekeeping.round()
        assert [(await ask(made, app)).status_code for _ in range(4)] == [200, 200, 200, 429]

    run(claim)


def test_who_ends_after_expiring_makes_room_once() -> None:
    async def claim(made: Setup) -> None:
        app = await limited(made, max_live_agents=2)
        first = (await ask(made, app, max_ttl=10)).json()
        made.time.now += 5
        # Renewed under a lower limit, it is over before its first token is: that one still is genuine.
        await put(made, app, max_ttl=1)
        assert (await made.http.post("/v1/token/renew", headers=bearer(first["access_token"]))).status_code == 200
        made.time.now += 2
        await put(made, app, max_ttl=None)
        assert (await ask(made, app)).status_code == 200
        assert await live(made, app) == 1
        await made.http.post("/v1/token/release", headers=bearer(first["access_token"]))
        assert await live(made, app) == 1
        assert [(await ask(made, app)).status_code for _ in range(2)] == [200, 429]

    run(claim)


def test_who_ends_before_being_counted_is_not_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COUNTED_AT_ONCE", 1)

    async def claim(made: Setup) -> None:
        app = await limited(made, max_live_agents=5)
        tokens = [(await ask(made, app)).json()["access_token"] for _ in range(3)]

        def begin_anew(transaction: Transaction) -> None:
            known = transaction.app(app["app_id"])
            assert known is not None
            limits.begin_to_count(transaction, known)

        await made.store.write(begin_anew)
        assert await live(made, app) == 1
        assert (await made.http.post("/v1/token/release", headers=bearer(tokens[2]))).status_code == 204
        assert await live(made, app) == 1
        assert (await made.http.post("/v1/token/release", headers=bearer(tokens[0]))).status_code == 204
        assert await live(made, app) == 0
        while await made.store.write(lambda transaction: limits.go_on_counting(transaction, app["app_id"])):
            pass
        assert await live(made, app) == 1

    run(claim)


def test_a_creation_that_cannot_be_made_durable_takes_nothing_of_a_limit() -> None:
    async def claim(made: Setup) -> None:
        app = await limited(made, max_live_agents=1, creates_per_second=1)
        body = await made.registration(await made.launch_token(app))
        made.failing = {"commit"}
        problem(await made.http.post("/v1/register", json=body), 503, "unavailable")
        made.failing = set()
        assert (await made.http.post("/v1/register", json=body)).status_code == 200

    run(claim)


def test_a_burst_is_a_seconds_worth_and_comes_back_with_time() -> None:
    async def claim(made: Setup) -> None:
        app = await limited(made, creates_per_second=3)
        assert [(await ask(made, app)).status_code for _ in range(4)] == [200, 200, 200, 429]
        made.time.now += 0.34
        assert [(await ask(made, app)).status_code for _ in range(2)] == [200, 429]
        made.time.now += 60
        assert [(await ask(made, app)).status_code for _ in range(4)] == [200, 200, 200, 429]

    run(claim)


def test_an_app_at_its_limit_cannot_fill_the_log_from_however_many_addresses() -> None:
    async def claim(made: Setup) -> None:
        app = await limited(made, max_live_agents=1)
        await ask(made, app)
        bodies = [await made.registration(await made.launch_token(app)) for _ in range(10)]

        def denied() -> list[dict[str, Any]]:
            return [event.data for event in made.events() if event.event_type == EventType.APP_RATE_LIMITED]

        for body in bodies:
            problem(await made.http.post("/v1/register", json=body), 429, "rate_limited")
        assert denied() == [{"limit": "max_live_agents", "allowed": 1}]
        await put(made, app, creates_per_second=1, max_live_agents=None)
        assert (await made.http.post("/v1/register", json=bodies[0])).status_code == 200
        problem(await made.http.post("/v1/register", json=bodies[1]), 429, "rate_limited")
        assert denied()[1:] == [{"limit": "creates_per_second", "allowed": 1}]
        made.time.now += 60
        await made.housekeeping.round()
        assert [data["count"] for data in denied()[2:]] == [9]

    run(claim)


def test_a_launch_token_from_before_a_suspension_stays_dead_and_the_log_says_why() -> None:
    async def claim(made: Setup) -> None:
        app = await made.app()
        launch_token = await made.launch_token(app, ttl=600, single_use=False)
        path = f"/v1/admin/apps/{app['app_id']}"
        for act in ("suspend", "resume"):
            assert (await made.http.post(f"{path}/{act}", headers=await made.admin())).status_code == 200
        refused = await made.http.post("/v1/register", json=await made.registration(launch_token))
        problem(refused, 401, "unauthorized")
        assert made.events()[-1].detail.startswith("the launch token is from before its app was suspended: ")
        assert (await ask(made, app)).status_code == 200

    run(claim)


def test_a_suspension_that_cannot_be_made_durable_is_503_and_not_done() -> None:
    async def claim(made: Setup) -> None:
        app = await made.app()
        token = (await ask(made, app)).json()["access_token"]
        admin, before = await made.admin(), len(made.events())
        made.failing = {"commit"}
        answer = await made.http.post(f"/v1/admin/apps/{app['app_id']}/suspend", headers=admin)
        problem(answer, 503, "unavailable")
        made.failing = set()
        assert await made.is_valid(token)
        assert len(made.events()) == before
        assert (await ask(made, app)).status_code == 200

    run(claim)


def test_a_suspension_makes_room_for_the_agents_that_come_after_it() -> None:
    async def claim(made: Setup) -> None:
        app = await limited(made, max_live_agents=2)
        assert [(await ask(made, app)).status_code for _ in range(3)] == [200, 200, 429]
        for act in ("suspend", "resume"):
            await made.http.post(f"/v1/admin/apps/{app['app_id']}/{act}", headers=await made.admin())
        assert await live(made, app) == 0
        assert [(await ask(made, app)).status_code for _ in range(3)] == [200, 200, 429]

    run(claim)
