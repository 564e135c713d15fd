"""Delegation chains: one that was made verifies, and one that was changed in any way does not."""

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import VerifyKey

from agentwrit.domain import base64url
from agentwrit.domain.claims import Claims, check_delegation
from agentwrit.domain.delegation import MAX_DEPTH, Chain, DelegationRecord, chain_hash, extend, verify
from agentwrit.domain.errors import InvalidToken
from agentwrit.domain.jws import Ed25519Signer
from tests.domain.records import NOW, make_claims

SIGNER = Ed25519Signer(bytes(range(32)))
STRANGER = Ed25519Signer(bytes(32))
KEYS = {SIGNER.kid: SIGNER.public_key}

# What each hop holds, the last one first: five hops narrow from a list to one scope.
SCOPES = [("read:data:*", "write:data:*"), ("read:data:*", "write:data:1"), ("read:data:*",), ("read:data:7",)]


def held(hop: int) -> tuple[str, ...]:
    return SCOPES[min(hop, len(SCOPES) - 1)]


def make_chain(depth: int, signer: Ed25519Signer = SIGNER, *, first_sid: str = "sid-0") -> Chain:
    chain: Chain = ()
    for hop in range(depth):
        chain = extend(
            chain,
            signer,
            agent=f"agent-{hop}",
            sid=first_sid if hop == 0 else f"sid-{hop}",
            scope=held(hop),
            delegate=f"agent-{hop + 1}",
            granted=held(hop + 1),
            delegated_at=NOW + hop,
        )
    return chain


def make_token(chain: Chain, **changes: Any) -> Claims:
    claims = make_claims(
        sub=chain[-1].delegate,
        scope=" ".join(chain[-1].granted),
        sid="sid-of-the-token",
        iat=chain[-1].delegated_at,
        delegation_chain=chain,
        chain_hash=chain_hash(chain),
    )
    return msgspec.structs.replace(claims, **changes)


def resigned(record: DelegationRecord, **changes: Any) -> DelegationRecord:
    """The record with changes, signed by the right key: what only the broker could do."""
    changed = msgspec.structs.replace(record, **changes)
    members = msgspec.to_builtins(changed)
    del members["signature"]
    signature = SIGNER.sign(b"agentwrit-delegation-v1\n" + rfc8785.dumps(members))
    return msgspec.structs.replace(changed, signature=base64url.encode(signature))


@pytest.mark.parametrize("depth", range(MAX_DEPTH + 1))
def test_a_chain_that_was_made_verifies(depth: int) -> None:
    verify(make_chain(depth), KEYS)
    check_delegation(make_token(make_chain(depth)) if depth else make_claims(), KEYS)


def test_the_signed_bytes_and_the_hashes_are_those_of_the_protocol() -> None:
    chain = make_chain(3)
    before = ""
    for record in chain:
        members = msgspec.to_builtins(record)
        assert record.prev == before
        before = hashlib.sha256(rfc8785.dumps(members)).hexdigest()
        signature = base64url.decode(members.pop("signature"))
        VerifyKey(SIGNER.public_key).verify(b"agentwrit-delegation-v1\n" + rfc8785.dumps(members), signature)
    assert chain_hash(chain) == hashlib.sha256(rfc8785.dumps(msgspec.to_builtins(chain))).hexdigest()
    assert set(msgspec.to_builtins(chain[0])) == {
        "agent",
        "sid",
        "scope",
        "delegate",
        "granted",
        "delegated_at",
        "prev",
        "kid",
        "signature",
    }


CHANGES: dict[str, object] = {
    "agent": "somebody",
    "sid": "another",
    "scope": ("admin:everything:*",),
    "delegate": "somebody",
    "granted": ("read:data:*", "write:data:*", "admin:everything:*"),
    "delegated_at": NOW - 1,
    "prev": "0" * 64,
    "kid": STRANGER.kid,
    "signature": base64url.encode(bytes(64)),
}


