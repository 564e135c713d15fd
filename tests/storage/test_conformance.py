"""What every store guarantees (`storage/base.py`). A new adapter is done when it passes."""

import asyncio
import random
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from operator import methodcaller
from typing import Any

import msgspec
import pytest

from agentwrit.broker.storage.base import (
    EXPIRED_AT_ONCE,
    Denied,
    EventQuery,
    Expired,
    GrantQuery,
    Snapshot,
    Transaction,
)
from agentwrit.domain import audit, merkle
from agentwrit.domain.app import AppStatus
from agentwrit.domain.audit import Draft, EventType, Outcome
from agentwrit.domain.audit_archive import Archive
from agentwrit.domain.errors import NotFound, ScopeViolation, Unavailable
from agentwrit.domain.grant import EndReason, Grant, GrantKind, ended
from agentwrit.domain.idempotency import FirstAnswer
from agentwrit.domain.launch_token import used
from agentwrit.domain.limits import AppUsage
from agentwrit.domain.operator import Operator
from agentwrit.domain.revocation import RETENTION_SECONDS, Revocation, RevocationKind
from agentwrit.domain.signing_key import KeyPurpose, KeyState, StoredKey
from tests.domain.records import NOW, make_app, make_grant, make_hop, make_launch_token
from tests.storage.conftest import Subject

ISSUED = Draft(event_type=EventType.TOKEN_ISSUED)
REFUSED = Draft(event_type=EventType.SCOPE_VIOLATION, outcome=Outcome.DENIED)


def make_key(kid: str, created_at: int, state: KeyState = KeyState.ACTIVE) -> StoredKey:
    return StoredKey(
        kid=kid,
        purpose=KeyPurpose.ACCESS_TOKEN,
        state=state,
        public_key=b"p" * 32,
        wrapped=b"w",
        created_at=created_at,
    )


def revocation(name: str, *, kind: RevocationKind = RevocationKind.GRANT, at: int = NOW, last_exp: int) -> Revocation:
    return Revocation(kind=kind, id=name, effective_at=at, last_exp=last_exp)


def recording(draft: Draft) -> Callable[[Transaction], None]:
    return lambda transaction: transaction.record(draft)


# -- records ----------------------------------------------------------------------------------------------------------


def test_every_record_is_read_back_as_it_was_put(subject: Subject) -> None:
    operator = Operator(name="admin", password_hash="$argon2id$", created_at=NOW, updated_at=NOW)
    app, token, grant, key = make_app(), make_launch_token(), make_grant(), make_key("kid-1", NOW)

    def put(transaction: Transaction) -> None:
        transaction.put(operator)
        transaction.put(app)
        transaction.put(token)
        transaction.put(grant)
        transaction.put(key)

    def look(snapshot: Snapshot) -> list[Any]:
        return [
            snapshot.operator("admin"),
            snapshot.app("app-1"),
            snapshot.app_by_client_id("client-1"),
            snapshot.active_app_by_name("orders"),
            snapshot.launch_token(token.token_hash),
            snapshot.grant("sid-1"),
            *snapshot.signing_keys(),
        ]

    subject.write(put)
    assert subject.read(look) == [operator, app, app, app, token, grant, key]


def test_operators_are_listed_by_their_names(subject: Subject) -> None:
    def made(name: str, **fields: int) -> Operator:
        return Operator(name=name, password_hash="$argon2id$", created_at=NOW, updated_at=NOW, **fields)

    subject.write(lambda t: [t.put(made(name)) for name in ("bo", "admin", "ana")])
    subject.write(lambda t: t.put(made("bo", removed_at=NOW, revision=2)))
    listed = subject.read(lambda s: s.operators())
    assert list(listed) == [made("admin"), made("ana"), made("bo", removed_at=NOW, revision=2)]
    assert list(subject.write(lambda t: t.operators())) == list(listed)


def test_what_is_not_there_is_none(subject: Subject) -> None:
    def look(snapshot: Snapshot) -> list[Any]:
        return [
            snapshot.operator("admin"),
            snapshot.app(""),
            snapshot.app_by_client_id("x"),
            snapshot.active_app_by_name("x"),
            snapshot.launch_token(b""),
            snapshot.grant(""),
        ]

    assert subject.read(look) == [None] * 6
    assert subject.read(lambda s: (list(s.apps()), list(s.signing_keys()), list(s.revocations(0)))) == ([], [], [])


def test_putting_again_replaces(subject: Subject) -> None:
    subject.write(lambda t: t.put(make_grant()))
    subject.write(lambda t: t.put(ended(make_grant(), EndReason.RELEASED, NOW)))
    subject.write(lambda t: t.put(make_launch_token()))
    subject.write(lambda t: t.put(used(make_launch_token())))
    assert subject.read(lambda s: s.grant("sid-1")).is_ended
    assert subject.read(lambda s: s.launch_token(b"t" * 32)).uses == 1


def test_a_unit_sees_what_it_has_put_itself(subject: Subject) -> None:
    def put_and_look(transaction: Transaction) -> list[Any]:
        transaction.put(make_app())
        transaction.put(make_grant())
        transaction.record(ISSUED)
        return [transaction.app("app-1"), transaction.grant("sid-1"), transaction.event_count()]

    assert subject.write(put_and_look) == [make_app(), make_grant(), 1]


def test_apps_are_listed_in_the_order_of_their_registration(subject: Subject) -> None:
    names = ["zebra", "apple", "mango", "berry"]
    subject.write(lambda t: [t.put(make_app(app_id=name, name=name, client_id=name)) for name in names])
    subject.write(lambda t: t.put(make_app(app_id="zebra", name="zebra", client_id="zebra", token_ttl=60)))

    def listed(**paging: int) -> list[str]:
        return [app.app_id for app in subject.read(lambda s: s.apps(**paging))]

    assert listed() == names
    assert listed(limit=2) == names[:2]
    assert listed(limit=2, offset=1) == names[1:3]
    assert listed(offset=3) == names[3:]
    assert listed(limit=0) == []
    assert subject.read(lambda s: s.app_count()) == 4


