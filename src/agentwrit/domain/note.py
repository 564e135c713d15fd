"""Signed notes (C2SP signed-note), with Ed25519 alone.

The rules:

- A note is UTF-8 text of whole lines without control characters, an empty line, and one line for each signature. The
  last empty line is the one that counts.
- A key has a name, and an ID that is made of the name and the key. A signature of a name and ID that nobody knows is
  passed over; one of a known key that does not match spoils the note; one at least has to be a known key's.
- A verifier key is written `name+ID+key`: what auditors are given, and hold on to.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from typing import Final, NamedTuple

from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.jwk import PUBLIC_KEY_BYTES
from agentwrit.domain.jws import Signer, is_signature

MAX_NOTE_BYTES: Final = 64 * 1024
MAX_SIGNATURES: Final = 100

_ED25519: Final = b"\x01"
_ID_BYTES: Final = 4
_DASH: Final = "\u2014 "


class VerifierKey(NamedTuple):
    """A public key under a name. `public_key`: 32 bytes."""

    name: str
    public_key: bytes

    @property
    def id(self) -> bytes:
        """What signatures call the key: four bytes."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public_key).digest()[:_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{_base64(_ED25519 + self.public_key)}"

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """Read a verifier key.

        Raises:
            ValueError: it is none, or not one of Ed25519.
        """
        name, _, rest = text.partition("+")
        key_id, _, encoded = rest.partition("+")
        key = cls(name, _unbase64(encoded)[1:])
        if not is_name(name) or len(key.public_key) != PUBLIC_KEY_BYTES or str(key) != text:
            raise ValueError(f"no verifier key: {key_id or text[:80]!r}")
        return key


def is_signed_by(note: str, key: VerifierKey) -> bool:
    """Whether a note has a signature that says it is by this key. Whether it matches is not looked at."""
    prefix = f"{_DASH}{key.name} "
    lines = note.rpartition("\n\n")[2].splitlines()
    return any(line.startswith(prefix) and _unbase64(line[len(prefix) :])[:_ID_BYTES] == key.id for line in lines)


def is_name(text: str) -> bool:
    """Whether a key may be called so."""
    return bool(text) and text.isprintable() and "+" not in text and not any(map(str.isspace, text))


def sign(text: str, name: str, public_key: bytes, signer: Signer) -> str:
    """The note of `text`, signed under `name`. `public_key`: the signer's.

    Raises:
        ValueError: this is no text of a note, or no name of a key.
    """
    if not _is_text(text) or not is_name(name):
        raise ValueError("a note is text of whole lines, signed under a name without spaces")
    key = VerifierKey(name, public_key)
    return f"{text}\n{_DASH}{name} {_base64(key.id + signer.sign(text.encode()))}\n"


def open_note(note: str, keys: Iterable[VerifierKey]) -> str:
    """The text of a note that one of `keys` has signed.

    Raises:
        TamperedRecord: it is no note, a signature does not match, or none is by a key that is known.
    """
    if len(note) > MAX_NOTE_BYTES:
        raise TamperedRecord("the note is too long")
    head, blank, tail = note.rpartition("\n\n")
    text, lines = head + "\n", tail.split("\n")
    if not blank or not _is_text(text) or lines.pop() != "" or not 0 < len(lines) <= MAX_SIGNATURES:
        raise TamperedRecord("this is no signed note")
    known = {(key.name, key.id): key for key in keys}
    message, is_signed = text.encode(), False
    for line in lines:
        name, signature = _signature(line)
        key = known.get((name, signature[:_ID_BYTES]))
        if key is not None:
            if not is_signature(signature[_ID_BYTES:], message, key.public_key):
                raise TamperedRecord(f"the signature of {name} does not match")
            is_signed = True
    if not is_signed:
        raise TamperedRecord("the note is not signed by a key that is known here")
    return text


def _signature(line: str) -> tuple[str, bytes]:
    name, space, encoded = line.removeprefix(_DASH).partition(" ")
    signature = _unbase64(encoded)
    if not line.startswith(_DASH) or not space or not is_name(name) or len(signature) <= _ID_BYTES:
        raise TamperedRecord("this is no signed note")
    return name, signature


def _is_text(text: str) -> bool:
    is_whole = text.endswith("\n") and all(char >= " " or char == "\n" for char in text)
    return is_whole and not any("\ud800" <= char <= "\udfff" for char in text)


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _unbase64(text: str) -> bytes:
    """The bytes that `text` is the one encoding of, or none (RFC 4648 §4)."""
    try:
        value = binascii.a2b_base64(text.encode("ascii"))
    except ValueError:
        return b""
    return value if _base64(value) == text else b""
