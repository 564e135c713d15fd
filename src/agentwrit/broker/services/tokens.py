"""Tokens in use: validating, renewing and releasing them."""

import math
from collections.abc import Awaitable
from typing import Final

import msgspec

from agentwrit.broker.services.authentication import (
    REUSED_PROOF,
    Authenticator,
    NotTheHolder,
    Presenter,
    Principal,
    not_accepted,
    refusal,
)
from agentwrit.broker.services.context import Caller, EventData
from agentwrit.broker.services.denials import Denial, DenialLog
from agentwrit.broker.services.ending import end_grants, end_named
from agentwrit.broker.services.endings import Endings
from agentwrit.broker.services.issuing import IssuedToken, TokenIssuer, holder
from agentwrit.broker.services.log_budget import LogBudget
from agentwrit.broker.services.possession import Possession, Presented, spend, spending
from agentwrit.broker.storage.base import Row, Transaction
from agentwrit.domain import scope
from agentwrit.domain.app import App
from agentwrit.domain.audit import EventType, Outcome
from agentwrit.domain.claims import Claims
from agentwrit.domain.ending import Ending, EndingLevel, Named
from agentwrit.domain.errors import InvalidProof, InvalidToken, RateLimited, Unauthorized
from agentwrit.domain.grant import EndReason, Grant, GrantKind, Renewal, decide_renewal, permit_used, renewable_at
from agentwrit.domain.revocation import Revocation, RevocationKind

RENEWAL_FAILED: Final = "token renewal failed"


class ShownProof(msgspec.Struct, frozen=True, kw_only=True):
    """A proof that a service received with a token, and the request that it came with. Empty if unknown."""

    proof: str = ""
    htm: str = ""
    htu: str = ""


