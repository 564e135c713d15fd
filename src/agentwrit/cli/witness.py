"""A witness: remembers a log's checkpoint, so that a rewritten history is detected."""

import json
from collections.abc import Sequence
from pathlib import Path

from agentwrit import durable
from agentwrit.client.audit_log import AuditLog
from agentwrit.domain import checkpoint, merkle
from agentwrit.domain.checkpoint import Checkpoint
from agentwrit.domain.errors import AgentWritError, TamperedRecord
from agentwrit.domain.note import VerifierKey
from agentwrit.reading import small_text


class Witness:
    """A file with the last checkpoint of a log and the trusted keys."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def look(self, log: AuditLog, keys: Sequence[VerifierKey]) -> Checkpoint:
        """Fetch the log's newest checkpoint, and remember it if it continues the last one. `keys`: more keys to trust.

        Raises:
            TamperedRecord: it does not continue the last one, or no trusted key signed it. The file is unchanged.
            AgentWritError: the file was not written by a witness.
        """
        remembered, known = self._read()
        believed = [*known, *(key for key in keys if key not in known)] or log.verifier_keys()
        signed = log.checkpoint()
        seen = checkpoint.read(signed, believed)
        if remembered:
            before = checkpoint.read(remembered, believed)
            if seen.origin != before.origin:
                raise TamperedRecord(f"this is another log: {seen.origin}, and not {before.origin}")
            if seen.size < before.size:
                raise TamperedRecord(f"the log has {seen.size} events and had {before.size}: its history was cut off")
            proof = log.consistency_proof(before.size, seen.size)
            try:
                merkle.check_consistency(before.size, seen.size, proof, before.root, seen.root)
            except TamperedRecord:
                raise TamperedRecord(
                    f"the log does not continue what it was when it had {before.size} events: its history was rewritten"
                ) from None
        self._write(signed, believed)
        return seen

    def _read(self) -> tuple[str, list[VerifierKey]]:
        if not self._path.exists():
            return "", []
        try:
            content = json.loads(small_text(self._path))
            return str(content["checkpoint"]), [VerifierKey.parse(key) for key in content["keys"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise AgentWritError(f"{self._path} is not what a witness wrote: put it back from a backup") from None

    def _write(self, signed: str, keys: Sequence[VerifierKey]) -> None:
        """Replace the file atomically."""
        content = {"checkpoint": signed, "keys": [str(key) for key in keys]}
        durable.write(self._path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