def test_a_name_can_be_taken_again_after_the_app_is_gone(subject: Subject) -> None:
    subject.write(lambda t: t.put(make_app(status=AppStatus.INACTIVE)))
    assert subject.read(lambda s: s.active_app_by_name("orders")) is None
    again = make_app(app_id="app-2", client_id="client-2")
    subject.write(lambda t: t.put(again))
    assert subject.read(lambda s: s.active_app_by_name("orders")) == again
    assert subject.read(lambda s: s.app_count()) == 2


def test_a_suspended_app_keeps_its_name(subject: Subject) -> None:
    suspended = make_app(status=AppStatus.SUSPENDED)
    subject.write(lambda t: t.put(suspended))
    assert subject.read(lambda s: s.active_app_by_name("orders")) == suspended


def test_how_much_of_its_limits_an_app_uses_is_kept_with_each_unit(subject: Subject) -> None:
    usage = AppUsage(app_id="app-1", live_agents=1, counted_at=NOW, permits=0.1 + 0.2, refilled_at=NOW + 0.3)

    def use(transaction: Transaction) -> AppUsage | None:
        before = transaction.app_usage("app-1") or AppUsage(app_id="app-1")
        transaction.put(msgspec.structs.replace(before, live_agents=before.live_agents + 1))
        return transaction.app_usage("app-1")

    def fail(transaction: Transaction) -> None:
        use(transaction)
        raise Denied(NotFound("none"), REFUSED)

    async def together() -> list[Any]:
        units = [use, use, fail, use, fail]
        return await asyncio.gather(*(subject.store.write(unit) for unit in units), return_exceptions=True)

    assert subject.read(lambda s: s.app_usage("app-1")) is None
    subject.write(lambda t: t.put(usage))
    assert subject.read(lambda s: s.app_usage("app-1")) == usage
    assert subject.read(lambda s: s.app_usage("app-2")) is None
    done = subject.run(together())
    assert [each.live_agents for each in done if isinstance(each, AppUsage)] == [2, 3, 4]
    assert subject.read(lambda s: s.app_usage("app-1")) == msgspec.structs.replace(usage, live_agents=4)


def test_agents_that_count_are_found_by_when_they_expired(subject: Subject) -> None:
    def made(sid: str, exp: int, **fields: Any) -> Grant:
        return make_grant(**{"sid": sid, "exp": NOW + exp, "is_counted": True, **fields})

    grants = [
        made("at-the-first", 1),
        made("in-between", 2),
        made("at-the-second", 3),
        made("later", 4),
        made("ended", 2, ended_at=NOW),
        made("another-apps", 2, app_id="app-2"),
        made("not-counted", 2, is_counted=False),
        made("renewed", 2),
    ]
    subject.write(lambda t: [t.put(grant) for grant in grants])
    query = GrantQuery(over_in=(NOW + 1, NOW + 3), is_counted=True, app_id="app-1")

    def renew_and_look(transaction: Transaction) -> list[str]:
        transaction.put(made("renewed", 9))
        transaction.put(made("new", 3))
        return [grant.sid for grant in transaction.grants(query)]

    found = ["in-between", "at-the-second", "renewed"]
    assert subject.read(lambda s: [grant.sid for grant in s.grants(query)]) == found
    assert set(subject.write(renew_and_look)) == {"in-between", "at-the-second", "new"}
    assert {grant.sid for grant in subject.read(lambda s: s.grants(query))} == {"in-between", "at-the-second", "new"}
    live = GrantQuery(live_at=NOW + 2, is_counted=True, app_id="app-1")
    assert {grant.sid for grant in subject.read(lambda s: s.grants(live))} == {
        "at-the-second",
        "later",
        "new",
        "renewed",
    }


def test_agents_that_expired_are_counted_a_few_hundred_at_a_time(subject: Subject) -> None:
    def made(number: int, exp: int, **fields: Any) -> Grant:
        return make_grant(**{"sid": f"{exp}-{number}", "exp": NOW + exp, "is_counted": True, **fields})

    # Ten in each of a hundred seconds, and in one more as many as are never counted at once.
    spread = [made(number, second) for second in range(100) for number in range(10)]
    crowd = [made(number, 150) for number in range(EXPIRED_AT_ONCE + 50)]
    subject.write(lambda t: [t.put(grant) for grant in (*spread, *crowd)])

    def count(snapshot: Snapshot) -> list[Expired]:
        steps = [snapshot.expired("app-1", NOW - 1, NOW + 200)]
        while steps[-1].until < NOW + 200:
            steps.append(snapshot.expired("app-1", steps[-1].until, NOW + 200))
        return steps

    def renew_and_count(transaction: Transaction) -> list[Expired]:
        for grant in (*spread[:400], *crowd[:300]):
            transaction.put(msgspec.structs.replace(grant, exp=NOW + 300))
        transaction.put(made(99, 150))
        return count(transaction)

    steps = subject.read(count)
    assert sum(step.agents for step in steps) == len(spread) + len(crowd)
    assert all(before.until < after.until for before, after in pairwise(steps))
    assert sum(step.agents for step in subject.write(renew_and_count)) == 600 + 6 + 1
    assert sum(step.agents for step in subject.read(count)) == 600 + 6 + 1
    assert subject.read(lambda s: s.expired("app-2", NOW - 1, NOW + 200)) == (0, NOW + 200)


