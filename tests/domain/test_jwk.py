"""Keys as JSON Web Keys, against the examples of RFC 8037 and RFC 7638."""

import hashlib
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import OKPKey

from agentwrit.domain import base64url, canonical, jwk

RFC8037 = json.loads((Path(__file__).parent.parent / "vectors" / "rfc8037.json").read_text(encoding="utf-8"))


def test_the_thumbprint_of_rfc_8037_appendix_a_3() -> None:
    assert jwk.thumbprint(base64url.decode(RFC8037["x"])) == RFC8037["thumbprint"]


def test_the_thumbprint_input_of_rfc_7638_section_3_1() -> None:
    # An RSA key, of which we have none: what the example fixes is the canonical form and its hash.
    modulus = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiF"
        "V4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9"
        "c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1"
        "jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    members = {"kty": "RSA", "n": modulus, "e": "AQAB"}
    digest = hashlib.sha256(canonical.encode(members)).digest()
    assert base64url.encode(digest) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


@given(st.binary(min_size=32, max_size=32))
def test_another_library_gives_the_same_thumbprint(public_key: bytes) -> None:
    key = OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": base64url.encode(public_key)})
    assert key.thumbprint() == jwk.thumbprint(public_key)


def test_a_published_key_has_its_public_half_and_its_use_alone() -> None:
    public_key = base64url.decode(RFC8037["x"])
    assert jwk.public_jwk(public_key) == {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": RFC8037["x"],
        "kid": RFC8037["thumbprint"],
        "use": "sig",
        "alg": "EdDSA",
    }
