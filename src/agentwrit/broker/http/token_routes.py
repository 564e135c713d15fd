"""What agents and resource servers do: registering, validating, renewing, delegating and releasing."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from agentwrit.broker.http import wire
from agentwrit.broker.http.exchange import Answer, Exchange, json_answer
from agentwrit.broker.http.routing import Resource
from agentwrit.broker.metrics import Metrics
from agentwrit.broker.services.authentication import Principal
from agentwrit.broker.services.delegation import DelegationRequest, DelegationService
from agentwrit.broker.services.registration import LaunchedApplication, RegistrationService
from agentwrit.broker.services.tokens import ShownProof, TokenService
from agentwrit.domain import challenge

VALID_BODIES_REMEMBERED: Final = 4096

# One answer for every reason: a stranger learns nothing of a token by asking.
_INVALID: Final = json_answer({"valid": False, "error": "token is invalid or expired"})


class TokenRoutes:
    """The life of an agent's token. `public_url`: how clients reach the broker, if that is set."""

    def __init__(
        self,
        registration: RegistrationService,
        tokens: TokenService,
        delegation: DelegationService,
        metrics: Metrics,
        *,
        public_url: str | None,
    ) -> None:
        self._registration = registration
        self._delegation = delegation
        self._tokens = tokens
        self._public_url = public_url
        self._validations = metrics.validations
        # What a token says does not change, nor does the answer that repeats it. Whether it is still alive does.
        self._known_valid: OrderedDict[bytes, tuple[Principal, Answer]] = OrderedDict()

    def resources(self) -> Sequence[Resource]:
        return [
            Resource("/v1/token/validate", {"POST": self.validate}),
            Resource("/v1/challenge", {"GET": self.challenge}),
            Resource("/v1/register", {"POST": self.register}, is_bounded=True),
            Resource("/v1/token/renew", {"POST": self.renew}, is_bounded=True),
            Resource("/v1/token/release", {"POST": self.release}, is_bounded=True),
            Resource("/v1/delegate", {"POST": self.delegate}, is_bounded=True),
        ]

    async def validate(self, exchange: Exchange) -> Answer:
        body = await exchange.read()
        known = self._known_valid.get(body)
        if known is None:
            asked = wire.decode(body, wire.Validate)
            shown = ShownProof(proof=asked.proof, htm=asked.htm, htu=asked.htu)
            principal = await self._tokens.validate(asked.token, shown)
            if principal is not None:
                known = principal, json_answer({"valid": True, "claims": wire.claims(principal.claims)})
                if principal.claims.cnf is None:  # a proof is good once, and so is an answer that rests on one
                    self._known_valid[body] = known
                    if len(self._known_valid) > VALID_BODIES_REMEMBERED:
                        self._known_valid.popitem(last=False)
        elif not await self._tokens.is_alive(known[0]):
            self._known_valid.pop(body, None)  # another request that asked the same may have been first
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
        issued = await self._tokens.renew(exchange.caller, exchange.presented(self._public_url))
        return json_answer(wire.token(issued))

    async def delegate(self, exchange: Exchange) -> Answer:
        delegator, proof = await self._delegation.delegator(exchange.caller, exchange.presented(self._public_url))
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
        return json_answer({**wire.token(issued), "delegation_chain": issued.grant.chain})

    async def release(self, exchange: Exchange) -> Answer:
        await self._tokens.release(exchange.caller, exchange.presented(self._public_url))
        return Answer(status=204)
