"""Signed notes (C2SP signed-note), with Ed25519 only.

The rules:

- A note is UTF-8 text of complete lines without control characters, an empty line, and one line per signature. The
  last empty line separates the text from the signatures.
- A key has a name, and an ID that is derived from the name and the key. Signatures with an unknown name and ID are
  ignored. If the signature of a known key does not match, the note is rejected. At least one known key must sign.
- A verifier key is written as `name+ID+key`. Auditors receive and keep it in this form.
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
    """A public key with a name. `public_key`: 32 bytes."""

    name: str
    public_key: bytes

    @property
    def id(self) -> bytes:
        """The ID of the key in signature lines: four bytes."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public_key).digest()[:_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{_base64(_ED25519 + self.public_key)}"

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """Read a verifier key.

        Raises:
            ValueError: `text` is not a verifier key, or is not one for Ed25519.
        """
        name, _, rest = text.partition("+")
        key_id, _, encoded = rest.partition("+")
        key = cls(name, _unbase64(encoded)[1:])
        if not is_name(name) or len(key.public_key) != PUBLIC_KEY_BYTES or str(key) != text:
            raise ValueError(f"no verifier key: {key_id or text[:80]!r}")
        return key


def is_signed_by(note: str, key: VerifierKey) -> bool:
    """Whether a note has a signature line of this key. The signature itself is not verified."""
    prefix = f"{_DASH}{key.name} "
    lines = note.rpartition("\n\n")[2].splitlines()
    return any(line.startswith(prefix) and _unbase64(line[len(prefix) :])[:_ID_BYTES] == key.id for line in lines)


def is_name(text: str) -> bool:
    """Whether `text` is a valid name of a key."""
    return bool(text) and text.isprintable() and "+" not in text and not any(map(str.isspace, text))


def sign(text: str, name: str, public_key: bytes, signer: Signer) -> str:
    """Sign `text` as a note under `name`. `public_key`: the signer's public key.

    Raises:
        ValueError: `text` is not a valid text of a note, or `name` not a valid name of a key.
    """
    if not _is_text(text) or not is_name(name):
        raise ValueError("a note is text of whole lines, signed under a name without spaces")
    key = VerifierKey(name, public_key)
    return f"{text}\n{_DASH}{name} {_base64(key.id + signer.sign(text.encode()))}\n"


def open_note(note: str, keys: Iterable[VerifierKey]) -> str:
    """Verify a note. Returns its text.

    Raises:
        TamperedRecord: this is not a note, a signature does not match, or none of `keys` has signed it.
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
    """Decode canonical base64 (RFC 4648 §4). Returns no bytes if `text` is anything else."""
    try:
        value = binascii.a2b_base64(text.encode("ascii"))
    except ValueError:
        return b""
    return value if _base64(value) == text else b""
