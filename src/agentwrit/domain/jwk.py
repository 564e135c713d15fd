"""Public keys as JSON Web Keys (RFC 7517), identified by their thumbprint (RFC 7638): Ed25519 (RFC 8037 §2).

P-256 keys (RFC 7518 §6.2) have only thumbprints here: agents may use such keys, the broker has none.
"""

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final

from agentwrit.domain import base64url
from agentwrit.domain.errors import InvalidToken

PUBLIC_KEY_BYTES: Final = 32
P256_KEY_BYTES: Final = 65
UNCOMPRESSED: Final = b"\x04"  # first byte of an uncompressed point (SEC 1 §2.3.3)

ED25519_NAMES: Final = ("EdDSA", "Ed25519")  # one algorithm: RFC 8037 §3.1, RFC 9864 §2.2
ES256: Final = "ES256"


def proof_algorithms() -> tuple[str, ...]:
    """The algorithms with which proofs are accepted (RFC 9449 §5.1). ES256 needs the package `cryptography`."""
    return (*ED25519_NAMES, ES256) if find_spec("cryptography") is not None else ED25519_NAMES


def thumbprint(public_key: bytes) -> str:
    """The key's id (kid): base64url SHA-256 over its required members (RFC 7638 §3; RFC 8037 §2)."""
    # RFC 7638 §3.3: members in lexicographic order, without white space.
    if len(public_key) == P256_KEY_BYTES:
        x, y = base64url.encode(public_key[1:33]), base64url.encode(public_key[33:])
        members = f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'
    else:
        members = f'{{"crv":"Ed25519","kty":"OKP","x":"{base64url.encode(public_key)}"}}'
    return base64url.encode(hashlib.sha256(members.encode("ascii")).digest())


def public_jwk(public_key: bytes) -> dict[str, str]:
    """The key as a member of a JWK Set, for verifying signatures only (RFC 7517 §4)."""
    return {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": base64url.encode(public_key),
        "kid": thumbprint(public_key),
        "use": "sig",
        "alg": "EdDSA",
    }


def public_keys(jwk_set: Mapping[str, object]) -> dict[str, bytes]:
    """The Ed25519 keys of a JWK Set by kid, 32 bytes each. Keys of other types are ignored (RFC 7517 §5).

    Raises:
        InvalidToken: this is not a JWK Set, or the kid of a key is not its thumbprint.
    """
    keys = jwk_set.get("keys")
    if not isinstance(keys, list) or not all(isinstance(key, Mapping) for key in keys):
        raise InvalidToken("the keys are not a JWK Set")
    found: dict[str, bytes] = {}
    for key in keys:
        if key.get("kty") == "OKP" and key.get("crv") == "Ed25519":
            try:
                public_key = base64url.decode(key.get("x", ""))
            except (ValueError, AttributeError):
                public_key = b""
            if len(public_key) != PUBLIC_KEY_BYTES or key.get("kid") != thumbprint(public_key):
                raise InvalidToken("a key of the JWK Set is not named by its thumbprint")
            found[thumbprint(public_key)] = public_key
    return found
