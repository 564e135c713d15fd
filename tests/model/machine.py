"""Random histories of a real broker, step by step beside the reference.

After each step every token that was ever issued is validated, and everyone who may look at agents looks.
"""

import secrets
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import product
from typing import Any, ClassVar, Final, TypeVar

import httpx2
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.model.reference import LOGIN_TTL, App, Grant, LaunchToken, Scope, Token, World, covers
from tests.model.subject import Disagreement, Issued, Killed, MovableBroker, Outlived, Owner, Revived
from tests.support import bearer, registration

T = TypeVar("T")

WIDE: Final = ("read:data:*", "write:data:*")
INVALID: Final = {"valid": False, "error": "token is invalid or expired"}
ENOUGH: Final = 12  # live agents: more would only take time
LEVELS: Final = ("token", "agent", "grant", "chain", "task", "app")


def _of(choose: Callable[["Machine"], Sequence[T]]) -> st.SearchStrategy[T]:
    """One of what the machine has at that moment."""
    return st.runner().flatmap(lambda machine: st.sampled_from(choose(machine)))


any_token: Final = _of(lambda machine: machine.live_tokens or machine.tokens) | _of(lambda machine: machine.tokens)
any_old_token: Final = any_token | _of(lambda machine: machine.superseded_tokens or machine.tokens)
any_delegator: Final = _of(lambda machine: machine.delegators or machine.tokens)
any_pair: Final = _of(lambda machine: machine.pairs or machine.all_pairs) | _of(lambda machine: machine.all_pairs)
any_launch_token: Final = _of(lambda machine: machine.launch_tokens)
any_owner: Final = _of(lambda machine: machine.owners)
any_app: Final = _of(lambda machine: [owner for owner in machine.owners if owner.registered])
scopes: Final = st.lists(
    st.sampled_from(["read:data:*", "read:data:1", "read:data:2", "write:data:1", "write:data:*"]),
    min_size=1,
    max_size=3,
    unique=True,
).map(tuple)
some_scopes: Final = st.none() | scopes
"""None: all that can be had."""
ttls: Final = st.sampled_from([300, 60, 5, 1, 3600])


