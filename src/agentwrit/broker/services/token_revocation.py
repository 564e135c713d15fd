"""Token revocation (RFC 7009): an app ends what its agents hold, or a login of its own, by showing the token."""

from agentwrit.broker.services.authentication import Authenticator, Principal, app_subject
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.ending import end_grants
from agentwrit.broker.storage.base import Store, Transaction
from agentwrit.domain.app import App
from agentwrit.domain.audit import Draft, EventType, Outcome
from agentwrit.domain.errors import InvalidToken
from agentwrit.domain.grant import EndReason


class TokenRevocationService:
    """Revokes what is shown to it."""

    def __init__(self, store: Store, authenticator: Authenticator) -> None:
        self._store = store
        self._authenticator = authenticator

    async def revoke(self, caller: Caller, app: App, token: str) -> None:
        """End the grant of a token of the app's, with all that falls with it. Durable when this returns.

        As with a release, a token that was superseded counts for the grant that it is of: whoever shows it wants an
        end. One that is unknown, invalid or over has its end (RFC 7009 §2.2), and another app's is left alone.

        Raises:
            Unavailable: it could not be made durable. Nothing was revoked.
        """
        try:
            principal = self._authenticator.genuine(token)
        except InvalidToken:
            return
        if principal.claims.client_id != app.client_id:
            await self._store.write(lambda transaction: transaction.record(_another_apps(caller, app, principal)))
            return

        def revoke(transaction: Transaction) -> None:
            grant = transaction.grant(principal.claims.sid)
            if grant is not None and not grant.is_ended:
                end_grants(transaction, caller, app_subject(app.app_id), [grant], EndReason.REVOKED)

        await self._store.write(revoke)


def _another_apps(caller: Caller, app: App, principal: Principal) -> Draft:
    return caller.event(
        EventType.TOKEN_REVOCATION_DENIED,
        Outcome.DENIED,
        detail="the token is not the app's to revoke",
        principal=app_subject(app.app_id),
        app_id=app.app_id,
        data={"presented_jti": principal.claims.jti},
    )
