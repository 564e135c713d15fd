"""Claims: what a token says, and when its time is right."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain import claims
from agentwrit.domain.claims import Confirmation
from agentwrit.domain.errors import InvalidToken
from tests.domain.records import NOW, make_claims, make_hop


def test_decode_gives_back_what_encode_took() -> None:
    full = make_claims(delegation_chain=(make_hop("a"), make_hop("b")), chain_hash="00", cnf=Confirmation("thumb"))
    for each in (make_claims(), make_claims(task_id="", orch_id="", client_id=""), full):
        assert claims.decode(claims.encode(each)) == each


def test_the_scope_is_one_string_in_the_token_and_a_list_outside() -> None:
    token = make_claims(scope="read:data:1 write:data:2")
    assert json.loads(claims.encode(token))["scope"] == "read:data:1 write:data:2"
    assert token.scopes == ("read:data:1", "write:data:2")


def test_members_without_meaning_are_left_out() -> None:
    members = json.loads(claims.encode(make_claims()))
    assert not {"delegation_chain", "chain_hash", "cnf"} & set(members)


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
