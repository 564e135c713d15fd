"""Proofs of possession: what is made is accepted, and what was changed in any way is not."""

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePrivateKey, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey

from agentwrit.domain import base64url, jwk, proof
from agentwrit.domain.errors import InvalidProof
from agentwrit.domain.jws import Ed25519Signer
from tests.domain.records import NOW

SIGNER = Ed25519Signer(bytes(range(32)))
URL = "https://broker.example.com/v1/agents"
JWK = {"kty": "OKP", "crv": "Ed25519", "x": base64url.encode(SIGNER.public_key)}
HEADER: dict[str, Any] = {"typ": "dpop+jwt", "alg": "EdDSA", "jwk": JWK}
P256 = derive_private_key(7, SECP256R1())
POINT = {
    "kty": "EC",
    "crv": "P-256",
    "x": base64url.encode(P256.public_key().public_numbers().x.to_bytes(32)),
    "y": base64url.encode(P256.public_key().public_numbers().y.to_bytes(32)),
}
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CLAIMS: dict[str, Any] = {"htm": "POST", "htu": URL, "iat": NOW, "jti": "j", "ath": proof.token_hash("token")}


def made(**changes: Any) -> str:
    arguments: dict[str, Any] = {"htm": "POST", "htu": URL, "iat": NOW, "jti": "j", "token": "token"}
    return proof.make(SIGNER.sign, SIGNER.public_key, **(arguments | changes))


def signed(header: object = HEADER, claims: object = CLAIMS, key: Ed25519Signer = SIGNER) -> str:
    """Whatever it says, signed."""
    parts = [part if isinstance(part, str) else json.dumps(part) for part in (header, claims)]
    signing_input = ".".join(base64url.encode(part.encode()) for part in parts)
    return f"{signing_input}.{base64url.encode(key.sign(signing_input.encode()))}"


def raw(signature: bytes) -> bytes:
    """An ASN.1 signature as JWS has it (RFC 7518 §3.4)."""
    return b"".join(number.to_bytes(32) for number in decode_dss_signature(signature))


def by_p256(
    header: dict[str, Any] | None = None,
    claims: object = None,
    key: EllipticCurvePrivateKey = P256,
    form: Callable[[bytes], bytes] = raw,
) -> str:
    """A proof by a key of P-256, in which changes are made."""
    members = {"typ": "dpop+jwt", "alg": "ES256", "jwk": POINT, **(header or {})}
    signing_input = ".".join(base64url.encode(json.dumps(part).encode()) for part in (members, claims or CLAIMS))
    return f"{signing_input}.{base64url.encode(form(key.sign(signing_input.encode(), ECDSA(SHA256()))))}"


def plainly(value: object) -> str:
    """JSON as `proof.make` spells it."""
    return json.dumps(value, separators=(",", ":"))


def check(text: str, *, htm: str = "POST", htu: str = URL, token: str | None = "token") -> proof.Proof:
    return proof.check(text, htm=htm, htu=htu, token=token)


def test_what_is_made_is_accepted_and_says_who_made_it() -> None:
    checked = check(made(nonce="n"))
    assert (checked.public_key, checked.jti, checked.iat, checked.nonce) == (SIGNER.public_key, "j", NOW, "n")
    assert check(made(token=None), token=None).nonce == ""
    assert check(signed()) == check(made())
    assert base64url.decode(made().partition(".")[0]).decode() == plainly(HEADER)


def test_a_library_that_is_not_ours_makes_and_reads_proofs() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    theirs = jwt.encode(CLAIMS, key, algorithm="EdDSA", headers={"typ": "dpop+jwt", "jwk": JWK})
    assert check(theirs).public_key == SIGNER.public_key
    read = jwt.PyJWS().decode(made(), jwt.PyJWK(JWK), algorithms=["EdDSA"])
    assert json.loads(read)["ath"] == base64.urlsafe_b64encode(hashlib.sha256(b"token").digest()).decode().rstrip("=")


def test_ed25519_goes_by_two_names() -> None:
    assert check(signed(HEADER | {"alg": "Ed25519"})) == check(signed())
    key = OKPKey.import_key({**JWK, "d": base64url.encode(bytes(range(32)))})
    header = HEADER | {"alg": "Ed25519"}
    assert check(jws.serialize_compact(header, json.dumps(CLAIMS), key, algorithms=["Ed25519"])) == check(signed())


def test_a_key_of_p256_proves_by_es256() -> None:
    checked = check(by_p256())
    point = b"\x04" + base64url.decode(POINT["x"]) + base64url.decode(POINT["y"])
    assert checked.public_key == point
    theirs = jwt.encode(CLAIMS, P256, algorithm="ES256", headers={"typ": "dpop+jwt", "jwk": POINT})
    assert check(theirs) == checked  # however often it is signed, its jti is the same
    assert jwk.thumbprint(point) == ECKey.import_key({**POINT}).thumbprint()
    assert checked.single_use_id != check(made()).single_use_id


