"""What somebody else commits between the check of a token and the unit of work for which it was checked."""

import base64
from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.ending import AT_ONCE, end_named
from agentwrit.broker.services.operators import end_logins
from agentwrit.broker.storage.base import GrantQuery, Transaction
from agentwrit.domain.app import AppStatus
from agentwrit.domain.audit import EventType
from agentwrit.domain.ending import EndingLevel, Named
from agentwrit.domain.grant import EndReason, GrantKind
from tests.proofs import proof, raw_public_key
from tests.services.test_authority import delegate, pair, read
from tests.services.test_faults import Setup, run
from tests.support import bearer, problem

URL: Final = "http://broker"
ANAS_SECRET: Final = "the-secret-of-ana-for-tests"
ORDER: Final = "https://orders.example.com/orders/1"

Unit = Callable[[Transaction], object]


def ends(sid: str, reason: EndReason = EndReason.REVOKED) -> Unit:
    """That a grant is ended."""
    named = Named(level=EndingLevel.GRANT, target=sid)
    return lambda transaction: end_named(transaction, Caller(), "admin", named, reason)


def supersedes(sid: str) -> Unit:
    """That a grant's token is replaced by another one."""

    def put(transaction: Transaction) -> None:
        grant = transaction.grant(sid)
        assert grant is not None
        transaction.put(msgspec.structs.replace(grant, jti="of-the-successor", previous_jti=grant.jti))

    return put


async def live_grants(made: Setup, **query: Any) -> list[str]:
    """The sids of agents' grants that are alive."""
    asked = GrantQuery(live_at=made.time.now, kind=GrantKind.AGENT, **query)
    return [grant.sid for grant in await made.store.read(lambda snapshot: snapshot.grants(asked))]


# -- agents -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [ends, supersedes])
def test_a_token_that_dies_on_the_way_delegates_nothing(change: Callable[[str], Unit]) -> None:
    async def claim(made: Setup) -> None:
        root, other = await pair(made)
        before = await live_grants(made)
        sid = read(root["access_token"]).sid
        made.meanwhile = change(sid)
        answer = await delegate(made, root["access_token"], other["agent_id"])
        problem(answer, 403, "insufficient_scope")
        assert set(await live_grants(made)) <= set(before)
        [event] = [event for event in made.events() if event.event_type == EventType.TOKEN_REVOKED_ACCESS]
        assert event.sid == sid

    run(claim)


def test_a_delegate_that_dies_on_the_way_is_given_nothing() -> None:
    async def claim(made: Setup) -> None:
        root, other = await pair(made)
        made.meanwhile = ends(read(other["access_token"]).sid)
        problem(await delegate(made, root["access_token"], other["agent_id"]), 404, "not_found")
        assert await live_grants(made) == [read(root["access_token"]).sid]

    run(claim)


@pytest.mark.parametrize("path", ["/v1/token/renew", "/v1/token/release"])
def test_a_grant_that_ends_on_the_way_is_neither_renewed_nor_released_again(path: str) -> None:
    async def claim(made: Setup) -> None:
        token = await made.agent()
        made.meanwhile = ends(read(token).sid)
        answer = await made.http.post(path, headers=bearer(token))
        assert (answer.status_code, answer.json()["error_code"]) == (
            (401, "unauthorized") if path.endswith("renew") else (403, "insufficient_scope")
        )
        assert await live_grants(made) == []
        ended = [event for event in made.events() if event.event_type == EventType.TOKEN_REVOKED]
        assert [event.sid for event in ended] == [read(token).sid]
        assert not any(event.event_type == EventType.TOKEN_RELEASED for event in made.events())

    run(claim)


class Bound:
    """A bound agent of an app, made in one trip."""

    def __init__(self, made: Setup) -> None:
        self.made = made
        self.key = Ed25519PrivateKey.generate()
        self.token = ""

    @property
    def public_key(self) -> str:
        """As the wire has it."""
        return base64.b64encode(raw_public_key(self.key)).decode()

    def proof(self, method: str, url: str, token: str | None = None) -> str:
        return proof(self.key, method, url, self.token if token is None else token, iat=int(self.made.time.now))

    async def begin(self) -> None:
        app = await self.made.app()
        login = (await self.made.login(app)).json()["access_token"]
        body = {
            "orch_id": "o",
            "task_id": "t",
            "requested_scope": ["read:data:1"],
            "public_key": self.public_key,
            "proof": self.proof("POST", f"{URL}/v1/agents", login),
            "bound": True,
        }
        answer = await self.made.http.post("/v1/agents", json=body, headers=bearer(login))
        assert answer.status_code == 201, answer.text
        self.token = answer.json()["access_token"]

    async def validated(self) -> bool:
        """Whether a service that was shown the token is told that it holds."""
        body = {"token": self.token, "proof": self.proof("GET", ORDER), "htm": "GET", "htu": ORDER}
        answer = await self.made.http.post("/v1/token/validate", json=body)
        assert answer.status_code == 200, answer.text
        return bool(answer.json()["valid"])


