"""Verifying a token in a resource server, against what PyNaCl and the JSON decoder alone take for the same bytes."""

import base64
import json
from functools import partial

import httpx2
from nacl.bindings import crypto_sign_open

from agentwrit import Verifier
from benchmarks.broker import running
from benchmarks.measuring import Comparison, in_turns

SCOPES = ["read:data:customer-7291", "write:data:order-4823"]


def bare(token: str, key: bytes) -> object:
    """The floor: the signature, and the claims out of their JSON."""
    signing_input, _, signature = token.rpartition(".")
    crypto_sign_open(_decode(signature) + signing_input.encode(), key)
    return json.loads(_decode(signing_input.partition(".")[2]))


def run(*, rounds: int = 20) -> list[Comparison]:
    """`rounds` of 20 new tokens each, and of 1,000 repetitions."""
    with running() as broker, Verifier(broker.url) as verifier:
        app = broker.app
        tokens = [app.create_agent("orders", f"o-{number}", SCOPES).access_token for number in range(20 * rounds + 1)]
        kid = json.loads(_decode(tokens[0].partition(".")[0]))["kid"]
        keys = httpx2.get(f"{app.broker_url}/.well-known/jwks.json").json()["keys"]
        key = _decode(next(known["x"] for known in keys if known["kid"] == kid))
        warm = tokens.pop()
        verifier.verify(warm)
        batches = [tokens[20 * number : 20 * number + 20] for number in range(rounds)]
        return [
            in_turns(
                "first verify of a token",
                ("Verifier.verify", [[partial(verifier.verify, token) for token in batch] for batch in batches]),
                ("PyNaCl and json", [[partial(bare, token, key) for token in batch] for batch in batches]),
                target="ratio at most 1.3",
            ),
            in_turns(
                "verify of a token seen before, with a scope",
                ("Verifier.verify", [[partial(verifier.verify, warm, scope=SCOPES[0])] * 1000] * rounds),
                ("PyNaCl and json", [[partial(bare, warm, key)] * 1000] * rounds),
                target="p50 under 5 µs",
            ),
        ]


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
