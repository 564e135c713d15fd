"""The keys that agents prove possession of: Ed25519, or P-256 for agents whose libraries lack Ed25519.

The rules:

- A public key is in WebCrypto's raw format: 32 bytes for Ed25519 (RFC 8032 §5.1.5), or 65 bytes, an uncompressed
  point, for P-256 (SEC 1 §2.3.3). As a JWK it has exactly its required members (RFC 8037 §2, RFC 7518 §6.2).
- `EdDSA` and `Ed25519` (RFC 9864 §2.2) are two names of one algorithm. P-256 keys sign with `ES256` (RFC 7518 §3.4).
  A key of one type is never accepted with the algorithm of the other.

The broker's own keys are always Ed25519, and its tokens name `EdDSA` (`agentwrit.domain.jws`).
"""

from typing import Final

from agentwrit.domain import base64url, jwk, jws
from agentwrit.domain.errors import InvalidProof

COORDINATE_BYTES: Final = 32


def is_key(public_key: bytes) -> bool:
    """Whether bytes have the form of a public key. Only a signature proves that somebody holds it."""
    if len(public_key) == jwk.P256_KEY_BYTES:
        return public_key[:1] == jwk.UNCOMPRESSED
    return len(public_key) == jwk.PUBLIC_KEY_BYTES


def from_jwk(key: object, algorithm: object) -> bytes:
    """The public key in a JWK, for this algorithm.

    Raises:
        ValueError: the JWK is not a public key, or is for another algorithm.
    """
    match key:
        case {"kty": "OKP", "crv": "Ed25519", "x": str(x), **rest} if algorithm in jwk.ED25519_NAMES and not rest:
            return coordinate(x)
        case {"kty": "EC", "crv": "P-256", "x": str(x), "y": str(y), **rest} if algorithm == jwk.ES256 and not rest:
            return jwk.UNCOMPRESSED + coordinate(x) + coordinate(y)
    raise ValueError("not a public key for this algorithm")


def coordinate(text: str) -> bytes:
    """Decode a coordinate of a public key. An Ed25519 key consists of one coordinate.

    Raises:
        ValueError: `text` is not a coordinate.
    """
    decoded = base64url.decode(text)
    if len(decoded) != COORDINATE_BYTES:
        raise ValueError("not a coordinate")
    return decoded


def is_signature(signature: bytes, message: bytes, public_key: bytes) -> bool:
    """Whether `signature` is a signature of `message` by the holder of `public_key`.

    Raises:
        InvalidProof: the key is P-256 and the package `cryptography` is not installed.
    """
    if len(public_key) == jwk.PUBLIC_KEY_BYTES:
        return jws.is_signature(signature, message, public_key)
    try:
        from agentwrit.domain import p256
    except ImportError:
        raise InvalidProof("the proof is by ES256, for which the package cryptography is needed") from None
    return p256.is_signature(signature, message, public_key)
