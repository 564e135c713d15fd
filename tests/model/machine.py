"""Random histories of a real broker, step by step beside the reference.

After each step every token that was ever issued is validated, and everyone who may look at agents looks.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Final, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.model.reference import App, LaunchToken, Scope, Token
from tests.model.side_by_side import SideBySide
from tests.model.subject import Owner

T = TypeVar("T")

WIDE: Final = ("read:data:*", "write:data:*")
ENOUGH: Final = 12  # live agents: more would only take time
LEVELS: Final = ("token", "agent", "grant", "chain", "task", "app")


def _of(choose: Callable[["Machine"], Sequence[T]]) -> st.SearchStrategy[T]:
    """One of what the machine has at that moment."""
    return st.runner().flatmap(lambda machine: st.sampled_from(choose(machine)))


any_token: Final = _of(lambda machine: machine.live_tokens or machine.tokens) | _of(lambda machine: machine.tokens)
any_superseded: Final = _of(lambda machine: machine.superseded_tokens or machine.tokens)
any_delegator: Final = _of(lambda machine: machine.delegators or machine.tokens)
any_pair: Final = _of(lambda machine: machine.pairs or machine.all_pairs) | _of(lambda machine: machine.all_pairs)
any_launch_token: Final = _of(lambda machine: list(machine.launched))
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


class Machine(SideBySide, RuleBasedStateMachine):
    """What can be done with a broker, done to it and to the reference alike."""

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

    # -- rules --------------------------------------------------------------------------------------------------------

    @initialize(hops=st.integers(1, 5))
    def begin(self, hops: int) -> None:
        """Two apps and the operator, each with an agent; the first app has two, a chain between them, and renewals."""
        self.does("begin")
        apps = [Owner(App(WIDE), self.broker.app(*WIDE)) for _ in range(2)]
        self.owners = [*apps, Owner(App(WIDE), None)]
        for owner in [apps[0], *self.owners]:
            self.do_launch(owner, WIDE, max_ttl=300, is_single_use=True, ttl=30)
            self.do_register(list(self.launched)[-1], WIDE, "a")
        first, second, *_ = self.live_tokens
        self.do_chain(first, second, hops, ttl=300)
        for token in (first, first, self.tokens[-1]):
            self.do_renew(token)

    @precondition(lambda self: len(self.live_tokens) < ENOUGH)
    @rule(owner=any_owner, scope=some_scopes, max_ttl=ttls, is_single_use=st.booleans(), task=st.sampled_from("ab"))
    def employ(self, owner: Owner, scope: Scope | None, max_ttl: int, is_single_use: bool, task: str) -> None:
        """Launch an agent, and try for another one with the same launch token."""
        self.does("employ")
        if owner.app.ceiling:
            allowed = scope or owner.app.ceiling
            self.do_launch(owner, allowed, max_ttl=max_ttl, is_single_use=is_single_use, ttl=60)
            for _ in range(2):
                self.do_register(list(self.launched)[-1], allowed, task)

    @rule(launch=any_launch_token, scope=some_scopes, task=st.sampled_from("ab"))
    def register(self, launch: LaunchToken, scope: Scope | None, task: str) -> None:
        self.does("register")
        self.do_register(launch, scope or launch.scope, task)

    @rule(pair=any_pair, scope=some_scopes, ttl=ttls)
    def delegate(self, pair: tuple[Token, Token], scope: Scope | None, ttl: int) -> None:
        self.does("delegate", *pair)
        self.do_delegate(*pair, scope, ttl)

    @rule(pair=any_pair, hops=st.integers(2, 6), ttl=ttls)
    def delegate_on(self, pair: tuple[Token, Token], hops: int, ttl: int) -> None:
        """Down a chain, to and fro between two agents, until it is refused."""
        self.does("delegate_on", *pair)
        self.do_chain(*pair, hops, ttl)

    @rule(token=any_token)
    def renew(self, token: Token) -> None:
        self.does("renew", token)
        self.do_renew(token)

    @rule(token=any_superseded, after=st.sampled_from([31, 0, 30]))
    def renew_again(self, token: Token, after: int) -> None:
        """Within the time for a lost answer, or later, as a thief would."""
        self.wait(after)
        self.does("renew_again", token)
        self.do_renew(token)

    @rule(token=any_token | any_superseded | any_delegator)
    def release(self, token: Token) -> None:
        self.does("release", token)
        self.expect(self.broker.release(self.issued[token].text), self.world.release(token))

    @rule(level=st.sampled_from(LEVELS), token=any_token | any_superseded | any_delegator)
    def revoke(self, level: str, token: Token) -> None:
        self.does(f"revoke {level}", token)
        if target := self.target_of(level, token):
            self.expect_count(self.do_revoke(level, target), self.world.revoke(level, token))
        else:  # the operator is no app, and a login has no task
            self.expect(self.ask_to_revoke(level, ""), 400)
        for nobody in ("nobody", "*", "%"):
            self.expect_count(self.do_revoke(level, nobody), 0)

    @rule(level=st.sampled_from(LEVELS), token=any_token, of=any_token)
    def misuse(self, level: str, token: Token, of: Token) -> None:
        """An agent or an app tries to revoke."""
        self.does(f"misuse {level}", token, of)
        body = {"level": level, "target": self.target_of(level, of) or "nobody"}
        answer = self.broker.http.post("/v1/revoke", json=body, headers=self.as_holder(token))
        self.expect(answer, 403 if self.world.now < token.expires_at else 401)

    @rule(token=any_token)
    def look(self, token: Token) -> None:
        """The apps ask for one agent's grants."""
        self.does("look", token)
        for owner in self.owners:
            if owner.registered and owner.app.ceiling:
                self.do_look(owner, token.grant.delegate or token.grant)

    @rule(owner=any_app, scope=st.just(WIDE) | scopes, keep=st.booleans())
    def set_ceiling(self, owner: Owner, scope: Scope, keep: bool) -> None:
        self.does("set_ceiling")
        assert owner.registered
        answer = self.broker.http.put(
            f"/v1/admin/apps/{owner.registered.app_id}",
            json={"scopes": list(scope)},
            params={"keep_grants": str(keep).lower()},
            headers=self.as_operator(),
        )
        if not owner.app.ceiling:
            self.expect(answer, 404)
            return
        self.expect(answer, 200)
        ended = self.world.set_ceiling(owner.app, scope, keep)
        self.expect_count(answer.json()["grants_ended"], ended)
        self.reach("narrowed", if_=ended > 0)

    @precondition(lambda self: all(owner.app.ceiling for owner in self.owners))
    @rule(owner=any_app)
    def deregister(self, owner: Owner) -> None:
        self.does("deregister")
        assert owner.registered
        path = f"/v1/admin/apps/{owner.registered.app_id}"
        self.expect(self.broker.http.delete(path, headers=self.as_operator()), 200)
        self.world.set_ceiling(owner.app, (), keep=False)

    @rule(seconds=st.sampled_from([31, 5, 1, 30, 29, 60, 240, 300]))
    def wait(self, seconds: int) -> None:
        self.does("wait")
        self.world.now += seconds
        self.broker.move_to(self.world.now)

    @precondition(lambda self: self.restarts < 1)
    @rule(is_crash=st.booleans(), token=any_token)
    def restart(self, is_crash: bool, token: Token) -> None:
        """What was released just before, like all that ended earlier, stays dead."""
        self.release(token)
        self.check_tokens()
        self.does("restart")
        self.restarts += 1
        self.reach("restarted with dead tokens", if_=any(grant.is_dead() for grant in self.world.grants))
        if is_crash:
            self.broker.kill()
        else:
            self.check(self.broker.stop() == 0, "the broker did not stop cleanly")
        self.broker.start()

    # -- what holds after every step ----------------------------------------------------------------------------------

    @invariant()
    def every_token_is_what_the_reference_says(self) -> None:
        self.check_tokens()

    @invariant()
    def everyone_sees_their_own_live_agents_and_no_others(self) -> None:
        if self.owners:
            self.check_sight()
