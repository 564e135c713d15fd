"""The parts of the revocation feed: what is signed is what is read."""

import pytest

from agentwrit.domain import feed
from agentwrit.domain.feed import FeedEntry, Place, Snapshot
from agentwrit.domain.jws import REVOCATION_SNAPSHOT, Ed25519Signer, Verifier
from agentwrit.domain.revocation import RevocationKind


@pytest.mark.parametrize("count", [0, 1, feed.PIECE_ENTRIES, feed.PIECE_ENTRIES + 1])
def test_a_snapshot_of_many_entries_is_read_as_it_was_signed(count: int) -> None:
    entries = tuple(FeedEntry(RevocationKind.GRANT, feed.digest(str(number)), 1, 2) for number in range(count))
    snapshot = Snapshot(
        iss='x","entries":[],"y":"', epoch="e", head=count, issued_at=3, entries=entries, log=Place(7, "digest")
    )
    signer = Ed25519Signer(bytes(32))
    verifier = Verifier({signer.kid: signer.public_key}, typ=REVOCATION_SNAPSHOT, max_bytes=feed.MAX_SNAPSHOT_BYTES)
    assert feed.read_snapshot(feed.sign_snapshot(snapshot, signer), verifier) == snapshot
