"""Reading the audit log."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from agentwrit.broker.services.authentication import Authenticator, Principal
from agentwrit.broker.services.context import Caller
from agentwrit.broker.storage.base import EventQuery, Snapshot, Store
from agentwrit.domain import app, operator
from agentwrit.domain.audit import Event
from agentwrit.domain.grant import GrantKind

MAX_LIMIT: Final = 1000
TOTALS_REMEMBERED: Final = 256


class Found(NamedTuple):
    """A page of events, how many match in all, and up to where the log was archived: those are no longer here."""

    events: Sequence[Event]
    total: int
    pruned: int


class _Total(NamedTuple):
    """How many events match, of those behind `pruned` and up to `head`."""

    pruned: int
    head: int
    matching: int


class AuditService:
    """Shows events: all to the operator, its own to an app."""

    def __init__(self, store: Store, authenticator: Authenticator) -> None:
        self._store = store
        self._authenticator = authenticator
        # What was counted once stays counted until some of it is archived: a million need not be counted for each page.
        self._totals: OrderedDict[EventQuery, _Total] = OrderedDict()

    async def authorize(self, caller: Caller, token: str | None) -> Principal:
        """Who may read the log.

        Raises:
            Unauthorized, InsufficientScope: not this caller.
        """
        required = {GrantKind.OPERATOR: operator.AUDIT_SCOPE, GrantKind.APP: app.AUDIT_SCOPE}
        return await self._authenticator.require(caller, token, required)

    async def events(self, principal: Principal, query: EventQuery) -> Found:
        """The events that match and that `principal` may see."""
        if principal.kind is not GrantKind.OPERATOR:
            query = msgspec.structs.replace(query, app_id=principal.app_id)

        filters = query.filters()
        remembered = self._totals.pop(filters, _Total(0, 0, 0))

        def find(snapshot: Snapshot) -> tuple[Sequence[Event], _Total]:
            pruned = snapshot.pruned()
            known = remembered if remembered.pruned == pruned else _Total(pruned, 0, 0)
            count = known.matching + snapshot.event_count(filters, behind=known.head)
            return snapshot.events(query), _Total(pruned, snapshot.event_head(), count)

        events, total = await self._store.read(find)
        self._totals[filters] = total
        if len(self._totals) > TOTALS_REMEMBERED:
            self._totals.popitem(last=False)
        return Found(events, total.matching, total.pruned)
