"""Authenticating bearer and bound tokens: who the caller is, and what it may do."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from agentwrit.broker.clock import Clock
from agentwrit.broker.keystore import SigningKeys
from agentwrit.broker.services.context import Caller, Who
from agentwrit.broker.services.denials import Denial, DenialLog
from agentwrit.broker.services.liveness import Liveness
from agentwrit.broker.services.possession import Possession, Presented
from agentwrit.domain import claims as claims_rules
from agentwrit.domain import operator, scope
from agentwrit.domain.audit import EventType, Outcome
from agentwrit.domain.claims import Claims
from agentwrit.domain.errors import (
    InsufficientScope,
    InvalidToken,
    ProofNeeded,
    Refusal,
    TokenRevoked,
    Unauthorized,
    Unproven,
)
from agentwrit.domain.grant import APP_PREFIX, GrantKind, kind_of_subject
from agentwrit.domain.proof import Proof
from agentwrit.recent import Recent

GENUINE_TOKENS_REMEMBERED: Final = 4096


def app_subject(app_id: str) -> str:
    """The `sub` of an app's own tokens."""
    return APP_PREFIX + app_id


class Principal:
    """The holder of a valid token that was presented."""

    def __init__(self, kid: str, claims: Claims) -> None:
        self.kid = kid
        self.claims = claims
        self.kind = kind_of_subject(claims.sub)

    @property
    def app_id(self) -> str:
        """The app's ID if this is an app, otherwise empty."""
        return self.claims.sub.removeprefix(APP_PREFIX) if self.kind is GrantKind.APP else ""

    @property
    def name(self) -> str:
        """The `principal` of this caller's events: the `sub`, and for operators also which of them it is."""
        is_operator = self.kind is GrantKind.OPERATOR
        return operator.principal(self.claims.operator) if is_operator else self.claims.sub

    @property
    def who(self) -> Who:
        """The principal in the fields of an event."""
        return Who(
            principal=self.name,
            app_id=self.app_id,
            agent_id=self.claims.sub if self.kind is GrantKind.AGENT else "",
            task_id=self.claims.task_id,
            orch_id=self.claims.orch_id,
            sid=self.claims.sid,
            deleg_depth=len(self.claims.delegation_chain),
            deleg_chain_hash=self.claims.chain_hash,
        )


class Presenter(NamedTuple):
    """The presenter of a genuine token. `proof`: for a bound token, its proof, which is still to be marked as used."""

    principal: Principal
    proof: Proof | None


class NotTheHolder(Unproven):
    """A genuine token that is refused from its presenter, and may be stolen. `principal`: its holder."""

    def __init__(self, unproven: Unproven, principal: Principal) -> None:
        super().__init__(unproven.reason, code=unproven.code, told=unproven.told)
        self.principal = principal


def refusal(invalid: InvalidToken, detail: str) -> Unauthorized:
    """The answer to a refused token: how to present a token, but not why this one was refused."""
    if not isinstance(invalid, Unproven):
        return Unauthorized(detail)
    return ProofNeeded(detail, code=invalid.code, hint=hint_for(invalid.told))


def hint_for(told: str) -> str | None:
    """A hint about a proof for a URL that is not the broker's, if the refusal says so."""
    return f"{told}: use that URL, or have yours added to AGENTWRIT_PUBLIC_URL" if told else None


def not_accepted(caller: Caller, invalid: InvalidToken) -> Denial:
    """The denial for a refused token, with the reason for the audit log."""
    event = caller.event(EventType.TOKEN_AUTH_FAILED, Outcome.DENIED, detail=invalid.reason)
    if isinstance(invalid, NotTheHolder):
        claimed = invalid.principal
        event = msgspec.structs.replace(event, **claimed.who, data={"presented_jti": claimed.claims.jti})
    is_unproven = isinstance(invalid, Unproven)
    detail = "a valid token and a proof by its key are needed" if is_unproven else "a valid bearer token is needed"
    return Denial(refusal(invalid, detail), caller, event)


# The holders of scopes for the broker's own routes, by the action of the scope.
_WHO_HOLDS: Final = {
    "admin": "it takes the token of an operator, from POST /v1/admin/auth",
    "app": "it takes the token of an app, from POST /v1/app/auth",
}

_BORNE: Final = Unproven("a bound token was presented as a bearer token", code=Unproven.TOKEN)
REUSED_PROOF: Final = Unproven("the proof was used before", code=Unproven.PROOF)


