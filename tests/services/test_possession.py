"""Proofs of possession are good once, however long what shows them waits."""

import asyncio

import pytest

from agentwrit.broker.clock import Clock
from agentwrit.broker.services.possession import MEMORY_SECONDS, spend
from agentwrit.broker.storage.memory import MemoryStore
from agentwrit.domain import proof
from agentwrit.domain.jws import Ed25519Signer
from tests.domain.records import NOW

URL = "https://broker.example.com/v1/agents"
SIGNER = Ed25519Signer(bytes(32))


@pytest.mark.parametrize("nonce", [None, "a nonce of ours"])
@pytest.mark.parametrize("first_at", [-proof.WINDOW_SECONDS, 0, proof.WINDOW_SECONDS])
def test_a_proof_that_waits_until_its_use_is_forgotten_is_not_good_again(first_at: int, nonce: str | None) -> None:
    text = proof.make(SIGNER.sign, SIGNER.public_key, htm="POST", htu=URL, iat=NOW, jti="j", nonce=nonce)
    checked = proof.check(text, htm="POST", htu=URL, token=None)
    time = NOW + first_at

    async def claim() -> None:
        nonlocal time
        store = MemoryStore(Clock(lambda: time, lambda: time))
        assert await store.write(lambda transaction: spend(transaction, checked))
        for later in range(1, MEMORY_SECONDS if nonce else 3 * MEMORY_SECONDS):
            time = NOW + first_at + later
            await store.write(lambda transaction: transaction.purge(10))
            assert not await store.write(lambda transaction: spend(transaction, checked))

    asyncio.run(claim())
