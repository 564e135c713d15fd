"""base64url without padding (RFC 7515 §2), accepted in its one canonical spelling only.

A decoder that takes padding, foreign characters or non-zero trailing bits gives one token many spellings, and
everything that is remembered by spelling (a cache, a replay list) can then be walked around.
"""

from binascii import a2b_base64, b2a_base64
from typing import Final

_TO_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")


PIECE_BYTES: Final = 3 * 65_536
"""What is encoded at once: a call keeps all other threads waiting until it is done. A multiple of 3."""


def encode(data: bytes) -> str:
    if len(data) > PIECE_BYTES:
        return "".join([_encode(data[at : at + PIECE_BYTES]) for at in range(0, len(data), PIECE_BYTES)])
    return _encode(data)


def _encode(data: bytes) -> str:
    return b2a_base64(data, newline=False).translate(_TO_URL_SAFE, b"=").decode("ascii")


def decode(text: str) -> bytes:
    """The bytes that `text` spells.

    Raises:
        ValueError: `text` is not the spelling that `encode` gives for any bytes.
    """
    data = a2b_base64(text.encode("ascii").translate(_FROM_URL_SAFE) + b"=" * (-len(text) % 4))
    if encode(data) != text:
        raise ValueError("not canonical base64url")
    return data
