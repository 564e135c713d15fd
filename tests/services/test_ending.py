"""Ending more grants than one unit of work may: all of them, only they, and refused from the first commit on."""

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from agentwrit.broker.metrics import Metrics
from agentwrit.broker.services.background import Background
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.ending import AT_ONCE, WITH_THEM, end_grants, end_named
from agentwrit.broker.services.endings import Endings, see_through
from agentwrit.broker.services.liveness import Liveness
from agentwrit.broker.storage.base import EventQuery, GrantQuery, Transaction
from agentwrit.domain import audit
from agentwrit.domain.audit import EventType
from agentwrit.domain.delegation import DelegationRecord
from agentwrit.domain.ending import Ending, EndingLevel, Named, about
from agentwrit.domain.grant import EndReason, Grant, GrantKind, ended
from agentwrit.domain.revocation import Revocation, RevocationKind
from tests.domain.records import NOW, make_claims, make_grant
from tests.storage.conftest import Subject

pytestmark = pytest.mark.parametrize("subject", ["sqlite", "postgres"], indirect=True)

APP = "app-1"
BIG_TASK = "big"
BEFORE = "ended before"


def agent_id(task_id: str) -> str:
    return f"spiffe://agentwrit.local/agent/o/{task_id}/{secrets.token_hex(8)}"


def registered(transaction: Transaction, **changes: Any) -> Grant:
    """A new agent's grant."""
    task_id = str(changes.pop("task_id", BIG_TASK))
    grant = make_grant(
        sid=secrets.token_hex(16),
        jti=secrets.token_hex(16),
        subject=agent_id(task_id),
        task_id=task_id,
        born=transaction.head.sequence,
        **changes,
    )
    return put(transaction, grant)


def delegated(transaction: Transaction, parent: Grant, to: Grant, **changes: Any) -> Grant:
    """A grant made from `parent` for the agent whose registration is `to`."""
    record = DelegationRecord(
        agent=parent.subject,
        sid=parent.sid,
        scope=parent.scope,
        delegate=to.subject,
        granted=parent.scope,
        delegated_at=NOW,
        prev="",
        kid="kid-1",
        signature="signature",
    )
    names = {"sid": secrets.token_hex(16), "jti": secrets.token_hex(16), "task_id": parent.task_id}
    grant = msgspec.structs.replace(
        to, **{**names, "chain": (*parent.chain, record), "born": transaction.head.sequence, **changes}
    )
    return put(transaction, grant)


def put(transaction: Transaction, grant: Grant) -> Grant:
    transaction.put(grant)
    if grant.is_ended:
        entry = Revocation(kind=RevocationKind.GRANT, id=grant.sid, effective_at=grant.ended_at, last_exp=grant.exp)
        transaction.revoke(entry)
    transaction.record(Caller().event(EventType.TOKEN_ISSUED, sid=grant.sid))
    return grant


