"""Exports and proofs: whoever holds the log's key checks them alone, and no byte of them can be another."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwrit.domain import audit, audit_export, audit_proof, checkpoint, merkle
from agentwrit.domain.audit import Draft, EventType, Head
from agentwrit.domain.checkpoint import Checkpoint
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.jws import Ed25519Signer
from agentwrit.domain.note import VerifierKey
from tests.domain.records import NOW

SIZE = 270
SIGNER = Ed25519Signer(b"k" * 32)
ORIGIN = "agentwrit.local/audit"
KEYS = [VerifierKey(ORIGIN, SIGNER.public_key)]


def sign(head: Head) -> str:
    return checkpoint.sign(Checkpoint(ORIGIN, head.sequence, head.tree.root()), SIGNER.public_key, SIGNER)


def make_log(size: int, **changes: Any) -> tuple[list[bytes], list[Head]]:
    """The entries of a log, and where it ended after each."""
    entries, heads = [], [Head()]
    for number in range(size):
        draft = Draft(event_type=EventType.TOKEN_ISSUED, detail=f"event {number}", data={"scope": ["read:data:é"]})
        if number == 3 and changes:
            draft = Draft(event_type=EventType.TOKEN_ISSUED, **changes)
        appended = audit.append(draft, heads[-1], now=NOW + number)
        entries.append(audit.entry(appended.event))
        heads.append(appended.head)
    return entries, heads


ENTRIES, HEADS = make_log(SIZE)


def make_export(first: int = 0, size: int = SIZE) -> list[bytes]:
    return list(audit_export.write(sign(HEADS[size]), ENTRIES[first:size], start=HEADS[first]))


def make_proof(index: int, size: int = SIZE) -> str:
    leaves = b"".join(map(merkle.leaf_hash, ENTRIES[:size]))
    width = merkle.FULL_TILE_BYTES

    def read(level: int, number: int) -> bytes:
        return leaves[number * width :][:width] if level == 0 else merkle.root_of(leaves[:width])

    return audit_proof.write(ENTRIES[index], index, merkle.inclusion_proof(index, size, read), sign(HEADS[size]))


EXPORT = make_export(size=6)
WHOLE = b"".join(EXPORT)
PROOF = make_proof(3, 6)


@pytest.mark.parametrize(
    ("first", "size"), [(0, 0), (0, 1), (0, 6), (0, SIZE), (3, 6), (256, SIZE), (257, SIZE), (6, 6)]
)
def test_a_genuine_export_is_verified_from_wherever_it_begins(first: int, size: int) -> None:
    done: list[tuple[int, int]] = []
    verified = audit_export.verify(make_export(first, size), KEYS, progress=lambda *counts: done.append(counts))
    assert verified.start.sequence == first
    assert (verified.checkpoint.size, verified.checkpoint.root) == (size, HEADS[size].tree.root())


def test_each_line_is_the_event_as_the_broker_shows_it() -> None:
    lines = [json.loads(line) for line in EXPORT]
    assert [line["id"] for line in lines[1:]] == [audit.event_id(number) for number in range(1, 7)]
    for entry, line in zip(ENTRIES, lines[1:], strict=False):
        assert line["hash"] == hashlib.sha256(entry).hexdigest()


@given(st.integers(0, len(WHOLE) - 1), st.binary(max_size=3), st.integers(0, 3))
@settings(max_examples=400)
def test_no_byte_of_an_export_can_be_another_or_missing_or_added(at: int, new: bytes, gone: int) -> None:
    altered = WHOLE[:at] + new + WHOLE[at + gone :]
    if altered == WHOLE:
        return
    with pytest.raises(TamperedRecord):
        audit_export.verify(altered.splitlines(keepends=True), KEYS)


@given(st.lists(st.integers(0, 6), max_size=9))
def test_no_other_choice_of_lines_is_an_export(chosen: list[int]) -> None:
    if chosen != list(range(7)):
        with pytest.raises(TamperedRecord):
            audit_export.verify([EXPORT[at] for at in chosen], KEYS)


def forged(change: str, value: str) -> Sequence[bytes]:
    entries, _ = make_log(6, **{change: value})
    return list(audit_export.write(sign(HEADS[6]), entries))


@pytest.mark.parametrize("change", ["detail", "agent_id", "principal"])
def test_a_history_whose_hashes_were_all_made_anew_is_not_what_was_signed(change: str) -> None:
    with pytest.raises(TamperedRecord, match="history was rewritten"):
        audit_export.verify(forged(change, "somebody else"), KEYS)


def test_the_first_bad_event_is_named() -> None:
    lines = list(EXPORT)
    lines[3] = lines[3].replace(b"event 2", b"event 9")
    for export, said in (
        (lines, "evt-000003 was altered"),
        ([*EXPORT[:3], *EXPORT[4:]], "evt-000003 is missing: evt-000004 stands in its place"),
        (EXPORT[:4], "the log ends with evt-000003: evt-000004 to evt-000006 were cut off"),
        ([*EXPORT, EXPORT[-1]], "there is more than the checkpoint covers, behind evt-000006"),
        (EXPORT[1:], "not the header"),
        ([], "not the header"),
    ):
        with pytest.raises(TamperedRecord, match=said):
            audit_export.verify(export, KEYS)


def test_an_export_is_checked_by_the_key_that_the_auditor_holds_and_no_other() -> None:
    thief = Ed25519Signer(b"t" * 32)
    with pytest.raises(TamperedRecord, match="not signed by a key"):
        audit_export.verify(EXPORT, [VerifierKey(ORIGIN, thief.public_key)])
    resigned = checkpoint.sign(Checkpoint(ORIGIN, 6, HEADS[6].tree.root()), thief.public_key, thief)
    with pytest.raises(TamperedRecord, match="not signed by a key"):
        audit_export.verify(list(audit_export.write(resigned, ENTRIES[:6])), KEYS)


def test_an_export_of_the_middle_cannot_claim_another_beginning() -> None:
    for start in (HEADS[2]._replace(hash=HEADS[1].hash), HEADS[2]._replace(tree=HEADS[3].tree), HEADS[1]):
        with pytest.raises(TamperedRecord):
            audit_export.verify(list(audit_export.write(sign(HEADS[6]), ENTRIES[2:6], start=start)), KEYS)


# -- proofs of one event ----------------------------------------------------------------------------------------------


@given(st.integers(1, SIZE), st.data())
@settings(max_examples=50)
def test_every_event_is_proven(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proven = audit_proof.check(make_proof(index, size), KEYS)
    assert (proven.entry, proven.position, proven.checkpoint.size) == (ENTRIES[index], index, size)


@given(st.integers(0, len(PROOF) - 1), st.text(max_size=2), st.integers(0, 2))
@settings(max_examples=400)
def test_no_character_of_a_proof_can_be_another(at: int, new: str, gone: int) -> None:
    altered = PROOF[:at] + new + PROOF[at + gone :]
    if altered == PROOF:
        return
    with pytest.raises(TamperedRecord):
        audit_proof.check(altered, KEYS)


def test_a_proof_has_the_form_of_the_standard() -> None:
    lines = PROOF.split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert lines[1].startswith("extra ")
    assert lines[2] == "index 3"
    assert PROOF.endswith("\n\n" + sign(HEADS[6]))


# -- how large an entry may be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("char", ["a", '"', "\x01", "é", "𝕏"])
@pytest.mark.parametrize("count", [1, 64, 10_000])
def test_an_event_always_fits_into_a_bundle(char: str, count: int) -> None:
    scopes = [char * 2048] * count
    data: audit.Data = {"scope_requested": scopes, "scope_held": scopes, "text": char * 100_000, "count": 3}
    appended = audit.append(Draft(event_type=EventType.SCOPE_VIOLATION, data=data), Head(), now=NOW)
    assert len(audit.entry(appended.event)) <= audit.MAX_ENTRY_BYTES
    assert audit.verify([appended.event]) == 1
    assert appended.event.data["count"] == 3
    if count > 8:
        assert appended.event.data["scope_held"][-1] == f"(and {count - 8} more)"  # type: ignore[index]


def test_an_event_that_fits_is_left_as_it_is() -> None:
    data: audit.Data = {"scope_requested": ["read:data:1"] * 64}
    assert audit.append(Draft(event_type=EventType.SCOPE_VIOLATION, data=data), Head(), now=NOW).event.data == data


def make_archive(log: tuple[list[bytes], list[Head]], first: int, last: int) -> list[bytes]:
    """An archive of these events of a log, under a checkpoint of the whole of it."""
    entries, heads = log
    leaves = b"".join(map(merkle.leaf_hash, entries))
    width = merkle.FULL_TILE_BYTES

    def read(level: int, number: int) -> bytes:
        return leaves[number * width :][:width] if level == 0 else merkle.root_of(leaves[:width])

    proof = merkle.consistency_proof(last, len(entries), read)
    ending = audit_export.Ending(last, proof)
    return list(audit_export.write(sign(heads[-1]), entries[first:last], start=heads[first], ending=ending))


def test_files_of_one_log_are_joined_and_those_of_two_are_not_though_their_numbers_fit() -> None:
    one, other = (ENTRIES, HEADS), make_log(SIZE, detail="another history")
    before = audit_export.verify(make_archive(one, 0, 256), KEYS)
    then = audit_export.verify(make_export(256), KEYS)
    audit_export.check_joined(before, then)
    # Each is genuine on its own: the same key has signed for both.
    of_other = audit_export.verify(make_archive(other, 0, 256), KEYS)
    assert (of_other.end.sequence, of_other.start) == (before.end.sequence, before.start)
    with pytest.raises(TamperedRecord, match="evt-000257 does not follow evt-000256: they are of two histories"):
        audit_export.check_joined(of_other, then)
    for missing in (audit_export.verify(make_archive(one, 0, 255), KEYS), then):
        with pytest.raises(TamperedRecord, match="a file is missing, or they are not in their order"):
            audit_export.check_joined(missing, then)
