"""Making grants and the tokens on them, and ending them."""

import secrets
from collections.abc import Sequence

import msgspec

from agentwrit.broker.config import Config
from agentwrit.broker.keystore import SigningKeys
from agentwrit.broker.services.context import Who
from agentwrit.broker.storage.base import Transaction
from agentwrit.domain import claims, grant, jws
from agentwrit.domain.app import App
from agentwrit.domain.claims import Claims
from agentwrit.domain.errors import InvalidRequest
from agentwrit.domain.grant import EndReason, Grant, GrantKind
from agentwrit.domain.revocation import Revocation, RevocationKind


class IssuedToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token, for whoever it was issued to. `expires_in`: seconds."""

    access_token: str
    expires_in: int
    grant: Grant

    def __repr__(self) -> str:
        return f"IssuedToken(sid={self.grant.sid!r}, expires_in={self.expires_in})"


def new_id() -> str:
    """A name for a grant or a token that nobody can guess: 128 random bits in hex."""
    return secrets.token_hex(16)


class TokenIssuer:
    """Signs tokens on grants. Has no state but the settings and the keys."""

    def __init__(self, config: Config, keys: SigningKeys) -> None:
        self._config = config
        self._keys = keys

    def new_grant(
        self,
        kind: GrantKind,
        subject: str,
        scope: Sequence[str],
        *,
        ttl: int,
        now: float,
        ends_at: int | None = None,
        app: App | None = None,
        audience: Sequence[str] = (),
    ) -> Grant:
        """A grant with its first token. `ttl`: seconds; `ends_at`: its end, whatever its tokens' (Unix seconds)."""
        at = int(now)
        end = at + ttl if ends_at is None else ends_at
        return Grant(
            sid=new_id(),
            kind=kind,
            subject=subject,
            app_id=app.app_id if app is not None else "",
            client_id=app.client_id if app is not None else "",
            scope=tuple(scope),
            audience=tuple(audience) or self._config.default_audience,
            ttl=ttl,
            created_at=at,
            ends_at=end,
            jti=new_id(),
            iat=at,
            exp=min(at + ttl, end),
        )

    def token(self, of: Grant, now: float) -> IssuedToken:
        """The current token of a grant. The same grant and key give the same token.

        Raises:
            InvalidRequest: it would be larger than a token may be.
        """
        token = jws.sign(claims.encode(self._claims(of)), self._keys.signer, typ=jws.ACCESS_TOKEN)
        if len(token) > jws.MAX_TOKEN_BYTES:
            raise InvalidRequest(
                f"requested_scope makes a token of {len(token)} bytes; at most {jws.MAX_TOKEN_BYTES} are allowed",
                hint="request fewer or shorter scopes",
            )
        return IssuedToken(access_token=token, expires_in=max(0, of.exp - int(now)), grant=of)

    def _claims(self, of: Grant) -> Claims:
        return Claims(
            iss=self._config.issuer,
            sub=of.subject,
            aud=of.audience,
            exp=of.exp,
            nbf=of.iat,
            iat=of.iat,
            jti=of.jti,
            sid=of.sid,
            scope=" ".join(of.scope),
            client_id=of.client_id,
            task_id=of.task_id,
            orch_id=of.orch_id,
        )


def holder(of: Grant) -> Who:
    """Whoever holds a grant, in the fields of an event."""
    return Who(
        principal=of.subject,
        app_id=of.app_id,
        agent_id=of.subject if of.kind is GrantKind.AGENT else "",
        task_id=of.task_id,
        orch_id=of.orch_id,
        sid=of.sid,
    )


def end_grant(transaction: Transaction, of: Grant, reason: EndReason) -> None:
    """End a grant now: its tokens are dead as soon as the transaction is committed."""
    transaction.put_grant(grant.ended(of, reason, transaction.now))
    revoke_grant(transaction, of, effective_at=int(transaction.now))


def revoke_grant(transaction: Transaction, of: Grant, *, effective_at: int) -> None:
    """Let a grant's tokens be dead from `effective_at` on (Unix seconds)."""
    transaction.revoke(Revocation(kind=RevocationKind.GRANT, id=of.sid, effective_at=effective_at, last_exp=of.exp))
