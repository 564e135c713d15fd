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
    """A page of events, the total number of matches, and the event up to which the log was removed after archiving."""

    events: Sequence[Event]
    total: int
    pruned: int


class _Total(NamedTuple):
    """The number of matching events after `pruned` and up to `head`."""

    pruned: int
    head: int
    matching: int


class AuditService:
    """Shows events: all of them to operators, its own to an app."""

    def __init__(self, store: Store, authenticator: Authenticator) -> None:
        self._store = store
        self._authenticator = authenticator
        # A count remains valid until some of its events are archived, so that a million need not be counted for each
        # page.
        self._totals: OrderedDict[EventQuery, _Total] = OrderedDict()

    async def authorize(self, caller: Caller, token: str | None) -> Principal:
        """The principal, if it may read the log.

        Raises:
            Unauthorized, InsufficientScope: the caller may not.
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
