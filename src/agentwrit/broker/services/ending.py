"""Ending grants, with all that falls with them."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from agentwrit.broker.services.context import Caller, EventData
from agentwrit.broker.services.issuing import holder
from agentwrit.broker.services.limits import make_room
from agentwrit.broker.storage.base import GrantQuery, Transaction
from agentwrit.domain.audit import EventType
from agentwrit.domain.grant import EndReason, Grant, ended, falls_with
from agentwrit.domain.revocation import Revocation, RevocationKind

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
}


def end_grants(
    transaction: Transaction,
    caller: Caller,
    actor: str,
    grants: Iterable[Grant],
    reason: EndReason,
    data: EventData | None = None,
) -> Sequence[Grant]:
    """End live grants, and what falls with them: their tokens are dead as soon as the transaction is committed.

    Records an event for each. `actor`: the subject of whoever does it; `data`: more to say of `grants` themselves.
    Returns what this ended, each grant once; each had one live token.
    """
    done: dict[str, Grant] = {}
    waiting = deque((grant, reason, data or {}) for grant in grants)
    while waiting:
        grant, why, said = waiting.popleft()
        if grant.sid in done:
            continue
        done[grant.sid] = grant
        transaction.put_grant(ended(grant, why, transaction.now))
        revoke_grant(transaction, grant, effective_at=int(transaction.now))
        who = holder(grant)
        who["principal"] = actor
        event_type = EventType.TOKEN_RELEASED if why is EndReason.RELEASED else EventType.TOKEN_REVOKED
        event_data: EventData = {"jti": grant.jti, "reason": why.value, **said}
        transaction.record(caller.event(event_type, detail=_DETAILS[why], **who, data=event_data))
        for other, fate in _falling_with(transaction, grant):
            waiting.append((other, fate, {"ended_with": grant.sid}))
    make_room(transaction, done.values())
    return list(done.values())


def revoke_grant(transaction: Transaction, of: Grant, *, effective_at: int) -> None:
    """Let a grant's tokens be dead from `effective_at` on (Unix seconds)."""
    transaction.revoke(Revocation(kind=RevocationKind.GRANT, id=of.sid, effective_at=effective_at, last_exp=of.exp))


def _falling_with(transaction: Transaction, grant: Grant) -> Iterator[tuple[Grant, EndReason]]:
    """The live grants that end with this one."""
    found = list(transaction.grants(GrantQuery(live_at=transaction.now, below=grant.sid)))
    if grant.is_registration:
        found += transaction.grants(GrantQuery(live_at=transaction.now, subject=grant.subject))
    for other in found:
        fate = falls_with(grant, other)
        if fate is not None:
            yield other, fate
