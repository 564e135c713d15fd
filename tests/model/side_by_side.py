"""A broker and the reference, done to alike and compared."""

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar, Final
from urllib.parse import quote

import httpx2
from hypothesis import note

from tests.model.reference import LOGIN_TTL, MAX_HOPS, App, Grant, LaunchToken, Scope, Token, World, covers
from tests.model.subject import Disagreement, Issued, Killed, MovableBroker, Outlived, Owner, Revived
from tests.support import bearer, registration

INVALID: Final = {"valid": False, "error": "token is invalid or expired"}


def _shown(claims: dict[str, Any]) -> dict[str, Any]:
    """A token's claims as a broker shows them: in the records of its delegation, moments are RFC 3339."""
    if "delegation_chain" not in claims:
        return claims
    chain = [
        record | {"delegated_at": f"{datetime.fromtimestamp(record['delegated_at'], UTC):%Y-%m-%dT%H:%M:%SZ}"}
        for record in claims["delegation_chain"]
    ]
    return claims | {"delegation_chain": chain}


class SideBySide:
    """What is done here is done to a broker and to the reference. `reached` is what has come about in any history."""

    subject: ClassVar[MovableBroker]
    reached: ClassVar[set[str]]

    def __init__(self) -> None:
        super().__init__()
        self.broker = self.subject
        self.world = World(self.broker.now)
        self.run = secrets.token_hex(4)
        self.step = "the start"
        self.issued: dict[Token, Issued] = {}
        self.launched: dict[LaunchToken, str] = {}
        self.owners: list[Owner] = []
        self.restarts = 0
        self._operator: tuple[str, int] = ("", 0)

    def does(self, step: str, *tokens: Token) -> None:
        """Say what comes next. If it fails, this is what is read."""
        self.step = step
        known = list(self.issued)
        note(f"{step} {[known.index(token) for token in tokens]}")

    def reach(self, what: str, *, if_: bool = True) -> None:
        if if_:
            self.reached.add(what)

    # -- what has to hold ---------------------------------------------------------------------------------------------

    def check_tokens(self) -> None:
        for token, issued in self.issued.items():
            answer = self.broker.validate(issued.text)
            if self.world.is_valid(token):
                if answer == INVALID:
                    raise Killed("a token is not valid that is alive", self.step, token)
                self.check(answer == {"valid": True, "claims": _shown(issued.claims)}, f"validate answered {answer}")
            elif answer != INVALID:
                raise Revived("a token is valid that is dead", self.step, token)

    def check_sight(self) -> None:
        grants = [grant for grant in self.world.live() if grant.task]
        self.check_list(self.list_agents(self.as_operator(), orch_id=self.run), grants, "the operator")
        for owner in self.owners:
            if owner.registered is None:
                continue
            login = self.login_of(owner)
            if owner.app.ceiling:
                seen = self.list_agents(self.as_holder(login))
                self.check_list(seen, [grant for grant in grants if grant.app is owner.app], "an app")
            elif self.world.now < login.expires_at:
                dead = self.broker.http.get("/v1/agents", headers=self.as_holder(login))
                self.expect(dead, 403)

    def list_agents(self, headers: dict[str, str], **filters: str) -> list[dict[str, Any]]:
        answer = self.broker.http.get("/v1/agents", params={"limit": "1000", **filters}, headers=headers)
        self.expect(answer, 200)
        return list(answer.json()["agents"])

    def check_list(self, seen: list[dict[str, Any]], grants: list[Grant], whose: str) -> None:
        shown = [
            (
                agent["sid"],
                agent["agent_id"],
                tuple(agent["scope"]),
                agent["depth"],
                agent["parent"],
                int(datetime.fromisoformat(agent["expires_at"]).timestamp()),
            )
            for agent in seen
        ]
        expected = [
            (
                self._claims(grant)["sid"],
                self._claims(grant)["sub"],
                grant.scope,
                len(grant.lineage()) - 1,
                self._claims(grant.parent)["sid"] if grant.parent else None,
                grant.tokens[-1].expires_at,
            )
            for grant in grants
        ]
        self.check(sorted(shown, key=str) == sorted(expected, key=str), f"{whose} sees {shown}, not {expected}")

    def do_launch(self, owner: Owner, scope: Scope, *, max_ttl: int, is_single_use: bool, ttl: int) -> None:
        body = {
            "agent_name": "tester",
            "allowed_scope": list(scope),
            "max_ttl": max_ttl,
            "single_use": is_single_use,
            "ttl": ttl,
        }
        path = "/v1/app/launch-tokens" if owner.registered else "/v1/admin/launch-tokens"
        headers = self.as_holder(self.login_of(owner)) if owner.registered else self.as_operator()
        answer = self.broker.http.post(path, json=body, headers=headers)
        if not covers(owner.app.ceiling, scope):
            self.expect(answer, 403)
            return
        self.expect(answer, 201)
        uses = 1 if is_single_use else 1_000_000
        launch = LaunchToken(owner.app, scope, max_ttl, self.world.now + ttl, uses)
        self.launched[launch] = answer.json()["launch_token"]

    def do_register(self, launch: LaunchToken, scope: Scope, task: str) -> None:
        ids = {"orch_id": self.run, "task_id": f"{self.run}-{task}"}
        body = {**registration(self.launched[launch], self.broker.nonce(), *scope), **ids}
        answer = self.broker.http.post("/v1/register", json=body)
        is_used_up = launch.uses_left == 0
        expected = self.world.register(launch, scope, ids["task_id"])
        if isinstance(expected, int):
            self.reach("used launch token", if_=is_used_up)
            self.expect(answer, expected)
        else:
            self.expect(answer, 200)
            self.check(covers(launch.scope, scope), "an agent got more than its launch token allows")
            self.take(expected, answer.json()["access_token"])

    def do_delegate(self, token: Token, to: Token, scope: Scope | None, ttl: int) -> Token | None:
        """What was given, unless it was refused as it should be."""
        asked = scope or token.grant.scope or ("read:data:1",)
        body = {"delegate_to": self.issued[to].claims["sub"], "scope": list(asked), "ttl": ttl}
        answer = self.broker.http.post("/v1/delegate", json=body, headers=self.as_holder(token))
        delegate, is_valid = to.grant.delegate or to.grant, self.world.is_valid(token)
        expected = self.world.delegate(token, delegate, asked, ttl)
        if isinstance(expected, int):
            self.expect(answer, expected)
            self.reach("another app's", if_=expected == 404 and delegate.app is not token.grant.app)
            self.reach("too deep", if_=expected == 403 and is_valid and len(token.grant.lineage()) > MAX_HOPS)
            return None
        self.expect(answer, 200)
        self.reach(f"depth {len(expected.grant.lineage()) - 1}")
        self.reach("cut", if_=expected.grant.ttl < ttl)
        given = self.take(expected, answer.json()["access_token"])
        above = self.issued[token].claims
        if given["exp"] > above["exp"]:
            raise Outlived("a delegation outlives the token that it was made from", self.step, expected)
        self.check(covers(tuple(above["scope"]), tuple(given["scope"])), "more was delegated than was held")
        return expected

    def do_renew(self, token: Token) -> None:
        answer, live = self.broker.renew(self.issued[token].text), len(self.world.live())
        expected = self.world.renew(token)
        if isinstance(expected, int):
            self.expect(answer, expected)
            self.reach("theft", if_=len(self.world.live()) < live)
            return
        self.expect(answer, 200)
        text = answer.json()["access_token"]
        if expected in self.issued:
            self.check(text == self.issued[expected].text, "a repeated renewal has another answer")
            self.reach("retry")
        else:
            self.take(expected, text)
            self.reach("renewed delegation", if_=expected.grant.parent is not None)

    def do_chain(self, token: Token, to: Token, hops: int, ttl: int) -> None:
        down: Token | None = token
        for hop in range(hops):
            down = down and self.do_delegate(down, token if hop % 2 else to, None, ttl)

    def do_look(self, owner: Owner, registration: Grant) -> None:
        path = f"/v1/agents/{quote(self._claims(registration)['sub'], safe='')}"
        answer = self.broker.http.get(path, headers=self.as_holder(self.login_of(owner)))
        if registration.app is not owner.app or not registration.task:
            self.expect(answer, 404)
        elif registration in self.world.live():
            self.expect(answer, 200)
            live = {self._claims(grant)["sid"] for grant in self.world.live() if grant.app is owner.app}
            shown = {tree["sid"]: tree["status"] for top in answer.json()["grants"] for tree in _branches(top)}
            self.check(all((shown[sid] == "live") == (sid in live) for sid in shown), "a grant has another status")
            self.reach("looked")

    def as_holder(self, token: Token) -> dict[str, str]:
        return bearer(self.issued[token].text)

    def login_of(self, owner: Owner) -> Token:
        """The app's token, a new one if the last is no longer good. An app that is removed keeps its last."""
        assert owner.registered
        if owner.login is not None and (self.world.is_valid(owner.login) or not owner.app.ceiling):
            return owner.login
        answer = owner.registered.login()
        self.expect(answer, 200)
        grant = Grant(owner.app, tuple(answer.json()["scopes"]), LOGIN_TTL, self.world.now + LOGIN_TTL)
        owner.login = self.world.issue(grant)
        self.take(owner.login, answer.json()["access_token"])
        return owner.login

    def as_operator(self) -> dict[str, str]:
        token, good_until = self._operator
        if self.world.now >= good_until:
            token = self.broker.admin()["authorization"].removeprefix("Bearer ")
            self._operator = (token, self.world.now + 300)
        return bearer(token)

    def target_of(self, level: str, token: Token) -> str:
        """What to name, to revoke what a token is, belongs to or came from."""
        if level == "app":
            registered = self.owner_of(token.grant.app).registered
            return registered.app_id if registered else ""
        claim = {"token": "jti", "grant": "sid", "task": "task_id", "agent": "sub", "chain": "sub"}[level]
        return str(self.issued[token].claims[claim])

    def do_revoke(self, level: str, target: str) -> int:
        answer = self.ask_to_revoke(level, target)
        self.expect(answer, 200)
        return int(answer.json()["count"])

    def ask_to_revoke(self, level: str, target: str) -> httpx2.Response:
        return self.broker.http.post("/v1/revoke", json={"level": level, "target": target}, headers=self.as_operator())

    def expect_count(self, ended: int, expected: int) -> None:
        if ended != expected:
            self.check_tokens()  # says which token it is, where one shows it
        self.reach("cascade", if_=expected > 2)
        self.check(ended == expected, f"{ended} live tokens were killed, not {expected}")

    def take(self, token: Token, text: str) -> dict[str, Any]:
        """Keep a token that was issued, if it says what it should. Returns its claims."""
        issued, grant = Issued(text), token.grant
        claims = issued.claims
        if claims["exp"] > token.expires_at:
            raise Outlived(f"a token lives until {claims['exp']}, not {token.expires_at}", self.step, token)
        for name in ("jti", "sid") if token is grant.tokens[0] else ("jti",):
            known = {other.claims[name] for other in self.issued.values()}
            self.check(claims[name] not in known, f"a {name} is issued twice")
        self.check(claims["exp"] == token.expires_at, f"a token lives until {claims['exp']}, not {token.expires_at}")
        self.check(claims["iat"] == claims["nbf"] == token.issued_at, "a token has another beginning")
        self.check(tuple(claims["scope"]) == grant.scope, f"a token holds {claims['scope']}, not {grant.scope}")
        self.check(claims["task_id"] == grant.task, "a token is for another task")
        chain = [(hop["sid"], hop["agent"]) for hop in claims.get("delegation_chain", [])]
        above = [self._claims(other) for other in grant.lineage()[:-1]]
        self.check(chain == [(of["sid"], of["sub"]) for of in above], "a token has another chain")
        if token is not grant.tokens[0]:
            first = self._claims(grant)
            self.check((claims["sid"], claims["sub"]) == (first["sid"], first["sub"]), "a renewal changed the holder")
        elif grant.delegate:
            self.check(claims["sub"] == self._claims(grant.delegate)["sub"], "a delegation went to another agent")
        note(f"  token {len(self.issued)}: depth {len(chain)}, {token.expires_at - token.issued_at} s")
        self.issued[token] = issued
        return claims

    def _claims(self, grant: Grant) -> dict[str, Any]:
        """What the first token of a grant says; of its name and holder all say the same."""
        return self.issued[grant.tokens[0]].claims

    def owner_of(self, app: App) -> Owner:
        return next(owner for owner in self.owners if owner.app is app)

    def expect(self, answer: httpx2.Response, status: int) -> None:
        self.check(answer.status_code == status, f"the answer is {answer.status_code}, not {status}: {answer.text}")

    def check(self, holds: bool, message: str) -> None:
        if not holds:
            raise Disagreement(message, self.step)


def _branches(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield tree
    for below in tree["delegations"]:
        yield from _branches(below)
