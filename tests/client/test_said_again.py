"""What a client sends again, as it was; what it sends once; and what it takes once, whoever says that it holds."""

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agentwrit import AgentWritApp, AsyncAgentWritApp, validate
from agentwrit.client.acceptance import KEYS_AGAIN_SECONDS, Acceptance
from agentwrit.client.exchange import HttpRequest, HttpResponse, InTurn, LoginNeeded
from agentwrit.client.reporting import Rest, Tell
from agentwrit.client.steps import ShownProof
from agentwrit.domain import claims as claims_rules
from agentwrit.domain import jwk, jws
from agentwrit.domain.claims import Confirmation
from agentwrit.domain.jws import Ed25519Signer
from agentwrit.errors import AgentWritError, InvalidToken, TransportError, Unproven
from agentwrit.models import AgentClaims
from tests.client.peer import Reply, answer, hang_up, peer
from tests.client.signed_feed import SIGNER, World
from tests.client.test_reporting import Telling
from tests.domain.records import make_claims
from tests.proofs import proof, raw_public_key

TOKEN: Final = "header.payload.signature"
URL: Final = "https://orders.example/customers/7"
SHOWN: Final[dict[str, Any]] = {"proof": "a.b.c", "htm": "GET", "htu": URL}

# -- a proof that is asked about --------------------------------------------------------------------------------------


def by_function(url: str) -> None:
    validate(url, TOKEN, **SHOWN)


def by_app(url: str) -> None:
    with AgentWritApp(url, "client", "secret") as app:
        app.validate(TOKEN, **SHOWN)


def by_async_app(url: str) -> None:
    async def ask() -> None:
        async with AsyncAgentWritApp(url, "client", "secret") as app:
            await app.validate(TOKEN, **SHOWN)

    asyncio.run(ask())


@pytest.mark.parametrize("failure", [hang_up, answer(502, {}), answer(503, {}, retry_after="0"), answer(504, {})])
@pytest.mark.parametrize("ask", [by_function, by_app, by_async_app])
def test_a_validation_with_a_proof_is_asked_for_once(ask: Callable[[str], None], failure: Reply) -> None:
    """The broker spends the proof, perhaps without being heard: it would call the second one a thief's."""
    with peer(failure, answer(200, {"valid": False, "error": "token is invalid or expired"})) as broker:
        with pytest.raises(AgentWritError):
            ask(broker.url)
        assert [path for path, _, _ in broker.seen] == ["/v1/token/validate"]


# -- a report ---------------------------------------------------------------------------------------------------------


def requested(tell: object) -> tuple[str | None, object]:
    """The idempotency key and the body of the request that is to tell something."""
    assert isinstance(tell, Tell)
    needed = next(tell.steps)
    while isinstance(needed, LoginNeeded):
        needed = tell.steps.send("a-login's-token")
    assert isinstance(needed, HttpRequest)
    content = needed.content()
    assert content is not None
    return needed.idempotency_key, json.loads(content.reveal())


def test_a_report_is_told_again_under_its_key_and_as_it_was_and_the_next_under_another() -> None:
    telling = Telling()
    telling.note("GET /1")
    assert isinstance(next(telling.steps), Rest)
    told = [requested(telling.steps.send(None))]
    for _ in range(3):
        telling.note("GET /while/it/fails")
        assert isinstance(telling.steps.throw(TransportError("it is out of reach")), Rest)
        telling.now += 1
        told.append(requested(telling.steps.send(None)))
    assert told == [told[0]] * 4
    assert told[0][0]
    assert isinstance(telling.steps.send([]), Rest)
    following = requested(telling.steps.send(None))
    assert following[0] not in (None, told[0][0])
    assert following[1] != told[0][1]


# -- a proof that is shown twice --------------------------------------------------------------------------------------


