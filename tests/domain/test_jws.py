"""Compact JWS: what we sign others verify, what others sign in our spelling we verify, and nothing else."""

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import joserfc.jws
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc.jwk import OKPKey

from agentwrit.domain import base64url, jws
from agentwrit.domain.errors import InvalidToken

VECTORS = Path(__file__).parent.parent / "vectors"
RFC8037 = json.loads((VECTORS / "rfc8037.json").read_text(encoding="utf-8"))
WYCHEPROOF = json.loads((VECTORS / "wycheproof_ed25519.json").read_text(encoding="utf-8"))
WYCHEPROOF_CASES = [(group["publicKey"]["pk"], case) for group in WYCHEPROOF["testGroups"] for case in group["tests"]]

SEED = bytes(range(32))
SIGNER = jws.Ed25519Signer(SEED)
VERIFIER = jws.Verifier({SIGNER.kid: SIGNER.public_key}, typ=jws.ACCESS_TOKEN)
TOKEN = jws.sign(b'{"sub":"someone"}', SIGNER, typ=jws.ACCESS_TOKEN)

# The identity and the other points whose order divides 8, in every encoding of y (RFC 7748 §7, RFC 8032 §5.1.3).
_P = 2**255 - 19
_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD83D3D706A17C7
SMALL_ORDER = [
    (y | sign << 255).to_bytes(32, "little")
    for y in (0, 1, _P - 1, _P, _P + 1, _ORDER_8, _P - _ORDER_8)
    for sign in (0, 1)
]


# -- with others ------------------------------------------------------------------------------------------------------


# RFC 9864 prefers the name "Ed25519" for what RFC 8037, and everybody's verifier, calls EdDSA.
@pytest.mark.filterwarnings("ignore:EdDSA is deprecated via RFC 9864")
@given(st.dictionaries(st.text(max_size=8), st.one_of(st.text(max_size=8), st.integers()), max_size=4))
@settings(max_examples=40)
def test_other_libraries_verify_what_we_sign(members: dict[str, Any]) -> None:
    payload = json.dumps(members).encode()
    token = jws.sign(payload, SIGNER, typ=jws.ACCESS_TOKEN)
    public_key = Ed25519PublicKey.from_public_bytes(SIGNER.public_key)
    assert jwt.PyJWS().decode(token, public_key, algorithms=["EdDSA"]) == payload
    key = OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": base64url.encode(SIGNER.public_key)})
    theirs = joserfc.jws.deserialize_compact(token, key, algorithms=["EdDSA"])
    assert theirs.payload == payload
    assert theirs.protected == {"alg": "EdDSA", "typ": "at+jwt", "kid": SIGNER.kid}


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated via RFC 9864")
def test_we_verify_what_another_library_signs_under_the_same_header() -> None:
    header = {"alg": "EdDSA", "typ": jws.ACCESS_TOKEN, "kid": SIGNER.kid}
    public_half = {"kty": "OKP", "crv": "Ed25519", "x": base64url.encode(SIGNER.public_key)}
    key = OKPKey.import_key({**public_half, "d": base64url.encode(SEED)})
    token = joserfc.jws.serialize_compact(header, b"payload", key, algorithms=["EdDSA"])
    assert token == jws.sign(b"payload", SIGNER, typ=jws.ACCESS_TOKEN)
    assert VERIFIER.verify(token) == (SIGNER.kid, b"payload")


def test_a_genuine_signature_under_another_spelling_of_the_header_is_refused() -> None:
    private_key = Ed25519PrivateKey.from_private_bytes(SEED)
    headers = {"typ": jws.ACCESS_TOKEN, "kid": SIGNER.kid}
    token = jwt.PyJWS().encode(b"payload", private_key, "EdDSA", headers=headers, sort_headers=True)
    assert jwt.PyJWS().decode(token, private_key.public_key(), algorithms=["EdDSA"]) == b"payload"
    with pytest.raises(InvalidToken, match="header"):
        VERIFIER.verify(token)