class TokenService:
    """The operations on a token for its holder, and for services that receive it."""

    def __init__(
        self,
        denials: DenialLog,
        issuer: TokenIssuer,
        authenticator: Authenticator,
        possession: Possession,
        log_budget: LogBudget,
        endings: Endings,
    ) -> None:
        self._denials = denials
        self._issuer = issuer
        self._log_budget = log_budget
        self._authenticator = authenticator
        self._possession = possession
        self._endings = endings

    async def validate(self, token: str, shown: ShownProof) -> Principal | None:
        """The principal of a token; None if it is not valid, or is bound and comes without a valid proof.

        Raises:
            Unavailable: the use of a bound token's proof cannot be recorded.
        """
        try:
            principal = await self._authenticator.alive(token)
            if principal.claims.cnf is None:
                return principal
            if not (shown.proof and shown.htm and shown.htu):
                return None
            proof = self._possession.proof_for_another(
                shown.proof, principal.claims, htm=shown.htm, htu=shown.htu, token=token
            )
        except (InvalidToken, InvalidProof):
            return None
        is_new = await self._denials.write(lambda transaction: spend(transaction, proof), reads=spending(proof))
        return principal if is_new and await self.is_alive(principal) else None

    def is_alive(self, principal: Principal) -> Awaitable[bool]:
        """Whether a token that was valid still is."""
        return self._authenticator.is_alive(principal)

    async def introspect(self, token: str) -> Claims | None:
        """The claims of a token, for a resource server that received it (RFC 7662 §2.2); None if it is not valid.

        The request that it came with is unknown, so the resource server has to check the proof of a bound token.
        """
        try:
            return (await self._authenticator.alive(token)).claims
        except InvalidToken:
            return None

    async def renew(self, caller: Caller, presented: Presented | None) -> IssuedToken:
        """The successor of an agent's token (see `agentwrit.domain.grant`).

        Raises:
            Unauthorized: it is not renewed, for any reason.
            RateLimited: it was renewed too often, or its app has used up its budget for the log.
        """
        principal, proof = await self._renewable(caller, presented)

        def renew(transaction: Transaction) -> tuple[IssuedToken | None, Ending | None]:
            ending: Ending | None = None
            if proof is not None and not spend(transaction, proof):
                raise _renewal_failed(caller, REUSED_PROOF, principal)
            grant = transaction.grant(principal.claims.sid)
            if grant is None:
                raise _renewal_failed(caller, InvalidToken("the grant is unknown"), principal)
            decision = decide_renewal(grant, principal.claims.jti, transaction.now)
            if decision is Renewal.REFUSE:
                raise _renewal_failed(caller, InvalidToken("the grant has ended or is about to"), principal)
            if decision is Renewal.REUSE:
                presented: EventData = {"jti": principal.claims.jti}
                ending = end_grants(transaction, caller, grant.subject, [grant], EndReason.RENEWAL_REUSE, presented)
                return None, ending
            if decision is Renewal.TOO_SOON:
                raise _renewed_too_often(caller, principal, renewable_at(grant, transaction.now) - transaction.now)
            if decision is Renewal.SUCCEED:
                self._log_budget.check(caller, grant.client_id, who=holder(grant))
                app = self._app(transaction, caller, principal, grant)
                grant, ending = self._succeed(transaction, caller, grant, app)
            return self._issuer.token(grant, transaction.now), ending

        reads = (*spending(proof), Row("grants", principal.claims.sid))
        issued, ending = await self._denials.write(renew, reads=reads)
        if ending is not None:
            await self._endings.finish(ending)
        if issued is None:
            raise Unauthorized(RENEWAL_FAILED)
        self._log_budget.charge(issued.grant.client_id)
        return issued

    async def release(self, caller: Caller, presented: Presented | None) -> None:
        """End the grant of a token: the token itself, its successors, and all delegations from it.

        Raises:
            Unauthorized: the token is not genuine, has expired, or the caller is not its holder.
            TokenRevoked: the grant has ended already.
        """
        try:
            principal, proof = self._authenticator.presented(presented)
        except InvalidToken as invalid:
            raise await self._authenticator.refused(caller, invalid) from None

        def release(transaction: Transaction) -> Ending | None:
            if proof is not None and not spend(transaction, proof):
                raise not_accepted(caller, REUSED_PROOF)
            grant = transaction.grant(principal.claims.sid)
            if grant is None or grant.is_ended:
                return None
            return end_grants(transaction, caller, grant.subject, [grant], EndReason.RELEASED)

        reads = (*spending(proof), Row("grants", principal.claims.sid))
        already_dead = await self._authenticator.is_grant_dead(principal)
        ending = None if already_dead else await self._denials.write(release, reads=reads)
        if ending is None:
            raise await self._authenticator.revoked(caller, principal)
        await self._endings.finish(ending)

    def _succeed(
        self, transaction: Transaction, caller: Caller, grant: Grant, app: App | None
    ) -> tuple[Grant, Ending | None]:
        """Replace the grant's token; the previous one is dead with the commit. Also returns what this ended."""
        ending: Ending | None = None
        transaction.revoke(
            Revocation(kind=RevocationKind.TOKEN, id=grant.jti, effective_at=int(transaction.now), last_exp=grant.exp)
        )
        successor = self._issuer.renewed(permit_used(grant, transaction.now), app, transaction.now)
        if successor.exp < grant.exp:
            ending = _end_what_outlives(transaction, caller, successor)
        transaction.put(successor)
        data: EventData = {"jti": successor.jti, "previous_jti": grant.jti, "exp": successor.exp}
        transaction.record(
            caller.event(EventType.TOKEN_RENEWED, detail="a token was renewed", **holder(grant), data=data)
        )
        return successor, ending

    async def _renewable(self, caller: Caller, presented: Presented | None) -> Presenter:
        principal: Principal | None = None
        try:
            presenter = self._authenticator.presented(presented)
            principal = presenter.principal
            if principal.kind is not GrantKind.AGENT:
                raise InvalidToken("only an agent's token is renewed")
            if await self._authenticator.is_grant_dead(principal):
                raise InvalidToken("the grant has ended")
        except InvalidToken as invalid:
            if isinstance(invalid, NotTheHolder):
                principal = invalid.principal
            raise await self._denials.record(_renewal_failed(caller, invalid, principal)) from None
        return presenter

    def _app(self, transaction: Transaction, caller: Caller, principal: Principal, grant: Grant) -> App | None:
        """The app of a grant, if it may still have such a grant; None for an operator's agent."""
        if not grant.app_id:
            return None
        app = transaction.app(grant.app_id)
        reason = ""
        if app is None or not app.is_active:
            reason = "the app is not active"
        elif not scope.scope_is_subset(grant.scope, app.scopes):
            reason = "the grant exceeds the ceiling that the app has by now"
        elif self._issuer.uncovered_audience(app, grant.audience):
            reason = "the grant is for others than the app's audiences by now"
        elif app.requires_binding and not grant.is_bound:
            reason = "the grant is not bound, and by now the app's have to be"
        if reason:
            raise _renewal_failed(caller, InvalidToken(reason), principal)
        return app


def _end_what_outlives(transaction: Transaction, caller: Caller, grant: Grant) -> Ending:
    """End delegations from a grant that would outlive its current token.

    A revocation of the agent would not find them later, because no live grant would be above them. Delegations further
    down do not outlive the ones above them.
    """
    outliving = Named(level=EndingLevel.OUTLIVING, target=grant.sid, exp=grant.exp)
    why: EventData = {"ended_with": grant.sid}
    return end_named(transaction, caller, grant.subject, outliving, EndReason.ANCESTOR_SHORTENED, why)


def _renewed_too_often(caller: Caller, principal: Principal, wait: float) -> Denial:
    detail = "the token was renewed too often"
    event = caller.event(EventType.TOKEN_RENEWAL_FAILED, Outcome.DENIED, detail=detail, **principal.who)
    error = RateLimited(
        detail, retry_after=max(1, math.ceil(wait)), hint="a token is renewed when most of its life is over"
    )
    return Denial(error, caller, event, by=principal.claims.client_id, about=(principal.claims.sid, detail))


def _renewal_failed(caller: Caller, invalid: InvalidToken, principal: Principal | None) -> Denial:
    reason = invalid.reason
    if principal is None:
        event = caller.event(EventType.TOKEN_RENEWAL_FAILED, Outcome.DENIED, detail=reason)
    else:
        data: EventData = {"jti": principal.claims.jti}
        event = caller.event(EventType.TOKEN_RENEWAL_FAILED, Outcome.DENIED, detail=reason, **principal.who, data=data)
    by = "" if principal is None else principal.claims.client_id
    return Denial(refusal(invalid, RENEWAL_FAILED), caller, event, by=by)
