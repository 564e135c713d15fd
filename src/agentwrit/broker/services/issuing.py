"""Creating grants and their tokens."""

import os
from collections.abc import Sequence
from typing import Final

import msgspec

from agentwrit.broker.config import Config
from agentwrit.broker.keystore import SigningKeys
from agentwrit.broker.services.context import Who
from agentwrit.domain import claims, delegation, jwk, jws, operator
from agentwrit.domain import grant as grant_rules
from agentwrit.domain.app import App
from agentwrit.domain.claims import Claims, Confirmation
from agentwrit.domain.ending import about
from agentwrit.domain.errors import InvalidRequest
from agentwrit.domain.grant import Grant, GrantKind

_ID_BYTES: Final = 16


class IssuedToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token, for its holder. `expires_in`: seconds."""

    access_token: str
    expires_in: int
    grant: Grant

    def __repr__(self) -> str:
        return f"IssuedToken(sid={self.grant.sid!r}, expires_in={self.expires_in})"


def new_sid(at: int) -> str:
    """A sid for a grant created at this time (Unix seconds): the time in 8 hex digits, and 128 random bits in 32.

    It cannot be guessed. New grants have the highest sids, so they are adjacent in a store's index, however many there
    are.
    """
    return f"{at:08x}{os.urandom(_ID_BYTES).hex()}"


def new_jti() -> str:
    """A jti that cannot be guessed: 128 random bits, in hex."""
    return os.urandom(_ID_BYTES).hex()


class TokenIssuer:
    """Signs tokens for grants. Its only state are the settings and the keys."""

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
        born: int,
        ends_at: int | None = None,
        app: App | None = None,
        audience: Sequence[str] = (),
    ) -> Grant:
        """A grant with its first token. `ttl`: the token's lifetime in seconds; `ends_at`: the grant's end (Unix time).

        `born`: the end of the audit log (a sequence number).
        """
        at = int(now)
        end = at + ttl if ends_at is None else ends_at
        return Grant(
            sid=new_sid(at),
            kind=kind,
            subject=subject,
            app_id=app.app_id if app is not None else "",
            client_id=app.client_id if app is not None else "",
            scope=tuple(scope),
            audience=tuple(audience) or self._config.default_audience,
            ttl=ttl,
            created_at=at,
            ends_at=end,
            jti=new_jti(),
            iat=at,
            exp=min(at + ttl, end),
            kid=self._keys.signer.kid,
            born=born,
        )

    def delegated(
        self, parent: Grant, to: Grant, scope: Sequence[str], *, ends_at: int, now: float, born: int
    ) -> Grant:
        """A grant delegated from `parent` to the agent whose registration is `to`, with its first token.

        It has the parent's task and audience, and the delegate's key. It is bound if either of the two grants is bound,
        so that a delegation never loses the binding. `ends_at`: Unix seconds; `born`: the end of the audit log.
        """
        at = int(now)
        chain = delegation.extend(
            parent.chain,
            self._keys.signer,
            agent=parent.subject,
            sid=parent.sid,
            scope=parent.scope,
            delegate=to.subject,
            granted=tuple(scope),
            delegated_at=at,
        )
        return msgspec.structs.replace(
            to,
            sid=new_sid(at),
            scope=tuple(scope),
            audience=parent.audience,
            task_id=parent.task_id,
            orch_id=parent.orch_id,
            chain=chain,
            kid=self._keys.signer.kid,
            ttl=ends_at - at,
            created_at=at,
            ends_at=ends_at,
            jti=new_jti(),
            iat=at,
            exp=ends_at,
            previous_jti="",
            renewed_at=0,
            renewals_until=0.0,
            is_counted=False,
            is_bound=parent.is_bound or to.is_bound,
            born=born,
        )

    def allowed_audiences(self, app: App) -> tuple[str, ...]:
        """The audiences that the app's agents may have."""
        return (*app.audiences, *self._config.default_audience)

    def uncovered_audience(self, app: App, audience: Sequence[str]) -> tuple[str, ...]:
        """The audiences in `audience` that the app's agents may not have."""
        return app.uncovered_audience(audience, self._config.default_audience)

    def listed_audience(self, app: App, audience: Sequence[str]) -> tuple[str, ...]:
        """The audiences in `audience` that the app's agents may have, as the app lists them."""
        return app.listed_audience(audience, self._config.default_audience)

    def renewed(self, of: Grant, app: App | None, now: float) -> Grant:
        """The grant with a new current token, within the app's present limit of token lifetime."""
        ttl = of.ttl if app is None else app.cut_ttl(of.ttl)
        of = msgspec.structs.replace(of, ttl=ttl, kid=self._keys.signer.kid)
        return grant_rules.renewed(of, new_jti(), now)

    def token(self, of: Grant, now: float, *, scope_field: str = "requested_scope") -> IssuedToken:
        """The current token of a grant. The same grant and key always give the same token.

        `scope_field`: the field that a caller would have to shorten.

        Raises:
            InvalidRequest: the token would be too large.
        """
        token = self._keys.sign(claims.encode(self._claims(of)))
        if len(token) > jws.MAX_TOKEN_BYTES:
            raise InvalidRequest(
                f"{scope_field} makes a token of {len(token)} bytes; at most {jws.MAX_TOKEN_BYTES} are allowed",
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
            delegation_chain=of.chain,
            chain_hash=delegation.chain_hash(of.chain),
            cnf=Confirmation(jwk.thumbprint(of.public_key)) if of.is_bound else None,
            act=claims.actors(of.subject, of.chain) if of.names_actors else None,
            operator=of.operator,
        )


def holder(of: Grant) -> Who:
    """The holder of a grant, in the fields of an event."""
    app_id, agent_id, task_id, orch_id, sid, deleg_depth, deleg_chain_hash = about(of)
    return Who(
        principal=operator.principal(of.operator) if of.kind is GrantKind.OPERATOR else of.subject,
        app_id=app_id,
        agent_id=agent_id,
        task_id=task_id,
        orch_id=orch_id,
        sid=sid,
        deleg_depth=deleg_depth,
        deleg_chain_hash=deleg_chain_hash,
    )
