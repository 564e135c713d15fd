"""The audit log's chain: nothing in it can be altered, dropped, inserted or moved."""

import hashlib
import json
from typing import Any

import msgspec
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwrit.domain import audit, merkle
from agentwrit.domain.audit import Draft, Event, EventType, Outcome
from agentwrit.domain.errors import TamperedRecord
from tests.domain.records import NOW

LENGTH = 6


def make_log(length: int = LENGTH) -> list[Event]:
    events, head = [], audit.Head()
    for number in range(1, length + 1):
        draft = Draft(
            event_type=EventType.TOKEN_ISSUED,
            detail=f"event {number}",
            agent_id="spiffe://agentwrit.local/agent/o/t/1",
            data={"jti": f"jti-{number}", "scope": ["read:data:1"], "ttl": 300},
        )
        event, head, _ = audit.append(draft, head, now=NOW + number)
        events.append(event)
    return events


LOG = make_log()
FIELDS = [field.name for field in msgspec.structs.fields(Event)]


def changed(value: Any) -> Any:
    match value:
        case int():
            return value + 1
        case str():
            return value[:-1] + ("0" if value[-1:] != "0" else "1")
        case dict():
            return value | {"jti": "another"}
    raise AssertionError(value)


def test_a_genuine_log_is_verified_whole_and_in_parts() -> None:
    assert audit.verify(LOG) == LENGTH
    assert audit.verify([]) == 0
    replay = audit.Replay()
    for event in LOG[:3]:
        replay.take_event(event)
    assert audit.verify(LOG[3:], start=replay.head) == LENGTH - 3


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("at", [0, 2, LENGTH - 1])
def test_an_altered_field_is_found(at: int, name: str) -> None:
    log = list(LOG)
    log[at] = msgspec.structs.replace(log[at], **{name: changed(getattr(log[at], name))})
    with pytest.raises(TamperedRecord, match=r"evt-00000\d"):
        audit.verify(log)


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in ("hash", "prev_hash", "sequence")])
def test_an_altered_field_with_its_hash_made_anew_is_found_at_the_next_event(name: str) -> None:
    log = list(LOG)
    forged = msgspec.structs.replace(log[2], **{name: changed(getattr(log[2], name))})
    log[2] = msgspec.structs.replace(forged, hash=hashlib.sha256(audit.entry(forged)).hexdigest())
    with pytest.raises(TamperedRecord, match="evt-000004 does not follow"):
        audit.verify(log)


@given(st.permutations(range(LENGTH)), st.integers(0, LENGTH))
@settings(max_examples=60)
def test_only_a_beginning_of_the_log_is_a_log(order: list[int], length: int) -> None:
    chosen = order[:length]
    log = [LOG[at] for at in chosen]
    if chosen == list(range(length)):
        assert audit.verify(log) == length
    else:
        with pytest.raises(TamperedRecord):
            audit.verify(log)


def test_an_inserted_or_repeated_event_is_found() -> None:
    for log in (LOG[:2] + LOG[1:], [*LOG[:3], LOG[2], *LOG[3:]], [*LOG, LOG[-1]]):
        with pytest.raises(TamperedRecord, match="missing"):
            audit.verify(log)


def test_a_log_of_another_beginning_is_found() -> None:
    with pytest.raises(TamperedRecord, match="evt-000001 does not follow"):
        audit.verify(LOG, start=audit.Head("1" * 64))


def test_the_hash_is_that_of_the_exported_record_without_it() -> None:
    # With a canonicalizer that is not ours, from what an auditor is given.
    exported = json.loads(msgspec.json.encode(audit.record(LOG[1])))
    expected = exported.pop("hash")
    assert hashlib.sha256(rfc8785.dumps(exported)).hexdigest() == expected
    assert exported["prev_hash"] == LOG[0].hash
    assert exported["id"] == "evt-000002"
    assert exported["version"] == audit.SCHEMA_VERSION


@given(st.text(max_size=20), st.text(max_size=20))
def test_moving_text_from_one_field_to_the_next_changes_the_hash(first: str, second: str) -> None:
    def hash_of(agent_id: str, task_id: str) -> str:
        draft = Draft(event_type=EventType.TOKEN_ISSUED, agent_id=agent_id, task_id=task_id)
        return audit.append(draft, audit.Head(), now=NOW).event.hash

    try:
        joined, apart = hash_of(first + second, ""), hash_of(first, second)
    except ValueError:  # a lone surrogate has no canonical form
        return
    assert (joined == apart) == (second == "")


@given(st.integers(1, 10**12))
def test_the_name_of_an_event_gives_its_place_back(sequence: int) -> None:
    assert audit.parse_event_id(audit.event_id(sequence)) == sequence


@pytest.mark.parametrize(
    "text",
    ["", "evt", "evt-", "evt-1", "evt-0000001", "EVT-000001", "evt-00000a", "evt-+00001", "evt-00000１", "evt--00001"],
)
def test_another_spelling_of_an_events_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="event id"):
        audit.parse_event_id(text)


# -- many that are alike ----------------------------------------------------------------------------------------------

ABOUT = audit.About("app-1", "spiffe://a/agent/o/t/1", "t", "o", "sid-1", 0, "")


@pytest.mark.parametrize(
    "draft",
    [
        Draft(event_type=EventType.TOKEN_REVOKED),
        Draft(event_type=EventType.TOKEN_RELEASED, principal="admin", detail="100 % %s %b", data={"reason": "%d"}),
        Draft(event_type=EventType.TOKEN_REVOKED, data={"jti": "another", "count": 3, "agents": ["b", "a"]}),
        Draft(event_type=EventType.TOKEN_REVOKED, data={"a": 'quoted "é\n\u2028', "level": "task", "zeta": ""}),
        Draft(
            event_type=EventType.TOKEN_REVOKED,
            outcome=Outcome.DENIED,
            resource="POST /v1/revoke",
            client_address="192.0.2.1",
            request_id="r",
            trace_id="t",
            data={"targets": ["t" * audit.MAX_ENTRY_BYTES]},
        ),
    ],
    ids=["bare", "percent", "its own jti", "escapes", "too large"],
)
def test_a_run_of_events_is_what_it_would_be_one_by_one(draft: Draft) -> None:
    abouts = [
        ABOUT,
        ABOUT._replace(app_id="", agent_id="", task_id="100 %b", orch_id='"é\\', deleg_depth=5, deleg_chain_hash="c"),
        *(ABOUT._replace(sid=f"sid-{number}") for number in range(merkle.TILE_WIDTH)),
    ]
    head = audit.append(draft, audit.Head(), now=1.25).head
    run, alike = audit.Run(head), audit.Alike(draft, now=1234.5)
    tiles: list[merkle.Tile] = []
    for number, about in enumerate(abouts):
        jti = f"jti-{number}"
        whole = msgspec.structs.replace(draft, data={"jti": jti, **draft.data}, **about._asdict())
        appended = audit.append(whole, head, now=1234.5)
        head = appended.head
        tiles += appended.tiles
        placed = run.append(alike, about, jti)
        event = appended.event
        assert (placed.sequence, placed.prev_hash, placed.hash) == (event.sequence, event.prev_hash, event.hash)
        assert placed.detail == event.detail
        assert msgspec.json.decode(placed.data) == event.data
    assert (run.head, run.tiles) == (head, tiles)