@pytest.mark.parametrize("does_end", [False, True])
def test_a_bound_grant_that_ends_while_its_proof_is_spent_does_not_hold(does_end: bool) -> None:
    async def claim(made: Setup) -> None:
        agent = Bound(made)
        await agent.begin()
        if does_end:
            made.meanwhile = ends(read(agent.token).sid)
        assert await agent.validated() is not does_end

    run(claim)


# -- apps -------------------------------------------------------------------------------------------------------------


def suspends(app_id: str) -> Unit:
    def put(transaction: Transaction) -> None:
        app = transaction.app(app_id)
        assert app is not None
        transaction.put(msgspec.structs.replace(app, status=AppStatus.SUSPENDED, suspensions=1))

    return put


def test_an_app_that_is_suspended_on_the_way_gets_no_login_no_launch_token_and_no_agent() -> None:
    async def claim(made: Setup) -> None:
        app = await made.app()
        token = (await made.login(app)).json()["access_token"]
        launch_token = await made.launch_token(app)
        agent = Bound(made)
        direct = {
            "orch_id": "o",
            "task_id": "t",
            "requested_scope": ["read:data:1"],
            "public_key": agent.public_key,
            "proof": agent.proof("POST", f"{URL}/v1/agents", token),
        }
        policy = {"agent_name": "a", "allowed_scope": ["read:data:1"]}
        registration = await made.registration(launch_token)
        asked: list[tuple[str, dict[str, Any], dict[str, str]]] = [
            ("/v1/app/auth", {"client_id": app["client_id"], "client_secret": app["client_secret"]}, {}),
            ("/v1/app/launch-tokens", policy, bearer(token)),
            ("/v1/agents", direct, bearer(token)),
            ("/v1/register", registration, {}),
        ]
        active = await made.store.read(lambda snapshot: snapshot.app(app["app_id"]))
        assert active is not None
        launch_tokens = await made.store.read(lambda snapshot: snapshot.launch_token_count())
        for path, body, headers in asked:
            made.meanwhile = suspends(app["app_id"])
            problem(await made.http.post(path, json=body, headers=headers), 401, "unauthorized")
            await made.store.write(lambda transaction: transaction.put(active))
        assert await live_grants(made) == []
        assert await made.store.read(lambda snapshot: snapshot.launch_token_count()) == launch_tokens
        # With the app as it was, each of them succeeds: nothing else was in the way.
        for path, body, headers in asked:
            answer = await made.http.post(path, json=body, headers=headers)
            assert answer.status_code in (200, 201), (path, answer.text)

    run(claim)


# -- operators --------------------------------------------------------------------------------------------------------


def removes(name: str) -> Unit:
    """That an operator is removed."""

    def put(transaction: Transaction) -> None:
        known = transaction.operator(name)
        assert known is not None
        transaction.put(msgspec.structs.replace(known, password_hash="", removed_at=1))
        end_logins(transaction, Caller(), "admin", name, EndReason.OPERATOR_REMOVED)

    return put


def logs_in_often(transaction: Transaction) -> None:
    """That whoever has logged in, has done so as often as one unit of work can end."""
    for login in transaction.grants(GrantQuery(kind=GrantKind.OPERATOR)):
        for number in range(AT_ONCE if login.operator else 0):
            transaction.put(msgspec.structs.replace(login, sid=f"sid-{number}", jti=f"jti-{number}"))


@pytest.mark.parametrize("is_often", [False, True])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/admin/operators", {"name": "bo"}),
        ("POST", "/v1/admin/operators/cy/secret", {}),
        ("DELETE", "/v1/admin/operators/cy", {}),
    ],
)
def test_an_operator_who_is_removed_on_the_way_makes_and_removes_no_other(
    method: str, path: str, body: dict[str, str], is_often: bool
) -> None:
    async def claim(made: Setup) -> None:
        admin = await made.admin()
        for name in ("ana", "cy"):
            answer = await made.http.post(
                "/v1/admin/operators", json={"name": name, "secret": ANAS_SECRET}, headers=admin
            )
            assert answer.status_code == 201, answer.text
        as_ana = {"name": "ana", "secret": ANAS_SECRET}
        if is_often:  # then the end of their last login takes more than the unit in which they are removed
            await made.http.post("/v1/admin/auth", json=as_ana)
            await made.store.write(logs_in_often)
        login = await made.http.post("/v1/admin/auth", json=as_ana)
        before = await operators(made)
        made.meanwhile = removes("ana")
        answer = await made.http.request(method, path, json=body, headers=bearer(login.json()["access_token"]))
        problem(answer, 403, "insufficient_scope")
        assert await operators(made) == before - {("ana", before_hash(before, "ana"))}

    run(claim)


async def operators(made: Setup) -> set[tuple[str, str]]:
    """Those who are operators, with what they log in with."""
    known = await made.store.read(lambda snapshot: snapshot.operators())
    return {(operator.name, operator.password_hash) for operator in known if operator.is_active}


def before_hash(known: set[tuple[str, str]], name: str) -> str:
    return dict(known)[name]
