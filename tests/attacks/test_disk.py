"""Filling the disk with events: what an agent, an app or the holder of a launch token can have written for nothing."""

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl.signing import SigningKey

from agentwrit.broker.config import Config
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.denials import MAX_WINDOWS, MAX_WINDOWS_OF_ONE, WINDOW_SECONDS, Denial, DenialLog
from agentwrit.broker.services.log_budget import AHEAD_SECONDS, EVENT_BYTES, LogBudget
from agentwrit.domain.audit import Event, EventType, Outcome
from agentwrit.domain.errors import NotFound, RateLimited
from agentwrit.domain.grant import MAX_RENEWALS_AT_ONCE
from tests.proofs import proof, raw_public_key
from tests.services.test_faults import Setup, run
from tests.support import bearer

WIDE = [f"write:data:{number:02}" + "x" * 240 for number in range(64)]
ACCESS: dict[str, object] = {
    "sid": "x",
    "jti": "y",
    "scope": ["read:data:1"],
    "resource": "GET /",
    "outcome": "denied",
    "first": "2027-01-15T08:00:00Z",
    "last": "2027-01-15T08:00:00Z",
}
HELD = [f"read:data:{number:02}" + "y" * 100 for number in range(20)]


class Held:
    """What a compromised app and its agent hold."""

    def __init__(self, made: Setup, app: dict[str, Any]) -> None:
        self.made = made
        self.app = app
        self.launch_token = ""
        self.token = ""
        self.agent: dict[str, Any] = {}
        self.others = ""
        self.key = Ed25519PrivateKey.generate()

    @property
    def credentials(self) -> dict[str, str]:
        return {"client_id": self.app["client_id"], "client_secret": self.app["client_secret"]}

    async def post(self, path: str, body: object, token: str = "") -> httpx2.Response:
        return await self.made.http.post(path, json=body, headers=bearer(token) if token else {})

    async def form(self, path: str, **fields: str) -> httpx2.Response:
        return await self.made.http.post(path, data={**self.credentials, **fields})

    async def register(self, launch_token: str, *scopes: str) -> httpx2.Response:
        body = {**await self.made.registration(launch_token), "requested_scope": list(scopes)}
        return await self.post("/v1/register", body)

    async def create(self, key: str) -> httpx2.Response:
        """An agent in one trip, by the idempotency key `key`."""
        made = proof(self.key, "POST", "http://broker/v1/agents", self.token, iat=int(self.made.time.now))
        headers = {**bearer(self.token), "idempotency-key": key}
        body = direct(HELD[:1], public_key=base64.b64encode(raw_public_key(self.key)).decode(), proof=made)
        return await self.made.http.post("/v1/agents", json=body, headers=headers)

    async def renewed(self) -> httpx2.Response:
        answer = await self.made.http.post("/v1/token/renew", headers=bearer(self.agent["access_token"]))
        if answer.status_code == 200:
            self.agent["access_token"] = answer.json()["access_token"]
        return answer


async def held(made: Setup) -> Held:
    """An app, its login, a launch token that is never used up, and an agent; and somebody else's token."""
    body = {"name": "taken-over", "scopes": ["read:data:*"], "reports_for": ["agentwrit"]}
    registered = await made.http.post("/v1/admin/apps", json=body, headers=await made.admin())
    has = Held(made, registered.json())
    has.token = (await made.login(has.app)).json()["access_token"]
    launch = {"agent_name": "a", "allowed_scope": HELD, "ttl": 3600}
    has.launch_token = (await has.post("/v1/app/launch-tokens", launch, has.token)).json()["launch_token"]
    for_agent = (await has.post("/v1/app/launch-tokens", launch, has.token)).json()["launch_token"]
    has.agent = (await has.register(for_agent, *HELD)).json()
    has.others = await made.agent()
    return has


def direct(scopes: list[str], **fields: object) -> dict[str, object]:
    key = base64.b64encode(bytes(SigningKey.generate().verify_key)).decode()
    return {"orch_id": "o", "task_id": "t", "requested_scope": scopes, "public_key": key, "proof": "x", **fields}


Attack = Callable[[Held], Awaitable[httpx2.Response]]

