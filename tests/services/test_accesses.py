"""Whose reports are believed, and about which tokens."""

from typing import Any

import msgspec

from agentwrit.broker.storage.base import Transaction
from agentwrit.domain import idempotency, timestamps
from agentwrit.domain.audit import EventType
from agentwrit.domain.revocation import RevocationKind
from tests.services.test_authority import read
from tests.services.test_faults import Setup, run
from tests.support import bearer


async def reporter(made: Setup, name: str = "reporter") -> tuple[str, dict[str, str]]:
    """An app that may report on tokens for the default audience: its id, and the header of its token."""
    body = {"name": name, "scopes": [], "reports_for": ["agentwrit"]}
    app = (await made.http.post("/v1/admin/apps", json=body, headers=await made.admin())).json()
    return app["app_id"], bearer((await made.login(app)).json()["access_token"])


async def reported(made: Setup, headers: dict[str, str], token: str, **fields: Any) -> int:
    """How many of one access is recorded."""
    claims, at = read(token), timestamps.rfc3339_micros(made.time.now)
    access = {
        "sid": claims.sid,
        "jti": claims.jti,
        "scope": ["read:data:1"],
        "resource": "GET /orders/1",
        "outcome": "success",
        "count": 1,
        "first": at,
        "last": at,
        **fields,
    }
    answer = await made.http.post("/v1/audit/accesses", json={"accesses": [access]}, headers=headers)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["recorded"])


def test_an_app_reports_for_the_audiences_that_it_has_by_now_whatever_its_token_says() -> None:
    async def claim(made: Setup) -> None:
        app_id, headers = await reporter(made)
        token = await made.agent()
        assert await reported(made, headers, token) == 1

        def take_away(transaction: Transaction) -> None:
            app = transaction.app(app_id)
            assert app is not None
            transaction.put(msgspec.structs.replace(app, reports_for=("others",)))

        await made.store.write(take_away)
        assert await reported(made, headers, token) == 0
        assert sum(event.event_type == EventType.RESOURCE_ACCESSED for event in made.events()) == 1

    run(claim)


def test_a_report_is_about_a_token_that_was_issued_however_often_it_was_renewed_since() -> None:
    async def claim(made: Setup) -> None:
        _, headers = await reporter(made)
        token = await made.agent()
        assert await reported(made, headers, token, jti="0" * 32) == 0
        newest = token
        for _ in range(3):
            newest = (await made.http.post("/v1/token/renew", headers=bearer(newest))).json()["access_token"]
        first = read(token).jti
        assert await made.store.read(lambda snapshot: snapshot.revocation(RevocationKind.TOKEN, first)) is not None
        assert [await reported(made, headers, each) for each in (token, newest)] == [1, 1]
        assert await reported(made, headers, newest, jti="0" * 32) == 0

    run(claim)


def test_a_report_is_recorded_once_under_a_key_for_ten_minutes_and_for_its_reporter_alone() -> None:
    async def claim(made: Setup) -> None:
        _, headers = await reporter(made)
        _, others = await reporter(made, "another")
        token, at = await made.agent(), timestamps.rfc3339_micros(made.time.now)

        async def recorded(by: dict[str, str], key: str) -> int:
            """How many accesses are in the log, once this one was reported under a key."""
            assert await reported(made, by | {"idempotency-key": key}, token, first=at, last=at) == 1
            return sum(event.event_type == EventType.RESOURCE_ACCESSED for event in made.events())

        assert [await recorded(headers, "key-1") for _ in range(2)] == [1, 1]
        assert await recorded(others, "key-1") == 2
        assert await recorded(headers, "key-2") == 3
        made.time.now += idempotency.RETENTION_SECONDS - 1
        assert await recorded(headers, "key-1") == 3
        made.time.now += 1
        assert await recorded(headers, "key-1") == 4

    run(claim)


def test_what_is_not_taken_of_a_report_is_recorded_once_under_a_key() -> None:
    async def claim(made: Setup) -> None:
        _, headers = await reporter(made)
        token, at = await made.agent(), timestamps.rfc3339_micros(made.time.now)
        keyed = headers | {"idempotency-key": "key-1"}
        for _ in range(3):
            assert await reported(made, keyed, token, jti="0" * 32, first=at, last=at) == 0
        made.time.now += 61
        await made.housekeeping.round()
        told = [event.detail for event in made.events() if event.event_type == EventType.ACCESS_REPORT_DENIED]
        assert len(told) == 1
        assert told[0].startswith("an app reported what cannot be believed")

    run(claim)