@given(st.data())
def test_a_proof_with_any_character_changed_is_none(data: st.DataObject) -> None:
    text = made()
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("AQgwXYZabc019-_.=+/ \n\u00e9"))
    changed = text[:at] + other + text[at + 1 :]
    if changed != text:
        with pytest.raises(InvalidProof):
            check(changed)


FORGERIES: dict[str, Callable[[], str]] = {
    "empty": lambda: "",
    "two-parts": lambda: made().rpartition(".")[0],
    "four-parts": lambda: made() + ".x",
    "trailing-dot": lambda: made() + ".",
    "padded": lambda: made() + "=",
    "oversized": lambda: signed(claims=CLAIMS | {"pad": "x" * 4096}),
    "alg-none": lambda: signed(HEADER | {"alg": "none"}),
    "alg-hs256": lambda: signed(HEADER | {"alg": "HS256"}),
    "alg-es256": lambda: signed(HEADER | {"alg": "ES256"}),
    "alg-ed25519-in-other-letters": lambda: signed(HEADER | {"alg": "ed25519"}),
    "alg-ed448": lambda: signed(HEADER | {"alg": "Ed448"}),
    "alg-is-a-list": lambda: signed(HEADER | {"alg": ["EdDSA"]}),
    "p256-key-by-eddsa": lambda: signed(HEADER | {"jwk": POINT}),
    "p256-key-and-a-signature-by-ed25519": lambda: signed(HEADER | {"alg": "ES256", "jwk": POINT}),
    "p256-proof-that-calls-itself-eddsa": lambda: by_p256({"alg": "EdDSA"}),
    "p256-proof-that-calls-itself-es384": lambda: by_p256({"alg": "ES384"}),
    "p256-proof-by-another-key": lambda: by_p256(key=derive_private_key(8, SECP256R1())),
    "p256-point-not-on-the-curve": lambda: by_p256({"jwk": POINT | {"y": base64url.encode(bytes(32))}}),
    "p256-point-at-infinity": lambda: by_p256({"jwk": POINT | {"x": base64url.encode(bytes(32)), "y": "A" * 43}}),
    "p256-on-another-curve": lambda: by_p256({"jwk": POINT | {"crv": "secp256k1"}}),
    "p256-with-its-private-half": lambda: by_p256({"jwk": POINT | {"d": base64url.encode(bytes(32))}}),
    "p256-short-coordinate": lambda: by_p256({"jwk": POINT | {"x": base64url.encode(bytes(31))}}),
    "p256-without-y": lambda: by_p256({"jwk": {name: value for name, value in POINT.items() if name != "y"}}),
    "p256-signature-in-asn1": lambda: by_p256(form=lambda signature: signature),
    "p256-signature-of-zeros": lambda: by_p256(form=lambda signature: bytes(64)),
    "p256-signature-cut-off": lambda: by_p256(form=lambda signature: raw(signature)[:-1]),
    "p256-signature-with-more-behind-it": lambda: by_p256(form=lambda signature: raw(signature) + b"\0"),
    "typ-jwt": lambda: signed(HEADER | {"typ": "JWT"}),
    "typ-access-token": lambda: signed(HEADER | {"typ": "at+jwt"}),
    "no-typ": lambda: signed({name: value for name, value in HEADER.items() if name != "typ"}),
    "no-jwk": lambda: signed({name: value for name, value in HEADER.items() if name != "jwk"}),
    "crit": lambda: signed(HEADER | {"crit": ["b64"], "b64": False}),
    "jku": lambda: signed(HEADER | {"jku": "https://evil.example/keys"}),
    "x5u": lambda: signed(HEADER | {"x5u": "https://evil.example/cert"}),
    "kid": lambda: signed(HEADER | {"kid": "../../key"}),
    "private-jwk": lambda: signed(HEADER | {"jwk": JWK | {"d": base64url.encode(bytes(range(32)))}}),
    "symmetric-jwk": lambda: signed(HEADER | {"jwk": {"kty": "oct", "k": "AA"}}),
    "x25519-jwk": lambda: signed(HEADER | {"jwk": JWK | {"crv": "X25519"}}),
    "short-jwk": lambda: signed(HEADER | {"jwk": JWK | {"x": base64url.encode(bytes(31))}}),
    "jwk-of-no-text": lambda: signed(HEADER | {"jwk": JWK | {"x": 1}}),
    "jwk-of-small-order": lambda: signed(HEADER | {"jwk": JWK | {"x": base64url.encode(bytes(32))}}),
    "jwk-that-ends-early": lambda: signed(plainly(HEADER).replace(JWK["x"], "A" * 42 + '"')),
    "jwk-not-canonical": lambda: signed(plainly(HEADER).replace(JWK["x"], JWK["x"][:-1] + "9")),
    "jwk-in-plain-base64": lambda: signed(plainly(HEADER).replace(JWK["x"], "+" + JWK["x"][1:])),
    "jwk-not-ascii": lambda: signed(plainly(HEADER).replace(JWK["x"], "\u00e9" + JWK["x"][2:])),
    "jwk-is-a-list": lambda: signed(HEADER | {"jwk": [JWK]}),
    "another-key": lambda: signed(key=Ed25519Signer(bytes(32))),
    "header-member-twice": lambda: signed(
        '{"typ":"dpop+jwt","alg":"none","alg":"EdDSA","jwk":' + json.dumps(JWK) + "}"
    ),
    "claim-twice": lambda: signed(claims=json.dumps(CLAIMS)[:-1] + ',"htm":"POST"}'),
    "claim-twice-and-plainly-spelled": lambda: signed(claims=plainly(CLAIMS)[:-1] + ',"htm":"POST"}'),
    "header-member-twice-and-plainly-spelled": lambda: signed(plainly(HEADER)[:-1] + ',"alg":"EdDSA"}'),
    "key-member-twice": lambda: signed(json.dumps(HEADER).replace('"kty"', '"crv": "Ed25519", "kty"')),
    "not-an-object": lambda: signed(claims=[1]),
    "nested": lambda: signed(claims="[" * 2900),
    "nan": lambda: signed(claims=json.dumps(CLAIMS).replace(str(NOW), "NaN")),
    "no-json": lambda: signed(claims="{"),
    "no-htm": lambda: signed(claims={name: value for name, value in CLAIMS.items() if name != "htm"}),
    "another-method": lambda: signed(claims=CLAIMS | {"htm": "GET"}),
    "lower-case-method": lambda: signed(claims=CLAIMS | {"htm": "post"}),
    "another-path": lambda: signed(claims=CLAIMS | {"htu": URL + "/x"}),
    "another-host": lambda: signed(claims=CLAIMS | {"htu": URL.replace("broker", "evil")}),
    "another-scheme": lambda: signed(claims=CLAIMS | {"htu": URL.replace("https", "http")}),
    "another-port": lambda: signed(claims=CLAIMS | {"htu": URL.replace(".com", ".com:444")}),
    "bad-port": lambda: signed(claims=CLAIMS | {"htu": URL.replace(".com", ".com:x")}),
    "url-is-a-list": lambda: signed(claims=CLAIMS | {"htu": [URL]}),
    "another-token": lambda: signed(claims=CLAIMS | {"ath": proof.token_hash("other")}),
    "no-token": lambda: made(token=None),
    "no-jti": lambda: signed(claims=CLAIMS | {"jti": ""}),
    "long-jti": lambda: signed(claims=CLAIMS | {"jti": "j" * 129}),
    "jti-is-a-number": lambda: signed(claims=CLAIMS | {"jti": 7}),
    "jti-is-no-text": lambda: signed(claims=CLAIMS | {"jti": "\ud800"}),
    "iat-beyond-all-numbers": lambda: signed(claims=CLAIMS | {"iat": int("9" * 400)}),
    "iat-infinite": lambda: signed(claims=json.dumps(CLAIMS).replace(str(NOW), "1e999")),
    "iat-negative": lambda: signed(claims=CLAIMS | {"iat": -1}),
    "no-iat": lambda: signed(claims={name: value for name, value in CLAIMS.items() if name != "iat"}),
    "iat-is-text": lambda: signed(claims=CLAIMS | {"iat": str(NOW)}),
    "iat-is-true": lambda: signed(claims=CLAIMS | {"iat": True}),
    "nonce-is-a-number": lambda: signed(claims=CLAIMS | {"nonce": 7}),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_what_is_no_proof_for_this_request_is_refused(forge: Callable[[], str]) -> None:
    with pytest.raises(InvalidProof):
        check(forge())


@pytest.mark.parametrize(
    "written",
    [
        "HTTPS://BROKER.example.com/v1/agents",
        "https://broker.example.com:443/v1/agents",
        URL + "?query=1",
        URL + "#fragment",
    ],
)
def test_one_url_may_be_written_in_several_ways(written: str) -> None:
    check(signed(claims=CLAIMS | {"htu": written}))


def test_a_proof_is_timely_within_thirty_seconds_either_way() -> None:
    checked = check(made())
    assert [checked.is_timely(NOW + off) for off in (-30.5, -30, 0, 30, 30.5)] == [False, True, True, True, False]


def test_it_is_remembered_by_its_key_and_its_jti() -> None:
    other = Ed25519Signer(bytes(32))
    ids = {
        check(made()).single_use_id,
        check(made(iat=NOW + 1)).single_use_id,
        check(made(jti="k")).single_use_id,
        check(
            proof.make(other.sign, other.public_key, htm="POST", htu=URL, iat=NOW, jti="j", token="token")
        ).single_use_id,
    }
    assert len(ids) == 3


@given(JSON, st.booleans())
def test_json_of_the_plain_form_is_read_like_any_other(value: Any, is_plain: bool) -> None:
    text = plainly(value) if is_plain else json.dumps(value)
    read = proof._plainly_spelled(text.encode())
    assert read is None or (read, repr(read)) == (value, repr(value))


@pytest.mark.parametrize("value", [{}, HEADER, CLAIMS, {"iat": 1.5, "ü": ["\u2028", None, True]}])
def test_what_we_spell_ourselves_is_of_the_plain_form(value: object) -> None:
    assert proof._plainly_spelled(msgspec.json.encode(value)) == value