def test_keys_are_listed_newest_first(subject: Subject) -> None:
    keys = [make_key("b", NOW), make_key("c", NOW + 5), make_key("a", NOW)]
    subject.write(lambda t: [t.put(key) for key in keys])
    assert [key.kid for key in subject.read(lambda s: s.signing_keys())] == ["c", "a", "b"]


def test_live_grants_are_those_that_are_neither_ended_nor_over(subject: Subject) -> None:
    grants = [
        make_grant(sid="live"),
        make_grant(sid="other-app", app_id="app-2"),
        make_grant(sid="of-the-app", kind=GrantKind.APP),
        make_grant(sid="over", exp=NOW),
        ended(make_grant(sid="ended"), EndReason.RELEASED, NOW),
    ]
    subject.write(lambda t: [t.put(grant) for grant in grants])

    def live(query: GrantQuery, now: float = NOW) -> set[str]:
        query = msgspec.structs.replace(query, live_at=now)
        return {grant.sid for grant in subject.read(lambda s: s.grants(query))}

    assert live(GrantQuery()) == {"live", "other-app", "of-the-app"}
    assert live(GrantQuery(app_id="app-1")) == {"live", "of-the-app"}
    assert live(GrantQuery(app_id="app-1", kind=GrantKind.AGENT)) == {"live"}
    assert live(GrantQuery(app_id="")) == set()
    assert live(GrantQuery(), NOW + 299.5) == {"live", "other-app", "of-the-app"}
    assert live(GrantQuery(), NOW + 300) == set()


def chained(sid: str, *parents: str, **changes: Any) -> Grant:
    return make_grant(sid=sid, jti=f"jti-{sid}", chain=tuple(make_hop(parent) for parent in parents), **changes)


def test_grants_are_found_by_whatever_is_known_of_them(subject: Subject) -> None:
    grants = [
        chained("a", subject="one", task_id="t1", orch_id="o1"),
        chained("b", "a", subject="two", task_id="t1", orch_id="o1"),
        chained("c", "a", "b", subject="one", task_id="t2", kid="key"),
        chained("d", "a", "b", "c", subject="three", app_id="app-2", kid="key"),
        chained("e", subject="two", task_id="t2", kid="other"),
    ]
    subject.write(lambda t: [t.put(grant) for grant in grants])
    for query, sids in (
        (GrantQuery(), "abcde"),
        (GrantQuery(subject="one"), "ac"),
        (GrantQuery(subject="one", parent=""), "a"),
        (GrantQuery(task_id="t2"), "ce"),
        (GrantQuery(task_id=""), ""),
        (GrantQuery(orch_id="o1"), "ab"),
        (GrantQuery(jti="jti-d"), "d"),
        (GrantQuery(sid="e"), "e"),
        (GrantQuery(parent="a"), "b"),
        (GrantQuery(parent=""), "ae"),
        (GrantQuery(signed_by="other"), "abe"),  # of those without a kid it is not known
        (GrantQuery(signed_by="key"), "abcd"),
        (GrantQuery(signed_by="kid-1"), "abcd"),  # it signed the chains
        (GrantQuery(limit=2), "ab"),
        (GrantQuery(after="b"), "cde"),
        (GrantQuery(after="b", limit=1), "c"),
        (GrantQuery(after="e"), ""),
        (GrantQuery(after="nobody"), ""),
    ):
        found = subject.read(lambda s: s.grants(query))  # noqa: B023  # read at once
        assert "".join(grant.sid for grant in found) == sids, query
        assert all(grant in grants for grant in found)


def test_a_grant_keeps_its_place_when_it_changes(subject: Subject) -> None:
    subject.write(lambda t: [t.put(chained(sid)) for sid in "abc"])
    subject.write(lambda t: t.put(chained("a", scope=("read:data:2",))))
    assert [grant.sid for grant in subject.read(lambda s: s.grants(GrantQuery()))] == ["a", "b", "c"]
    assert subject.read(lambda s: s.last_exp()) == NOW + 300


def test_a_first_answer_is_kept_until_its_time_is_over(subject: Subject) -> None:
    answer = FirstAnswer(key=b"k" * 32, request=b"r" * 32, grant=chained("a", "z"), expires_at=NOW + 600)
    assert subject.read(lambda s: s.first_answer(b"k" * 32)) is None
    subject.write(lambda t: t.put(answer))
    assert subject.read(lambda s: s.first_answer(b"k" * 32)) == answer
    subject.time.wall = NOW + 600
    assert subject.write(lambda t: t.purge(100)) == 1
    assert subject.read(lambda s: s.first_answer(b"k" * 32)) is None


def test_the_feed_numbers_revocations_by_commit_and_never_goes_back(subject: Subject) -> None:
    def feed(first: int, last: int) -> list[str]:
        return [entry.id for entry in subject.read(lambda s: s.feed(first, last))]

    assert subject.read(lambda s: s.feed_head()) == 0
    epoch = subject.read(lambda s: s.feed_epoch())
    for name in "abc":
        entry = revocation(name, last_exp=NOW + 10)
        subject.write(lambda t: t.revoke(entry))  # noqa: B023  # written at once
    assert feed(1, 3) == ["a", "b", "c"]
    subject.write(lambda t: t.revoke(revocation("a", last_exp=NOW + 20)))
    assert (feed(1, 3), feed(4, 9)) == (["b", "c"], ["a"])
    subject.time.wall = NOW + 1_000_000
    subject.write(lambda t: t.purge(100))
    assert subject.read(lambda s: s.feed_head()) == 4
    subject.write(lambda t: t.revoke(revocation("d", last_exp=NOW + 2_000_000)))
    assert feed(5, 5) == ["d"]
    assert subject.read(lambda s: s.feed_epoch()) == epoch


# -- atomicity --------------------------------------------------------------------------------------------------------


