"""Ending grants and everything below them (see `agentwrit.domain.ending`).

These functions run in a unit of work. The ending that they return may be unfinished; `endings.Endings` completes it.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from agentwrit.broker.services.context import Caller, EventData
from agentwrit.broker.services.limits import make_room
from agentwrit.broker.storage.base import GrantQuery, Transaction
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.ending import Announced, End, Ending, EndingLevel, Named, Todo, TodoKind
from agentwrit.domain.grant import EndReason, Grant, GrantKind
from agentwrit.domain.revocation import Revocation, RevocationKind

AT_ONCE: Final = 128
"""Grants that one unit of work ends. It keeps the event loop busy for 5 to 10 ms."""

WITH_THEM: Final = 64
"""Dependent grants that may be ended in addition. Most grants have none, and one query shows that."""

_DETAILS: Final = {
    EndReason.RELEASED: "a grant was released",
    EndReason.RENEWAL_REUSE: "a superseded token was presented to be renewed: it is taken for stolen",
    EndReason.APP_DEREGISTERED: "a grant ended with its app",
    EndReason.APP_SUSPENDED: "a grant ended with the suspension of its app",
    EndReason.CEILING_NARROWED: "a grant exceeded its app's new ceiling",
    EndReason.SECRET_ROTATED: "a grant ended with the secret that it was given on",
    EndReason.OPERATOR_REMOVED: "a grant ended with the operator whose it was",
    EndReason.KEY_REVOKED: "a grant ended with the key that signed its token",
    EndReason.REVOKED: "a grant was revoked",
    EndReason.ANCESTOR_ENDED: "a grant ended with the one that it was delegated from",
    EndReason.ANCESTOR_SHORTENED: "a grant would have outlived the renewed token of the one that it was delegated from",
    EndReason.DELEGATE_ENDED: "a grant ended with the registration of the agent that it was delegated to",
    EndReason.STORE_RESTORED: "a grant ended because the store was restored from a backup",
    EndReason.STORE_PROMOTED: "a grant ended because commits may have been lost when a database server was promoted",
}


def end_grants(
    transaction: Transaction,
    caller: Caller,
    actor: str,
    grants: Iterable[Grant],
    reason: EndReason,
    data: EventData | None = None,
) -> Ending:
    """End these few live grants and everything below them: their tokens are dead with the commit.

    Records an event for each. `actor`: the principal that does it; `data`: additional data for the events of `grants`
    themselves.
    """
    ending = _begin(transaction, caller, actor, reason, data, None)
    return _advance(transaction, ending, roots=list(grants))


def end_named(
    transaction: Transaction,
    caller: Caller,
    actor: str,
    named: Named,
    reason: EndReason,
    data: EventData | None = None,
) -> Ending:
    """As `end_grants`, for all live grants that `named` covers, however many there are."""
    return _advance(transaction, _begin(transaction, caller, actor, reason, data, named))


def said(ending: Ending) -> EventData:
    """What the event of a change says about the ending that it begins: its ID, if the ending is not over yet."""
    return {} if ending.is_over else {"ending": ending.id}


def _begin(
    transaction: Transaction,
    caller: Caller,
    actor: str,
    reason: EndReason,
    data: EventData | None,
    named: Named | None,
) -> Ending:
    return Ending(
        id=secrets.token_hex(16),
        at=transaction.head.sequence,
        began_at=int(transaction.now),
        reason=reason.value,
        actor=actor,
        named=named,
        data=data or {},
        client_address=caller.address,
        resource=caller.route,
        request_id=caller.request_id,
        trace_id=caller.trace_id,
        todo=() if named is None else _first(named),
    )


def _first(named: Named) -> tuple[Todo, ...]:
    """The initial work, as a stack: the last entry is done first. Logins end before agents."""
    match named.level:
        case EndingLevel.APP:
            return tuple(Todo(kind=TodoKind.NAMED, of_kind=kind) for kind in (GrantKind.AGENT, GrantKind.APP))
        case EndingLevel.AGENT:
            held = Todo(kind=TodoKind.DELEGATES, name=named.target)
            return (held, Todo(kind=TodoKind.NAMED))
        case EndingLevel.KEY | EndingLevel.ALL:  # one kind at a time, because the index of live grants is by kind
            kinds = (GrantKind.AGENT, GrantKind.APP, GrantKind.OPERATOR)
            return tuple(Todo(kind=TodoKind.NAMED, of_kind=kind) for kind in kinds)
        case _:
            return (Todo(kind=TodoKind.NAMED),)


def go_on(transaction: Transaction, ending: Ending, *, at_once: int = AT_ONCE) -> Ending:
    """End about `at_once` more of an ending's grants. The ending has a record."""
    return _advance(transaction, ending, is_recorded=True, at_once=at_once)


