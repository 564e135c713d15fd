"""Recording what resource servers report about the use of tokens."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from agentwrit.broker.services.authentication import Authenticator, Principal
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.denials import Denial, DenialLog
from agentwrit.broker.services.issuing import holder
from agentwrit.broker.services.log_budget import LogBudget
from agentwrit.broker.storage.base import Transaction
from agentwrit.domain import access, app, idempotency, timestamps
from agentwrit.domain.access import Access, Receipt, Refused
from agentwrit.domain.audit import Draft, EventType, Outcome
from agentwrit.domain.errors import InvalidRequest, RateLimited, Refusal
from agentwrit.domain.grant import Grant, GrantKind
from agentwrit.domain.idempotency import RequestIdentity
from agentwrit.domain.revocation import RevocationKind


class AccessService:
    """Records reports, as far as the reporter may report them (see `agentwrit.domain.access`)."""

    def __init__(self, denials: DenialLog, authenticator: Authenticator, log_budget: LogBudget) -> None:
        self._denials = denials
        self._authenticator = authenticator
        self._log_budget = log_budget

    async def authorize(self, caller: Caller, token: str | None) -> Principal:
        """The app that reports.

        Raises:
            Unauthorized, InsufficientScope: the caller is not an app that may report.
        """
        return await self._authenticator.require(caller, token, {GrantKind.APP: app.REPORT_SCOPE})

    async def report(
        self, caller: Caller, reporter: Principal, accesses: Sequence[Access], *, idempotency_key: str | None
    ) -> Receipt:
        """Record the acceptable accesses of a report in one transaction. A retry under the same key is recorded once.

        Raises:
            InvalidRequest: the idempotency key is invalid.
            Conflict: the idempotency key was used for another report.
            RateLimited: the app has used up its budget for the log.
        """
        identity = _identify(caller, reporter, accesses, idempotency_key)

        def record(transaction: Transaction) -> tuple[Receipt, bool]:
            now = transaction.now
            first = None if identity is None else transaction.first_answer(identity.key)
            if identity is not None and first is not None and first.receipt is not None and now < first.expires_at:
                identity.check_same(first)
                return first.receipt, False
            self._log_budget.check(caller, reporter.claims.client_id, who=reporter.who)
            receipt = _record(transaction, caller, reporter, accesses)
            if identity is not None:
                transaction.put(identity.answered(receipt, now))
            return receipt, True

        receipt, is_new = await self._denials.write(record)
        if is_new:
            # An event holds each used scope beside the granted scope that covers it.
            scopes = [used for one in accesses for used in one.scope]
            self._log_budget.charge(reporter.claims.client_id, receipt.recorded, (*scopes, *scopes))
        if is_new and receipt.refused:
            await self._denials.record(_not_taken(caller, reporter, receipt))
        return receipt

    async def rate_limited(self, caller: Caller, reporter: Principal, *, retry_after: int) -> Refusal:
        """Record that an app reports too fast. Returns the error for the app. `retry_after`: seconds."""
        event = caller.event(
            EventType.APP_RATE_LIMITED, Outcome.DENIED, detail="too many accesses were reported", **reporter.who
        )
        error = RateLimited("too many accesses are reported at once", retry_after=retry_after)
        return await self._denials.record(Denial(error, caller, event, by=reporter.claims.client_id))


def _record(transaction: Transaction, caller: Caller, reporter: Principal, accesses: Sequence[Access]) -> Receipt:
    by = transaction.app(reporter.app_id)
    audiences = () if by is None else by.reports_for  # the app's present audiences, not those of the token
    refused: list[Refused] = []
    for index, one in enumerate(accesses):
        grant = transaction.grant(one.sid)
        is_superseded = transaction.revocation(RevocationKind.TOKEN, one.jti) is not None
        reason = access.decide(one, grant, audiences, transaction.now, is_superseded=is_superseded)
        if reason is not None or grant is None:
            refused.append(Refused(index, reason or access.NotTaken.TOKEN))
        else:
            transaction.record(_event(caller, reporter, one, grant))
    return Receipt(len(accesses) - len(refused), tuple(refused))


def _event(caller: Caller, reporter: Principal, one: Access, grant: Grant) -> Draft:
    who = holder(grant)
    who["principal"] = reporter.claims.sub
    event = caller.event(
        EventType.RESOURCE_ACCESSED,
        one.outcome,
        detail="a resource server reported what was done",
        **who,
        data={
            "jti": one.jti,
            "scope_used": list(one.scope),
            "scope_granted": access.granted_as(one.scope, grant.scope),
            "parent_sids": [record.sid for record in grant.chain],
            "original_principal": grant.chain[0].agent if grant.chain else grant.subject,
            "count": one.count,
            "first": timestamps.rfc3339_micros(one.first),
            "last": timestamps.rfc3339_micros(one.last),
        },
    )
    return msgspec.structs.replace(event, resource=one.resource)


def _not_taken(caller: Caller, reporter: Principal, receipt: Receipt) -> Denial:
    reasons = Counter(refused.reason.value for refused in receipt.refused)
    event = caller.event(
        EventType.ACCESS_REPORT_DENIED,
        Outcome.DENIED,
        detail="an app reported what cannot be believed",
        **reporter.who,
        data={"reasons": sorted(reasons), "accesses_refused": len(receipt.refused)},
    )
    error = InvalidRequest("an access cannot be believed")
    return Denial(error, caller, event, by=reporter.claims.client_id)


def _identify(
    caller: Caller, reporter: Principal, accesses: Sequence[Access], key: str | None
) -> RequestIdentity | None:
    if key is None:
        return None
    return idempotency.identify(key, route=caller.route, caller=reporter.app_id, body=access.report(accesses))
