"""ECDSA on P-256 with SHA-256 (ES256, RFC 7518 §3.4).

Uses `cryptography`, which the broker depends on and which is optional for the SDK.
"""

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

SIGNATURE_BYTES: Final = 64

_CURVE: Final = SECP256R1()
_ES256: Final = ECDSA(SHA256())


def is_signature(signature: bytes, message: bytes, point: bytes) -> bool:
    """Whether `signature` (r and s, 32 bytes each) is one of `message` by the key with this uncompressed point."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
    try:
        key = EllipticCurvePublicKey.from_encoded_point(_CURVE, point)
        key.verify(encode_dss_signature(r, s), message, _ES256)
    except (ValueError, InvalidSignature):  # ValueError: not a point of the curve
        return False
    return True
