"""The keys of agents, and what is done where the package for ES256 is not there."""

import subprocess
import sys

import pytest

from agentwrit.domain import agent_key
from tests.proofs import p256_key, p256_signature, raw_public_key

WITHOUT = """
import sys
sys.modules["cryptography"] = None
from agentwrit.domain import agent_key, jwk, proof
from agentwrit.domain.errors import InvalidProof
print(" ".join(jwk.proof_algorithms()))
try:
    agent_key.is_signature(bytes(64), b"", bytes.fromhex({point!r}))
except InvalidProof as error:
    print(error)
"""


def test_a_signature_holds_for_its_key_and_its_message_alone() -> None:
    key, other = p256_key(), p256_key()
    signature = p256_signature(key, b"message")
    assert agent_key.is_signature(signature, b"message", raw_public_key(key))
    assert not agent_key.is_signature(signature, b"massage", raw_public_key(key))
    assert not agent_key.is_signature(signature, b"message", raw_public_key(other))
    assert not agent_key.is_signature(signature, b"message", raw_public_key(key)[1:33])  # an Ed25519 key, if it is one


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64, 66])
def test_keys_have_their_form(length: int) -> None:
    assert not agent_key.is_key(b"\x04" * length)
    assert agent_key.is_key(bytes(32))
    assert agent_key.is_key(raw_public_key(p256_key()))
    assert not agent_key.is_key(b"\x02" + raw_public_key(p256_key())[1:])


def test_without_cryptography_es256_is_not_offered_and_its_proofs_are_refused() -> None:
    program = WITHOUT.format(point=raw_public_key(p256_key()).hex())
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "EdDSA Ed25519",
        "the proof is by ES256, for which the package cryptography is needed",
    ], done.stderr