# -- public vectors ---------------------------------------------------------------------------------------------------


def test_the_signature_of_rfc_8037_appendix_a_4() -> None:
    signer = jws.Ed25519Signer(base64url.decode(RFC8037["seed"]))
    assert signer.public_key == base64url.decode(RFC8037["x"])
    signing_input, _, signature = RFC8037["jws"].rpartition(".")
    assert base64url.decode(signing_input.partition(".")[2]) == RFC8037["payload"].encode()
    assert base64url.encode(signer.sign(signing_input.encode())) == signature
    assert jws.is_signature(base64url.decode(signature), signing_input.encode(), signer.public_key)


@pytest.mark.parametrize(
    ("public_key", "case"), WYCHEPROOF_CASES, ids=[f"{case['tcId']}-{case['result']}" for _, case in WYCHEPROOF_CASES]
)
def test_wycheproof(public_key: str, case: dict[str, Any]) -> None:
    signature, message = bytes.fromhex(case["sig"]), bytes.fromhex(case["msg"])
    is_valid = jws.is_signature(signature, message, bytes.fromhex(public_key))
    assert is_valid == (case["result"] == "valid"), case["comment"]


@pytest.mark.parametrize("public_key", SMALL_ORDER, ids=bytes.hex)
def test_a_key_of_small_order_verifies_nothing(public_key: bytes) -> None:
    for point in SMALL_ORDER:
        for scalar in (0, 1):
            signature = point + scalar.to_bytes(32, "little")
            assert not jws.is_signature(signature, b"anything", public_key)


# -- what is refused --------------------------------------------------------------------------------------------------


@given(st.integers(0, len(TOKEN) - 1), st.characters(max_codepoint=0x2FF))
def test_no_token_differs_from_a_genuine_one_in_one_character(at: int, character: str) -> None:
    changed = TOKEN[:at] + character + TOKEN[at + 1 :]
    if changed != TOKEN:
        with pytest.raises(InvalidToken):
            VERIFIER.verify(changed)


@given(st.text(max_size=60))
def test_any_text_is_refused_as_a_token_and_never_as_a_crash(text: str) -> None:
    for token in (text, f"{TOKEN}{text} ", f"{TOKEN.rpartition('.')[0]}.{text}", f".{text}.", f"{text}.{TOKEN}"):
        with pytest.raises(InvalidToken):
            VERIFIER.verify(token)


@pytest.mark.parametrize("length", range(1, 200))
def test_a_truncated_token_is_refused(length: int) -> None:
    with pytest.raises(InvalidToken):
        VERIFIER.verify(TOKEN[:-length])


@pytest.mark.parametrize(
    "header",
    [
        '{"alg":"none","typ":"at+jwt","kid":"KID"}',
        '{"alg":"HS256","typ":"at+jwt","kid":"KID"}',
        '{"alg":"Ed25519","typ":"at+jwt","kid":"KID"}',
        '{"alg":"EdDSA","typ":"JWT","kid":"KID"}',
        '{"alg":"EdDSA","typ":"at+jwt","kid":"KID","crit":["b64"]}',
        '{"alg":"EdDSA","typ":"at+jwt","kid":"KID","jku":"https://keys.example/"}',
        '{"alg":"EdDSA","typ":"at+jwt","kid":"KID","x5u":"https://keys.example/"}',
        '{"alg":"EdDSA","typ":"at+jwt","kid":"KID","jwk":{"kty":"OKP","crv":"Ed25519","x":"X"}}',
        '{"alg":"EdDSA","alg":"EdDSA","typ":"at+jwt","kid":"KID"}',
        '{"alg":"EdDSA","typ":"at+jwt","kid":"../../../../dev/null"}',
        '{"alg":"EdDSA","typ":"at+jwt"}',
        '{"kid":"KID","alg":"EdDSA","typ":"at+jwt"}',
        '{"alg": "EdDSA","typ":"at+jwt","kid":"KID"}',
        "",
    ],
)
def test_a_header_other_than_ours_is_refused_even_with_a_genuine_signature(header: str) -> None:
    encoded = base64url.encode(header.replace("KID", SIGNER.kid).encode())
    signing_input = f"{encoded}.{base64url.encode(b'{}')}"
    signature = base64url.encode(SIGNER.sign(signing_input.encode()))
    with pytest.raises(InvalidToken, match="header"):
        VERIFIER.verify(f"{signing_input}.{signature}")


