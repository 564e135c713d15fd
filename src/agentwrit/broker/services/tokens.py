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
    """The proof that a service was shown along with a token, and its request: empty where it does not say."""

    proof: str = ""
    htm: str = ""
    htu: str = ""


class TokenService:
    """What can be done with a token by whoever has it."""

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
        """Whom a token speaks for, or None if it does not hold, or is bound and was not shown by its holder.

        Raises:
            Unavailable: that the proof of a bound token was used cannot be remembered.
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
        """Whether a token that held still does."""
        return self._authenticator.is_alive(principal)

    async def introspect(self, token: str) -> Claims | None:
        """What a token says to a resource server that was shown it (RFC 7662 §2.2), or None if it does not hold.

        Nothing is known of the request that it came with: a key that it is bound to is the resource server's to check.
        """
        try:
            return (await self._authenticator.alive(token)).claims
        except InvalidToken:
            return None

    async def renew(self, caller: Caller, presented: Presented | None) -> IssuedToken:
        """The successor of an agent's token (see `agentwrit.domain.grant`).

        Raises:
            Unauthorized: for whatever reason it is not renewed.
            RateLimited: it was renewed too often, or its app writes more to the log than it may.
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
        """End the grant of a token: the token itself, its successors, and all that was delegated from it.

        Raises:
            Unauthorized: the token is not genuine, not the caller's, or its time is over.
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
        """Replace the grant's token; the one before is dead with the commit. Also what ended because of it."""
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
        """The app of a grant, if by now it may have such a grant; None for the operator's."""
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
    """End what was delegated from a grant and would live on when its current token is over.

    Whoever revokes an agent could not find it then: it would be below nobody who is alive. What was delegated further
    lives no longer than what it was delegated from.
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
