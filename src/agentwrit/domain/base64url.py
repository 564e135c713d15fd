"""base64url without padding (RFC 7515 §2). Only the canonical encoding is accepted.

A decoder that accepts padding, other characters or non-zero trailing bits gives one token many encodings. Everything
keyed by the encoded text (a cache, a replay list) could then be bypassed.
"""

from binascii import a2b_base64, b2a_base64
from typing import Final

_TO_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")


PIECE_BYTES: Final = 3 * 65_536
"""The bytes encoded per call: a call holds the interpreter lock until it returns. A multiple of 3."""


def encode(data: bytes) -> str:
    if len(data) > PIECE_BYTES:
        return "".join([_encode(data[at : at + PIECE_BYTES]) for at in range(0, len(data), PIECE_BYTES)])
    return _encode(data)


def _encode(data: bytes) -> str:
    return b2a_base64(data, newline=False).translate(_TO_URL_SAFE, b"=").decode("ascii")


def decode(text: str) -> bytes:
    """Decode `text`.

    Raises:
        ValueError: `text` is not the canonical encoding of any bytes.
    """
    data = a2b_base64(text.encode("ascii").translate(_FROM_URL_SAFE) + b"=" * (-len(text) % 4))
    if encode(data) != text:
        raise ValueError("not canonical base64url")
    return data
