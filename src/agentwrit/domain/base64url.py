"""base64url without padding (RFC 7515 §2), accepted in its one canonical spelling only.

A decoder that takes padding, foreign characters or non-zero trailing bits gives one token many spellings, and
everything that is remembered by spelling (a cache, a replay list) can then be walked around.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode


def encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: str) -> bytes:
    """The bytes that `text` spells.

    Raises:
        ValueError: `text` is not the spelling that `encode` gives for any bytes.
    """
    data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encode(data) != text:
        raise ValueError("not canonical base64url")
    return data
