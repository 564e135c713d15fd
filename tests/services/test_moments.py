"""At which moment time is read, and for how long what was said is said again."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from agentwrit.archive_files import Checked
from agentwrit.broker.services.archives import ArchiveService
from agentwrit.broker.services.context import Caller
from agentwrit.broker.storage.base import Transaction
from agentwrit.domain import base64url, idempotency, merkle
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.errors import Conflict, InvalidRequest
from tests.proofs import proof
from tests.services.test_authority import delegate, pair, read
from tests.services.test_faults import Setup, run
from tests.services.test_meanwhile import URL, Bound, ends
from tests.support import bearer, problem


def once(made: Setup, point: str, event: Callable[[], None]) -> None:
    """Have something happen at a point, the next time that it is come to."""

    def happen() -> None:
        del made.at[point]
        event()

    made.at[point] = happen


def test_what_another_broker_revokes_while_it_is_asked_is_dead_from_that_brokers_time_on() -> None:
    async def claim(made: Setup) -> None:
        token = await made.agent()
        assert await made.is_valid(token)

        def revoked() -> None:
            made.time.now += 10
            with pytest.raises(StopIteration):
                made.store.write(ends(read(token).sid)).send(None)

        once(made, "catch_up", revoked)
        assert not await made.is_valid(token)

    run(claim)


def test_a_page_of_the_feed_is_as_old_as_the_question_that_was_put_to_the_store() -> None:
    async def claim(made: Setup) -> None:
        asked_at = int(made.time.now)

        def later() -> None:
            made.time.now += 10

        once(made, "read", later)
        answer = await made.http.get("/v1/revocations", params={"after": 0, "nonce": "n" * 16})
        page = msgspec.json.decode(base64url.decode(answer.text.split(".")[1]))
        assert page["issued_at"] == asked_at
        assert int(made.time.now) == asked_at + 10

    run(claim)


# -- answers that are given again -------------------------------------------------------------------------------------


async def created(made: Setup, app: dict[str, Any], agent: Bound, key: str) -> str:
    """The agent that is made, or was made before under this key."""
    login = (await made.login(app)).json()["access_token"]
    body = {
        "orch_id": "o",
        "task_id": "t",
        "requested_scope": ["read:data:1"],
        "public_key": agent.public_key,
        "proof": proof(agent.key, "POST", f"{URL}/v1/agents", login, iat=int(made.time.now)),
    }
    answer = await made.http.post("/v1/agents", json=body, headers=bearer(login) | {"idempotency-key": key})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["agent_id"])


def test_an_agent_is_made_once_under_a_key_for_ten_minutes_and_for_its_app_alone() -> None:
    async def claim(made: Setup) -> None:
        app, other, agent = await made.app("one"), await made.app("other"), Bound(made)
        first = await created(made, app, agent, "key-1")
        made.time.now += idempotency.RETENTION_SECONDS - 1
        assert await created(made, app, agent, "key-1") == first
        assert await created(made, app, agent, "key-2") != first
        assert await created(made, other, agent, "key-1") != first
        made.time.now += 1
        assert await created(made, app, agent, "key-1") != first

    run(claim)


def test_a_delegation_is_made_once_under_a_key_for_its_delegator_alone_and_for_the_same_request() -> None:
    async def claim(made: Setup) -> None:
        one, other = await pair(made)
        headers = {"idempotency-key": "key-1"}

        async def delegated(by: dict[str, Any], to: dict[str, Any], **fields: Any) -> Any:
            return await delegate(made, by["access_token"], to["agent_id"], headers=headers, **fields)

        first = read((await delegated(one, other)).json()["access_token"])
        assert read((await delegated(one, other)).json()["access_token"]).sid == first.sid
        # Another one's key is another key, whatever it is called: nobody is given what was made for somebody else.
        theirs = read((await delegated(other, other)).json()["access_token"])
        assert theirs.sid != first.sid
        assert [record.agent for record in theirs.delegation_chain] == [other["agent_id"]]
        for changes in ({"ttl": 7}, {"scope": ["read:data:1", "read:data:1"]}):
            problem(await delegated(one, other, **changes), 409, "conflict")
        problem(await delegated(one, one), 409, "conflict")

    run(claim)


# -- archives ---------------------------------------------------------------------------------------------------------


def fill(transaction: Transaction) -> None:
    for _ in range(2 * merkle.TILE_WIDTH):
        transaction.record(Draft(event_type=EventType.TOKEN_ISSUED))


def test_an_archive_is_of_this_log_ends_where_a_checkpoint_covers_it_and_begins_where_the_last_one_ended() -> None:
    async def claim(made: Setup) -> None:
        admin = await made.admin()
        await made.store.write(fill)
        checkpoint = await made.http.post("/v1/audit/checkpoint", headers=admin)
        assert checkpoint.status_code == 200, checkpoint.text
        root = await made.store.read(lambda snapshot: merkle.edge_at(256, snapshot.tile).root().hex())
        good = Checked(first=1, last=256, root=root, file="audit-1.jsonl", sha256="0" * 64)
        archives = ArchiveService(made.store)

        async def refused(error: type[Exception], **changes: Any) -> None:
            with pytest.raises(error):
                await archives.record(Caller(), good._replace(**changes), principal="admin")
            assert (await archives.known())[1] == []

        await refused(InvalidRequest, root="0" * 64)
        await refused(InvalidRequest, last=255)
        await refused(InvalidRequest, last=0)
        await refused(Conflict, first=2)
        await refused(InvalidRequest, file="../audit-1.jsonl")
        await refused(InvalidRequest, sha256="0" * 63)
        await made.store.write(fill)
        uncovered = await made.store.read(lambda snapshot: merkle.edge_at(1024, snapshot.tile).root().hex())
        await refused(InvalidRequest, last=1024, root=uncovered)
        archived = await archives.record(Caller(), good, principal="admin")
        assert await archives.record(Caller(), good, principal="admin") == archived  # said twice, done once
        with pytest.raises(Conflict, match="begins with evt-000257"):
            await archives.record(Caller(), good._replace(sha256="1" * 64), principal="admin")

    run(claim)