ATTACKS: dict[str, tuple[int, Attack]] = {
    "an agent delegates beyond its scope": (
        403,
        lambda has: has.post(
            "/v1/delegate", {"delegate_to": has.agent["agent_id"], "scope": WIDE}, has.agent["access_token"]
        ),
    ),
    "an agent delegates to nobody": (
        404,
        lambda has: has.post("/v1/delegate", {"delegate_to": "x" * 9000, "scope": HELD}, has.agent["access_token"]),
    ),
    "an agent asks for what is the operator's": (
        403,
        lambda has: has.made.http.get("/v1/admin/apps", headers=bearer(has.agent["access_token"])),
    ),
    "a launch token is shown with too wide a scope": (403, lambda has: has.register(has.launch_token, *WIDE)),
    "an app makes too wide a launch token": (
        403,
        lambda has: has.post("/v1/app/launch-tokens", {"agent_name": "a", "allowed_scope": WIDE}, has.token),
    ),
    "an app makes a launch token for others": (
        403,
        lambda has: has.post(
            "/v1/app/launch-tokens", {"agent_name": "a", "allowed_scope": HELD, "audience": ["others"]}, has.token
        ),
    ),
    "an app creates an agent with a proof that is none": (
        401,
        lambda has: has.post("/v1/agents", direct(HELD), has.token),
    ),
    "an app logs in for more than it can have": (
        400,
        lambda has: has.form("/oauth2/token", grant_type="client_credentials", scope=" ".join(HELD)),
    ),
    "an app exchanges another's token": (
        400,
        lambda has: has.form(
            "/oauth2/token",
            grant_type="urn:ietf:params:oauth:grant-type:token-exchange",
            subject_token=has.others,
            subject_token_type="urn:ietf:params:oauth:token-type:access_token",
            actor_token=has.agent["access_token"],
            actor_token_type="urn:ietf:params:oauth:token-type:access_token",
            scope=HELD[0],
        ),
    ),
    "an app revokes another's token": (200, lambda has: has.form("/oauth2/revoke", token=has.others)),
    "an app reports what cannot be": (
        200,
        lambda has: has.post(
            "/v1/audit/accesses",
            {"accesses": [{**ACCESS, "scope": WIDE}]},
            has.token,
        ),
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_first_denial_is_written_at_once_and_the_others_are_counted(name: str) -> None:
    async def claim(made: Setup) -> None:
        status, attack = ATTACKS[name]
        has = await held(made)
        before = made.events()
        for _ in range(30):
            assert (await attack(has)).status_code == status
        [first] = made.events()[len(before) :]
        assert first.outcome == Outcome.DENIED
        assert size(first) < 10_000
        made.time.now += WINDOW_SECONDS
        await made.housekeeping.round()
        counted = [event for event in made.events()[len(before) + 1 :] if event.event_type == first.event_type]
        assert [event.data["count"] for event in counted] == [29]
        assert size(counted[0]) < 2_000

    run(claim)


def size(event: Event) -> int:
    return len(repr(event))


def count(event: Event) -> int:
    """How many denials an event tells of."""
    return int(str(event.data.get("count", 1)))


def test_what_is_denied_in_another_way_or_to_another_agent_is_a_first_again() -> None:
    async def claim(made: Setup) -> None:
        has = await held(made)
        another = (await has.register(has.launch_token, *HELD)).json()
        before = len(made.events())
        for agent in (has.agent, another):
            for scope in (WIDE, [HELD[0]]):
                for to in (has.agent["agent_id"], "nobody"):
                    await has.post("/v1/delegate", {"delegate_to": to, "scope": scope}, agent["access_token"])
        denied = [event for event in made.events()[before:] if event.outcome == Outcome.DENIED]
        assert sorted((event.event_type, event.agent_id) for event in denied) == sorted(
            (kind, agent["agent_id"])
            for kind in ("delegation_attenuation_violation", "delegation_denied")
            for agent in (has.agent, another)
        )

    run(claim)


def test_one_apps_denials_do_not_hide_anothers() -> None:
    async def claim(made: Setup) -> None:
        for name in ("one", "other"):
            body = {"name": name, "scopes": ["read:data:*"], "require_bound": True}
            answer = await made.http.post("/v1/admin/apps", json=body, headers=await made.admin())
            token = (await made.login(answer.json())).json()["access_token"]
            for path, asked in (
                ("/v1/app/launch-tokens", {"agent_name": "a", "allowed_scope": ["read:data:1"]}),
                ("/v1/app/launch-tokens", {"agent_name": "a", "allowed_scope": ["write:data:1"], "bound": True}),
            ):
                answer = await made.http.post(path, json=asked, headers=bearer(token))
                assert answer.status_code == 403
        denied = [event.event_type for event in made.events() if event.outcome == Outcome.DENIED]
        assert sorted(denied) == ["launch_token_denied"] * 2 + ["scope_ceiling_exceeded"] * 2

    run(claim)


def test_an_app_has_no_more_first_denials_for_having_more_agents() -> None:
    async def claim(made: Setup) -> None:
        has = await held(made)
        launch = {"agent_name": "a", "allowed_scope": HELD, "single_use": False}
        token = (await has.post("/v1/app/launch-tokens", launch, has.token)).json()["launch_token"]
        agents = [(await has.register(token, HELD[0])).json() for _ in range(2 * MAX_WINDOWS_OF_ONE)]
        before = len(made.events())
        for agent in agents * 2:
            await has.post("/v1/delegate", {"delegate_to": "nobody", "scope": HELD[:1]}, agent["access_token"])
        assert len(made.events()) - before == MAX_WINDOWS_OF_ONE + 1
        made.time.now += WINDOW_SECONDS
        await made.housekeeping.round()
        denied = [event for event in made.events()[before:] if event.event_type == "delegation_denied"]
        assert sum(map(count, denied)) == 2 * len(agents)
        # And nobody else is told apart the less for it.
        await has.post("/v1/delegate", {}, "no token")
        assert made.events()[-1].event_type == EventType.TOKEN_AUTH_FAILED

    run(claim)


def denial(number: int, *, by: str = "", kind: EventType = EventType.SCOPE_VIOLATION) -> Denial:
    caller = Caller(address=f"198.51.{number // 250}.{number % 250}", route="GET /")
    event = caller.event(kind, Outcome.DENIED, data={"scope_held": WIDE, "scope_exceeding": WIDE, "note": "x" * 9000})
    return Denial(NotFound("no"), caller, event, by=by)


def test_however_many_are_denied_the_table_has_its_bounds() -> None:
    async def claim(made: Setup) -> None:
        denials = DenialLog(made.store, made.clock)
        for number in range(MAX_WINDOWS + 100):
            await denials.record(denial(number))
            await denials.record(denial(number))
        assert len(denials._windows) <= MAX_WINDOWS + len(EventType)
        kept = sum(len(repr(window.event)) for window in denials._windows.values())
        assert kept < MAX_WINDOWS * 2500
        made.time.now += WINDOW_SECONDS
        before = len(made.events())
        await denials.flush()
        assert sum(map(count, made.events()[before:])) == MAX_WINDOWS + 100 + 99
        assert not denials._windows
        assert not denials._open

    run(claim)


def test_a_count_that_cannot_be_written_is_still_owed() -> None:
    async def claim(made: Setup) -> None:
        denials = DenialLog(made.store, made.clock)
        for _ in range(10):
            await denials.record(denial(1))
        made.time.now += WINDOW_SECONDS
        made.failing = {"commit"}
        with pytest.raises(Exception, match="disk is full"):
            await denials.flush()
        made.failing.clear()
        await denials.record(denial(1))
        events = [event for event in made.events() if event.event_type == EventType.SCOPE_VIOLATION]
        assert [event.data.get("count") for event in events] == [None, 9, None]

    run(claim)


# -- what is done, and costs nobody anything --------------------------------------------------------------------------

SMALL = Config(max_lifetime=1000, app_log_rate=2, public_url=("http://broker",))
ALLOWED = 2 * 1024 * AHEAD_SECONDS


def test_an_app_writes_so_much_to_the_log_and_is_told_why_it_may_not_go_on() -> None:
    async def claim(made: Setup) -> None:
        has = await held(made)
        wide = [f"read:data:{number:02}" + "x" * 240 for number in range(64)]
        body = {"agent_name": "a", "allowed_scope": wide}
        before = len(made.events())
        answers = [await has.post("/v1/app/launch-tokens", body, has.token) for _ in range(20)]
        refused = [answer for answer in answers if answer.status_code != 201]
        assert {answer.status_code for answer in refused} == {429}
        assert "audit log" in refused[0].json()["detail"]
        assert "AGENTWRIT_APP_LOG_RATE" in refused[0].json()["hint"]
        assert int(refused[0].headers["retry-after"]) >= 1
        written = made.events()[before:]
        assert sum(map(size, written)) < 2 * ALLOWED
        assert [event.event_type for event in written].count("app_rate_limited") == 1
        # Nothing else that writes goes on either, by no agent of the app's.
        agent = has.agent["access_token"]
        delegation = {"delegate_to": has.agent["agent_id"], "scope": HELD[:1]}
        for answer in (
            await has.post("/v1/delegate", delegation, agent),
            await has.renewed(),
            await has.register(has.launch_token, HELD[0]),
            await has.create("another"),
            await has.post("/v1/audit/accesses", {"accesses": [ACCESS]}, has.token),
        ):
            assert (answer.status_code, answer.json()["error_code"]) == (429, "rate_limited")
        # But a login does, every end, and all that is others'.
        assert (await made.login(has.app)).status_code == 200
        assert (await made.http.post("/v1/token/release", headers=bearer(agent))).status_code == 204
        assert (await has.form("/oauth2/revoke", token=has.token)).status_code == 200
        assert await made.agent()

    run(claim, SMALL)


def test_what_was_answered_is_answered_again_to_an_app_that_may_write_no_more() -> None:
    async def claim(made: Setup) -> None:
        has = await held(made)
        claims = (await has.post("/v1/token/validate", {"token": has.agent["access_token"]})).json()["claims"]
        access = {**ACCESS, "sid": claims["sid"], "jti": claims["jti"]}
        asked: list[tuple[str, object, str]] = [
            ("/v1/delegate", {"delegate_to": has.agent["agent_id"], "scope": HELD[:1]}, has.agent["access_token"]),
            ("/v1/audit/accesses", {"accesses": [access]}, has.token),
        ]

        async def ask(key: str) -> list[int]:
            return [
                (await made.http.post(path, json=body, headers=bearer(token) | {"idempotency-key": key})).status_code
                for path, body, token in asked
            ] + [(await has.create(key)).status_code]

        assert await ask("first") == [200, 200, 201]
        wide = {"agent_name": "a", "allowed_scope": [f"read:data:{number:02}" + "x" * 240 for number in range(64)]}
        while (await has.post("/v1/app/launch-tokens", wide, has.token)).status_code == 201:
            pass
        assert await ask("first") == [200, 200, 201]
        assert await ask("second") == [429, 429, 429]

    run(claim, SMALL)


def test_an_app_goes_on_when_it_has_waited() -> None:
    now = [1000.0]
    budget = LogBudget(16, monotonic=lambda: now[0])
    caller = Caller(address="192.0.2.1", route="POST /v1/agents")
    for _ in range(16 * AHEAD_SECONDS):
        budget.check(caller, "client-1")
        budget.charge("client-1", 1)
    budget.check(caller, "client-1")
    budget.charge("client-1", 16, ["x" * EVENT_BYTES])
    with pytest.raises(Denial) as refused:
        budget.check(caller, "client-1", app_id="app-1")
    budget.check(caller, "client-2")
    assert isinstance(refused.value.error, RateLimited)
    assert refused.value.error.retry_after == 2
    assert refused.value.event.app_id == "app-1"
    now[0] += 2
    budget.check(caller, "client-1")


def test_there_may_be_no_bound() -> None:
    budget = LogBudget(0)
    for _ in range(1000):
        budget.charge("client-1", 1000)
    budget.check(Caller(), "client-1")


def test_a_token_that_is_renewed_again_and_again_leaves_only_so_many_behind() -> None:
    async def claim(made: Setup) -> None:
        has = await held(made)
        answers = [await has.renewed() for _ in range(MAX_RENEWALS_AT_ONCE + 10)]
        assert [answer.status_code for answer in answers] == [200] * MAX_RENEWALS_AT_ONCE + [429] * 10
        assert answers[-1].json()["detail"] == "the token was renewed too often"
        assert int(answers[-1].headers["retry-after"]) == 5  # 300 seconds, 64 times
        assert await made.is_valid(has.agent["access_token"])
        failed = [event for event in made.events() if event.event_type == EventType.TOKEN_RENEWAL_FAILED]
        assert len(failed) == 1
        made.time.now += 5
        assert [(await has.renewed()).status_code for _ in range(2)] == [200, 429]

    run(claim)


def test_a_report_with_many_scopes_counts_for_many_accesses() -> None:
    async def claim(made: Setup) -> None:
        has = await held(made)
        claims = (await has.post("/v1/token/validate", {"token": has.agent["access_token"]})).json()["claims"]
        access = {**ACCESS, "sid": claims["sid"], "jti": claims["jti"], "scope": WIDE}
        body = {"accesses": [access] * 40}  # each as large as sixteen others
        answers = [await has.post("/v1/audit/accesses", body, has.token) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        small = {"accesses": [{**access, "scope": HELD[:1]}] * 40}
        assert (await has.post("/v1/audit/accesses", small, has.token)).status_code == 200

    run(claim)


def test_a_denial_keeps_its_words_where_they_are_few() -> None:
    async def claim(made: Setup) -> None:
        has = await held(made)
        body = {"delegate_to": has.agent["agent_id"], "scope": ["read:data:none", "write:data:1"]}
        await has.post("/v1/delegate", body, has.agent["access_token"])
        event = made.events()[-1]
        assert event.data["scope_requested"] == event.data["scope_exceeding"] == body["scope"]
        assert event.data["scope_held"] == [*HELD[:8], "(and 12 more)"]

    run(claim)