class Online:
    """A verifier that asks for each token, and a broker that says of each that it holds: another one each time."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.jkt = jwk.thumbprint(raw_public_key(self.key))
        self.acceptance = Acceptance("https://broker.example", audience=None, max_staleness=0.0, on_stale="online")

    def shown(self, key: Ed25519PrivateKey | None = None) -> ShownProof:
        return ShownProof(proof(key or self.key, "GET", URL, TOKEN), "GET", URL)

    def verify(self, shown: ShownProof | None) -> AgentClaims:
        assert self.acceptance.accept(TOKEN, None, shown) is None
        asking = self.acceptance.ask(TOKEN, None, shown)
        assert isinstance(next(asking), HttpRequest)
        claims = {
            "iss": "agentwrit",
            "sub": "spiffe://agentwrit.local/agent/o/t/0011223344556677",
            "aud": ["agentwrit"],
            "exp": 2_000_000_000,
            "iat": 1_800_000_000,
            "jti": "jti-1",
            "sid": "sid-1",
            "scope": ["read:data:1"],
            "cnf": {"jkt": self.jkt},
        }
        try:
            asking.send(HttpResponse(200, {}, json.dumps({"valid": True, "claims": claims}).encode()))
        except StopIteration as done:
            found: AgentClaims = done.value
            return found
        raise AssertionError("it asks for more")


def test_a_proof_is_taken_once_though_every_broker_that_is_asked_takes_it() -> None:
    online = Online()
    shown = online.shown()
    assert online.verify(shown).cnf == {"jkt": online.jkt}
    with pytest.raises(Unproven) as refused:
        online.verify(shown)
    assert refused.value.code == Unproven.PROOF
    assert online.verify(online.shown()).sid == "sid-1"


def test_a_bound_token_needs_its_holders_proof_whatever_the_broker_says() -> None:
    online = Online()
    for shown in (None, online.shown(Ed25519PrivateKey.generate())):
        with pytest.raises(InvalidToken):
            online.verify(shown)


def test_a_token_by_a_key_that_has_to_be_fetched_needs_its_holders_proof_too() -> None:
    world, key, signer = World(), Ed25519PrivateKey.generate(), Ed25519Signer(b"another key, of thirty-two bytes")
    acceptance = Acceptance(
        "https://broker.example", audience=None, max_staleness=5.0, on_stale="refuse", clock=world.known.clock
    )
    world.known = acceptance._checker.revocations
    world.known.set_keys({"keys": [jwk.public_jwk(SIGNER.public_key)]})
    world.known.begin(world.snapshot())
    assert world.ask() == 0
    jkt = jwk.thumbprint(raw_public_key(key))
    token = jws.sign(claims_rules.encode(make_claims(cnf=Confirmation(jkt))), signer, typ=jws.ACCESS_TOKEN)

    def verify(shown: ShownProof | None) -> AgentClaims:
        """As whoever is the first to show a token by a new key."""
        acceptance._checker.set_keys({"keys": [jwk.public_jwk(SIGNER.public_key)]})
        world.passes(KEYS_AGAIN_SECONDS + 1)
        world.ask()
        assert acceptance.accept(token, None, shown) is None
        asking = acceptance.ask(token, None, shown)
        turn = next(asking)
        assert isinstance(turn, InTurn)
        fetching = turn.steps
        assert isinstance(next(fetching), HttpRequest)
        published = json.dumps({"keys": [jwk.public_jwk(signer.public_key)]}).encode()
        with pytest.raises(StopIteration):
            fetching.send(HttpResponse(200, {}, published))
        try:
            asking.send(None)
        except StopIteration as done:
            found: AgentClaims = done.value
            return found
        raise AssertionError("it asks for more")

    def shown(holder: Ed25519PrivateKey) -> ShownProof:
        return ShownProof(proof(holder, "GET", URL, token, iat=int(world.broker)), "GET", URL)

    for none in (None, shown(Ed25519PrivateKey.generate())):
        with pytest.raises(InvalidToken):
            verify(none)
    once = shown(key)
    assert verify(once).cnf == {"jkt": jkt}
    with pytest.raises(InvalidToken):
        verify(once)
