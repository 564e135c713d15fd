"""Whether a bound token was shown by its holder: what is accepted, what is remembered, and for how long."""

import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agentwrit.client.possession import MEMORY_SECONDS, Possession
from agentwrit.client.steps import ShownProof
from agentwrit.domain import jwk
from agentwrit.errors import Unproven
from tests import proofs
from tests.proofs import p256_key, proof, raw_public_key

TOKEN = "header.payload.signature"
URL = "https://orders.example/customers/7"
NOW = 1_900_000_000


class Key:
    def __init__(self, private: proofs.Key | None = None) -> None:
        self.private = private or Ed25519PrivateKey.generate()
        self.jkt = jwk.thumbprint(raw_public_key(self.private))

    def shown(self, url: str = URL, **changes: Any) -> ShownProof:
        return ShownProof(proof(self.private, "GET", URL, TOKEN, **{"iat": NOW, **changes}), "GET", url)


@pytest.fixture
def key() -> Key:
    return Key()


def code(check: Callable[[], None]) -> str:
    with pytest.raises(Unproven) as caught:
        check()
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.code, copy.reason) == (caught.value.code, caught.value.reason)
    return caught.value.code


def test_a_proof_by_the_holder_is_accepted_once(key: Key) -> None:
    possession = Possession()
    shown = key.shown()
    possession.check(shown, TOKEN, key.jkt, NOW)
    assert code(lambda: possession.check(shown, TOKEN, key.jkt, NOW)) == Unproven.PROOF


def test_proofs_are_taken_by_each_name_of_ed25519_and_by_es256(key: Key) -> None:
    possession = Possession()
    for alg in ("EdDSA", "Ed25519"):
        possession.check(key.shown(alg=alg), TOKEN, key.jkt, NOW)
    point = Key(p256_key())
    shown = point.shown()
    possession.check(shown, TOKEN, point.jkt, NOW)
    assert code(lambda: possession.check(shown, TOKEN, point.jkt, NOW)) == Unproven.PROOF
    assert code(lambda: possession.check(point.shown(), TOKEN, key.jkt, NOW)) == Unproven.TOKEN
    assert code(lambda: possession.check(key.shown(), TOKEN, point.jkt, NOW)) == Unproven.TOKEN


def test_without_a_proof_a_bound_token_is_nothing(key: Key) -> None:
    assert code(lambda: Possession().check(None, TOKEN, key.jkt, NOW)) == Unproven.TOKEN


def test_a_thief_with_a_key_of_its_own_is_not_the_holder(key: Key) -> None:
    assert code(lambda: Possession().check(Key().shown(), TOKEN, key.jkt, NOW)) == Unproven.TOKEN


@pytest.mark.parametrize(
    "changes",
    [
        {"htm": "POST"},
        {"htu": "https://orders.example/customers/8"},
        {"htu": "https://payments.example/customers/7"},
        {"htu": "http://orders.example/customers/7"},
        {"ath": None},
        {"ath": "another-tokens"},
        {"jti": None},
        {"iat": None},
        {"iat": NOW - 31},
        {"iat": NOW + 31},
        {"iat": NOW - 31, "nonce": "of-somebody"},
    ],
    ids=str,
)
def test_a_proof_for_anything_else_is_refused(key: Key, changes: dict[str, Any]) -> None:
    assert code(lambda: Possession().check(key.shown(**changes), TOKEN, key.jkt, NOW)) == Unproven.PROOF


def test_the_query_and_the_spelling_of_the_url_do_not_matter(key: Key) -> None:
    Possession().check(key.shown("HTTPS://Orders.Example:443/customers/7?page=2#top"), TOKEN, key.jkt, NOW)


def test_a_proof_is_remembered_for_as_long_as_its_time_could_be_taken_for_ours(key: Key) -> None:
    possession = Possession()
    shown = key.shown(iat=NOW + 30)
    possession.check(shown, TOKEN, key.jkt, NOW)
    assert code(lambda: possession.check(shown, TOKEN, key.jkt, NOW + 60)) == Unproven.PROOF
    possession.check(key.shown(iat=NOW + MEMORY_SECONDS), TOKEN, key.jkt, NOW + MEMORY_SECONDS)
    assert len(possession) == 1


def test_where_the_memory_is_full_nothing_is_accepted_twice(key: Key) -> None:
    possession = Possession(max_proofs=3, max_of_a_key=2)
    first = key.shown()
    possession.check(first, TOKEN, key.jkt, NOW)
    possession.check(key.shown(), TOKEN, key.jkt, NOW)
    assert code(lambda: possession.check(key.shown(), TOKEN, key.jkt, NOW)) == Unproven.PROOF
    another = Key()
    possession.check(another.shown(), TOKEN, another.jkt, NOW)
    third = Key()
    assert code(lambda: possession.check(third.shown(), TOKEN, third.jkt, NOW)) == Unproven.PROOF
    assert code(lambda: possession.check(first, TOKEN, key.jkt, NOW)) == Unproven.PROOF
    later = NOW + MEMORY_SECONDS
    possession.check(third.shown(iat=later), TOKEN, third.jkt, later)
    assert len(possession) == 1


def test_half_of_what_is_needed_is_a_mistake_of_the_callers() -> None:
    with pytest.raises(TypeError, match="htm= and htu="):
        ShownProof("proof", "GET")


def test_a_child_process_remembers_what_its_parent_saw(key: Key) -> None:
    possession = Possession()
    shown = key.shown()
    possession.check(shown, TOKEN, key.jkt, NOW)
    with possession._lock:  # as if another thread were at work
        child = os.fork()
        if not child:
            refused = code(lambda: possession.check(shown, TOKEN, key.jkt, NOW)) == Unproven.PROOF
            os._exit(0 if refused else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
