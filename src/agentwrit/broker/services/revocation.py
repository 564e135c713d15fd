"""Revocation: the operator ends everything that is alive under a name."""

from typing import Final

from agentwrit.broker.services.authentication import Principal
from agentwrit.broker.services.context import Caller, EventData
from agentwrit.broker.services.ending import end_named, said
from agentwrit.broker.services.endings import Endings
from agentwrit.broker.storage.base import Store, Transaction
from agentwrit.domain import text
from agentwrit.domain.audit import EventType
from agentwrit.domain.ending import Ending, EndingLevel, Named
from agentwrit.domain.errors import InvalidRequest
from agentwrit.domain.grant import EndReason
from agentwrit.domain.revocation import RevocationLevel

MAX_REASON_LENGTH: Final = 512
MAX_TARGET_LENGTH: Final = 1024


class RevocationService:
    """Revokes."""

    def __init__(self, store: Store, endings: Endings) -> None:
        self._store = store
        self._endings = endings

    async def revoke(self, caller: Caller, operator: Principal, level: str, target: str, reason: str) -> int:
        """End the live grants with that name, and everything that depends on them.

        Returns how many live tokens this killed: 0 for an unknown name.

        Raises:
            InvalidRequest: the level is unknown, or a text is too long or not printable.
            Unavailable: it could not be made durable. Nothing was revoked.
        """
        if level not in set(RevocationLevel):
            raise InvalidRequest("level names nothing to revoke", hint=f"one of {', '.join(RevocationLevel)}")
        chosen = RevocationLevel(level)
        text.check(target, MAX_TARGET_LENGTH, field="target", shortest=0)
        check_reason(reason)

        def revoke(transaction: Transaction) -> Ending:
            named = Named(level=EndingLevel(level), target=target, client_id=_client_id(transaction, chosen, target))
            why: EventData = {"level": chosen.value, "target": target, "revocation_reason": reason}
            ending = end_named(transaction, caller, operator.name, named, EndReason.REVOKED, why)
            transaction.record(
                caller.event(
                    EventType.TOKEN_REVOKED,
                    detail="the operator revoked what is alive under a name",
                    principal=operator.name,
                    sid=operator.claims.sid,
                    data={**why, "count": ending.count, **said(ending)},
                )
            )
            return ending

        return await self._endings.finish(await self._store.write(revoke))


def _client_id(transaction: Transaction, level: RevocationLevel, target: str) -> str:
    """The name of the app in tokens, if the target is an app."""
    app = transaction.app(target) if level is RevocationLevel.APP else None
    return "" if app is None else app.client_id


def check_reason(reason: str) -> None:
    """Refuse a reason that is too long or not printable.

    Raises:
        InvalidRequest: it is too long, or not printable.
    """
    text.check(reason, MAX_REASON_LENGTH, field="reason", shortest=0)
