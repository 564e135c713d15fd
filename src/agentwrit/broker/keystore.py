"""The broker's keys: one master key, the keys derived from it, and the signing keys wrapped under it."""

import base64
import os
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agentwrit.domain import canonical, jwk, jws
from agentwrit.domain.errors import ConfigurationError, TamperedRecord
from agentwrit.domain.jws import ACCESS_TOKEN, REVOCATION_PAGE, Ed25519Signer, Verifier
from agentwrit.domain.signing_key import KeyPurpose, KeyState, StoredKey

KEY_BYTES: Final = 32
SIGNED_REMEMBERED: Final = 1024  # tokens: most are presented soon after they were issued, if ever
_TOKEN_TYPES: Final = {KeyPurpose.ACCESS_TOKEN: ACCESS_TOKEN, KeyPurpose.REVOCATION_FEED: REVOCATION_PAGE}
_NONCE_BYTES: Final = 12  # NIST SP 800-38D §5.2.1.1: the length that GCM is designed for


@dataclass(frozen=True)
class MasterKey:
    """The secret that protects all others at rest."""

    _bytes: bytes = field(repr=False)

    def __reduce__(self) -> str:
        raise TypeError("a master key is not pickled")

    @classmethod
    def parse(cls, text: str) -> "MasterKey":
        """Parse a key of 32 bytes in hex or base64.

        Raises:
            ConfigurationError: it is neither.
        """
        try:
            key = (
                bytes.fromhex(text) if re.fullmatch(r"[0-9a-fA-F]{64}", text) else base64.b64decode(text, validate=True)
            )
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise ConfigurationError(
                "the master key is not 32 bytes in hex or base64: check AGENTWRIT_MASTER_KEY or the file master.key"
            )
        return cls(key)

    @property
    def text(self) -> str:
        """The key in hex, for its file."""
        return self._bytes.hex()

    def derive(self, purpose: str) -> bytes:
        """A key for one purpose (HKDF, RFC 5869). Keys of different purposes reveal nothing about each other."""
        info = b"agentwrit/" + purpose.encode("ascii")
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(self._bytes)


def new_seed() -> bytes:
    """The 32 bytes of a new key. Its kid does not begin with a hyphen, which a command would read as an option."""
    while True:
        seed = os.urandom(KEY_BYTES)
        if not Ed25519Signer(seed).kid.startswith("-"):
            return seed


class KeyWrap:
    """Wraps private keys for the store: AES-256-GCM, bound to the key's name, purpose and state."""

    def __init__(self, master: MasterKey) -> None:
        self._cipher = AESGCM(master.derive("key-wrap"))

    def wrap(self, seed: bytes, *, purpose: KeyPurpose, state: KeyState, created_at: int) -> StoredKey:
        """A key pair for the store. `seed`: the private key's 32 bytes."""
        public_key = Ed25519Signer(seed).public_key
        key = StoredKey(
            kid=jwk.thumbprint(public_key),
            purpose=purpose,
            state=state,
            public_key=public_key,
            wrapped=b"",
            created_at=created_at,
            active_since=created_at if state is KeyState.ACTIVE else 0,
        )
        return self._wrapped(key, seed)

    def activated(self, key: StoredKey, now: int) -> StoredKey:
        """The key in the active state.

        Raises:
            TamperedRecord: it was not wrapped by the broker, or with other attributes.
        """
        active = msgspec.structs.replace(key, state=KeyState.ACTIVE, active_since=now)
        return self._wrapped(active, self._seed(key))

    def unwrap(self, key: StoredKey) -> Ed25519Signer:
        """The key, ready to sign.

        Raises:
            TamperedRecord: it was not wrapped by the broker, or with other attributes.
        """
        return Ed25519Signer(self._seed(key))

    def rewrapped(self, key: StoredKey, before: "KeyWrap") -> StoredKey:
        """The key, wrapped under this master key instead of the one `before`.

        Raises:
            TamperedRecord: it was not wrapped under `before`, or with other attributes.
        """
        return self._wrapped(key, before._seed(key)) if key.wrapped else key

    def _wrapped(self, key: StoredKey, seed: bytes) -> StoredKey:
        nonce = os.urandom(_NONCE_BYTES)
        return msgspec.structs.replace(key, wrapped=nonce + self._cipher.encrypt(nonce, seed, _binding(key)))

    def _seed(self, key: StoredKey) -> bytes:
        nonce, ciphertext = key.wrapped[:_NONCE_BYTES], key.wrapped[_NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, ciphertext, _binding(key))
        except (InvalidTag, ValueError):
            raise TamperedRecord(f"the signing key {key.kid} does not open under the master key") from None


def _binding(key: StoredKey) -> bytes:
    return canonical.encode({"kid": key.kid, "purpose": key.purpose, "state": key.state})


class SigningKeys:
    """The keys of one purpose, as last read from the store: the signing key, and the keys to verify with."""

    signer: Ed25519Signer
    verifier: Verifier
    """For what is signed as a JWS."""
    public_keys: Mapping[str, bytes]
    jwks: Mapping[str, list[dict[str, str]]]

    def __init__(self, purpose: KeyPurpose, keys: Sequence[StoredKey], wrap: KeyWrap) -> None:
        self.purpose = purpose
        self._wrap = wrap
        self._signed: OrderedDict[str, None] = OrderedDict()
        self.replace(keys)

    def sign(self, payload: bytes) -> str:
        """A token of these keys' type. The verifier need not check its signature while it is among the most recent."""
        token = jws.sign(payload, self.signer, typ=_TOKEN_TYPES[self.purpose])
        self._signed[token] = None
        if len(self._signed) > SIGNED_REMEMBERED:
            self._signed.popitem(last=False)
        return token

    def replace(self, keys: Sequence[StoredKey]) -> None:
        """Use the keys as just committed. Keys of other purposes are ignored."""
        published = [key for key in keys if key.purpose is self.purpose and key.is_published]
        [active] = [key for key in published if key.state is KeyState.ACTIVE]
        self.signer = self._wrap.unwrap(active)
        self.public_keys = {key.kid: key.public_key for key in published}
        if self.purpose in _TOKEN_TYPES:
            self.verifier = Verifier(self.public_keys, typ=_TOKEN_TYPES[self.purpose], signed_here=self._signed)
        self.jwks = {"keys": [jwk.public_jwk(key.public_key) for key in published]}
