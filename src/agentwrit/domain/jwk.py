"""Ed25519 public keys as JSON Web Keys (RFC 7517; RFC 8037 §2), named by their thumbprint (RFC 7638)."""

import hashlib
from typing import Final

from agentwrit.domain import base64url, canonical

PUBLIC_KEY_BYTES: Final = 32


def thumbprint(public_key: bytes) -> str:
    """The key's name (kid): base64url SHA-256 over its required members (RFC 7638 §3; RFC 8037 §2)."""
    # RFC 7638 §3.3 asks for members in lexicographic order without white space: for these, RFC 8785's form.
    members = {"crv": "Ed25519", "kty": "OKP", "x": base64url.encode(public_key)}
    return base64url.encode(hashlib.sha256(canonical.encode(members)).digest())


def public_jwk(public_key: bytes) -> dict[str, str]:
    """The key as it stands in a JWK Set, for verifying signatures only (RFC 7517 §4)."""
    return {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": base64url.encode(public_key),
        "kid": thumbprint(public_key),
        "use": "sig",
        "alg": "EdDSA",
    }
