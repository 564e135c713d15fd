"""Token exchange (RFC 8693): an app makes one of its agents delegate to another, with the tokens of both.

The subject token is the delegator's, the actor token the delegate's. The result is the grant that the delegator itself
would make (`agentwrit.broker.services.delegation`), under the same rules.
"""

from collections.abc import Sequence

import msgspec

from agentwrit.broker.services.authentication import Authenticator, Principal, app_subject
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.delegation import DelegationRequest, DelegationService
from agentwrit.broker.services.denials import Denial, DenialLog
from agentwrit.broker.services.issuing import IssuedToken
from agentwrit.broker.services.launch_tokens import check_audience
from agentwrit.domain import delegation
from agentwrit.domain.app import App
from agentwrit.domain.audit import EventType, Outcome
from agentwrit.domain.errors import InvalidRequest, InvalidToken, NotFound, TokenRevoked
from agentwrit.domain.grant import GrantKind


class ExchangeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """An app's request. `audience`: some of the subject token's audiences, empty for all of them; `ttl`: seconds."""

    subject_token: str
    actor_token: str
    scope: Sequence[str]
    audience: Sequence[str] = ()
    ttl: int = delegation.DEFAULT_TTL_SECONDS

    def __repr__(self) -> str:
        return f"ExchangeRequest(scope={self.scope!r})"


class TokenExchangeService:
    """Exchanges tokens."""

    def __init__(self, denials: DenialLog, authenticator: Authenticator, delegations: DelegationService) -> None:
        self._denials = denials
        self._authenticator = authenticator
        self._delegations = delegations

    async def exchange(self, caller: Caller, app: App, request: ExchangeRequest) -> IssuedToken:
        """The delegate's token, with an `act` claim.

        Raises:
            InvalidRequest, InvalidTTL: a token is not that of a live agent of `app` (RFC 8693 §2.2.2), or a field is
                invalid.
            ScopeViolation, AudienceViolation, ChainTooLong: the request exceeds what the delegator can give.
        """
        audience = check_audience(request.audience)
        subject = await self._agent(caller, app, "subject_token", request.subject_token)
        actor = await self._agent(caller, app, "actor_token", request.actor_token)
        wanted = DelegationRequest(
            delegate_to=actor.claims.sub,
            scope=request.scope,
            ttl=request.ttl,
            audience=audience,
            names_actors=True,
        )
        try:
            return await self._delegations.delegate(caller, subject, wanted)
        except TokenRevoked:
            raise _not_accepted("subject_token") from None
        except NotFound:
            raise _not_accepted("actor_token") from None

    async def _agent(self, caller: Caller, app: App, field: str, token: str) -> Principal:
        """The holder of an agent's token. A foreign token is refused as invalid, without telling whose it is."""
        principal: Principal | None = None
        try:
            principal = await self._authenticator.alive(token)
            if principal.kind is not GrantKind.AGENT or principal.claims.client_id != app.client_id:
                raise InvalidToken("it is not that of an agent of this app")
        except InvalidToken as invalid:
            event = caller.event(
                EventType.DELEGATION_DENIED,
                Outcome.DENIED,
                detail=f"the {field} was not accepted: {invalid.reason}",
                principal=app_subject(app.app_id),
                app_id=app.app_id,
                data={} if principal is None else {"presented_jti": principal.claims.jti},
            )
            denial = Denial(_not_accepted(field), caller, event, by=app.client_id, about=(app.app_id, event.detail))
            raise await self._denials.record(denial) from None
        return principal


def _not_accepted(field: str) -> InvalidRequest:
    return InvalidRequest(f"the {field} is not that of a live agent of this app")
