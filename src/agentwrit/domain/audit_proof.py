"""A proof that one event is in the log (C2SP tlog-proof): a file that third parties can verify on their own.

The file contains the event's entry as extra data, so verification needs only the log's public key.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from agentwrit.domain import checkpoint, merkle
from agentwrit.domain.checkpoint import Checkpoint
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.note import VerifierKey

FIRST_LINE: Final = "c2sp.org/tlog-proof@v1"
MAX_BYTES: Final = 256 * 1024

_PROOF = re.compile(
    rf"{re.escape(FIRST_LINE)}\nextra ([A-Za-z0-9+/=]+)\nindex (0|[1-9][0-9]{{0,17}})\n((?:[A-Za-z0-9+/=]+\n)*)\n(.+)",
    re.DOTALL,
)


class Proven(NamedTuple):
    """An entry that was proven to be at `position` (0 for the first) in the log of a checkpoint."""

    entry: bytes
    position: int
    checkpoint: Checkpoint


def write(entry: bytes, index: int, hashes: Sequence[bytes], signed: str) -> str:
    """The content of a proof file. `hashes`: the inclusion proof; `signed`: the checkpoint."""
    lines = "".join(_encode(value) + "\n" for value in hashes)
    return f"{FIRST_LINE}\nextra {_encode(entry)}\nindex {index}\n{lines}\n{signed}"


def check(text: str, keys: Iterable[VerifierKey]) -> Proven:
    """Verify a proof. Returns what it proves.

    Raises:
        TamperedRecord: the proof is malformed or wrong.
    """
    match = _PROOF.fullmatch(text) if len(text) <= MAX_BYTES else None
    if match is None:
        raise TamperedRecord("this is no proof of an event")
    extra, index, lines, signed = match.groups()
    covered = checkpoint.read(signed, keys)
    entry, hashes = _decode(extra), [_decode(line) for line in lines.splitlines()]
    merkle.check_inclusion(merkle.leaf_hash(entry), int(index), covered.size, hashes, covered.root)
    return Proven(entry, int(index), covered)


def _encode(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _decode(text: str) -> bytes:
    try:
        value = binascii.a2b_base64(text)
    except ValueError:
        value = b""
    if not value or _encode(value) != text:
        raise TamperedRecord("the proof holds something that is not base64")
    return value
