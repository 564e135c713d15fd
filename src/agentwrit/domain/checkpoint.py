"""Checkpoints of the audit log (C2SP tlog-checkpoint): signed statements of its size and Merkle root.

The rules:

- A checkpoint is a signed note of three lines: the origin (the name of the log and of its key), the number of events,
  and the root of the tree over them in base64. Further lines are extensions and are ignored.
- Two checkpoints of one log are consistent if the larger tree continues the smaller one. If they are not, history was
  rewritten. A witness, which remembers checkpoints, detects that.
"""

import base64
import binascii
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from agentwrit.domain import merkle, note
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.jws import Signer
from agentwrit.domain.note import VerifierKey

_SIZE = re.compile(r"0|[1-9][0-9]{0,17}")

MEDIA_TYPE: Final = "text/plain; charset=utf-8"


class Checkpoint(NamedTuple):
    """The content of a checkpoint. `root`: 32 bytes."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The text of the note."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode('ascii')}\n"


def origin(trust_domain: str) -> str:
    """The name of the audit log of the broker with this trust domain, and of the keys that sign its checkpoints."""
    return f"{trust_domain}/audit"


def sign(checkpoint: Checkpoint, public_key: bytes, signer: Signer) -> str:
    """The checkpoint as a note, signed under its origin. `public_key`: the signer's public key."""
    return note.sign(checkpoint.text, checkpoint.origin, public_key, signer)


def read(signed: str, keys: Iterable[VerifierKey]) -> Checkpoint:
    """Read a checkpoint and check that one of the log's `keys` signed it.

    Raises:
        TamperedRecord: this is not a checkpoint, or none of the keys signed it.
    """
    keys = list(keys)
    checkpoint = _parse(note.open_note(signed, keys))
    if checkpoint.origin not in {key.name for key in keys}:
        raise TamperedRecord(f"the checkpoint is that of another log: {checkpoint.origin}")
    return checkpoint


def unverified(signed: str) -> Checkpoint:
    """Read a checkpoint without checking its signatures.

    Raises:
        TamperedRecord: this is not a checkpoint.
    """
    return _parse(signed.rpartition("\n\n")[0] + "\n")


def _parse(text: str) -> Checkpoint:
    name, size, encoded = [*text.split("\n"), "", "", ""][:3]
    try:
        root = binascii.a2b_base64(encoded.encode("ascii"))
    except ValueError:
        root = b""
    checkpoint = Checkpoint(name, int(size) if _SIZE.fullmatch(size) else -1, root)
    is_whole = name and checkpoint.size >= 0 and len(root) == merkle.HASH_BYTES
    has_empty_line = "\n\n" in text or text.startswith("\n")
    if not is_whole or has_empty_line or not text.startswith(checkpoint.text):
        raise TamperedRecord("this is no checkpoint")
    if checkpoint.size == 0 and root != merkle.EMPTY_ROOT:
        raise TamperedRecord("the checkpoint of an empty log has the root of another")
    return checkpoint
