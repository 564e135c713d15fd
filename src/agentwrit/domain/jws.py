"""Compact JWS with Ed25519 (RFC 7515 §7.1, RFC 8037 §3.1), as strict as RFC 8725 requires.

The rules:

- The protected header is exactly `{"alg":"EdDSA","typ":…,"kid":…}`, in this order and encoding, and is compared as a
  whole with the header of each known key. One comparison therefore rejects everything else (`none`, `HS256`, `jwk`,
  `jku`, `x5u`, `crit`, a kid that is a path, a duplicate member; RFC 8725 §3.1, §3.10).
- A token has a maximum size (8 KiB for access tokens), which is checked before any other work.
- All three parts are canonical base64url, so a token has exactly one encoding.
- Signatures are verified by libsodium, which rejects small-order keys and non-canonical encodings (RFC 8032 §5.1.7).

This module does not interpret the payload.
"""

from collections.abc import Container, Mapping
from functools import lru_cache
from typing import Final, Protocol

from nacl.bindings import crypto_sign, crypto_sign_BYTES, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

from agentwrit.domain import base64url, jwk
from agentwrit.domain.errors import InvalidToken

MAX_TOKEN_BYTES: Final = 8192
HEADERS_REMEMBERED: Final = 64
ALGORITHM: Final = "EdDSA"

ACCESS_TOKEN: Final = "at+jwt"  # RFC 9068 §2.1
REVOCATION_PAGE: Final = "agentwrit-revocations+jwt"
REVOCATION_SNAPSHOT: Final = "agentwrit-revocations-snapshot+jwt"


class Signer(Protocol):
    """Signs with one Ed25519 key. `kid`: the key's RFC 7638 thumbprint."""

    @property
    def kid(self) -> str: ...

    def sign(self, message: bytes) -> bytes: ...


class Ed25519Signer:
    """A signer with a private key in memory. `seed`: the key's 32 bytes (RFC 8032 §5.1.5)."""

    def __init__(self, seed: bytes) -> None:
        self.public_key, self._secret_key = crypto_sign_seed_keypair(seed)
        self.kid = jwk.thumbprint(self.public_key)

    def sign(self, message: bytes) -> bytes:
        return crypto_sign(message, self._secret_key)[:crypto_sign_BYTES]

    def __repr__(self) -> str:
        return f"Ed25519Signer(kid={self.kid!r})"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled")


class Verifier:
    """Verifies compact JWS of one type with a set of public keys.

    `keys`: 32-byte public keys by kid; `max_bytes`: larger tokens are rejected before any other work; `signed_here`:
    tokens that this process signed itself, whose signatures need not be checked.
    """

    def __init__(
        self,
        keys: Mapping[str, bytes],
        *,
        typ: str,
        max_bytes: int = MAX_TOKEN_BYTES,
        signed_here: Container[str] = frozenset(),
    ) -> None:
        self._max_bytes = max_bytes
        self._signed_here = signed_here
        self._by_header = {encoded_header(kid, typ=typ): (kid, key) for kid, key in keys.items()}

    def verify(self, token: str) -> tuple[str, bytes]:
        """Verify a token. Returns its kid and payload.

        Raises:
            InvalidToken: the token is malformed, is not signed by one of the keys, or has another type.
        """
        if len(token) > self._max_bytes:
            raise InvalidToken(f"the token is larger than {self._max_bytes // 1024} KiB")
        header, dot, rest = token.partition(".")
        payload, dot2, signature = rest.partition(".")
        if not dot or not dot2:
            raise InvalidToken("not a compact JWS")
        known = self._by_header.get(header)
        if known is None:
            raise InvalidToken("the header names no key of ours")
        kid, key = known
        try:
            decoded_payload = base64url.decode(payload)
            decoded_signature = base64url.decode(signature)
        except ValueError:
            raise InvalidToken("not canonical base64url") from None
        signing_input = f"{header}.{payload}".encode("ascii")
        if token not in self._signed_here and not is_signature(decoded_signature, signing_input, key):
            raise InvalidToken("the signature does not match")
        return kid, decoded_payload


def sign(payload: bytes, signer: Signer, *, typ: str) -> str:
    """Sign `payload` as a compact JWS (RFC 7515 §5.1). The same payload and key give the same token."""
    signing_input = f"{encoded_header(signer.kid, typ=typ)}.{base64url.encode(payload)}"
    return f"{signing_input}.{base64url.encode(signer.sign(signing_input.encode('ascii')))}"


@lru_cache(HEADERS_REMEMBERED)
def encoded_header(kid: str, *, typ: str) -> str:
    """The encoded protected header of tokens of this type that are signed by this key."""
    return base64url.encode(f'{{"alg":"{ALGORITHM}","typ":"{typ}","kid":"{kid}"}}'.encode("ascii"))


def is_signature(signature: bytes, message: bytes, public_key: bytes) -> bool:
    """Whether `signature` is an Ed25519 signature of `message` by the holder of `public_key` (32 bytes)."""
    if len(signature) != crypto_sign_BYTES or len(public_key) != jwk.PUBLIC_KEY_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, public_key)
    except BadSignatureError:
        return False
    return True
