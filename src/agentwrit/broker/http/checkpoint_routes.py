"""The audit log as a tiled log (C2SP tlog-tiles), with `/v1/audit` as its prefix, and proofs for whoever asks for them.

Checkpoints, hashes and proofs need no credential: they tell how many events there are, and nothing of any. The entries
are the operator's.
"""

import base64
from collections.abc import Sequence
from typing import Final

from agentwrit.broker.http import wire
from agentwrit.broker.http.exchange import Answer, Exchange, integer_parameter, json_answer
from agentwrit.broker.http.routing import Resource
from agentwrit.broker.services.authentication import Authenticator, Principal
from agentwrit.broker.services.checkpoints import Checkpoints
from agentwrit.broker.services.turns import Asker, Turns
from agentwrit.domain import audit, checkpoint, operator, tiles
from agentwrit.domain.errors import InvalidRequest, NotFound
from agentwrit.domain.grant import GrantKind
from agentwrit.domain.tiles import HashTile

MAX_SIZE: Final = 2**53 - 1
_BYTES: Final = "application/octet-stream"
_FOR_EVER: Final = "public, max-age=31536000, immutable"  # RFC 8246
_FOR_THE_OPERATOR: Final = "private, max-age=31536000, immutable"


class CheckpointRoutes:
    """Routes under /v1/audit that show the log's tree."""

    def __init__(self, checkpoints: Checkpoints, authenticator: Authenticator, turns: Turns) -> None:
        self._checkpoints = checkpoints
        self._turns = turns
        self._authenticator = authenticator

    def resources(self) -> Sequence[Resource]:
        return [
            Resource("/v1/audit/checkpoint", {"GET": self.newest, "POST": self.make}),
            Resource("/v1/audit/keys", {"GET": self.keys}),
            Resource("/v1/audit/proof/inclusion", {"GET": self.inclusion}),
            Resource("/v1/audit/proof/consistency", {"GET": self.consistency}),
            Resource("/v1/audit/tile/{path:path}", {"GET": self.tile}),
        ]

    async def newest(self, exchange: Exchange) -> Answer:
        async with self._turns.turn(Asker.stranger(exchange.caller)):
            return _note(await self._checkpoints.newest())

    async def make(self, exchange: Exchange) -> Answer:
        await self._authorize(exchange)
        return _note(await self._checkpoints.make())

    async def keys(self, exchange: Exchange) -> Answer:
        async with self._turns.turn(Asker.stranger(exchange.caller)):
            keys = await self._checkpoints.keys()
        return json_answer({"keys": [{"verifier_key": key.verifier_key, **wire.signing_key(key.key)} for key in keys]})

    async def inclusion(self, exchange: Exchange) -> Answer:
        given = exchange.query("event")
        try:
            sequence = audit.parse_event_id(given.get("event", ""))
        except ValueError:
            raise InvalidRequest("event is not an event id", hint="for example evt-000001") from None
        async with self._turns.turn(Asker.stranger(exchange.caller)):
            proof = await self._checkpoints.inclusion_proof(sequence)
        return json_answer(
            {
                "event": given["event"],
                "index": proof.index,
                "size": proof.size,
                "proof": _encoded(proof.hashes),
                "checkpoint": proof.checkpoint,
            }
        )

    async def consistency(self, exchange: Exchange) -> Answer:
        given = exchange.query("old", "new")
        for name in ("old", "new"):
            if name not in given:
                raise InvalidRequest(f"{name} is missing: it is a size of the log")
        old, new = (integer_parameter(given, name, 0, low=0, high=MAX_SIZE) for name in ("old", "new"))
        async with self._turns.turn(Asker.stranger(exchange.caller)):
            proof = await self._checkpoints.consistency_proof(old, new)
        return json_answer({"old": old, "new": new, "proof": _encoded(proof)})

    async def tile(self, exchange: Exchange) -> Answer:
        try:
            wanted = tiles.parse_path(exchange.path_params["path"])
        except ValueError:
            raise NotFound("there is no such tile", hint="tile/<level>/<number>, as in C2SP tlog-tiles") from None
        if isinstance(wanted, HashTile):
            async with self._turns.turn(Asker.stranger(exchange.caller)):
                body = await self._checkpoints.tile(wanted)
            return Answer(body=body, media_type=_BYTES, headers={"cache-control": _FOR_EVER})
        async with self._turns.turn(Asker.who(await self._authorize(exchange))):
            body = await self._checkpoints.bundle(wanted)
        return Answer(body=body, media_type=_BYTES, headers={"cache-control": _FOR_THE_OPERATOR})

    async def _authorize(self, exchange: Exchange) -> Principal:
        required = {GrantKind.OPERATOR: operator.AUDIT_SCOPE}
        return await self._authenticator.require(exchange.caller, exchange.bearer(), required)


def _note(signed: str) -> Answer:
    headers = {"cache-control": "public, max-age=1"}
    return Answer(body=signed.encode(), media_type=checkpoint.MEDIA_TYPE, headers=headers)


def _encoded(hashes: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(value).decode("ascii") for value in hashes]
