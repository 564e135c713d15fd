"""An agent's key pair. It stays in memory."""

from typing import Protocol

from nacl.signing import SigningKey

from agentwrit.errors import CryptoError


class Ed25519PublicKey(Protocol):
    """The public half, with the raw-bytes method of cryptography's Ed25519PublicKey."""

    def public_bytes_raw(self) -> bytes: ...


class Ed25519PrivateKey(Protocol):
    """The type of `create_agent(private_key=…)`: cryptography's Ed25519PrivateKey, or any object with these methods."""

    def sign(self, data: bytes, /) -> bytes: ...

    def public_key(self) -> Ed25519PublicKey: ...


class _FreshKey:
    """A newly generated key, with the same methods."""

    def __init__(self) -> None:
        self._key = SigningKey.generate()

    def sign(self, data: bytes, /) -> bytes:
        return self._key.sign(data).signature

    def public_key(self) -> "_FreshKey":
        return self

    def public_bytes_raw(self) -> bytes:
        return bytes(self._key.verify_key)


class AgentKey:
    """A signing key. Its private half is neither shown nor pickled."""

    def __init__(self, private_key: Ed25519PrivateKey | None = None) -> None:
        """Use `private_key`, or generate a key.

        Raises:
            CryptoError: it does not have the methods of an Ed25519 private key.
        """
        if private_key is None:
            private_key = _FreshKey()
        try:
            self._sign = private_key.sign
            self.public_key = private_key.public_key().public_bytes_raw()
        except AttributeError:
            raise CryptoError(
                "private_key is not an Ed25519 private key: it needs sign() and public_key().public_bytes_raw(),"
                " as cryptography's Ed25519PrivateKey has"
            ) from None
        if len(self.public_key) != 32:
            raise CryptoError("private_key is not an Ed25519 private key: its public key does not have 32 bytes")

    def sign(self, data: bytes) -> bytes:
        """The Ed25519 signature of `data` (RFC 8032 §5.1.6), 64 bytes.

        Raises:
            CryptoError: the key did not return a signature.
        """
        signature = self._sign(data)
        if len(signature) != 64:
            raise CryptoError("private_key did not give an Ed25519 signature")
        return signature

    def __repr__(self) -> str:
        return "AgentKey(…)"

    def __reduce__(self) -> str:
        raise TypeError("an agent's key is not pickled")
