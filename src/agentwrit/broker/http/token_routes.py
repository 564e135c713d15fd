"""What agents and resource servers do: registering, validating, renewing, delegating and releasing."""

from collections.abc import Sequence
from typing import Final

from agentwrit.broker.http import wire
from agentwrit.broker.http.exchange import MAX_USUAL_BODY_BYTES, Answer, Exchange, json_answer
from agentwrit.broker.http.http1 import MAX_BODY_BYTES
from agentwrit.broker.http.routing import Resource
from agentwrit.broker.metrics import Metrics
from agentwrit.broker.services.authentication import Principal
from agentwrit.broker.services.delegation import DelegationRequest, DelegationService
from agentwrit.broker.services.registration import LaunchedApplication, RegistrationService
from agentwrit.broker.services.tokens import ShownProof, TokenService
from agentwrit.domain import challenge
from agentwrit.domain.errors import PayloadTooLarge
from agentwrit.domain.target_uri import KnownNames
from agentwrit.recent import Recent

VALID_BODIES_REMEMBERED: Final = 4096

# One answer for every reason: a stranger learns nothing of a token by asking.
_INVALID: Final = json_answer({"valid": False, "error": "token is invalid or expired"})


class TokenRoutes:
    """The life of an agent's token. `names`: by which the broker is known."""

    def __init__(
        self,
        registration: RegistrationService,
        tokens: TokenService,
        delegation: DelegationService,
        metrics: Metrics,
        *,
        names: KnownNames,
    ) -> None:
        self._registration = registration
        self._delegation = delegation
        self._tokens = tokens
        self._names = names
        self._validations = metrics.validations
        # What a token says does not change, nor does the answer that repeats it. Whether it is still alive does.
        self._known_valid: Recent[bytes, tuple[Principal, Answer]] = Recent(VALID_BODIES_REMEMBERED)

    def resources(self) -> Sequence[Resource]:
        return [
            Resource("/v1/token/validate", {"POST": self.validate}, max_body=MAX_BODY_BYTES),
            Resource("/v1/challenge", {"GET": self.challenge}),
            Resource("/v1/register", {"POST": self.register}, is_bounded=True),
            Resource("/v1/token/renew", {"POST": self.renew}, is_bounded=True),
            Resource("/v1/token/release", {"POST": self.release}, is_bounded=True),
            Resource("/v1/delegate", {"POST": self.delegate}, is_bounded=True),
        ]

    async def validate(self, exchange: Exchange) -> Answer:
        body = await exchange.read()
        if len(body) > MAX_USUAL_BODY_BYTES:
            body = _without_white_space(body)
        known = self._known_valid.get(body)
        if known is None:
            asked = wire.decode(body, wire.Validate)
            shown = ShownProof(proof=asked.proof, htm=asked.htm, htu=asked.htu)
            principal = await self._tokens.validate(asked.token, shown)
            if principal is not None:
                known = principal, json_answer({"valid": True, "claims": wire.claims(principal.claims)})
                if principal.claims.cnf is None:  # a proof is good once, and so is an answer that rests on one
                    self._known_valid.put(body, known)
        elif not await self._tokens.is_alive(known[0]):
            self._known_valid.drop(body)
            known = None
        self._validations["invalid" if known is None else "valid"] += 1
        return _INVALID if known is None else known[1]

    async def challenge(self, exchange: Exchange) -> Answer:
        return json_answer({"nonce": self._registration.challenge(), "expires_in": challenge.LIFETIME_SECONDS})

    async def register(self, exchange: Exchange) -> Answer:
        request = await exchange.body(wire.Register)
        issued = await self._registration.register(
            exchange.caller,
            LaunchedApplication(
                launch_token=request.launch_token,
                nonce=request.nonce,
                public_key=wire.decode_public_key(request.public_key),
                signature=wire.decode_base64(request.signature, field="signature"),
                orch_id=request.orch_id,
                task_id=request.task_id,
                requested_scope=tuple(request.requested_scope),
            ),
        )
        return json_answer(wire.registered(issued))

    async def renew(self, exchange: Exchange) -> Answer:
        issued = await self._tokens.renew(exchange.caller, exchange.presented(self._names))
        return json_answer(wire.token(issued))

    async def delegate(self, exchange: Exchange) -> Answer:
        delegator, proof = await self._delegation.delegator(exchange.caller, exchange.presented(self._names))
        request = await exchange.body(wire.Delegate)
        issued = await self._delegation.delegate(
            exchange.caller,
            delegator,
            DelegationRequest(
                delegate_to=request.delegate_to,
                scope=request.scope,
                ttl=request.ttl,
                idempotency_key=exchange.idempotency_key(),
            ),
            proof=proof,
        )
        return json_answer({**wire.token(issued), "delegation_chain": wire.delegation_chain(issued.grant.chain)})

    async def release(self, exchange: Exchange) -> Answer:
        await self._tokens.release(exchange.caller, exchange.presented(self._names))
        return Answer(status=204)


def _without_white_space(body: bytes) -> bytes:
    """A large body without the white space around it, which is all that can make one so large.

    Raises:
        PayloadTooLarge: it is not.
    """
    stripped = body.strip()
    if len(stripped) > MAX_USUAL_BODY_BYTES:
        raise PayloadTooLarge(f"a body has at most {MAX_USUAL_BODY_BYTES} bytes here, besides white space around it")
    return body if b"\v" in body or b"\f" in body else stripped  # those are no white space of JSON's (RFC 8259 §2)