def _advance(
    transaction: Transaction,
    ending: Ending,
    roots: Sequence[Grant] = (),
    *,
    is_recorded: bool = False,
    at_once: int = AT_ONCE,
) -> Ending:
    """End as many grants as one unit of work may, and record the progress if more are left."""
    work = _Work(transaction, ending, is_recorded=is_recorded, at_once=at_once)
    work.begin_with(roots)
    work.go_on()
    return work.close()


class _Found(NamedTuple):
    """The end of a grant. `top`: the grant with which everything below it ends."""

    end: End
    top: str


class _Work:
    """One unit of work's part of an ending: first find what is to end, then end it.

    This order matters on PostgreSQL, where a unit is run again for each row that it has to read.
    """

    def __init__(self, transaction: Transaction, ending: Ending, *, is_recorded: bool, at_once: int) -> None:
        self._transaction = transaction
        self._ending = ending
        self._is_recorded = is_recorded
        self._caller = Caller(
            address=ending.client_address,
            route=ending.resource,
            request_id=ending.request_id,
            trace_id=ending.trace_id,
        )
        self._todo = list(ending.todo)
        self._budget = at_once
        self._found: dict[str, _Found] = {}
        self._reason = EndReason(ending.reason)
        self._event_of_named = self._event(self._reason, ending.data)
        self._events_of_fallen: dict[tuple[EndReason, str], Draft] = {}

    def begin_with(self, roots: Sequence[Grant]) -> None:
        """Find what depends on the grants with which the ending begins."""
        self._fall([self._named(grant) for grant in roots])

    def go_on(self) -> None:
        """Find more of what is to end, up to the limit."""
        while self._todo and self._budget > 0:
            todo = self._todo.pop()
            page = self._transaction.grant_page(self._query(todo), behind=todo.behind, limit=self._budget)
            self._budget -= max(1, page.looked_at)
            if not page.is_last:
                self._todo.append(msgspec.structs.replace(todo, behind=page.place))
            found = [self._end_for(todo, grant) for grant in page.grants if grant.sid not in self._found]
            self._fall([each for each in found if each is not None])

    def close(self) -> Ending:
        """End what was found. Returns the updated ending, with a record of it if it has or needs one."""
        before, transaction = self._ending, self._transaction
        transaction.end([found.end for found in self._found.values()])
        make_room(transaction, [found.end.grant for found in self._found.values()])
        is_over = not self._todo
        ending = msgspec.structs.replace(
            before,
            todo=tuple(self._todo),
            count=before.count + len(self._found),
            done_at=int(transaction.now) if is_over else 0,
        )
        if is_over and not self._is_recorded:
            return ending
        known = {todo.name for todo in before.todo if self._is_recorded and todo.kind is TodoKind.DELEGATES}
        for entry in ending.barred(transaction.now):
            if entry.id not in known:
                transaction.revoke(entry)
        if not self._is_recorded:
            self._announce(ending)
        elif is_over:
            self._record(EventType.ENDING_COMPLETED, "all that was to end has ended", {"count": ending.count})
        transaction.put(ending)
        return ending

    # -- finding ------------------------------------------------------------------------------------------------------

    def _query(self, todo: Todo) -> GrantQuery:
        now = self._transaction.now
        match todo.kind:
            case TodoKind.BELOW:
                return GrantQuery(live_at=now, parent=todo.name)
            case TodoKind.DELEGATES:
                return GrantQuery(live_at=now, subject=todo.name, is_delegated=True)
            case TodoKind.NAMED:
                named = self._ending.named or Named(level=EndingLevel.GRANT)
                query = _QUERIES[named.level](named)
                return msgspec.structs.replace(query, live_at=now, kind=todo.of_kind or query.kind)

    def _named(self, grant: Grant) -> _Found:
        return _Found(End(grant, self._reason, self._event_of_named), grant.sid)

    def _end_for(self, todo: Todo, grant: Grant) -> _Found | None:
        """The end of a grant that was found for `todo`, if it ends."""
        if todo.kind is not TodoKind.NAMED:
            return self._end_of_fallen(grant, todo.kind, todo.ended_with)
        named = self._ending.named
        if named is not None and named.ends_later(grant):
            kind = RevocationKind.GRANT
            self._transaction.revoke(Revocation(kind=kind, id=grant.sid, effective_at=named.until, last_exp=grant.exp))
        return self._named(grant) if self._ending.names(grant) else None

    def _end_of_fallen(self, grant: Grant, kind: TodoKind, ended_with: str) -> _Found:
        """The end of a dependent grant: as a named one if the ending names it too."""
        if self._ending.names(grant):
            return self._named(grant)
        is_below = kind is TodoKind.BELOW
        why = EndReason.ANCESTOR_ENDED if is_below else EndReason.DELEGATE_ENDED
        event = self._events_of_fallen.get((why, ended_with))
        if event is None:
            event = self._events_of_fallen[why, ended_with] = self._event(why, {"ended_with": ended_with})
        return _Found(End(grant, why, event), ended_with if is_below else grant.sid)

    def _fall(self, found: Sequence[_Found]) -> None:
        """Find what depends on these grants, generation by generation, or put it on the stack if there is too much."""
        while found:
            self._found |= {each.end.grant.sid: each for each in found}
            tops = {each.end.grant.sid: each.top for each in found}
            agents = {each.end.grant.subject: each.end.grant.sid for each in found if each.end.grant.is_registration}
            falling = self._falling(tuple(tops), tuple(agents))
            if falling is None:
                self._todo += [Todo(kind=TodoKind.BELOW, name=sid, ended_with=top) for sid, top in tops.items()]
                self._todo += [
                    Todo(kind=TodoKind.DELEGATES, name=agent, ended_with=sid)
                    for agent, sid in agents.items()
                    if self._is_delegate(agent)
                ]
                return
            self._budget -= len(falling)
            found = [
                self._end_of_fallen(grant, TodoKind.BELOW, tops[grant.parent_sid])
                if grant.parent_sid in tops
                else self._end_of_fallen(grant, TodoKind.DELEGATES, agents[grant.subject])
                for grant in falling
            ]

    def _falling(self, sids: tuple[str, ...], agents: tuple[str, ...]) -> Sequence[Grant] | None:
        """What depends on grants and agents; None if that is more than this unit of work may end."""
        now, limit = self._transaction.now, max(self._budget, WITH_THEM) + 1
        found = self._transaction.grants(GrantQuery(live_at=now, falling_with=(sids, agents), limit=limit))
        return None if len(found) >= limit else [grant for grant in found if grant.sid not in self._found]

    def _is_delegate(self, agent: str) -> bool:
        """Whether a live agent has received a delegation."""
        query = GrantQuery(live_at=self._transaction.now, subject=agent, is_delegated=True, limit=1)
        return bool(self._transaction.grants(query))

    # -- ending -------------------------------------------------------------------------------------------------------

    def _event(self, why: EndReason, data: EventData) -> Draft:
        """The event for each grant that ends for this reason, without the grant's own fields."""
        event_type = EventType.TOKEN_RELEASED if why is EndReason.RELEASED else EventType.TOKEN_REVOKED
        more: EventData = {"reason": why.value, **data}
        return self._caller.event(event_type, detail=_DETAILS[why], principal=self._ending.actor, data=more)

    def _announce(self, ending: Ending) -> None:
        announced = Announced.of(ending)
        if announced is not None:
            self._transaction.revoke(announced.entry(self._transaction.now))
        named = ending.named
        data: EventData = {} if named is None else {"level": named.level.value, "target": named.target}
        self._record(EventType.ENDING_BEGUN, "more is to end than one commit can hold: it is refused from now on", data)

    def _record(self, event_type: EventType, detail: str, data: EventData) -> None:
        more: EventData = {"ending": self._ending.id, "reason": self._ending.reason, **data}
        self._transaction.record(self._caller.event(event_type, detail=detail, principal=self._ending.actor, data=more))


_QUERIES: Final[Mapping[EndingLevel, Callable[[Named], GrantQuery]]] = {
    EndingLevel.TOKEN: lambda named: GrantQuery(jti=named.target),
    EndingLevel.GRANT: lambda named: GrantQuery(sid=named.target),
    EndingLevel.CHAIN: lambda named: GrantQuery(subject=named.target, parent=""),
    EndingLevel.AGENT: lambda named: GrantQuery(subject=named.target, parent=""),
    EndingLevel.TASK: lambda named: GrantQuery(task_id=named.target),
    EndingLevel.APP: lambda named: GrantQuery(app_id=named.target),
    EndingLevel.CEILING: lambda named: GrantQuery(app_id=named.target, kind=GrantKind.AGENT),
    EndingLevel.SECRET: lambda named: GrantQuery(app_id=named.target, kind=GrantKind.APP),
    EndingLevel.OPERATOR: lambda named: GrantQuery(kind=GrantKind.OPERATOR),
    EndingLevel.KEY: lambda named: GrantQuery(signed_by=named.target),
    EndingLevel.OUTLIVING: lambda named: GrantQuery(parent=named.target),
    EndingLevel.ALL: lambda named: GrantQuery(),
}
