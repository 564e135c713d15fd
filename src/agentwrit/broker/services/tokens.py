"""Tokens in use: validating, renewing and releasing them."""

from collections.abc import Awaitable

from agentwrit.broker.services.authentication import Authenticator, Principal
from agentwrit.broker.services.context import Caller, EventData
from agentwrit.broker.services.denials import DenialLog, StrangerDenied
from agentwrit.broker.services.ending import end_grants
from agentwrit.broker.services.issuing import IssuedToken, TokenIssuer, holder
from agentwrit.broker.storage.base import Transaction
from agentwrit.domain import scope
from agentwrit.domain.audit import EventType, Outcome
from agentwrit.domain.claims import Claims
from agentwrit.domain.errors import InvalidToken, Unauthorized
from agentwrit.domain.grant import EndReason, Grant, GrantKind, Renewal, decide_renewal
from agentwrit.domain.revocation import Revocation, RevocationKind


class TokenService:
    """What can be done with a token by whoever has it."""

    def __init__(self, denials: DenialLog, issuer: TokenIssuer, authenticator: Authenticator) -> None:
        self._denials = denials
        self._issuer = issuer
        self._authenticator = authenticator

    async def validate(self, token: str) -> Principal | None:
        """Whom a token speaks for, or None if it does not hold."""
        try:
            return await self._authenticator.alive(token)
        except InvalidToken:
            return None

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

    async def renew(self, caller: Caller, token: str | None) -> IssuedToken:
        """The successor of an agent's token (see `agentwrit.domain.grant`).

        Raises:
            Unauthorized: for whatever reason it is not renewed.
        """
        principal = await self._renewable(caller, token)

        def renew(transaction: Transaction) -> IssuedToken | None:
            grant = transaction.grant(principal.claims.sid)
            if grant is None:
                raise _renewal_failed(caller, "the grant is unknown", principal)
            decision = decide_renewal(grant, principal.claims.jti, transaction.now)
            if decision is Renewal.REFUSE:
                raise _renewal_failed(caller, "the grant has ended or is about to", principal)
            if decision is Renewal.REUSE:
                presented: EventData = {"jti": principal.claims.jti}
                end_grants(transaction, caller, grant.subject, [grant], EndReason.RENEWAL_REUSE, presented)
                return None
            if decision is Renewal.SUCCEED:
                self._check_app(transaction, caller, principal, grant)
                grant = self._succeed(transaction, caller, grant)
            return self._issuer.token(grant, transaction.now)

        issued = await self._denials.write(renew)
        if issued is None:
            raise _failure()
        return issued

    async def release(self, caller: Caller, token: str | None) -> None:
        """End the grant of a token: the token itself, its successors, and all that was delegated from it.

        Raises:
            Unauthorized: the token is not genuine, or its time is over.
            TokenRevoked: the grant has ended already.
        """
        try:
            if token is None:
                raise InvalidToken("no bearer token")
            principal = self._authenticator.genuine(token)
        except InvalidToken as invalid:
            raise await self._authenticator.refused(caller, invalid) from None

        def release(transaction: Transaction) -> bool:
            grant = transaction.grant(principal.claims.sid)
            if grant is None or grant.is_ended:
                return False
            end_grants(transaction, caller, grant.subject, [grant], EndReason.RELEASED)
            return True

        already_dead = await self._authenticator.is_grant_dead(principal)
        if already_dead or not await self._denials.write(release):
            raise await self._authenticator.revoked(caller, principal)

    def _succeed(self, transaction: Transaction, caller: Caller, grant: Grant) -> Grant:
        """Replace the grant's token; the one before is dead with the commit."""
        transaction.revoke(
            Revocation(kind=RevocationKind.TOKEN, id=grant.jti, effective_at=int(transaction.now), last_exp=grant.exp)
        )
        successor = self._issuer.renewed(grant, transaction.now)
        transaction.put_grant(successor)
        data: EventData = {"jti": successor.jti, "previous_jti": grant.jti, "exp": successor.exp}
        transaction.record(
            caller.event(EventType.TOKEN_RENEWED, detail="a token was renewed", **holder(grant), data=data)
        )
        return successor

    async def _renewable(self, caller: Caller, token: str | None) -> Principal:
        principal: Principal | None = None
        try:
            if token is None:
                raise InvalidToken("no bearer token")
            principal = self._authenticator.genuine(token)
            if principal.kind is not GrantKind.AGENT:
                raise InvalidToken("only an agent's token is renewed")
            if await self._authenticator.is_grant_dead(principal):
                raise InvalidToken("the grant has ended")
        except InvalidToken as invalid:
            raise await self._denials.record(_renewal_failed(caller, invalid.reason, principal)) from None
        return principal

    def _check_app(self, transaction: Transaction, caller: Caller, principal: Principal, grant: Grant) -> None:
        if not grant.app_id:
            return
        app = transaction.app(grant.app_id)
        if app is None or not app.is_active:
            raise _renewal_failed(caller, "the app is not active", principal)
        if not scope.scope_is_subset(grant.scope, app.scopes):
            raise _renewal_failed(caller, "the grant exceeds the ceiling that the app has by now", principal)
        if self._issuer.uncovered_audience(app, grant.audience):
            raise _renewal_failed(caller, "the grant is for others than the app's audiences by now", principal)


def _failure() -> Unauthorized:
    return Unauthorized("token renewal failed")


def _renewal_failed(caller: Caller, reason: str, principal: Principal | None) -> StrangerDenied:
    if principal is None:
        event = caller.event(EventType.TOKEN_RENEWAL_FAILED, Outcome.DENIED, detail=reason)
    else:
        data: EventData = {"jti": principal.claims.jti}
        event = caller.event(EventType.TOKEN_RENEWAL_FAILED, Outcome.DENIED, detail=reason, **principal.who, data=data)
    return StrangerDenied(_failure(), caller, event)
