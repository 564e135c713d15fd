"""The broker's keys: one master key, what is derived from it, and the signing keys that are wrapped under it."""

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agentwrit.broker.storage.base import Store, Transaction
from agentwrit.domain import canonical, jwk
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.errors import ConfigurationError, TamperedRecord
from agentwrit.domain.jws import ACCESS_TOKEN, Ed25519Signer, Verifier
from agentwrit.domain.signing_key import KeyPurpose, KeyState, StoredKey

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12  # NIST SP 800-38D §5.2.1.1: the length that GCM is made for


@dataclass(frozen=True)
class MasterKey:
    """The one secret that all others at rest depend on."""

    _bytes: bytes = field(repr=False)

    def __reduce__(self) -> str:
        raise TypeError("a master key is not pickled")

    @classmethod
    def parse(cls, text: str) -> "MasterKey":
        """Read a key of 32 bytes in hex or base64.

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

    def derive(self, purpose: str) -> bytes:
        """A key for one purpose (HKDF, RFC 5869). Keys of different purposes tell nothing of each other."""
        info = b"agentwrit/" + purpose.encode("ascii")
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(self._bytes)


class KeyWrap:
    """Wraps private keys for the store: AES-256-GCM, bound to the key's name, purpose and state."""

    def __init__(self, master: MasterKey) -> None:
        self._cipher = AESGCM(master.derive("key-wrap"))

    def wrap(self, seed: bytes, *, state: KeyState, created_at: int) -> StoredKey:
        public_key = Ed25519Signer(seed).public_key
        key = StoredKey(
            kid=jwk.thumbprint(public_key),
            purpose=KeyPurpose.ACCESS_TOKEN,
            state=state,
            public_key=public_key,
            wrapped=b"",
            created_at=created_at,
        )
        nonce = os.urandom(_NONCE_BYTES)
        wrapped = nonce + self._cipher.encrypt(nonce, seed, _binding(key))
        return StoredKey(
            kid=key.kid,
            purpose=key.purpose,
            state=key.state,
            public_key=key.public_key,
            wrapped=wrapped,
            created_at=key.created_at,
        )

    def unwrap(self, key: StoredKey) -> Ed25519Signer:
        """The key, ready to sign.

        Raises:
            TamperedRecord: it was not wrapped by us, or as something else.
        """
        nonce, ciphertext = key.wrapped[:_NONCE_BYTES], key.wrapped[_NONCE_BYTES:]
        try:
            return Ed25519Signer(self._cipher.decrypt(nonce, ciphertext, _binding(key)))
        except (InvalidTag, ValueError):
            raise TamperedRecord(f"the signing key {key.kid} does not open under the master key") from None


def _binding(key: StoredKey) -> bytes:
    return canonical.encode({"kid": key.kid, "purpose": key.purpose, "state": key.state})


class SigningKeys:
    """The keys that tokens are signed with and verified by."""

    def __init__(self, keys: Sequence[StoredKey], wrap: KeyWrap) -> None:
        trusted = [key for key in keys if key.state is not KeyState.GONE]
        self.signer = next(wrap.unwrap(key) for key in trusted if key.state is KeyState.ACTIVE)
        self.public_keys = {key.kid: key.public_key for key in trusted}
        self.verifier = Verifier(self.public_keys, typ=ACCESS_TOKEN)
        self.jwks = {"keys": [jwk.public_jwk(key.public_key) for key in trusted]}

    @classmethod
    async def load(cls, store: Store, wrap: KeyWrap) -> "SigningKeys":
        """Read the keys; on the very first start, make one."""

        def load_or_create(transaction: Transaction) -> Sequence[StoredKey]:
            keys = transaction.signing_keys()
            if any(key.state is KeyState.ACTIVE for key in keys):
                return keys
            key = wrap.wrap(os.urandom(KEY_BYTES), state=KeyState.ACTIVE, created_at=int(transaction.now))
            transaction.put_signing_key(key)
            transaction.record(
                Draft(event_type=EventType.SIGNING_KEY_CREATED, principal="broker", data={"kid": key.kid})
            )
            return [key, *keys]

        return cls(await store.write(load_or_create), wrap)
