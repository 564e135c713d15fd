"""The signing keys on the wire, for the operator."""

from collections.abc import Sequence

from agentwrit.broker.http import wire
from agentwrit.broker.http.exchange import Answer, Exchange, json_answer
from agentwrit.broker.http.routing import Resource
from agentwrit.broker.services.authentication import Authenticator, Principal
from agentwrit.broker.services.keys import KeyService
from agentwrit.domain import operator
from agentwrit.domain.errors import InvalidRequest
from agentwrit.domain.grant import GrantKind
from agentwrit.domain.signing_key import KeyPurpose


class KeyRoutes:
    """Routes under /v1/admin/keys."""

    def __init__(self, keys: KeyService, authenticator: Authenticator) -> None:
        self._keys = keys
        self._authenticator = authenticator

    def resources(self) -> Sequence[Resource]:
        return [
            Resource("/v1/admin/keys", {"GET": self.list}),
            Resource("/v1/admin/keys/rotate", {"POST": self.rotate}),
            Resource("/v1/admin/keys/{kid}/revoke", {"POST": self.revoke}),
        ]

    async def list(self, exchange: Exchange) -> Answer:
        await self._operator(exchange, operator.AUDIT_SCOPE)
        return json_answer({"keys": [wire.signing_key(key) for key in await self._keys.list()]})

    async def rotate(self, exchange: Exchange) -> Answer:
        principal = await self._operator(exchange, operator.REVOKE_SCOPE)
        request = await exchange.optional_body(wire.RotateKey)
        if request.purpose not in set(KeyPurpose):
            raise InvalidRequest("purpose has no such value", hint=f"one of {', '.join(KeyPurpose)}")
        purpose = KeyPurpose(request.purpose)
        rotation = await self._keys.rotate(exchange.caller, principal, purpose, force=request.force)
        return json_answer(
            {
                "active": wire.signing_key(rotation.active),
                "retired": wire.signing_key(rotation.retired),
                "next": wire.signing_key(rotation.next),
            }
        )

    async def revoke(self, exchange: Exchange) -> Answer:
        principal = await self._operator(exchange, operator.REVOKE_SCOPE)
        request = await exchange.optional_body(wire.RevokeKey)
        kid = exchange.path_params["kid"]
        count = await self._keys.revoke(exchange.caller, principal, kid, request.reason)
        return json_answer({"revoked": True, "kid": kid, "count": count})

    async def _operator(self, exchange: Exchange, scope: str) -> Principal:
        return await self._authenticator.require(exchange.caller, exchange.bearer(), {GrantKind.OPERATOR: scope})