def put_everything(transaction: Transaction) -> None:
    transaction.put(make_app(token_ttl=60))
    transaction.put(make_launch_token())
    transaction.put(make_grant())
    transaction.put(make_key("kid-1", NOW))
    transaction.spend_nonce(b"n" * 32, NOW + 30)
    transaction.revoke(revocation("sid-9", last_exp=NOW + 300))
    transaction.record(ISSUED)
    transaction.purge(100)


def everything(snapshot: Snapshot) -> list[Any]:
    return [
        list(snapshot.apps()),
        snapshot.launch_token(b"t" * 32),
        snapshot.grant("sid-1"),
        list(snapshot.signing_keys()),
        list(snapshot.revocations(0)),
        list(snapshot.events(EventQuery())),
    ]


@pytest.mark.parametrize("error", [ValueError("a defect"), NotFound("no such app"), KeyError("x")])
def test_of_a_unit_that_raises_nothing_is_left(subject: Subject, error: Exception) -> None:
    subject.write(lambda t: (t.put(make_app()), t.spend_nonce(b"old", NOW - 1)))
    before = subject.read(everything)

    def fail(transaction: Transaction) -> None:
        put_everything(transaction)
        raise error

    with pytest.raises(type(error)) as caught:
        subject.write(fail)
    assert caught.value is error
    assert subject.read(everything) == before
    assert subject.write(lambda t: t.spend_nonce(b"n" * 32, NOW + 30))
    assert subject.store.is_writable()


def test_of_a_denied_unit_its_events_are_left_and_nothing_else(subject: Subject) -> None:
    before = subject.read(everything)
    refusal = ScopeViolation("too much")

    def deny(transaction: Transaction) -> None:
        put_everything(transaction)
        raise Denied(refusal, REFUSED, REFUSED)

    with pytest.raises(ScopeViolation) as caught:
        subject.write(deny)
    assert caught.value is refusal
    after = subject.read(everything)
    assert after[:-1] == before[:-1]
    assert [event.event_type for event in after[-1]] == ["scope_violation"] * 2
    assert audit.verify(after[-1]) == 2


def test_a_denied_unit_announces_nothing(subject: Subject) -> None:
    announced: list[Revocation] = []
    subject.store.listen(announced.extend)

    def deny(transaction: Transaction) -> None:
        transaction.revoke(revocation("sid-1", last_exp=NOW + 300))
        raise Denied(NotFound("no"), REFUSED)

    with pytest.raises(NotFound):
        subject.write(deny)
    assert announced == []
    assert list(subject.read(lambda s: list(s.revocations(0)))) == []


def test_a_unit_that_fails_takes_no_other_down(subject: Subject) -> None:
    async def at_once() -> list[Any]:
        def unit(number: int) -> Any:
            def put(transaction: Transaction) -> int:
                transaction.put(make_grant(sid=f"sid-{number}"))
                transaction.record(ISSUED)
                if number % 5 == 0:
                    raise ValueError(number)
                return number

            return put

        return await asyncio.gather(*(subject.store.write(unit(n)) for n in range(50)), return_exceptions=True)

    answers = subject.run(at_once())
    grants = subject.read(lambda s: [s.grant(f"sid-{number}") for number in range(50)])
    for number, (answer, grant) in enumerate(zip(answers, grants, strict=True)):
        is_there = grant is not None
        assert is_there == (number % 5 != 0)
        assert answer == number if is_there else isinstance(answer, ValueError)
    assert audit.verify(subject.read(lambda s: s.events(EventQuery()))) == 40


# -- isolation --------------------------------------------------------------------------------------------------------


def test_concurrent_units_are_serialised(subject: Subject) -> None:
    def use(transaction: Transaction) -> bool:
        token = transaction.launch_token(b"t" * 32)
        assert token is not None
        if not token.is_usable(transaction.now):
            return False
        transaction.put(used(token))
        return True

    async def race() -> list[bool]:
        return await asyncio.gather(*(subject.store.write(use) for _ in range(200)))

    subject.write(lambda t: t.put(make_launch_token(max_uses=7)))
    assert sum(subject.run(race())) == 7
    assert subject.read(lambda s: s.launch_token(b"t" * 32)).uses == 7


def test_a_nonce_is_spent_once(subject: Subject) -> None:
    async def race() -> list[bool]:
        return await asyncio.gather(*(subject.store.write(lambda t: t.spend_nonce(b"n", NOW + 30)) for _ in range(50)))

    assert sum(subject.run(race())) == 1
    assert not subject.write(lambda t: t.spend_nonce(b"n", NOW + 30))
    assert subject.write(lambda t: t.spend_nonce(b"m", NOW + 30))


def test_a_read_sees_every_write_that_was_answered_before_it(subject: Subject) -> None:
    async def alternate() -> None:
        for number in range(30):
            await subject.store.write(lambda t: t.record(ISSUED))
            seen = await asyncio.gather(*(subject.store.read(lambda s: s.event_count()) for _ in range(3)))
            assert seen == [number + 1] * 3

    subject.run(alternate())


def test_a_read_sees_one_committed_state(subject: Subject) -> None:
    def put_two(number: int) -> Any:
        def unit(transaction: Transaction) -> None:
            transaction.put(make_grant(sid="a", ttl=number))
            transaction.put(make_grant(sid="b", ttl=number))

        return unit

    def look(snapshot: Snapshot) -> tuple[int, int]:
        a, b = snapshot.grant("a"), snapshot.grant("b")
        assert a is not None
        assert b is not None
        return a.ttl, b.ttl

    async def race() -> list[tuple[int, int]]:
        writes = [subject.store.write(put_two(n)) for n in range(1, 60)]
        reads = [subject.store.read(look) for _ in range(30)]
        return list((await asyncio.gather(*writes, *reads))[len(writes) :])

    subject.write(put_two(100))
    assert all(a == b for a, b in subject.run(race()))