@given(st.integers(1, MAX_DEPTH), st.data())
def test_a_chain_with_any_field_changed_is_refused(depth: int, data: st.DataObject) -> None:
    chain = make_chain(depth)
    at, name = data.draw(st.integers(0, depth - 1)), data.draw(st.sampled_from(sorted(CHANGES)))
    changed = (*chain[:at], msgspec.structs.replace(chain[at], **{name: CHANGES[name]}), *chain[at + 1 :])
    with pytest.raises(InvalidToken):
        verify(changed, KEYS)
    with pytest.raises(InvalidToken):
        check_delegation(make_token(chain, delegation_chain=changed), KEYS)
    with pytest.raises(InvalidToken):
        check_delegation(make_token(chain, delegation_chain=changed, chain_hash=chain_hash(changed)), KEYS)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda chain: chain[1:], id="beginning-dropped"),
        pytest.param(lambda chain: (chain[0], chain[2]), id="middle-dropped"),
        pytest.param(lambda chain: (chain[1], chain[0], chain[2]), id="swapped"),
        pytest.param(lambda chain: (chain[0], chain[0], *chain[1:]), id="repeated"),
        pytest.param(lambda chain: (*chain, chain[-1]), id="last-repeated"),
        pytest.param(lambda chain: (make_chain(1, first_sid="x")[0], *chain[1:]), id="beginning-of-another"),
        pytest.param(lambda chain: make_chain(3, STRANGER), id="another-key"),
        pytest.param(lambda chain: (*make_chain(2, STRANGER), chain[2]), id="another-key-at-first"),
        pytest.param(lambda chain: make_chain(MAX_DEPTH + 1), id="six-hops"),
        pytest.param(
            lambda chain: (resigned(chain[0], granted=("admin:everything:*",)),), id="widened-by-the-right-key"
        ),
        pytest.param(lambda chain: (resigned(chain[0], granted=()),), id="nothing-given"),
        pytest.param(
            lambda chain: (*chain[:2], resigned(chain[2], scope=("read:data:*", "x:y:z"))), id="holds-what-it-lacks"
        ),
        pytest.param(lambda chain: (*chain[:2], resigned(chain[2], sid="sid-0")), id="grant-twice"),
        pytest.param(lambda chain: (*chain[:2], resigned(chain[2], delegated_at=NOW)), id="before-its-time"),
    ],
)
def test_a_chain_put_together_otherwise_is_refused(change: Callable[[Chain], Chain]) -> None:
    changed = change(make_chain(3))
    with pytest.raises(InvalidToken):
        verify(changed, KEYS)
    with pytest.raises(InvalidToken):
        check_delegation(make_token(changed), KEYS) if changed[-1].granted else verify(changed, KEYS)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"sub": "somebody"}, id="another-subject"),
        pytest.param({"scope": "read:data:*"}, id="more-scope"),
        pytest.param({"scope": "read:data:1"}, id="another-scope"),
        pytest.param({"sid": "sid-0"}, id="the-grant-of-an-ancestor"),
        pytest.param({"iat": NOW + 1}, id="older-than-its-delegation"),
        pytest.param({"chain_hash": ""}, id="no-hash"),
        pytest.param({"chain_hash": "0" * 64}, id="another-hash"),
        pytest.param({"delegation_chain": ()}, id="hash-without-a-chain"),
        pytest.param({"delegation_chain": make_chain(2)}, id="chain-cut-short"),
        pytest.param({"delegation_chain": make_chain(2), "chain_hash": chain_hash(make_chain(2))}, id="half-a-chain"),
    ],
)
def test_a_chain_that_is_another_tokens_is_refused(changes: dict[str, Any]) -> None:
    token = make_token(make_chain(3))
    check_delegation(token, KEYS)
    with pytest.raises(InvalidToken):
        check_delegation(msgspec.structs.replace(token, **changes), KEYS)


def test_to_delegate_to_oneself_is_a_hop_like_any_other() -> None:
    chain: Chain = ()
    for hop in range(MAX_DEPTH):
        scope = ("read:data:1",)
        chain = extend(
            chain, SIGNER, agent="a", sid=f"s{hop}", scope=scope, delegate="a", granted=scope, delegated_at=NOW
        )
    verify(chain, KEYS)
    with pytest.raises(InvalidToken, match="more than 5"):
        verify((*chain, chain[-1]), KEYS)
