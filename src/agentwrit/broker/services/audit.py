"""Reading the audit log."""

from collections.abc import Sequence

import msgspec

from agentwrit.broker.services.authentication import Authenticator, Principal
from agentwrit.broker.services.context import Caller
from agentwrit.broker.storage.base import EventQuery, Snapshot, Store
from agentwrit.domain import app, operator
from agentwrit.domain.audit import Event
from agentwrit.domain.grant import GrantKind

MAX_LIMIT = 1000


class AuditService:
    """Shows events: all to the operator, its own to an app."""

    def __init__(self, store: Store, authenticator: Authenticator) -> None:
        self._store = store
        self._authenticator = authenticator

    async def authorize(self, caller: Caller, token: str | None) -> Principal:
        """Who may read the log.

        Raises:
            Unauthorized, InsufficientScope: not this caller.
        """
        required = {GrantKind.OPERATOR: operator.AUDIT_SCOPE, GrantKind.APP: app.AUDIT_SCOPE}
        return await self._authenticator.require(caller, token, required)

    async def events(self, principal: Principal, query: EventQuery) -> tuple[Sequence[Event], int]:
        """The events that match and that `principal` may see, and how many there are in all."""
        if principal.kind is not GrantKind.OPERATOR:
            query = msgspec.structs.replace(query, app_id=principal.app_id)

        def find(snapshot: Snapshot) -> tuple[Sequence[Event], int]:
            return snapshot.events(query), snapshot.event_count(query)

        return await self._store.read(find)
