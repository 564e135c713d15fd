"""Verifiers, blocking and on an event loop, against a broker that is really killed, and mirrors that lie."""

import asyncio
import base64
import gc
import json
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from agentwrit import (
    AgentWritApp,
    AsyncVerifier,
    ScopeDenied,
    TransportError,
    Unverifiable,
    Verifier,
)
from agentwrit.client.clock import Clock
from tests.cli.support import run
from tests.client.mirror import Passing, mirror_of
from tests.client.verifiers import (
    STALENESS,
    Either,
    Make,
    accepts,
    comes_to_refuse,
    eventually,
    free_port,
    is_up,
    refused,
    token_of,
)
from tests.support import BrokerProcess, TestApp


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path / "data") as broker:
        yield broker


@pytest.fixture
def app(broker: BrokerProcess) -> TestApp:
    return broker.app()


def revoke(broker: BrokerProcess, level: str, target: str) -> None:
    body = {"level": level, "target": target}
    assert broker.http.post("/v1/revoke", json=body, headers=broker.admin()).status_code == 200


def rotate(broker: BrokerProcess, purpose: str = "access_token") -> dict[str, Any]:
    body = {"force": True, "purpose": purpose}
    answer = broker.http.post("/v1/admin/keys/rotate", json=body, headers=broker.admin())
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def claims_of(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))))


# -- tokens ---------------------------------------------------------------------------------------------------------


