"""Going on from a backup: what it would revive has ended, in every store."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import pytest

from agentwrit.broker.config import Config
from agentwrit.broker.keystore import KeyWrap, MasterKey
from agentwrit.broker.services.keys import KeyRings
from agentwrit.broker.services.restoring import Restored, check, end_everything
from agentwrit.broker.storage.base import EventQuery, GrantQuery, Snapshot, Transaction
from agentwrit.domain.audit import EventType
from agentwrit.domain.errors import NotFound, TamperedRecord
from agentwrit.domain.grant import EndReason, GrantKind, ended
from agentwrit.domain.idempotency import FirstAnswer
from agentwrit.domain.operator import Operator
from agentwrit.domain.revocation import RevocationKind
from agentwrit.domain.signing_key import KeyPurpose, KeyState, gone, retired
from tests.domain.records import NOW, make_app, make_grant, make_hop, make_launch_token
from tests.storage.conftest import Subject
from tests.storage.conftest import subject as subject  # the fixture

WRAP = KeyWrap(MasterKey(b"m" * 32))
OPERATOR = Operator(name="admin", password_hash="$argon2id$", created_at=NOW, updated_at=NOW)


@pytest.fixture
def lived(subject: Subject) -> Subject:
    """A store that a broker has used."""
    subject.run(KeyRings.load(subject.store, WRAP))

    def live(transaction: Transaction) -> None:
        transaction.put(OPERATOR)
        transaction.put(make_app())
        transaction.put(make_launch_token())
        transaction.put(make_grant(sid="agent"))
        transaction.put(make_grant(sid="delegated", jti="jti-2", chain=(make_hop("agent"),)))
        transaction.put(make_grant(sid="app", jti="jti-3", kind=GrantKind.APP, subject="app-1"))
        transaction.put(make_grant(sid="operator", jti="jti-4", kind=GrantKind.OPERATOR, subject="admin"))
        transaction.put(make_grant(sid="over", jti="jti-5", exp=NOW))
        transaction.put(ended(make_grant(sid="ended", jti="jti-6"), EndReason.RELEASED, NOW))

    subject.write(live)
    return subject


def restore(subject: Subject, epoch: str = "epoch-2") -> Restored:
    unit = partial(end_everything, wrap=WRAP, config=Config(), epoch=epoch)
    restored: Restored = subject.write(unit)
    return restored


def kids(subject: Subject, *states: KeyState, purpose: KeyPurpose | None = None) -> set[str]:
    keys = subject.read(lambda s: s.signing_keys())
    return {key.kid for key in keys if key.state in states and purpose in (None, key.purpose)}


def events(subject: Subject, after: int = 0) -> Sequence[Any]:
    found: Sequence[Any] = subject.read(lambda s: s.events(EventQuery(after=after, limit=1000)))
    return found


def test_every_grant_that_was_alive_ends_with_a_revocation_and_an_event(lived: Subject) -> None:
    before = events(lived)[-1].sequence
    assert restore(lived).grants == 4
    alive = {"agent", "delegated", "app", "operator"}

    def look(snapshot: Snapshot) -> tuple[Any, ...]:
        revoked = {entry.id for entry in snapshot.revocations(NOW) if entry.kind is RevocationKind.GRANT}
        reasons = {(grant.sid, grant.end_reason) for grant in snapshot.grants(GrantQuery()) if grant.is_ended}
        return snapshot.grants(GrantQuery(live_at=NOW)), revoked, reasons

    live, revoked, reasons = lived.read(look)
    assert list(live) == []
    assert revoked == alive
    assert reasons == {("ended", "released"), *((sid, "store_restored") for sid in alive)}
    told = [event.sid for event in events(lived, before) if event.event_type == EventType.TOKEN_REVOKED]
    assert sorted(told) == sorted(alive)


def test_launch_tokens_are_gone_and_what_cannot_be_known_is_told(lived: Subject) -> None:
    last = events(lived)[-1]
    restored = restore(lived)
    assert lived.read(lambda s: s.launch_token(b"t" * 32)) is None
    assert (restored.last_event, restored.last_event_at) == (last.id, last.timestamp)
    assert (restored.launch_tokens, list(restored.apps), list(restored.operators)) == (1, [make_app()], [OPERATOR])
    assert restored.checkpoint_key is not None
    assert {restored.checkpoint_key.kid} == kids(lived, KeyState.ACTIVE, purpose=KeyPurpose.AUDIT_CHECKPOINT)


def test_the_keys_that_sign_or_did_or_were_to_be_next_are_revoked_and_others_take_their_places(lived: Subject) -> None:
    """The next one may have signed since the backup, and the retired ones still verify."""

    def retire(transaction: Transaction) -> None:
        [active] = [
            key
            for key in transaction.signing_keys()
            if key.purpose is KeyPurpose.ACCESS_TOKEN and key.state is KeyState.ACTIVE
        ]
        transaction.put(retired(active, verifies_until=NOW + 600))

    lived.write(retire)
    lived.run(KeyRings.load(lived.store, WRAP))
    published = (KeyState.NEXT, KeyState.ACTIVE, KeyState.RETIRED)
    checkpoints = kids(lived, *published, purpose=KeyPurpose.AUDIT_CHECKPOINT)
    before = kids(lived, *published) - checkpoints
    assert len(before) == 5
    assert restore(lived).keys == 5
    assert kids(lived, KeyState.GONE) == before
    revoked = lived.read(lambda s: {e.id: e.last_exp for e in s.revocations(NOW) if e.kind is RevocationKind.KEY})
    assert revoked.keys() == before
    assert min(revoked.values()) > NOW + Config().max_ttl
    for purpose in KeyPurpose:
        for state in (KeyState.ACTIVE, KeyState.NEXT):
            assert len(kids(lived, state, purpose=purpose)) == 1
    assert kids(lived, *published, purpose=KeyPurpose.AUDIT_CHECKPOINT) == checkpoints
    subject_rings = lived.run(KeyRings.load(lived.store, WRAP))
    assert subject_rings.access_tokens.signer.kid not in before


def test_the_log_says_so_first_and_names_where_the_backup_ended(lived: Subject) -> None:
    last = events(lived)[-1]
    gone = kids(lived, KeyState.ACTIVE, KeyState.NEXT) - kids(
        lived, KeyState.ACTIVE, KeyState.NEXT, purpose=KeyPurpose.AUDIT_CHECKPOINT
    )
    restore(lived, "epoch-3")
    told = events(lived, last.sequence)[0]
    assert told.event_type == EventType.STORE_RESTORED
    assert told.prev_hash == last.hash
    assert (told.data["backup_last"], told.data["backup_hash"]) == (last.id, last.hash)
    assert (told.data["grants"], told.data["launch_tokens"], told.data["first_answers"]) == (4, 1, 0)
    assert set(told.data["kids"]) == gone
    assert told.data["feed_epoch"] == lived.read(lambda s: s.feed_epoch()) == "epoch-3"


def test_it_can_be_done_again_and_ends_what_came_meanwhile(lived: Subject) -> None:
    restore(lived)
    lived.write(lambda t: t.put(make_grant(sid="new", jti="jti-7")))
    again = restore(lived, "epoch-4")
    assert (again.grants, again.launch_tokens, again.keys) == (1, 0, 4)


def test_of_a_restore_that_fails_nothing_is_left(lived: Subject) -> None:
    before = lived.read(lambda s: (s.event_head(), s.feed_epoch(), s.feed_head(), list(s.signing_keys())))

    def fail(transaction: Transaction) -> None:
        end_everything(transaction, WRAP, Config(), epoch="epoch-5")
        raise NotFound("the power")

    with pytest.raises(NotFound):
        lived.write(fail)
    assert lived.read(lambda s: (s.event_head(), s.feed_epoch(), s.feed_head(), list(s.signing_keys()))) == before
    assert len(lived.read(lambda s: s.grants(GrantQuery(live_at=NOW)))) == 4


# -- looking at what came of it ---------------------------------------------------------------------------------------


def test_what_was_restored_is_found_to_have_ended(lived: Subject) -> None:
    restored = restore(lived)
    lived.read(lambda s: check(s, restored))


def test_what_lives_on_in_spite_of_a_restore_is_found(lived: Subject) -> None:
    """As if something had undone a part of what was written."""
    before = {grant.sid: grant for grant in lived.read(lambda s: s.grants(GrantQuery()))}
    keys = {key.kid: key for key in lived.read(lambda s: s.signing_keys())}
    restored = restore(lived)
    first_answer = FirstAnswer(key=b"k" * 32, request=b"r" * 32, expires_at=NOW + 60)
    alive = msgspec.structs.replace(before["delegated"], kid=restored.kids[0])
    ways: Sequence[tuple[str, Callable[[Transaction], object], Callable[[Transaction], object]]] = (
        ("did not end", lambda t: t.put(alive), lambda t: t.put(ended(alive, EndReason.RELEASED, NOW))),
        (
            "was not revoked",
            lambda t: t.put(keys[restored.kids[1]]),
            lambda t: t.put(gone(keys[restored.kids[1]], revoked_at=NOW)),
        ),
        ("were not forgotten", lambda t: t.put(make_launch_token()), lambda t: t.drop_launch_tokens()),
        ("were not forgotten", lambda t: t.put(first_answer), lambda t: t.drop_first_answers()),
        ("epoch", lambda t: t.begin_feed_epoch("former"), lambda t: t.begin_feed_epoch(restored.epoch)),
    )
    for said, undo, do in ways:
        lived.write(undo)
        with pytest.raises(TamperedRecord, match=said):
            lived.read(lambda s: check(s, restored))
        lived.write(do)
        lived.read(lambda s: check(s, restored))
    with pytest.raises(TamperedRecord, match="epoch"):
        lived.read(lambda s: check(s, msgspec.structs.replace(restored, epoch="another")))
