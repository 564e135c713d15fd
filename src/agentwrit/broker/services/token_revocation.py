"""Token revocation (RFC 7009): an app ends a grant of its agents, or its own login, by presenting the token."""

from agentwrit.broker.services.authentication import Authenticator, Principal, app_subject
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.denials import Denial, DenialLog
from agentwrit.broker.services.ending import end_grants
from agentwrit.broker.services.endings import Endings
from agentwrit.broker.storage.base import Store, Transaction
from agentwrit.domain.app import App
from agentwrit.domain.audit import EventType, Outcome
from agentwrit.domain.ending import Ending
from agentwrit.domain.errors import InvalidToken, NotFound
from agentwrit.domain.grant import EndReason


class TokenRevocationService:
    """Revokes the tokens that apps present."""

    def __init__(self, store: Store, denials: DenialLog, authenticator: Authenticator, endings: Endings) -> None:
        self._store = store
        self._denials = denials
        self._endings = endings
        self._authenticator = authenticator

    async def revoke(self, caller: Caller, app: App, token: str) -> None:
        """End the grant of one of the app's tokens, and everything that depends on it. Durable on return.

        As with a release, a superseded token stands for its grant, because the caller wants the grant to end. An
        unknown, invalid or expired token counts as revoked (RFC 7009 §2.2), and another app's token is left alone.

        Raises:
            Unavailable: it could not be made durable. Nothing was revoked.
        """
        try:
            principal = self._authenticator.genuine(token)
        except InvalidToken:
            return
        if principal.claims.client_id != app.client_id:
            await self._denials.record(_another_apps(caller, app, principal))
            return

        def revoke(transaction: Transaction) -> Ending | None:
            grant = transaction.grant(principal.claims.sid)
            if grant is None or grant.is_ended:
                return None
            return end_grants(transaction, caller, app_subject(app.app_id), [grant], EndReason.REVOKED)

        ending = await self._store.write(revoke)
        if ending is not None:
            await self._endings.finish(ending)


def _another_apps(caller: Caller, app: App, principal: Principal) -> Denial:
    event = caller.event(
        EventType.TOKEN_REVOCATION_DENIED,
        Outcome.DENIED,
        detail="the token is not the app's to revoke",
        principal=app_subject(app.app_id),
        app_id=app.app_id,
        data={"presented_jti": principal.claims.jti},
    )
    # Not answered, because otherwise anyone could ask whose a token is.
    return Denial(NotFound(event.detail), caller, event, by=app.client_id, about=(app.app_id, principal.claims.sid))
