"""The keys that agents prove to hold: Ed25519, or P-256 for those whose libraries have nothing else.

The rules:

- A public key is bytes as WebCrypto exports them raw: the 32 of Ed25519 (RFC 8032 §5.1.5), or the 65 of an uncompressed
  point of P-256 (SEC 1 §2.3.3). As a JWK it has its required members and no others (RFC 8037 §2, RFC 7518 §6.2).
- Ed25519 goes by two names, `EdDSA` and `Ed25519` (RFC 9864 §2.2), which are one algorithm; P-256 signs by `ES256`
  (RFC 7518 §3.4). A key of one kind signs by no algorithm of the other.

What the broker signs is another matter: its keys are Ed25519, and its tokens name `EdDSA` (`agentwrit.domain.jws`).
"""

from typing import Final

from agentwrit.domain import base64url, jwk, jws
from agentwrit.domain.errors import InvalidProof

COORDINATE_BYTES: Final = 32


def is_key(public_key: bytes) -> bool:
    """Whether bytes have the form of a public key. That somebody holds it, a signature shows."""
    if len(public_key) == jwk.P256_KEY_BYTES:
        return public_key[:1] == jwk.UNCOMPRESSED
    return len(public_key) == jwk.PUBLIC_KEY_BYTES


def from_jwk(key: object, algorithm: object) -> bytes:
    """The public key that a JWK is, for this algorithm.

    Raises:
        ValueError: it is none, or is for another algorithm.
    """
    match key:
        case {"kty": "OKP", "crv": "Ed25519", "x": str(x), **rest} if algorithm in jwk.ED25519_NAMES and not rest:
            return coordinate(x)
        case {"kty": "EC", "crv": "P-256", "x": str(x), "y": str(y), **rest} if algorithm == jwk.ES256 and not rest:
            return jwk.UNCOMPRESSED + coordinate(x) + coordinate(y)
    raise ValueError("not a public key for this algorithm")


def coordinate(text: str) -> bytes:
    """A coordinate of a public key, which for Ed25519 is all of it.

    Raises:
        ValueError: it is none.
    """
    decoded = base64url.decode(text)
    if len(decoded) != COORDINATE_BYTES:
        raise ValueError("not a coordinate")
    return decoded


def is_signature(signature: bytes, message: bytes, public_key: bytes) -> bool:
    """Whether `signature` is that of `message` by the holder of `public_key`.

    Raises:
        InvalidProof: that cannot be told for want of a package.
    """
    if len(public_key) == jwk.PUBLIC_KEY_BYTES:
        return jws.is_signature(signature, message, public_key)
    try:
        from agentwrit.domain import p256
    except ImportError:
        raise InvalidProof("the proof is by ES256, for which the package cryptography is needed") from None
    return p256.is_signature(signature, message, public_key)