def test_an_empty_signature_is_refused() -> None:
    with pytest.raises(InvalidToken):
        VERIFIER.verify(TOKEN.rpartition(".")[0] + ".")


def test_other_spellings_of_a_genuine_signature_are_refused() -> None:
    head, _, signature = TOKEN.rpartition(".")
    raw = base64url.decode(signature)
    # 64 bytes are 86 characters, of which the last carries two bits that mean nothing.
    respelled = signature[:-1] + chr(ord(signature[-1]) + 1)
    padded = base64.urlsafe_b64encode(raw).decode()
    for other in (respelled, padded, signature + "=", signature + "\n", signature + "A"):
        with pytest.raises(InvalidToken):
            VERIFIER.verify(f"{head}.{other}")


def test_a_malleable_signature_is_refused() -> None:
    order = 2**252 + 27742317777372353535851937790883648493
    head, _, signature = TOKEN.rpartition(".")
    raw = base64url.decode(signature)
    scalar = int.from_bytes(raw[32:], "little") + order
    with pytest.raises(InvalidToken, match="signature"):
        VERIFIER.verify(f"{head}.{base64url.encode(raw[:32] + scalar.to_bytes(32, 'little'))}")


def test_a_token_of_another_type_is_refused() -> None:
    token = jws.sign(b"{}", SIGNER, typ="dpop+jwt")
    with pytest.raises(InvalidToken, match="header"):
        VERIFIER.verify(token)


def test_a_token_by_an_unknown_key_is_refused() -> None:
    stranger = jws.Ed25519Signer(bytes(32))
    with pytest.raises(InvalidToken, match="header"):
        VERIFIER.verify(jws.sign(b"{}", stranger, typ=jws.ACCESS_TOKEN))


def test_a_key_does_not_answer_to_the_name_of_another() -> None:
    other = jws.Ed25519Signer(bytes(32))
    verifier = jws.Verifier({SIGNER.kid: other.public_key, other.kid: SIGNER.public_key}, typ=jws.ACCESS_TOKEN)
    with pytest.raises(InvalidToken, match="signature"):
        verifier.verify(TOKEN)


def test_eight_kilobytes_are_taken_and_one_more_is_not() -> None:
    largest = jws.sign(b"x" * 6002, SIGNER, typ=jws.ACCESS_TOKEN)
    room = jws.MAX_TOKEN_BYTES - len(largest)
    largest = jws.sign(b"x" * (6002 + room * 3 // 4), SIGNER, typ=jws.ACCESS_TOKEN)
    assert jws.MAX_TOKEN_BYTES - 2 < len(largest) <= jws.MAX_TOKEN_BYTES
    VERIFIER.verify(largest)
    with pytest.raises(InvalidToken, match="8 KiB"):
        VERIFIER.verify(largest + "A" * (jws.MAX_TOKEN_BYTES + 1 - len(largest)))


@given(st.binary(max_size=80), st.binary(max_size=40))
def test_signatures_and_keys_of_another_length_are_refused(signature: bytes, public_key: bytes) -> None:
    if len(signature) != 64 or len(public_key) != 32:
        assert not jws.is_signature(signature, b"", public_key)


# -- private keys -----------------------------------------------------------------------------------------------------


def test_a_private_key_is_neither_shown_nor_pickled() -> None:
    assert SEED.hex() not in repr(SIGNER)
    assert repr(SEED)[2:-1] not in repr(SIGNER)
    with pytest.raises(TypeError):
        pickle.dumps(SIGNER)
