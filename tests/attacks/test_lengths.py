"""Everything that has a length has a longest one: what has it is taken, and what has one more is refused."""

import base64
from collections.abc import Awaitable, Callable

import httpx2
import pytest

from agentwrit.broker.http.oauth import MAX_BASIC_LENGTH
from agentwrit.broker.services.launch_tokens import (
    MAX_AGENT_NAME_LENGTH,
    MAX_AUDIENCE_LENGTH,
    MAX_AUDIENCES,
    MAX_USES,
)
from agentwrit.broker.services.revocation import MAX_REASON_LENGTH, MAX_TARGET_LENGTH
from agentwrit.domain.access import MAX_ACCESSES, MAX_RESOURCE_LENGTH
from agentwrit.domain.launch_token import MAX_TTL_SECONDS
from agentwrit.domain.operator import MAX_SECRET_LENGTH
from agentwrit.domain.scope import MAX_SCOPE_LENGTH, MAX_SCOPES
from agentwrit.domain.timestamps import parse_rfc3339
from tests.attacks.test_disk import ACCESS, Held, held
from tests.services.test_faults import Setup, run
from tests.support import bearer

Ask = Callable[[Held, int], Awaitable[httpx2.Response]]


def launch(**fields: Callable[[int], object]) -> Ask:
    """Asks for a launch token with a field of so many."""

    async def ask(has: Held, number: int) -> httpx2.Response:
        body = {"agent_name": "a", "allowed_scope": ["read:data:1"], "single_use": False}
        return await has.post(
            "/v1/app/launch-tokens", body | {name: of(number) for name, of in fields.items()}, has.token
        )

    return ask


def of_operator(path: str, body: Callable[[int], dict[str, object]]) -> Ask:
    async def ask(has: Held, number: int) -> httpx2.Response:
        return await has.made.http.post(path, json=body(number), headers=await has.made.admin())

    return ask


def report(of: Callable[[int], list[dict[str, object]]]) -> Ask:
    return lambda has, number: has.post("/v1/audit/accesses", {"accesses": of(number)}, has.token)


LENGTHS: dict[str, tuple[int, Ask]] = {
    "an agent's name": (MAX_AGENT_NAME_LENGTH, launch(agent_name=lambda number: "é" * number)),
    "a scope": (
        MAX_SCOPE_LENGTH,
        launch(allowed_scope=lambda number: ["read:data:" + "x" * (number - len("read:data:"))]),
    ),
    "scopes": (MAX_SCOPES, launch(allowed_scope=lambda number: ["read:data:1"] * number)),
    "an audience": (MAX_AUDIENCE_LENGTH, of_operator("/v1/admin/apps", lambda n: app(audiences=["x" * n], number=n))),
    "audiences": (MAX_AUDIENCES, of_operator("/v1/admin/apps", lambda n: app(audiences=["x"] * n, number=n))),
    "uses": (MAX_USES, launch(max_uses=lambda number: number)),
    "a reason": (
        MAX_REASON_LENGTH,
        of_operator("/v1/revoke", lambda number: {"level": "task", "target": "none", "reason": "x" * number}),
    ),
    "what is revoked": (
        MAX_TARGET_LENGTH,
        of_operator("/v1/revoke", lambda number: {"level": "task", "target": "x" * number}),
    ),
    "an operator's secret": (
        MAX_SECRET_LENGTH,
        of_operator("/v1/admin/operators", lambda number: {"name": f"ana-{number}", "secret": "x" * number}),
    ),
    "what was asked for": (MAX_RESOURCE_LENGTH, report(lambda number: [{**ACCESS, "resource": "é" * number}])),
    "accesses": (MAX_ACCESSES, report(lambda number: [dict(ACCESS)] * number)),
}


def app(*, audiences: list[str], number: int) -> dict[str, object]:
    return {"name": f"app-{number}", "scopes": ["read:data:1"], "audiences": audiences}


@pytest.mark.parametrize("name", LENGTHS)
def test_what_has_its_greatest_length_is_taken_and_what_has_one_more_is_refused(name: str) -> None:
    async def claim(made: Setup) -> None:
        longest, ask = LENGTHS[name]
        has = await held(made)
        assert (await ask(has, longest)).is_success
        refused = await ask(has, longest + 1)
        assert (refused.status_code, refused.json()["error_code"]) == (400, "invalid_request")

    run(claim)


def test_basic_credentials_beyond_their_length_are_not_looked_at() -> None:
    async def claim(made: Setup) -> None:
        has = await held(made)
        for padding, status in (("", 200), ("%41" * MAX_BASIC_LENGTH, 401)):
            given = f"{has.app['client_id']}:{has.app['client_secret']}{padding}".encode()
            headers = {"authorization": f"Basic {base64.b64encode(given).decode()}"}
            form = {"token": has.agent["access_token"]}
            answer = await made.http.post("/oauth2/introspect", data=form, headers=headers)
            assert answer.status_code == status

    run(claim)


def test_a_token_beyond_its_length_is_no_token() -> None:
    async def claim(made: Setup) -> None:
        has = await held(made)
        long = has.agent["access_token"] + "A" * 8192
        assert (await has.post("/v1/token/validate", {"token": long})).json()["valid"] is False
        assert (await made.http.post("/v1/token/renew", headers=bearer(long))).status_code == 401

    run(claim)


def test_a_launch_token_lives_a_day_at_most() -> None:
    async def claim(made: Setup) -> None:
        has = await held(made)
        body = {"agent_name": "a", "allowed_scope": ["read:data:1"], "ttl": 10 * MAX_TTL_SECONDS}
        answer = (await has.post("/v1/app/launch-tokens", body, has.token)).json()
        assert parse_rfc3339(answer["expires_at"]) == made.time.now + MAX_TTL_SECONDS

    run(claim)
