"""Listing agents: which are alive, and what was delegated from what."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from agentwrit.broker.clock import Clock
from agentwrit.broker.services.authentication import Authenticator, Principal
from agentwrit.broker.services.context import Caller
from agentwrit.broker.storage.base import GrantQuery, Snapshot, Store
from agentwrit.domain import app, operator
from agentwrit.domain.errors import InvalidRequest, NotFound
from agentwrit.domain.grant import Grant, GrantKind

MAX_LIMIT: Final = 1000


class AgentPage(msgspec.Struct, frozen=True, kw_only=True):
    """Live agents' grants in order of creation. `next`: the sid after which the next page starts, if there is one."""

    grants: Sequence[Grant]
    next: str | None


class GrantTree(msgspec.Struct, frozen=True, kw_only=True):
    """A grant as of the time `now`, and the delegations from it."""

    grant: Grant
    now: float
    delegations: Sequence["GrantTree"]


class AgentService:
    """Shows agents: all of them to operators, its own to an app."""

    def __init__(self, store: Store, authenticator: Authenticator, clock: Clock) -> None:
        self._store = store
        self._authenticator = authenticator
        self._clock = clock

    async def authorize(self, caller: Caller, token: str | None) -> Principal:
        """The principal, if it may list agents.

        Raises:
            Unauthorized, TokenRevoked, InsufficientScope: the caller may not.
        """
        required = {GrantKind.OPERATOR: operator.AUDIT_SCOPE, GrantKind.APP: app.AGENTS_SCOPE}
        return await self._authenticator.require(caller, token, required)

    async def list(self, principal: Principal, query: GrantQuery, *, limit: int) -> AgentPage:
        """A page of at most `limit` live grants that match and that `principal` may see.

        Raises:
            InvalidRequest: `query.after` is not a known grant, or an app asks for another app's agents.
        """
        limited = msgspec.structs.replace(_seen_by(principal, query), live_at=self._clock.now(), limit=limit + 1)

        def find(snapshot: Snapshot) -> Sequence[Grant]:
            if limited.after is not None and snapshot.grant(limited.after) is None:
                raise InvalidRequest("after is no sid of this list", hint="start again without it")
            return snapshot.grants(limited)

        found = await self._store.read(find)
        page = found[:limit]
        return AgentPage(grants=page, next=page[-1].sid if len(found) > limit else None)

    async def show(self, principal: Principal, agent_id: str) -> Sequence[GrantTree]:
        """All grants of an agent that the store still has, each with the delegations from it.

        Raises:
            NotFound: there is no such agent, or it belongs to another app.
        """
        query = _seen_by(principal, GrantQuery(subject=agent_id))
        now = self._clock.now()

        def find(snapshot: Snapshot) -> Sequence[GrantTree]:
            held = snapshot.grants(query)
            roots = {grant.tree or grant.sid for grant in held}
            below = [grant for root in roots for grant in snapshot.grants(GrantQuery(tree=root))]
            children = defaultdict(list)
            for grant in below:
                children[grant.parent_sid].append(grant)
            sids = {grant.sid for grant in held}
            tops = [grant for grant in held if not any(record.sid in sids for record in grant.chain)]
            return [_tree(grant, children, now) for grant in tops]

        trees = await self._store.read(find)
        if not trees:
            raise NotFound("no such agent", hint="`agentwrit agents list` shows those that are alive")
        return trees


def _seen_by(principal: Principal, query: GrantQuery) -> GrantQuery:
    """The query, limited to the agents that the principal may see."""
    if principal.kind is GrantKind.APP:
        if query.app_id not in (None, principal.app_id):
            raise InvalidRequest("app_id takes no other app than the one that asks")
        query = msgspec.structs.replace(query, app_id=principal.app_id)
    return msgspec.structs.replace(query, kind=GrantKind.AGENT)


def _tree(grant: Grant, children: Mapping[str, Sequence[Grant]], now: float) -> GrantTree:
    """A grant and the delegations from it. `children`: grants by the sid of the grant that they were delegated from."""
    below = [_tree(child, children, now) for child in children.get(grant.sid, ())]
    return GrantTree(grant=grant, now=now, delegations=below)