class Authenticator:
    """Checks that tokens are genuine, within their time, alive, and presented by their holder."""

    def __init__(
        self,
        keys: SigningKeys,
        issuer: str,
        clock: Clock,
        liveness: Liveness,
        possession: Possession,
        denials: DenialLog,
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._clock = clock
        self._liveness = liveness
        self._possession = possession
        self._denials = denials
        # A signature does not change, so it is checked once; everything else is checked each time.
        self._genuine: Recent[str, Principal] = Recent(GENUINE_TOKENS_REMEMBERED)

    def genuine(self, token: str) -> Principal:
        """The principal of a token, if the broker issued it and it has not expired. It may have been revoked.

        Raises:
            InvalidToken: it is not genuine, or has expired.
        """
        principal = self._genuine.get(token)
        if principal is None:
            principal = self._read(token)
            self._genuine.put(token, principal)
        self._check_still_genuine(principal, self._clock.now())
        return principal

    async def alive(self, token: str) -> Principal:
        """The principal of a token, if it is genuine, within its time and not revoked.

        Raises:
            InvalidToken: it is not.
            Unavailable: whether it was revoked cannot be determined.
        """
        principal = self.genuine(token)
        if await self._liveness.is_dead(principal.kid, principal.claims):
            raise InvalidToken("the token has been revoked")
        return principal

    async def is_alive(self, principal: Principal) -> bool:
        """Whether a token that was alive still is."""
        if await self._liveness.is_dead(principal.kid, principal.claims):
            return False
        try:
            self._check_still_genuine(principal, self._clock.now())
        except InvalidToken:
            return False
        return True

    async def is_grant_dead(self, principal: Principal) -> bool:
        """Whether the principal's grant has ended. A superseded token alone does not count."""
        return await self._liveness.is_grant_dead(principal.kid, principal.claims)

    def presented(self, presented: Presented | None) -> Presenter:
        """The presenter of a genuine token, bound or not, that the presenter holds. It may have been revoked.

        Raises:
            InvalidToken: the token is not genuine, or the presenter does not hold it.
            ProofNonceNeeded: the proof's time differs too much from the broker's.
        """
        if presented is None:
            raise InvalidToken("no bearer token")
        try:
            principal = self.genuine(presented.token)
        except InvalidToken as invalid:
            if presented.is_dpop:
                raise Unproven(invalid.reason, code=Unproven.TOKEN) from None
            raise
        try:
            return Presenter(principal, self._possession.of_presenter(presented, principal.claims))
        except Unproven as unproven:
            raise NotTheHolder(unproven, principal) from None

    async def holder(self, caller: Caller, presented: Presented | None) -> Presenter:
        """The caller, by a token that is bound or not.

        Raises:
            Unauthorized: there is no token, it is not valid, or the caller is not its holder.
            TokenRevoked: as `bearer`.
        """
        try:
            presenter = self.presented(presented)
        except InvalidToken as invalid:
            raise await self.refused(caller, invalid) from None
        await self._require_life(caller, presenter.principal)
        return presenter

    async def bearer(self, caller: Caller, token: str | None) -> Principal:
        """The caller, by a bearer token (RFC 6750 §2.1).

        Raises:
            Unauthorized: there is no token, it is not valid, or it is bound to a key.
            TokenRevoked: the token is genuine and has not expired, but its grant has ended or it was superseded.
        """
        try:
            if token is None:
                raise InvalidToken("no bearer token")
            principal = self.genuine(token)
            if principal.claims.cnf is not None:  # RFC 9449 §7.2
                raise NotTheHolder(_BORNE, principal)
        except InvalidToken as invalid:
            raise await self.refused(caller, invalid) from None
        await self._require_life(caller, principal)
        return principal

    async def require(self, caller: Caller, token: str | None, required: Mapping[GrantKind, str]) -> Principal:
        """The caller, if `required` contains its kind and its token has the scope given there.

        Raises:
            Unauthorized, TokenRevoked: as `bearer`.
            InsufficientScope: the caller is of another kind, or lacks the scope.
        """
        principal = await self.bearer(caller, token)
        needed = required.get(principal.kind)
        if needed is None or not scope.scope_is_subset([needed], principal.claims.scopes):
            raise await self.insufficient(caller, principal, needed or next(iter(required.values())))
        return principal

    async def insufficient(self, caller: Caller, principal: Principal, required: str) -> Refusal:
        """Record that a caller lacks a scope. Returns the error for the caller."""
        event = caller.event(
            EventType.SCOPE_VIOLATION,
            Outcome.DENIED,
            detail="the token does not have the scope that this route needs",
            **principal.who,
            data={
                **({"scope_required": [required]} if required else {}),
                "scope_held": list(principal.claims.scopes),
            },
        )
        error = InsufficientScope(
            f"the token does not have the scope that this route needs{f', {required}' if required else ''}",
            required=required,
            hint=_WHO_HOLDS.get(required.partition(":")[0], "it takes an agent's token"),
        )
        return await self._denials.record(Denial(error, caller, event, by=principal.claims.client_id))

    async def refused(self, caller: Caller, invalid: InvalidToken) -> Refusal:
        """Record that a token was refused, and why. Returns the error for the caller, without the reason."""
        return await self._denials.record(not_accepted(caller, invalid))

    async def revoked(self, caller: Caller, principal: Principal) -> Refusal:
        """Record that a dead token was used. Returns the error for the caller."""
        event = caller.event(
            EventType.TOKEN_REVOKED_ACCESS,
            Outcome.DENIED,
            detail="a token was used after its end",
            **principal.who,
            data={"jti": principal.claims.jti},
        )
        return await self._denials.record(Denial(TokenRevoked(), caller, event, by=principal.claims.client_id))

    async def _require_life(self, caller: Caller, principal: Principal) -> None:
        if await self._liveness.is_dead(principal.kid, principal.claims):
            raise await self.revoked(caller, principal)

    def _check_still_genuine(self, principal: Principal, now: float) -> None:
        if principal.kid not in self._keys.public_keys:
            raise InvalidToken("the key that signed the token is gone")
        claims_rules.check_time(principal.claims, now)

    def _read(self, token: str) -> Principal:
        kid, payload = self._keys.verifier.verify(token)
        claims = claims_rules.decode(payload)
        claims_rules.check_issuer(claims, self._issuer)
        claims_rules.check_delegation(claims, self._keys.public_keys)
        return Principal(kid, claims)