# -- time -------------------------------------------------------------------------------------------------------------


def test_the_time_of_units_never_runs_backwards(subject: Subject) -> None:
    seen = []
    for wall in (NOW + 5, NOW + 1, NOW - 1000, NOW + 6, NOW + 5.5):
        subject.time.wall = wall
        seen.append(subject.write(lambda t: t.now))
    assert seen == sorted(seen)
    assert seen[0] == NOW + 5


# -- the audit log ----------------------------------------------------------------------------------------------------


def test_events_form_one_chain_whoever_records_them(subject: Subject) -> None:
    def record_two(transaction: Transaction) -> None:
        transaction.record(ISSUED)
        transaction.record(REFUSED)

    async def record_at_once() -> None:
        await asyncio.gather(*(subject.store.write(record_two) for _ in range(40)))

    subject.run(record_at_once())
    events: Sequence[audit.Event] = subject.read(lambda s: s.events(EventQuery()))
    assert audit.verify(events) == 80
    assert [event.event_type for event in events[:4]] == ["token_issued", "scope_violation"] * 2


def test_an_event_is_read_back_as_it_was_recorded(subject: Subject) -> None:
    draft = Draft(
        event_type=EventType.TOKEN_RELEASED,
        detail="a 'quoted' \"detail\"\n\0\x1b[31m — \U0001f600",
        resource="/v1/token/release",
        principal="someone",
        app_id="app-1",
        agent_id="spiffe://x/agent/o/t/1",
        task_id="t",
        orch_id="o",
        sid="sid-1",
        deleg_depth=2,
        deleg_chain_hash="00",
        client_address="::1",
        request_id="r",
        trace_id="tr",
        data={"text": '{"a":1}', "number": 7, "list": ["x", ""]},
    )
    subject.write(lambda t: t.record(draft))
    [event] = subject.read(lambda s: s.events(EventQuery()))
    assert event == audit.append(draft, audit.Head(), now=NOW).event
    assert audit.verify([event]) == 1


@pytest.mark.parametrize(
    ("query", "sequences"),
    [
        (EventQuery(), range(1, 13)),
        (EventQuery(agent_id="agent-1"), [2, 6, 10]),
        (EventQuery(task_id="task-1"), [2, 5, 8, 11]),
        (EventQuery(event_type="token_issued"), range(1, 13, 2)),
        (EventQuery(event_type="no_such_type"), []),
        (EventQuery(outcome="denied"), range(2, 13, 2)),
        (EventQuery(app_id="app-2"), [3, 6, 9, 12]),
        (EventQuery(since="2027-01-15T08:00:10.000000Z"), range(11, 13)),
        (EventQuery(until="2027-01-15T08:00:02.000000Z"), range(1, 4)),
        (EventQuery(since="2027-01-15T08:00:02.000000Z", until="2027-01-15T08:00:03.500000Z"), [3, 4]),
        (EventQuery(after=9), [10, 11, 12]),
        (EventQuery(limit=2, offset=3), [4, 5]),
        (EventQuery(is_newest_first=True, limit=3), [12, 11, 10]),
        (EventQuery(is_newest_first=True, after=10, limit=2), [9, 8]),
        (EventQuery(is_newest_first=True, after=1), []),
        (EventQuery(is_newest_first=True, outcome="denied", offset=4), [4, 2]),
        (EventQuery(is_newest_first=True, task_id="task-1", after=8), [5, 2]),
        (EventQuery(since="2027-01-15T08:00:11.000001Z"), []),
        (EventQuery(until="2027-01-15T07:59:59.999999Z"), []),
        (EventQuery(since="1970-01-01T00:00:00.000000Z", until="9999-12-31T23:59:59.999999Z"), range(1, 13)),
        (EventQuery(after=4, limit=2, offset=1), [6, 7]),
        (EventQuery(outcome="denied", app_id="app-2"), [6, 12]),
        (EventQuery(orch_id="orch-1"), [2, 7, 12]),
        (EventQuery(resource="POST /2"), [3, 9]),
        (EventQuery(deleg_chain_hash="hash-3"), [4, 10]),
        (EventQuery(jti="jti-4"), [5]),
        (EventQuery(parent_sid="sid-0"), [1, 4, 7, 10]),
        (EventQuery(parent_sid="sid-0", outcome="denied"), [4, 10]),
        (EventQuery(original_principal="nobody"), []),
        (EventQuery(agent_id=""), []),
        (EventQuery(limit=0), []),
        (EventQuery(offset=12), []),
    ],
)
def test_events_are_found_by_every_filter(subject: Subject, query: EventQuery, sequences: Sequence[int]) -> None:
    for number in range(12):
        subject.time.wall = NOW + number
        draft = Draft(
            event_type=EventType.TOKEN_ISSUED if number % 2 == 0 else EventType.SCOPE_VIOLATION,
            outcome=Outcome.SUCCESS if number % 2 == 0 else Outcome.DENIED,
            agent_id=f"agent-{number % 4}",
            task_id=f"task-{number % 3}",
            app_id=f"app-{number % 3}",
            orch_id=f"orch-{number % 5}",
            resource=f"POST /{number % 6}",
            deleg_chain_hash=f"hash-{number % 6}",
            data={"jti": f"jti-{number}", "parent_sid": f"sid-{number % 3}"},
        )
        subject.write(recording(draft))
    assert [event.sequence for event in subject.read(lambda s: s.events(query))] == list(sequences)


def test_the_count_of_events_is_of_all_that_match_whatever_the_page(subject: Subject) -> None:
    subject.write(lambda t: [t.record(ISSUED) for _ in range(5)])
    subject.write(lambda t: t.record(REFUSED))
    assert subject.read(lambda s: s.event_count()) == 6
    query = EventQuery(event_type="token_issued", after=3, limit=1, offset=2)
    assert subject.read(lambda s: s.event_count(query)) == 5


