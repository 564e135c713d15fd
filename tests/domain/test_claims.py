"""Claims: what a token says, and when its time is right."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain import claims, delegation
from agentwrit.domain.claims import Actor, Claims, Confirmation
from agentwrit.domain.errors import InvalidToken
from agentwrit.domain.jws import Ed25519Signer
from tests.domain.records import NOW, make_claims, make_hop


def test_decode_gives_back_what_encode_took() -> None:
    full = make_claims(delegation_chain=(make_hop("a"), make_hop("b")), chain_hash="00", cnf=Confirmation("thumb"))
    full = msgspec.structs.replace(full, act=Actor("b", Actor("a")))
    for each in (make_claims(), make_claims(task_id="", orch_id="", client_id=""), full):
        assert claims.decode(claims.encode(each)) == each


def test_the_scope_is_one_string_in_the_token_and_a_list_outside() -> None:
    token = make_claims(scope="read:data:1 write:data:2")
    assert json.loads(claims.encode(token))["scope"] == "read:data:1 write:data:2"
    assert token.scopes == ("read:data:1", "write:data:2")


def test_members_without_meaning_are_left_out() -> None:
    members = json.loads(claims.encode(make_claims()))
    assert not {"delegation_chain", "chain_hash", "cnf", "act"} & set(members)


REQUIRED = ["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "sid", "scope", "client_id", "task_id", "orch_id"]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_claim_is_refused(name: str) -> None:
    members = json.loads(claims.encode(make_claims()))
    del members[name]
    with pytest.raises(InvalidToken):
        claims.decode(json.dumps(members).encode())


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("value", [None, True, 1.5, {}, [1]])
def test_a_claim_of_another_type_is_refused(name: str, value: Any) -> None:
    members = json.loads(claims.encode(make_claims())) | {name: value}
    with pytest.raises(InvalidToken):
        claims.decode(json.dumps(members).encode())


@pytest.mark.parametrize("changes", [{"sub": ""}, {"jti": ""}, {"sid": ""}, {"aud": ()}])
def test_an_empty_name_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidToken, match="empty"):
        claims.decode(claims.encode(make_claims(**changes)))


@given(st.binary(max_size=40))
def test_any_bytes_are_refused_and_never_a_crash(payload: bytes) -> None:
    with pytest.raises(InvalidToken):
        claims.decode(payload)


def test_deep_nesting_is_refused_and_never_a_crash() -> None:
    with pytest.raises(InvalidToken):
        claims.decode(b'{"iss":' + b"[" * 100_000)
    with pytest.raises(InvalidToken):
        claims.decode(b'{"unknown":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def test_a_token_ends_exactly_at_its_exp() -> None:
    token = make_claims()
    claims.check_time(token, token.exp - 0.001)
    with pytest.raises(InvalidToken, match="expired"):
        claims.check_time(token, token.exp)


def test_the_leeway_is_for_the_beginning_only() -> None:
    token = make_claims()
    claims.check_time(token, NOW - claims.LEEWAY_SECONDS)
    with pytest.raises(InvalidToken, match="not valid yet"):
        claims.check_time(token, NOW - claims.LEEWAY_SECONDS - 0.001)
    with pytest.raises(InvalidToken, match="not valid yet"):
        claims.check_time(token, NOW - 1, leeway=0)
    with pytest.raises(InvalidToken, match="expired"):
        claims.check_time(token, token.exp, leeway=3600)


def test_a_token_of_another_issuer_is_refused() -> None:
    claims.check_issuer(make_claims(), "agentwrit")
    for issuer in ("", "agentwrit2", "Agentwrit", "agentwri"):
        with pytest.raises(InvalidToken, match="issuer"):
            claims.check_issuer(make_claims(), issuer)


def test_actors_are_the_chain_from_its_end_to_its_root() -> None:
    first, second = make_hop("a"), msgspec.structs.replace(make_hop("b"), agent="spiffe://agentwrit.local/agent/o/t/2")
    assert claims.actors("me", (first, second)) == Actor("me", Actor(second.agent, Actor(first.agent)))


SIGNER = Ed25519Signer(bytes(32))
KEYS = {SIGNER.kid: SIGNER.public_key}


def delegated(**changes: Any) -> Claims:
    """A token that was delegated once, and really so."""
    chain = delegation.extend(
        (),
        SIGNER,
        agent="root",
        sid="above",
        scope=("read:data:*",),
        delegate="me",
        granted=("read:data:1",),
        delegated_at=NOW,
    )
    return make_claims(
        **{"sub": "me", "delegation_chain": chain, "chain_hash": delegation.chain_hash(chain), **changes}
    )


def test_a_token_may_name_its_actors_or_not() -> None:
    claims.check_delegation(delegated(), KEYS)
    claims.check_delegation(delegated(act=Actor("me", Actor("root"))), KEYS)


@pytest.mark.parametrize(
    "act",
    [
        Actor("me"),
        Actor("root"),
        Actor("root", Actor("me")),
        Actor("me", Actor("other")),
        Actor("me", Actor("root", Actor("other"))),
        Actor("other", Actor("root")),
    ],
)
def test_actors_that_are_not_those_of_the_chain_are_refused(act: Actor) -> None:
    with pytest.raises(InvalidToken, match="act"):
        claims.check_delegation(delegated(act=act), KEYS)


def test_actors_without_a_chain_are_refused() -> None:
    with pytest.raises(InvalidToken, match="act"):
        claims.check_delegation(make_claims(act=Actor(make_claims().sub)), KEYS)


@pytest.mark.parametrize("act", [{}, [], "me", {"sub": 1}, {"sub": "me", "act": "root"}, {"sub": "me", "iss": "x"}])
def test_actors_of_another_form_are_refused(act: Any) -> None:
    members = json.loads(claims.encode(delegated())) | {"act": act}
    with pytest.raises(InvalidToken):
        claims.decode(json.dumps(members).encode())
