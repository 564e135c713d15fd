"""Revocation: the operator ends what is alive under a name."""

from typing import Final

from agentwrit.broker.services.authentication import Principal
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.ending import end_grants
from agentwrit.broker.storage.base import GrantQuery, Store, Transaction
from agentwrit.domain.audit import EventType
from agentwrit.domain.errors import InvalidRequest
from agentwrit.domain.grant import EndReason
from agentwrit.domain.revocation import RevocationLevel, names

MAX_REASON_LENGTH: Final = 512
MAX_TARGET_LENGTH: Final = 1024


class RevocationService:
    """Revokes."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def revoke(self, caller: Caller, operator: Principal, level: str, target: str, reason: str) -> int:
        """End the grants of that name that are alive now, and all that falls with them, in one transaction.

        Returns how many live tokens that killed: for a name that nobody has, none.

        Raises:
            InvalidRequest: there is no such level, or a text is too long or not printable.
            Unavailable: it could not be made durable. Nothing was revoked.
        """
        if level not in set(RevocationLevel):
            raise InvalidRequest("level names nothing to revoke", hint=f"one of {', '.join(RevocationLevel)}")
        chosen = RevocationLevel(level)
        _check_text("target", target, MAX_TARGET_LENGTH)
        check_reason(reason)

        def revoke(transaction: Transaction) -> int:
            found = transaction.grants(_query(chosen, target, transaction.now))
            named = [grant for grant in found if names(chosen, target, grant)]
            why = {"level": chosen.value, "target": target, "revocation_reason": reason}
            ended = end_grants(transaction, caller, operator.name, named, EndReason.REVOKED, {**why})
            transaction.record(
                caller.event(
                    EventType.TOKEN_REVOKED,
                    detail="the operator revoked what is alive under a name",
                    principal=operator.name,
                    sid=operator.claims.sid,
                    data={**why, "count": len(ended)},
                )
            )
            return len(ended)

        return await self._store.write(revoke)


def _query(level: RevocationLevel, target: str, now: float) -> GrantQuery:
    """Where to look for what a revocation names."""
    match level:
        case RevocationLevel.TOKEN:
            return GrantQuery(live_at=now, jti=target)
        case RevocationLevel.AGENT:
            return GrantQuery(live_at=now, subject=target)
        case RevocationLevel.TASK:
            return GrantQuery(live_at=now, task_id=target)
        case RevocationLevel.CHAIN:
            return GrantQuery(live_at=now, subject=target, parent="")
        case RevocationLevel.GRANT:
            return GrantQuery(live_at=now, sid=target)
        case RevocationLevel.APP:
            return GrantQuery(live_at=now, app_id=target)


def check_reason(reason: str) -> None:
    """Refuse a reason that does not fit into a line.

    Raises:
        InvalidRequest: it is too long, or not printable.
    """
    _check_text("reason", reason, MAX_REASON_LENGTH)


def _check_text(field: str, text: str, longest: int) -> None:
    if len(text) > longest or not text.isprintable():
        raise InvalidRequest(f"{field} takes up to {longest} printable characters")