def test_events_of_a_type_are_counted_right_wherever_the_count_begins_and_whatever_was_archived(
    subject: Subject,
) -> None:
    """Stores keep tallies of them, each of 4,096 events."""
    chance = random.Random(4096)
    types = chance.choices(list(EventType)[:3], weights=(90, 9, 1), k=10_000)
    sizes = iter(lambda: chance.choice((1, 3, 700)), 0)
    done = 0
    while done < len(types):
        unit = types[done : done + next(sizes)]
        subject.write(lambda t: [t.record(Draft(event_type=each)) for each in unit])  # noqa: B023  # written at once
        done += len(unit)

    def check() -> None:
        pruned = subject.read(lambda s: s.pruned())
        for event_type in set(types):
            query = EventQuery(event_type=event_type)
            for behind in (0, 1, 255, 4095, 4096, 4097, 5000, 8191, 8192, 8193, 9999, 10_000):
                counted = subject.read(lambda s: s.event_count(query, behind=behind))  # noqa: B023  # read at once
                assert counted == types[max(behind, pruned) :].count(event_type)

    check()
    subject.write(lambda t: t.put(make_archive(4352)))
    for pruned in (256, 4096, 4352):
        while subject.read(lambda s: s.pruned()) < pruned:
            assert subject.write(lambda t: t.prune())
        check()


# -- revocations ------------------------------------------------------------------------------------------------------


def test_revocations_are_announced_before_the_write_that_made_them_returns(subject: Subject) -> None:
    announced: list[Revocation] = []
    subject.store.listen(announced.extend)
    entry = revocation("sid-1", last_exp=NOW + 300)

    async def race() -> None:
        async def one(number: int) -> None:
            mine = revocation(f"sid-{number}", last_exp=NOW + 300)
            await subject.store.write(lambda t: t.revoke(mine))
            assert mine in announced

        await asyncio.gather(*(one(number) for number in range(50)))

    subject.run(race())
    assert len(announced) == 50
    assert entry in subject.read(lambda s: list(s.revocations(NOW)))


def test_a_unit_that_failed_announces_nothing(subject: Subject) -> None:
    announced: list[Revocation] = []
    subject.store.listen(announced.extend)

    def fail(transaction: Transaction) -> None:
        transaction.revoke(revocation("sid-1", last_exp=NOW + 300))
        raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        subject.write(fail)
    subject.write(lambda t: t.revoke(revocation("sid-2", last_exp=NOW + 300)))
    assert [entry.id for entry in announced] == ["sid-2"]


def test_a_second_revocation_neither_delays_nor_shortens_the_first(subject: Subject) -> None:
    announced: list[Revocation] = []
    subject.store.listen(announced.extend)
    subject.write(lambda t: t.revoke(revocation("sid-1", at=NOW, last_exp=NOW + 300)))
    subject.write(lambda t: t.revoke(revocation("sid-1", at=NOW + 60, last_exp=NOW + 100)))
    subject.write(lambda t: t.revoke(revocation("sid-1", at=NOW - 60, last_exp=NOW + 900)))
    expected = revocation("sid-1", at=NOW - 60, last_exp=NOW + 900)
    assert subject.read(lambda s: list(s.revocations(NOW))) == [expected]
    assert announced[1] == revocation("sid-1", at=NOW, last_exp=NOW + 300)
    assert announced[2] == expected


def test_names_of_different_kinds_are_different_things(subject: Subject) -> None:
    entries = [revocation("same", kind=kind, last_exp=NOW + 300) for kind in RevocationKind]
    subject.write(lambda t: [t.revoke(entry) for entry in entries])
    assert sorted(subject.read(lambda s: list(s.revocations(NOW))), key=str) == sorted(entries, key=str)


def test_a_revocation_is_found_by_its_kind_and_name(subject: Subject) -> None:
    entry = revocation("jti-1", kind=RevocationKind.TOKEN, last_exp=NOW + 300)
    subject.write(lambda t: t.revoke(entry))
    assert subject.read(lambda s: s.revocation(RevocationKind.TOKEN, "jti-1")) == entry
    assert subject.read(lambda s: s.revocation(RevocationKind.GRANT, "jti-1")) is None
    assert subject.read(lambda s: s.revocation(RevocationKind.TOKEN, "jti-2")) is None


def test_a_grant_that_has_ended_and_has_no_entry_is_found_while_it_is_in_time(subject: Subject) -> None:
    live = make_grant(sid="live", exp=NOW + 100)
    over = ended(make_grant(sid="over", exp=NOW + 100), EndReason.RELEASED, NOW)
    subject.write(lambda t: t.put(live))
    assert subject.read(lambda s: s.forgotten_end(NOW)) is None
    subject.write(lambda t: t.put(over))
    assert subject.read(lambda s: s.forgotten_end(NOW)) == "over"
    assert subject.read(lambda s: s.forgotten_end(NOW + 100)) is None
    subject.write(lambda t: t.revoke(revocation("over", last_exp=NOW + 50)))
    assert subject.read(lambda s: s.forgotten_end(NOW)) is None
    assert subject.read(lambda s: s.forgotten_end(NOW + 60)) == "over"


def test_a_revocation_is_listed_while_an_unexpired_token_can_meet_it(subject: Subject) -> None:
    subject.write(lambda t: t.revoke(revocation("sid-1", last_exp=NOW + 300)))
    assert len(subject.read(lambda s: list(s.revocations(NOW + 299.9)))) == 1
    assert subject.read(lambda s: list(s.revocations(NOW + 300))) == []