def test_a_token_is_verified_as_the_broker_would(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    verifier = make(broker.url)
    agent = app.agent("read:data:1")
    for _ in range(2):
        claims = verifier.verify(agent["access_token"], scope="read:data:1")
        assert claims.sub == agent["agent_id"]
        assert claims.scope == ["read:data:1"]
        claims.scope.append("write:data:1")  # it is the caller's own
    with pytest.raises(ScopeDenied):
        verifier.verify(agent["access_token"], scope=["read:data:1", "write:data:1"])
    assert verifier.staleness < STALENESS


def test_once_it_knows_it_asks_nobody(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    with mirror_of(broker) as mirror:
        verifier = make(mirror.url)
        tokens = [token_of(app) for _ in range(3)]
        verifier.verify(tokens[0])
        seen = dict(mirror.seen)
        for token in tokens * 10:
            verifier.verify(token)
        assert dict(mirror.seen) == seen


@pytest.mark.alone
def test_what_is_released_or_revoked_is_refused_soon(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    verifier = make(broker.url)
    released, renewed, kept = (token_of(app) for _ in range(3))
    for token in (released, renewed, kept):
        verifier.verify(token)
    broker.release(released)
    broker.renew(renewed)
    for token in (released, renewed):
        eventually(lambda token=token: refused(verifier, token, "revoked"), 2)  # type: ignore[misc]  # bound now
    verifier.verify(kept)
    revoke(broker, "agent", claims_of(kept)["sub"])
    eventually(lambda: refused(verifier, kept, "revoked"), 2)


def test_what_was_revoked_before_it_began_is_refused(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    token = token_of(app)
    broker.release(token)
    assert refused(make(broker.url), token, "revoked")


@pytest.mark.alone
def test_a_delegated_token_dies_with_its_delegator(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    verifier = make(broker.url)
    with AgentWritApp(broker.url, app.client_id, app.client_secret) as sdk:
        one, two = (sdk.create_agent("o", "t", ["read:data:1"]) for _ in range(2))
        delegated = one.delegate(two.agent_id, ["read:data:1"]).access_token
        chain = verifier.verify(delegated).delegation_chain
        assert chain is not None
        assert chain[0].agent == one.agent_id
        one.release()
        eventually(lambda: refused(verifier, delegated, "revoked"), 2)


def test_tokens_for_others_are_refused(make: Make, broker: BrokerProcess) -> None:
    theirs = token_of(broker.app(audiences=["https://orders.example"]), audience=["https://orders.example"])
    assert refused(make(broker.url), theirs, "audience")
    assert refused(make(broker.url, audience="https://stock.example"), theirs, "audience")
    make(broker.url, audience=["https://stock.example", "https://orders.example"]).verify(theirs)


def test_tokens_of_apps_and_operators_are_refused_unless_they_are_asked_for(make: Make, broker: BrokerProcess) -> None:
    """They have the same audience as agents' tokens, where nobody says otherwise."""
    app = broker.app()
    tokens = {
        "agent": token_of(app),
        "app": app.token(),
        "operator": broker.admin()["authorization"].removeprefix("Bearer "),
    }
    asking = {"max_staleness": -1, "on_stale": "online"}  # never fresh enough
    for options in ({}, {"audience": "agentwrit"}, asking):
        verifier = make(broker.url, **options)
        verifier.verify(tokens["agent"])
        for kind in ("app", "operator"):
            assert refused(verifier, tokens[kind], "not of an agent")
    for kind in tokens:
        for options in ({}, asking):
            verifier = make(broker.url, subjects=[kind], **options)
            assert [other for other in tokens if accepts(verifier, tokens[other])] == [kind]


def test_what_is_known_to_be_dead_is_refused_without_asking_anybody(make: Make, own_broker: BrokerProcess) -> None:
    verifier = make(own_broker.url, on_stale="online", timeout=0.3)
    dead, live = (token_of(own_broker.app()) for _ in range(2))
    own_broker.release(dead)
    eventually(lambda: refused(verifier, dead, "revoked"))
    own_broker.kill()
    eventually(lambda: not is_up(verifier, live))
    assert refused(verifier, dead, "revoked")


@pytest.mark.alone
def test_a_token_ends_with_its_time(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    verifier = make(broker.url)
    token = token_of(app, max_ttl=1)
    eventually(lambda: refused(verifier, token, "expired"), 3)


@pytest.mark.parametrize(
    "garbage", ["", ".", "..", "a.b.c", "\ud800", "é.é.é", "x" * 100_000, "eyJhbGciOiJub25lIn0.e30."]
)
def test_garbage_is_an_invalid_token(make: Make, broker: BrokerProcess, app: TestApp, garbage: str) -> None:
    verifier = make(broker.url)
    verifier.verify(token_of(app))
    assert refused(verifier, garbage)


def test_an_altered_token_is_refused(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    verifier = make(broker.url)
    with AgentWritApp(broker.url, app.client_id, app.client_secret) as sdk:
        one, two = (sdk.create_agent("o", "t", ["read:data:1"]) for _ in range(2))
        header, payload, signature = one.delegate(two.agent_id, ["read:data:1"]).access_token.split(".")
    claims = claims_of(f".{payload}.")
    claims["delegation_chain"][0]["scope"] = ["read:data:*"]
    altered = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    other = token_of(app).split(".")
    for token in (
        f"{header}.{altered}.{signature}",
        f"{header}.{payload}.{other[2]}",
        f"{header}.{payload}.{signature}=",
        f"{header}.{payload}.{signature}.",
        f"{header}.{payload}",
    ):
        assert refused(verifier, token)


# -- keys -----------------------------------------------------------------------------------------------------------


def test_a_key_that_nobody_announced_is_fetched_when_its_first_token_comes(
    make: Make, own_broker: BrokerProcess
) -> None:
    verifier, app = make(own_broker.url), own_broker.app()
    old = token_of(app)
    verifier.verify(old)
    for _ in range(2):  # the next one is known, the one after it is not
        rotate(own_broker)
    verifier.verify(token_of(app))
    verifier.verify(old)


@pytest.mark.alone
def test_the_feed_goes_on_when_its_key_is_rotated(make: Make, own_broker: BrokerProcess) -> None:
    verifier, app = make(own_broker.url), own_broker.app()
    token = token_of(app)
    verifier.verify(token)
    for _ in range(2):
        rotate(own_broker, "revocation_feed")
    own_broker.release(token)
    eventually(lambda: refused(verifier, token, "revoked"), 5)
    eventually(lambda: verifier.staleness < STALENESS, 5)


@pytest.mark.alone
def test_what_a_revoked_key_signed_is_refused(make: Make, own_broker: BrokerProcess) -> None:
    verifier, app = make(own_broker.url), own_broker.app()
    token = token_of(app)
    verifier.verify(token)
    kid = rotate(own_broker)["retired"]["kid"]
    own_broker.http.post(f"/v1/admin/keys/{kid}/revoke", headers=own_broker.admin())
    eventually(lambda: refused(verifier, token), 2)
    verifier.verify(token_of(app))


def test_a_flood_of_unknown_keys_makes_one_call(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    def forged(number: int) -> str:
        kid = base64.urlsafe_b64encode(number.to_bytes(32, "big")).decode().rstrip("=")
        header = f'{{"alg":"EdDSA","typ":"at+jwt","kid":"{kid}"}}'.encode()
        return f"{base64.urlsafe_b64encode(header).decode().rstrip('=')}.e30.{'A' * 86}"

    now = time.monotonic()
    stopped = Clock(time.time, lambda: now)
    with mirror_of(broker) as mirror:
        verifier = make(mirror.url, clock=stopped)
        token = token_of(app)
        verifier.verify(token)
        before = mirror.seen["/.well-known/jwks.json"]
        for number in range(200):
            assert refused(verifier, forged(number % 100))
        assert mirror.seen["/.well-known/jwks.json"] == before + 1
        verifier.verify(token)


# -- a broker that is gone --------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_without_the_broker_nothing_is_accepted_after_max_staleness(make: Make, own_broker: BrokerProcess) -> None:
    refusing, asking = make(own_broker.url), make(own_broker.url, on_stale="online", timeout=0.3)
    token = token_of(own_broker.app())
    for verifier in (refusing, asking):
        verifier.verify(token)
    own_broker.kill()
    killed_at = time.monotonic()
    refusing.verify(token)  # what it knew a moment ago is enough
    for verifier in (refusing, asking):
        eventually(lambda verifier=verifier: not is_up(verifier, token))  # type: ignore[misc]  # bound now
    assert time.monotonic() - killed_at < STALENESS + 1
    with pytest.raises(Unverifiable):
        refusing.verify(token)
    with pytest.raises(TransportError) as caught:
        asking.verify(token)
    assert not isinstance(caught.value, Unverifiable)


@pytest.mark.alone
@pytest.mark.parametrize("is_wiped", [False, True])
def test_when_the_broker_is_back_so_is_the_verifier(tmp_path: Path, make: Make, is_wiped: bool) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_PORT=str(free_port())) as broker:
        app = broker.app()
        old, dead = token_of(app), token_of(app)
        verifier = make(broker.url)
        verifier.verify(old)
        broker.release(dead)
        eventually(lambda: refused(verifier, dead), 2)
        broker.kill()
        if is_wiped:
            shutil.rmtree(broker.data_dir)
        broker.start()
        new = token_of(broker.app())
        eventually(lambda: is_up(verifier, new))
        assert refused(verifier, dead)
        assert refused(verifier, old) == is_wiped


def test_through_a_restore_tokens_from_before_come_to_be_refused(tmp_path: Path, make: Make) -> None:
    """Those of the backup, those that it does not know, and those by a key that it does not know."""
    port, key = str(free_port()), "5a" * 32
    with BrokerProcess(tmp_path / "data", AGENTWRIT_PORT=port, AGENTWRIT_MASTER_KEY=key) as broker:
        place = {"AGENTWRIT_DATA_DIR": str(broker.data_dir), "AGENTWRIT_MASTER_KEY": key}
        app = broker.app()
        refusing, asking = make(broker.url), make(broker.url, on_stale="online")
        in_backup = token_of(app)
        assert run("backup", str(tmp_path / "backup.db"), **place).returncode == 0
        revoke(broker, "token", claims_of(token_of(app))["jti"])  # numbers of the feed that are given again
        after = token_of(app)
        for _ in range(2):
            rotate(broker)
        by_another_key = token_of(app)
        tokens = (in_backup, after, by_another_key)
        for verifier in (refusing, asking):
            for token in tokens:
                eventually(lambda verifier=verifier, token=token: is_up(verifier, token))  # type: ignore[misc]
        broker.kill()
        shutil.rmtree(broker.data_dir)
        assert run("restore", str(tmp_path / "backup.db"), **place).returncode == 0
        broker.start()
        new = token_of(app)
        for verifier in (refusing, asking):
            for token in tokens:
                eventually(lambda verifier=verifier, token=token: comes_to_refuse(verifier, token))  # type: ignore[misc]
            eventually(lambda verifier=verifier: is_up(verifier, new))  # type: ignore[misc]  # bound now
            assert all(refused(verifier, token) for token in tokens)
            eventually(lambda verifier=verifier: verifier.staleness < STALENESS)  # type: ignore[misc]


def test_a_verifier_that_begins_before_the_broker_waits_for_it(tmp_path: Path, make: Make) -> None:
    port = free_port()
    verifier = make(f"http://127.0.0.1:{port}")
    with pytest.raises(Unverifiable):
        verifier.verify("a.b.c")
    with BrokerProcess(tmp_path / "data", AGENTWRIT_PORT=str(port)) as broker:
        token = token_of(broker.app())
        eventually(lambda: is_up(verifier, token))


def test_online_it_sees_what_the_broker_sees(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    verifier = make(broker.url, max_staleness=-1, on_stale="online")  # never fresh enough
    others = broker.app(audiences=["https://orders.example"])
    token, theirs = token_of(app), token_of(others, audience=["https://orders.example"])
    assert verifier.verify(token, scope="read:data:1").scope == ["read:data:1"]
    with pytest.raises(ScopeDenied):
        verifier.verify(token, scope="write:data:1")
    assert refused(verifier, theirs, "audience")
    broker.release(token)
    assert refused(verifier, token)


# -- mirrors that lie -----------------------------------------------------------------------------------------------


def withhold(_: str) -> list[str]:
    return []


def alter(page: str) -> list[str]:
    header, payload, signature = page.split(".")
    return [f"{header}.{payload[:-2]}{'AA' if payload[-2:] != 'AA' else 'BB'}.{signature}"]


LIES: dict[str, Callable[[list[str]], Passing]] = {
    "withholds pages": lambda _: withhold,
    "alters pages": lambda _: alter,
    "replays the last heartbeat": lambda kept: lambda _: kept[-1:],
    "replays an older heartbeat": lambda kept: lambda _: kept[:1],
    "replays what it has": lambda kept: lambda _: kept,
}


@pytest.mark.alone
def test_a_mirror_cannot_keep_a_revocation_from_its_verifiers(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    token = token_of(app)
    with ExitStack() as stack:
        mirrors = {name: stack.enter_context(mirror_of(broker)) for name in LIES}
        verifiers = {name: make(mirror.url) for name, mirror in mirrors.items()}
        for verifier in verifiers.values():
            verifier.verify(token)
        for name, mirror in mirrors.items():
            eventually(lambda mirror=mirror: len(mirror.pages) > 1)  # type: ignore[misc]  # bound now
            mirror.instead["/v1/revocations/snapshot"] = mirror.passed["/v1/revocations/snapshot"]
            mirror.passing = LIES[name](mirror.pages.copy())
        broker.release(token)
        revoked_at = time.monotonic()
        eventually(lambda: believers(verifiers, token) == [])
        assert time.monotonic() - revoked_at < STALENESS + 1
        counts = {name: len(mirror.pages) for name, mirror in mirrors.items()}
        while any(len(mirrors[name].pages) < count + 2 for name, count in counts.items()):
            assert believers(verifiers, token) == []  # and so it stays, while the mirrors go on


def believers(verifiers: dict[str, Either], token: str) -> list[str]:
    return [name for name, verifier in verifiers.items() if accepts(verifier, token)]


def test_an_old_snapshot_with_old_heartbeats_makes_nobody_fresh(make: Make, own_broker: BrokerProcess) -> None:
    """A verifier that begins with what a mirror kept from earlier."""
    app = own_broker.app()
    token = token_of(app)
    with mirror_of(own_broker) as mirror:
        make(mirror.url).verify(token)
        own_broker.release(token)
        kept = mirror.pages[0]
        mirror.instead["/v1/revocations/snapshot"] = mirror.passed["/v1/revocations/snapshot"]
        mirror.passing = lambda _: [kept]
        later = Clock(lambda: time.time() + 60, time.monotonic)  # when the mirror tries it
        assert not accepts(make(mirror.url, clock=later), token)


# -- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_a_clock_that_is_behind_lets_no_token_live_longer(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    behind = Clock(lambda: time.time() - 3600, time.monotonic)
    verifier = make(broker.url, clock=behind)
    token = token_of(app, max_ttl=1)
    lasting = token_of(app)
    verifier.verify(lasting)
    eventually(lambda: refused(verifier, token, "expired"), 4)
    verifier.verify(lasting)


@pytest.mark.alone
def test_with_a_clock_that_is_behind_replayed_heartbeats_still_grow_old(
    make: Make, broker: BrokerProcess, app: TestApp
) -> None:
    behind = Clock(lambda: time.time() - 3600, time.monotonic)
    with mirror_of(broker) as mirror:
        verifier = make(mirror.url, clock=behind)
        token = token_of(app)
        verifier.verify(token)
        eventually(lambda: bool(mirror.pages), STALENESS)  # it begins with an answer, and streams then
        last = mirror.pages[-1]
        mirror.passing = lambda _: [last]
        broker.release(token)
        eventually(lambda: not accepts(verifier, token), STALENESS + 2)


def test_a_clock_that_is_ahead_makes_it_ask(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    ahead = Clock(lambda: time.time() + 3600, time.monotonic)
    token = token_of(app)
    make(broker.url, clock=ahead, on_stale="online").verify(token)
    with pytest.raises(Unverifiable):
        make(broker.url, clock=ahead).verify(token)


def test_a_machine_that_slept_trusts_nothing_that_it_knew(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    asleep = 0.0
    verifier = make(broker.url, clock=Clock(time.time, lambda: time.monotonic() + asleep))
    token = token_of(app)
    verifier.verify(token)
    asleep = 600.0
    with pytest.raises(Unverifiable):
        verifier.verify(token)


# -- beginning and ending -------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_a_closed_verifier_begins_anew(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    verifier = make(broker.url)
    token = token_of(app)
    for _ in range(3):
        verifier.verify(token)
        started_at = time.monotonic()
        verifier.close()
        verifier.close()
        assert time.monotonic() - started_at < 0.5  # it does not wait for the next heartbeat
    broker.release(token)
    eventually(lambda: refused(verifier, token), 2)


@pytest.mark.alone
def test_two_verifiers_do_not_mind_each_other(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    one, two = make(broker.url), make(broker.url)
    token = token_of(app)
    one.verify(token)
    two.verify(token)
    one.close()
    two.verify(token)
    broker.release(token)
    eventually(lambda: refused(two, token), 2)


def test_on_stale_is_one_of_two(broker: BrokerProcess) -> None:
    for kind in (Verifier, AsyncVerifier):
        with pytest.raises(ValueError, match="refuse"):
            kind(broker.url, on_stale="accept")  # type: ignore[arg-type]  # the point


def test_subjects_are_some_of_three(broker: BrokerProcess) -> None:
    for kind in (Verifier, AsyncVerifier):
        for wrong in ([], ["agents"], ["agent", "admin"]):
            with pytest.raises(ValueError, match="subjects"):
                kind(broker.url, subjects=wrong)  # type: ignore[arg-type]  # the point


def followers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "agentwrit-revocations"]


def test_the_thread_of_a_forgotten_verifier_ends(broker: BrokerProcess, app: TestApp) -> None:
    others = set(followers())
    verifier = Verifier(broker.url)
    verifier.verify(token_of(app))
    [thread] = set(followers()) - others
    gone = weakref.ref(verifier)
    del verifier
    gc.collect()
    assert gone() is None
    thread.join(5)
    assert not thread.is_alive()


FORKED = """
import os, sys
from agentwrit import Verifier

verifier = Verifier(sys.argv[1], max_staleness=5, on_stale="refuse")
verifier.verify(sys.argv[2])
pid = os.fork()
verifier.verify(sys.argv[2])
assert verifier.staleness < 5
if pid:
    assert os.waitpid(pid, 0)[1] == 0
verifier.close()
"""

FORKED_ON_A_LOOP = """
import asyncio, os, sys, time, traceback
from agentwrit import AsyncVerifier

verifier = AsyncVerifier(sys.argv[1], max_staleness=2.5, on_stale="refuse")

async def verify():
    await verifier.verify(sys.argv[2])

async def both():
    await verify()
    pid = os.fork()
    if pid == 0:  # the parent's loop seems to run here too; what it knew is soon too old
        status = 1
        try:
            time.sleep(3)
            asyncio.run(verify())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    await verify()
    assert os.waitpid(pid, 0)[1] == 0

asyncio.run(both())
"""


@pytest.mark.parametrize("program", [FORKED, FORKED_ON_A_LOOP], ids=["threads", "loop"])
def test_both_sides_of_a_fork_verify(broker: BrokerProcess, app: TestApp, program: str) -> None:
    command = [sys.executable, "-c", program, broker.url, token_of(app)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_an_async_verifier_works_on_one_loop_after_another(broker: BrokerProcess, app: TestApp) -> None:
    verifier = AsyncVerifier(broker.url, max_staleness=STALENESS, on_stale="refuse")
    token = token_of(app)
    for _ in range(3):  # nothing is closed: the loop's end is enough
        assert asyncio.run(verifier.verify(token)).scope == ["read:data:1"]

    async def last() -> None:
        async with verifier:
            await verifier.verify(token)
            assert names() == ["agentwrit-revocations"]
        assert names() == []

    def names() -> list[str]:
        return [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    asyncio.run(last())


def test_the_task_of_a_forgotten_async_verifier_ends(broker: BrokerProcess, app: TestApp) -> None:
    async def life() -> None:
        verifier = AsyncVerifier(broker.url)
        await verifier.verify(token_of(app))
        [task] = asyncio.all_tasks() - {asyncio.current_task()}
        del verifier
        gc.collect()
        await asyncio.wait({task}, timeout=5)
        assert task.done()

    asyncio.run(life())


def test_what_is_known_costs_no_turn_of_the_loop(broker: BrokerProcess, app: TestApp) -> None:
    async def verify() -> None:
        async with AsyncVerifier(broker.url) as verifier:
            token = token_of(app)
            await verifier.verify(token)
            call = verifier.verify(token)
            with pytest.raises(StopIteration):
                call.send(None)  # done at once

    asyncio.run(verify())


def test_many_tasks_begin_together(broker: BrokerProcess, app: TestApp) -> None:
    async def verify() -> None:
        with mirror_of(broker) as mirror:
            async with AsyncVerifier(mirror.url, on_stale="refuse") as verifier:
                token = token_of(app)
                await asyncio.gather(*(verifier.verify(token) for _ in range(100)))
                assert mirror.seen["/v1/revocations/snapshot"] == 1

    asyncio.run(verify())