class Machine(RuleBasedStateMachine):
    """What can be done with a broker, done to it and to the reference alike."""

    subject: ClassVar[MovableBroker]

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

    # -- what rules choose from ---------------------------------------------------------------------------------------

    @property
    def tokens(self) -> list[Token]:
        return list(self.issued)

    @property
    def live_tokens(self) -> list[Token]:
        return [grant.tokens[-1] for grant in self.world.live() if grant.task]

    @property
    def superseded_tokens(self) -> list[Token]:
        """Those of live grants that were renewed."""
        return [token for grant in self.world.live() for token in grant.tokens[:-1]]

    @property
    def delegators(self) -> list[Token]:
        """Those of grants that others were made from, or for."""
        above = {other for grant in self.world.live() for other in (grant.parent, grant.delegate) if other}
        return [grant.tokens[-1] for grant in self.world.live() if grant in above]

    @property
    def all_pairs(self) -> list[tuple[Token, Token]]:
        return list(product(self.tokens, self.tokens))

    @property
    def pairs(self) -> list[tuple[Token, Token]]:
        """Who can delegate to whom."""
        live = self.live_tokens
        return [(token, to) for token, to in product(live, live) if token.grant.app is to.grant.app]

    @property
    def launch_tokens(self) -> list[LaunchToken]:
        return list(self.launched)

    # -- rules --------------------------------------------------------------------------------------------------------

    @initialize(hops=st.integers(1, 3))
    def begin(self, hops: int) -> None:
        """Two apps and the operator, each with an agent; the first app has two, and a chain between them."""
        self.step = "begin"
        apps = [Owner(App(WIDE), self.broker.app(*WIDE)) for _ in range(2)]
        self.owners = [*apps, Owner(App(WIDE), None)]
        for owner in [apps[0], *self.owners]:
            self._launch(owner, WIDE, max_ttl=300, is_single_use=True, ttl=30)
            self._register(self.launch_tokens[-1], WIDE, "a")
        first, second, *_ = self.live_tokens
        self._chain(first, second, hops, ttl=300)

    @precondition(lambda self: len(self.live_tokens) < ENOUGH)
    @rule(owner=any_owner, scope=some_scopes, max_ttl=ttls, is_single_use=st.booleans(), task=st.sampled_from("ab"))
    def employ(self, owner: Owner, scope: Scope | None, max_ttl: int, is_single_use: bool, task: str) -> None:
        """Launch an agent, and try for another one with the same launch token."""
        self.step = "employ"
        if owner.app.ceiling:
            allowed = scope or owner.app.ceiling
            self._launch(owner, allowed, max_ttl=max_ttl, is_single_use=is_single_use, ttl=60)
            for _ in range(2):
                self._register(self.launch_tokens[-1], allowed, task)

    @rule(launch=any_launch_token, scope=some_scopes, task=st.sampled_from("ab"))
    def register(self, launch: LaunchToken, scope: Scope | None, task: str) -> None:
        self.step = "register"
        self._register(launch, scope or launch.scope, task)

    @rule(pair=any_pair, scope=some_scopes, ttl=ttls)
    def delegate(self, pair: tuple[Token, Token], scope: Scope | None, ttl: int) -> None:
        self.step = "delegate"
        self._delegate(*pair, scope, ttl)

    @rule(pair=any_pair, hops=st.integers(2, 6), ttl=ttls)
    def delegate_on(self, pair: tuple[Token, Token], hops: int, ttl: int) -> None:
        """Down a chain, to and fro between two agents, until it is refused."""
        self.step = "delegate_on"
        self._chain(*pair, hops, ttl)

    @rule(token=any_old_token)
    def renew(self, token: Token) -> None:
        self.step = "renew"
        answer = self.broker.renew(self.issued[token].text)
        expected = self.world.renew(token)
        if isinstance(expected, int):
            self._expect(answer, expected)
            return
        self._expect(answer, 200)
        text = answer.json()["access_token"]
        if expected in self.issued:
            self._check(text == self.issued[expected].text, "a repeated renewal has another answer")
        else:
            self._take(expected, text)

    @rule(token=any_old_token | any_delegator)
    def release(self, token: Token) -> None:
        self.step = "release"
        self._expect(self.broker.release(self.issued[token].text), self.world.release(token))

    @rule(level=st.sampled_from(LEVELS), token=any_old_token | any_delegator)
    def revoke(self, level: str, token: Token) -> None:
        self.step = f"revoke {level}"
        if target := self._target(level, token):
            self._expect_count(self._revoke(level, target), self.world.revoke(level, token))
        else:  # the operator is no app, and a login has no task
            self._expect(self._ask_to_revoke(level, ""), 400)
        for nobody in ("nobody", "*", "%"):
            self._expect_count(self._revoke(level, nobody), 0)

    @rule(owner=any_app, scope=st.just(WIDE) | scopes, keep=st.booleans())
    def set_ceiling(self, owner: Owner, scope: Scope, keep: bool) -> None:
        self.step = "set_ceiling"
        assert owner.registered
        answer = self.broker.http.put(
            f"/v1/admin/apps/{owner.registered.app_id}",
            json={"scopes": list(scope)},
            params={"keep_grants": str(keep).lower()},
            headers=self._as_operator(),
        )
        if not owner.app.ceiling:
            self._expect(answer, 404)
            return
        self._expect(answer, 200)
        self._expect_count(answer.json()["grants_ended"], self.world.set_ceiling(owner.app, scope, keep))

    @precondition(lambda self: all(owner.app.ceiling for owner in self.owners))
    @rule(owner=any_app)
    def deregister(self, owner: Owner) -> None:
        self.step = "deregister"
        assert owner.registered
        path = f"/v1/admin/apps/{owner.registered.app_id}"
        self._expect(self.broker.http.delete(path, headers=self._as_operator()), 200)
        self.world.set_ceiling(owner.app, (), keep=False)

    @rule(seconds=st.sampled_from([31, 5, 1, 30, 29, 60, 240, 300]))
    def wait(self, seconds: int) -> None:
        self.step = "wait"
        self.world.now += seconds
        self.broker.move_to(self.world.now)

    @precondition(lambda self: self.restarts < 1)
    @rule(is_crash=st.booleans())
    def restart(self, is_crash: bool) -> None:
        self.step = "restart"
        self.restarts += 1
        if is_crash:
            self.broker.kill()
        else:
            self._check(self.broker.stop() == 0, "the broker did not stop cleanly")
        self.broker.start()

    # -- what holds after every step ----------------------------------------------------------------------------------

    @invariant()
    def every_token_is_what_the_reference_says(self) -> None:
        for token, issued in self.issued.items():
            answer = self.broker.validate(issued.text)
            if self.world.is_valid(token):
                if answer == INVALID:
                    raise Killed("a token is not valid that is alive", self.step, token)
                self._check(answer == {"valid": True, "claims": issued.claims}, f"validate answered {answer}")
            elif answer != INVALID:
                raise Revived("a token is valid that is dead", self.step, token)

    @invariant()
    def everyone_sees_their_own_live_agents_and_no_others(self) -> None:
        if not self.owners:
            return
        grants = [grant for grant in self.world.live() if grant.task]
        self._check_list(self._list(self._as_operator(), orch_id=self.run), grants, "the operator")
        for owner in self.owners:
            if owner.registered is None:
                continue
            login = self._login(owner)
            if owner.app.ceiling:
                seen = self._list(bearer(self.issued[login].text))
                self._check_list(seen, [grant for grant in grants if grant.app is owner.app], "an app")
            elif self.world.now < login.expires_at:
                dead = self.broker.http.get("/v1/agents", headers=bearer(self.issued[login].text))
                self._expect(dead, 403)

    def _list(self, headers: dict[str, str], **filters: str) -> list[dict[str, Any]]:
        answer = self.broker.http.get("/v1/agents", params={"limit": "1000", **filters}, headers=headers)
        self._expect(answer, 200)
        return list(answer.json()["agents"])

    def _check_list(self, seen: list[dict[str, Any]], grants: list[Grant], whose: str) -> None:
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
        self._check(sorted(shown, key=str) == sorted(expected, key=str), f"{whose} sees {shown}, not {expected}")

    # -- doing it -----------------------------------------------------------------------------------------------------

    def _launch(self, owner: Owner, scope: Scope, *, max_ttl: int, is_single_use: bool, ttl: int) -> None:
        body = {
            "agent_name": "tester",
            "allowed_scope": list(scope),
            "max_ttl": max_ttl,
            "single_use": is_single_use,
            "ttl": ttl,
        }
        path = "/v1/app/launch-tokens" if owner.registered else "/v1/admin/launch-tokens"
        headers = bearer(self.issued[self._login(owner)].text) if owner.registered else self._as_operator()
        answer = self.broker.http.post(path, json=body, headers=headers)
        if not covers(owner.app.ceiling, scope):
            self._expect(answer, 403)
            return
        self._expect(answer, 201)
        uses = 1 if is_single_use else 1_000_000
        launch = LaunchToken(owner.app, scope, max_ttl, self.world.now + ttl, uses)
        self.launched[launch] = answer.json()["launch_token"]

    def _register(self, launch: LaunchToken, scope: Scope, task: str) -> None:
        ids = {"orch_id": self.run, "task_id": f"{self.run}-{task}"}
        body = {**registration(self.launched[launch], self.broker.nonce(), *scope), **ids}
        answer = self.broker.http.post("/v1/register", json=body)
        expected = self.world.register(launch, scope, ids["task_id"])
        if isinstance(expected, int):
            self._expect(answer, expected)
        else:
            self._expect(answer, 200)
            self._check(covers(launch.scope, scope), "an agent got more than its launch token allows")
            self._take(expected, answer.json()["access_token"])

    def _delegate(self, token: Token, to: Token, scope: Scope | None, ttl: int) -> Token | None:
        """What was given, unless it was refused as it should be."""
        asked = scope or token.grant.scope or ("read:data:1",)
        body = {"delegate_to": self.issued[to].claims["sub"], "scope": list(asked), "ttl": ttl}
        answer = self.broker.http.post("/v1/delegate", json=body, headers=bearer(self.issued[token].text))
        expected = self.world.delegate(token, to.grant.delegate or to.grant, asked, ttl)
        if isinstance(expected, int):
            self._expect(answer, expected)
            return None
        self._expect(answer, 200)
        given = self._take(expected, answer.json()["access_token"])
        above = self.issued[token].claims
        if given["exp"] > above["exp"]:
            raise Outlived("a delegation outlives the token that it was made from", self.step, expected)
        self._check(covers(tuple(above["scope"]), tuple(given["scope"])), "more was delegated than was held")
        return expected

    def _chain(self, token: Token, to: Token, hops: int, ttl: int) -> None:
        down: Token | None = token
        for hop in range(hops):
            down = down and self._delegate(down, token if hop % 2 else to, None, ttl)

    def _login(self, owner: Owner) -> Token:
        """The app's token, a new one if the last is no longer good. An app that is removed keeps its last."""
        assert owner.registered
        if owner.login is not None and (self.world.is_valid(owner.login) or not owner.app.ceiling):
            return owner.login
        answer = owner.registered.login()
        self._expect(answer, 200)
        grant = Grant(owner.app, tuple(answer.json()["scopes"]), LOGIN_TTL, self.world.now + LOGIN_TTL)
        owner.login = self.world.issue(grant)
        self._take(owner.login, answer.json()["access_token"])
        return owner.login

    def _as_operator(self) -> dict[str, str]:
        token, good_until = self._operator
        if self.world.now >= good_until:
            token = self.broker.admin()["authorization"].removeprefix("Bearer ")
            self._operator = (token, self.world.now + 300)
        return bearer(token)

    def _target(self, level: str, token: Token) -> str:
        """What to name, to revoke what a token is, belongs to or came from."""
        if level == "app":
            registered = self._owner(token.grant.app).registered
            return registered.app_id if registered else ""
        claim = {"token": "jti", "grant": "sid", "task": "task_id", "agent": "sub", "chain": "sub"}[level]
        return str(self.issued[token].claims[claim])

    def _revoke(self, level: str, target: str) -> int:
        answer = self._ask_to_revoke(level, target)
        self._expect(answer, 200)
        return int(answer.json()["count"])

    def _ask_to_revoke(self, level: str, target: str) -> httpx2.Response:
        return self.broker.http.post("/v1/revoke", json={"level": level, "target": target}, headers=self._as_operator())

    def _expect_count(self, ended: int, expected: int) -> None:
        if ended != expected:
            self.every_token_is_what_the_reference_says()  # says which token it is, where one shows it
        self._check(ended == expected, f"{ended} live tokens were killed, not {expected}")

    def _take(self, token: Token, text: str) -> dict[str, Any]:
        """Keep a token that was issued, if it says what it should. Returns its claims."""
        issued, grant = Issued(text), token.grant
        claims = issued.claims
        if claims["exp"] > token.expires_at:
            raise Outlived(f"a token lives until {claims['exp']}, not {token.expires_at}", self.step, token)
        known = {other.claims["jti"] for other in self.issued.values()}
        self._check(claims["jti"] not in known, "a jti is issued twice")
        self._check(claims["exp"] == token.expires_at, f"a token lives until {claims['exp']}, not {token.expires_at}")
        self._check(claims["iat"] == claims["nbf"] == token.issued_at, "a token has another beginning")
        self._check(tuple(claims["scope"]) == grant.scope, f"a token holds {claims['scope']}, not {grant.scope}")
        self._check(claims["task_id"] == grant.task, "a token is for another task")
        chain = [(hop["sid"], hop["agent"]) for hop in claims.get("delegation_chain", [])]
        above = [self._claims(other) for other in grant.lineage()[:-1]]
        self._check(chain == [(of["sid"], of["sub"]) for of in above], "a token has another chain")
        if token is not grant.tokens[0]:
            first = self._claims(grant)
            self._check((claims["sid"], claims["sub"]) == (first["sid"], first["sub"]), "a renewal changed the holder")
        elif grant.delegate:
            self._check(claims["sub"] == self._claims(grant.delegate)["sub"], "a delegation went to another agent")
        self.issued[token] = issued
        return claims

    def _claims(self, grant: Grant) -> dict[str, Any]:
        """What the first token of a grant says; of its name and holder all say the same."""
        return self.issued[grant.tokens[0]].claims

    def _owner(self, app: App) -> Owner:
        return next(owner for owner in self.owners if owner.app is app)

    def _expect(self, answer: httpx2.Response, status: int) -> None:
        self._check(answer.status_code == status, f"the answer is {answer.status_code}, not {status}: {answer.text}")

    def _check(self, holds: bool, message: str) -> None:
        if not holds:
            raise Disagreement(message, self.step)