# -- forgetting -------------------------------------------------------------------------------------------------------


def test_purge_forgets_what_time_has_made_meaningless_and_nothing_else(subject: Subject) -> None:
    def put(transaction: Transaction) -> None:
        for end in (10, 20):
            transaction.spend_nonce(bytes([end]), NOW + end)
            transaction.put(make_launch_token(token_hash=bytes([end]) * 32, expires_at=NOW + end))
            transaction.put(make_grant(sid=f"sid-{end}", exp=NOW + end))
            transaction.revoke(revocation(f"sid-{end}", last_exp=NOW + end))
        transaction.put(make_app())
        transaction.put(make_key("kid-1", NOW))
        transaction.record(ISSUED)

    subject.write(put)
    assert subject.write(lambda t: t.purge(100)) == 0
    subject.time.wall = NOW + 10
    assert subject.write(lambda t: t.purge(100)) == 2
    assert subject.read(lambda s: s.launch_token(bytes([10]) * 32)) is None
    assert subject.read(lambda s: s.launch_token(bytes([20]) * 32)) is not None
    assert subject.read(lambda s: s.grant("sid-10")) is not None
    assert not subject.write(lambda t: t.spend_nonce(bytes([20]), NOW + 20))
    subject.time.wall = NOW + 10 + RETENTION_SECONDS
    assert subject.write(lambda t: t.purge(100)) == 4
    assert subject.read(lambda s: s.grant("sid-10")) is None
    assert subject.read(lambda s: s.grant("sid-20")) is not None
    assert [entry.id for entry in subject.read(lambda s: list(s.revocations(0)))] == ["sid-20"]
    subject.time.wall = NOW + 1_000_000
    assert subject.write(lambda t: t.purge(100)) == 1
    assert subject.read(lambda s: (list(s.revocations(NOW + 1_000_000)), s.feed_head())) == ([], 2)
    assert subject.read(lambda s: (s.app_count(), len(s.signing_keys()), s.event_count())) == (1, 1, 1)


def test_purge_forgets_at_most_what_it_was_asked_to(subject: Subject) -> None:
    def put(transaction: Transaction) -> None:
        for number in range(5):
            transaction.spend_nonce(bytes([number]), NOW)
            transaction.put(make_launch_token(token_hash=bytes([number]) * 32, expires_at=NOW))

    subject.write(put)
    subject.time.wall = NOW + 1
    assert [subject.write(lambda t: t.purge(4)) for _ in range(4)] == [4, 4, 2, 0]


# -- the end ----------------------------------------------------------------------------------------------------------


def test_launch_tokens_and_first_answers_are_dropped_whatever_their_time(subject: Subject) -> None:
    answer = FirstAnswer(key=b"k" * 32, request=b"r" * 32, grant=make_grant(), expires_at=NOW + 600)

    def put(transaction: Transaction) -> None:
        transaction.put(make_launch_token())
        transaction.put(make_launch_token(token_hash=b"u" * 32, uses=1, expires_at=NOW + 86_400))
        transaction.put(answer)
        transaction.put(make_grant())

    def drop(transaction: Transaction) -> tuple[int, int]:
        return transaction.drop_launch_tokens(), transaction.drop_first_answers()

    def look(snapshot: Snapshot) -> list[Any]:
        return [snapshot.launch_token(b"t" * 32), snapshot.launch_token(b"u" * 32), snapshot.first_answer(answer.key)]

    subject.write(put)
    assert subject.write(drop) == (2, 1)
    assert subject.read(look) == [None, None, None]
    assert subject.read(lambda s: s.grant("sid-1")) == make_grant()
    assert subject.write(drop) == (0, 0)


def test_what_the_last_broker_was_started_with_takes_the_place_of_what_was_said_before(subject: Subject) -> None:
    assert subject.read(lambda s: s.settings()) == ""
    for text in ("one", "two"):
        subject.write(partial(put_settings, text))
        assert subject.read(lambda s: s.settings()) == text


def put_settings(text: str, transaction: Transaction) -> None:
    transaction.put_settings(text)


def test_a_new_epoch_of_the_feed_takes_its_numbers_along(subject: Subject) -> None:
    subject.write(lambda t: t.revoke(revocation("sid-1", last_exp=NOW + 300)))
    before = subject.read(lambda s: s.feed_epoch())
    subject.write(lambda t: t.begin_feed_epoch("another"))
    assert before != "another"
    assert subject.read(lambda s: (s.feed_epoch(), s.feed_head())) == ("another", 1)


def test_what_was_dropped_comes_back_with_a_unit_that_fails(subject: Subject) -> None:
    subject.write(lambda t: t.put(make_launch_token()))
    before = subject.read(lambda s: s.feed_epoch())

    def fail(transaction: Transaction) -> None:
        transaction.drop_launch_tokens()
        transaction.begin_feed_epoch("another")
        raise NotFound("no such thing")

    with pytest.raises(NotFound):
        subject.write(fail)
    assert subject.read(lambda s: (s.launch_token(b"t" * 32), s.feed_epoch())) == (make_launch_token(), before)


def test_a_closed_store_refuses(subject: Subject) -> None:
    subject.run(subject.store.close())
    with pytest.raises(Unavailable):
        subject.write(lambda t: t.record(ISSUED))
    with pytest.raises(Unavailable):
        subject.read(lambda s: s.event_count())
    assert not subject.store.is_writable()
    subject.run(subject.store.close())


def test_closing_finishes_what_waits(subject: Subject) -> None:
    async def write_and_close() -> list[Any]:
        writes = [asyncio.ensure_future(subject.store.write(lambda t: t.record(ISSUED))) for _ in range(20)]
        first = asyncio.gather(*writes)
        await writes[0]
        await subject.store.close()
        return list(await first)

    assert subject.run(write_and_close()) == [None] * 20