def populate(transaction: Transaction) -> Sequence[Grant]:
    """A store full of grants: more of each kind than one unit of work ends.

    Agents of one task, with chains to the deepest; an agent that delegated very often and one that very often was
    delegated to; logins; agents of another task and of another app.
    """
    others = [registered(transaction, task_id="other") for _ in range(20)]
    made = list(others)
    for _ in range(20):
        chain = [registered(transaction)]
        for _ in range(5):
            chain.append(delegated(transaction, chain[-1], others[len(chain)]))
        made += chain
    busy, worker = registered(transaction, task_id="busy"), registered(transaction, task_id="worker")
    made += [busy, worker, *(registered(transaction) for _ in range(AT_ONCE))]
    made += [delegated(transaction, busy, busy) for _ in range(AT_ONCE + WITH_THEM + 20)]
    made += [delegated(transaction, other, worker) for other in others for _ in range(AT_ONCE // 12)]
    made += [registered(transaction, app_id="app-2", client_id="client-2") for _ in range(20)]
    # What has ended or expired already, and what is over soon; what another app's agents were given, and gave on.
    made += [registered(transaction, ended_at=NOW, end_reason=BEFORE) for _ in range(5)]
    made += [registered(transaction, exp=NOW - 1) for _ in range(5)]
    made += [registered(transaction, exp=NOW + 5, is_bound=True, is_counted=True, names_actors=True) for _ in range(5)]
    theirs = registered(transaction, app_id="app-2", client_id="client-2", agent_name='100 % "é"')
    given = delegated(transaction, made[25], theirs)
    dead = delegated(transaction, given, worker, ended_at=NOW, end_reason=BEFORE)
    made += [theirs, given, delegated(transaction, given, others[0]), dead]
    # What agents passed on that had been delegated to them.
    relay = registered(transaction)
    for agent in (relay, worker):
        to_it = delegated(transaction, others[1], agent)
        made += [to_it, delegated(transaction, to_it, others[2])]
    made += [relay]
    made += [
        registered(transaction, kind=GrantKind.APP, task_id="", credential=secrets.token_bytes(32))
        for _ in range(AT_ONCE + 20)
    ]
    return made


def named_and_fallen(made: Sequence[Grant], named: Named) -> set[str]:
    """What an ending has to end, by the rules of grants alone."""
    made = [grant for grant in made if grant.is_live(NOW)]
    sids = {grant.sid for grant in made if named.matches(grant)}
    before = -1
    while before != len(sids):
        before = len(sids)
        agents = {grant.subject for grant in made if grant.sid in sids and grant.is_registration}
        sids |= {grant.sid for grant in made if any(record.sid in sids for record in grant.chain)}
        sids |= {grant.sid for grant in made if grant.chain and grant.subject in agents}
    return sids


def targets(made: Sequence[Grant]) -> dict[str, Named]:
    busy = next(grant for grant in made if grant.task_id == "busy")
    worker = next(grant for grant in made if grant.task_id == "worker")
    return {
        "task": Named(level=EndingLevel.TASK, target=BIG_TASK),
        "app": Named(level=EndingLevel.APP, target=APP, client_id="client-1"),
        "ceiling": Named(level=EndingLevel.CEILING, target=APP, client_id="client-1", scopes=("read:data:1",)),
        "secret": Named(level=EndingLevel.SECRET, target=APP, client_id="client-1"),
        "an agent that delegated": Named(level=EndingLevel.AGENT, target=busy.subject),
        "an agent that was delegated to": Named(level=EndingLevel.AGENT, target=worker.subject),
        "a chain": Named(level=EndingLevel.CHAIN, target=worker.subject),
        "a grant": Named(level=EndingLevel.GRANT, target=busy.sid),
        "a key": Named(level=EndingLevel.KEY, target="kid-1"),
        "all": Named(level=EndingLevel.ALL),
    }


def begin(subject: Subject, named: Named) -> Ending:
    def unit(transaction: Transaction) -> Ending:
        return end_named(transaction, Caller(), "admin", named, EndReason.REVOKED, {"level": named.level.value})

    return subject.write(unit)  # type: ignore[no-any-return]


def ended_sids(subject: Subject) -> set[str]:
    """What has ended since the store was filled."""
    grants = subject.read(lambda snapshot: snapshot.grants(GrantQuery()))
    return {grant.sid for grant in grants if grant.end_reason not in ("", BEFORE)}


async def dead_sids(subject: Subject, liveness: Liveness, made: Sequence[Grant]) -> set[str]:
    return {grant.sid for grant in made if await liveness.is_dead("kid-2", claims_of(grant))}


def claims_of(grant: Grant) -> Any:
    return make_claims(
        sub=grant.subject,
        sid=grant.sid,
        jti=grant.jti,
        task_id=grant.task_id,
        client_id=grant.client_id,
        delegation_chain=tuple(msgspec.structs.replace(record, kid="kid-2") for record in grant.chain),
    )


NAMES = list(targets([make_grant(task_id="busy"), make_grant(task_id="worker")]))


@pytest.mark.parametrize("what", NAMES)
def test_an_ending_ends_all_that_it_names_and_what_falls_with_it(subject: Subject, what: str) -> None:
    made = subject.write(populate)
    named = targets(made)[what]
    expected = named_and_fallen(made, named)
    ending = begin(subject, named)
    assert not ending.is_over
    assert 0 < len(ended_sids(subject)) <= AT_ONCE + WITH_THEM
    ending = subject.run(see_through(subject.store, ending))
    assert (ending.is_over, ending.count) == (True, len(expected))
    assert ended_sids(subject) == expected
    events = subject.read(lambda snapshot: snapshot.events(EventQuery(event_type="token_revoked", limit=10_000)))
    assert sorted(event.sid for event in events) == sorted(expected)
    by_sid = {grant.sid: grant for grant in made}
    for event in events:
        grant = by_sid[event.sid]
        assert event.data["jti"] == grant.jti
        assert (event.principal, event.outcome) == ("admin", "success")
        held = (event.app_id, event.agent_id, event.task_id, event.orch_id, event.sid)
        assert (*held, event.deleg_depth, event.deleg_chain_hash) == about(grant)
    log = subject.read(lambda snapshot: snapshot.events(EventQuery(limit=10_000)))
    assert audit.verify(log) == len(log) == subject.read(lambda snapshot: snapshot.event_head())
    after = {grant.sid: grant for grant in subject.read(lambda snapshot: snapshot.grants(GrantQuery()))}
    for sid in expected:
        why = EndReason(after[sid].end_reason)
        assert after[sid] == ended(by_sid[sid], why, after[sid].ended_at)
    assert all(after[grant.sid] == grant for grant in made if grant.sid not in expected)
    revoked = subject.read(lambda snapshot: {(entry.kind, entry.id) for entry in snapshot.revocations(NOW)})
    before = {grant.sid for grant in made if grant.is_ended}
    assert {sid for kind, sid in revoked if kind is RevocationKind.GRANT} == expected | before
    assert subject.read(lambda snapshot: snapshot.endings()) == []


@pytest.mark.parametrize("what", [name for name in NAMES if name not in ("a key", "all")])
def test_what_is_to_end_is_refused_from_the_first_commit_on(subject: Subject, what: str) -> None:
    made = subject.write(populate)
    named = targets(made)[what]
    expected = named_and_fallen(made, named)

    async def load() -> Liveness:
        return await Liveness.load(subject.store, subject.time.clock())

    follower = subject.run(load())
    assert not begin(subject, named).is_over
    later = subject.write(lambda transaction: [registered(transaction) for _ in range(5)])
    started_since = subject.run(load())
    for liveness in (follower, started_since):
        held = [grant for grant in (*made, *later) if not grant.is_ended]
        assert subject.run(dead_sids(subject, liveness, held)) == expected


def test_what_a_broker_leaves_is_gone_on_with_by_the_next(subject: Subject) -> None:
    made = subject.write(populate)
    named = targets(made)["task"]
    begin(subject, named)

    async def resume() -> None:
        liveness = await Liveness.load(subject.store, subject.time.clock())
        endings = Endings(subject.store, liveness, Background(Metrics()))
        await endings.resume()
        [left] = await subject.store.read(lambda snapshot: snapshot.endings())
        await endings.finish(left)

    subject.run(resume())
    assert ended_sids(subject) == named_and_fallen(made, named)
    [begun] = subject.read(lambda snapshot: snapshot.events(EventQuery(event_type="ending_begun")))
    [completed] = subject.read(lambda snapshot: snapshot.events(EventQuery(event_type="ending_completed")))
    assert begun.data["ending"] == completed.data["ending"]
    assert completed.data["count"] == len(ended_sids(subject))


def test_two_endings_of_one_name_end_each_grant_once(subject: Subject) -> None:
    made = subject.write(populate)
    named = targets(made)["app"]

    async def both() -> int:
        liveness = await Liveness.load(subject.store, subject.time.clock())
        endings = Endings(subject.store, liveness, Background(Metrics()))

        def unit(transaction: Transaction) -> Ending:
            return end_named(transaction, Caller(), "admin", named, EndReason.REVOKED)

        first, second = await asyncio.gather(subject.store.write(unit), subject.store.write(unit))
        return sum(await asyncio.gather(endings.finish(first), endings.finish(second)))

    assert subject.run(both()) == len(ended_sids(subject)) == len(named_and_fallen(made, named))


def test_what_is_granted_under_the_same_name_later_lives_on(subject: Subject) -> None:
    made = subject.write(populate)
    named = targets(made)["task"]
    ending = begin(subject, named)
    later = subject.write(lambda transaction: registered(transaction))
    subject.run(see_through(subject.store, ending))
    assert later.sid not in ended_sids(subject)


def test_a_release_of_one_who_delegated_very_often_ends_all_of_it(subject: Subject) -> None:
    made = subject.write(populate)
    busy = next(grant for grant in made if grant.task_id == "busy" and not grant.chain)
    ending = subject.write(lambda t: end_grants(t, Caller(), busy.subject, [busy], EndReason.RELEASED))
    ending = subject.run(see_through(subject.store, ending))
    expected = named_and_fallen(made, Named(level=EndingLevel.GRANT, target=busy.sid))
    assert ended_sids(subject) == expected
    assert ending.count == len(expected)


def test_what_outlives_a_shortened_token_ends_with_all_below_it(subject: Subject) -> None:
    made = list(subject.write(populate))
    busy = next(grant for grant in made if grant.task_id == "busy" and not grant.chain)

    def shorter(transaction: Transaction) -> list[Grant]:
        return [delegated(transaction, busy, busy, exp=NOW + 10) for _ in range(50)]

    short = subject.write(shorter)
    outliving = Named(level=EndingLevel.OUTLIVING, target=busy.sid, exp=NOW + 10)
    subject.run(see_through(subject.store, begin(subject, outliving)))
    sids = ended_sids(subject)
    assert sids == named_and_fallen(made, outliving)
    assert not sids & {busy.sid, *(grant.sid for grant in short)}