# -- the tree over the log --------------------------------------------------------------------------------------------


def test_the_tree_is_that_of_the_entries_whatever_was_undone_meanwhile(subject: Subject) -> None:
    def refuse(transaction: Transaction) -> None:
        transaction.record(ISSUED)
        raise Denied(ScopeViolation("no"), ISSUED)

    for number in range(300):
        subject.write(lambda t: [t.record(ISSUED) for _ in range(3)])
        if number % 50 == 0:
            with pytest.raises(ScopeViolation):
                subject.write(refuse)
            with pytest.raises(ZeroDivisionError):
                subject.write(lambda t: (t.record(ISSUED), 1 / 0))
    size = 906
    entries = subject.read(lambda s: s.entries(1, size + 5))
    leaves = b"".join(map(merkle.leaf_hash, entries))
    assert len(entries) == size == subject.read(lambda s: s.event_head())
    for number in range(4):
        whole = leaves[number * merkle.FULL_TILE_BYTES :][: merkle.FULL_TILE_BYTES]
        assert subject.read(lambda s: s.tile(0, number)) == whole  # noqa: B023  # read at once
    roots = [merkle.root_of(leaves[at : at + merkle.FULL_TILE_BYTES]) for at in range(0, 3 * 8192, 8192)]
    assert subject.read(lambda s: s.tile(1, 0)) == b"".join(roots)
    assert subject.read(lambda s: (s.tile(0, 4), s.tile(1, 1), s.tile(2, 0))) == (b"", b"", b"")
    head = subject.write(lambda t: t.head)
    assert (head.sequence, head.tree) == (size, merkle.edge_at(size, lambda *at: subject.read(lambda s: s.tile(*at))))
    assert subject.read(lambda s: s.entries(256, 257)) == entries[255:257]


def test_where_the_log_ends_is_seen_inside_a_unit(subject: Subject) -> None:
    def record_two(transaction: Transaction) -> list[int]:
        seen = [transaction.head.sequence]
        for _ in range(2):
            transaction.record(ISSUED)
            seen.append(transaction.head.sequence)
        return seen

    assert subject.write(record_two) == [0, 1, 2]


def test_the_newest_checkpoint_is_kept(subject: Subject) -> None:
    assert subject.read(lambda s: s.checkpoint()) is None
    for size in (3, 7):
        subject.write(lambda t: t.put_checkpoint(size, f"the first {size}"))  # noqa: B023  # written at once
        assert subject.read(lambda s: s.checkpoint()) == f"the first {size}"


# -- archives ---------------------------------------------------------------------------------------------------------


def make_archive(last: int, first: int = 1) -> Archive:
    return Archive(
        first=first, last=last, root="r", file=f"{first}-{last}", sha256="s", archived_at=NOW, event=last + 1
    )


def test_events_go_a_tile_at_a_time_as_far_as_they_were_archived(subject: Subject) -> None:
    subject.write(lambda t: [t.record(ISSUED) for _ in range(900)])
    head = subject.write(lambda t: t.head)
    assert subject.write(lambda t: t.prune()) == 0
    subject.write(lambda t: t.put(make_archive(512)))
    assert [subject.write(lambda t: t.prune()) for _ in range(3)] == [256, 256, 0]
    assert subject.read(lambda s: (s.pruned(), s.event_head(), s.event_count())) == (512, 900, 388)
    assert subject.read(lambda s: [event.sequence for event in s.events(EventQuery(limit=2))]) == [513, 514]
    assert subject.read(lambda s: s.entries(500, 514)) == subject.read(lambda s: s.entries(513, 514))
    assert subject.write(lambda t: t.head) == head
    assert len(subject.read(lambda s: s.tile(0, 1))) == merkle.FULL_TILE_BYTES
    since = subject.read(lambda s: s.events(EventQuery(limit=1)))[0].timestamp
    assert subject.read(lambda s: s.event_count(EventQuery(since=since))) == 388


def test_what_goes_comes_back_with_a_unit_that_fails(subject: Subject) -> None:
    subject.write(lambda t: [t.record(ISSUED) for _ in range(300)])
    before = subject.read(lambda s: s.entries(1, 300))

    def fail(transaction: Transaction) -> None:
        transaction.put(make_archive(256))
        assert transaction.prune() == 256
        raise NotFound("no")

    with pytest.raises(NotFound):
        subject.write(fail)
    assert subject.read(lambda s: s.entries(1, 300)) == before
    assert subject.read(lambda s: (s.pruned(), list(s.archives()))) == (0, [])


def test_the_hash_of_an_event_is_known_for_as_long_as_the_log_says_it(subject: Subject) -> None:
    def hashes(*numbers: int) -> list[str | None]:
        return subject.read(lambda s: [s.event_hash(number) for number in numbers])  # type: ignore[no-any-return]

    subject.write(lambda t: [t.record(ISSUED) for _ in range(300)])
    events = {event.sequence: event.hash for event in subject.read(lambda s: s.events(EventQuery(limit=300)))}
    assert hashes(0, 1, 256, 300, 301) == [audit.GENESIS_HASH, events[1], events[256], events[300], None]
    subject.write(lambda t: t.put(make_archive(256)))
    subject.write(lambda t: t.prune())
    assert hashes(0, 1, 255, 256, 257, 300) == [None, None, None, events[256], events[257], events[300]]


def test_archives_are_listed_from_the_one_that_holds_an_event_on(subject: Subject) -> None:
    first, second = make_archive(512), make_archive(768, 513)
    subject.write(lambda t: [t.put(first), t.put(second)])
    for after, expected in ((0, [first, second]), (511, [first, second]), (512, [second]), (768, [])):
        assert list(subject.read(methodcaller("archives", after=after))) == expected
