"""Reports of verifiers: what is told, once, and what it costs those who are served meanwhile."""

import asyncio
import gc
import json
import pickle
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from agentwrit import AgentClaims, AgentWritError, AsyncVerifier, ProblemResponseError, ScopeDenied, Verifier
from agentwrit.client.clock import Clock
from agentwrit.client.reporting import (
    GATHER_SECONDS,
    GIVE_UP_SECONDS,
    MAX_WAITING,
    Reporting,
    Reports,
    Rest,
    Tell,
    reporting,
)
from agentwrit.errors import TransportError
from agentwrit.models import ProblemDetail
from tests.client.peer import answer, hang_up, never, peer
from tests.client.verifiers import Direct, Either, OnLoop, eventually
from tests.reports import AUDIENCE, ResourceServer
from tests.support import BrokerProcess, TestApp

CLAIMS = AgentClaims(
    iss="agentwrit",
    sub="spiffe://agentwrit.local/agent/o/t/1",
    aud=[AUDIENCE],
    exp=2_000_000_000,
    nbf=0,
    iat=0,
    jti="j" * 32,
    sid="s" * 32,
    scope=["read:data:*"],
    task_id="t",
    orch_id="o",
)
LOGIN = answer(200, {"access_token": "an-app-token", "expires_in": 1800})
TAKEN = answer(200, {"recorded": 1, "refused": []})


class Reporter:
    """A verifier that may report, and its agents' tokens."""

    def __init__(self, kind: type[Direct | OnLoop], broker: BrokerProcess) -> None:
        self.server = ResourceServer(broker)
        self.broker = broker
        self.app: TestApp = broker.app(audiences=[AUDIENCE])
        login: dict[str, Any] = {"client_id": self.server.app.client_id, "client_secret": self.server.app.client_secret}
        self.verifier: Either = kind(broker.url, audience=AUDIENCE, **login)

    def claims(self, *scopes: str) -> AgentClaims:
        token = self.app.agent(*scopes, audience=[AUDIENCE])["access_token"]
        claims = self.verifier.verify(token)
        assert isinstance(claims, AgentClaims)
        return claims

    def report(self, claims: AgentClaims, scope: str = "read:data:1", **options: Any) -> None:
        options = {"resource": "GET /orders/1", **options}
        if isinstance(self.verifier, OnLoop):
            self.verifier.on_loop(lambda verifier: verifier.report(claims, scope=scope, **options))
        else:
            self.verifier.report(claims, scope=scope, **options)

    def events(self, claims: AgentClaims) -> list[dict[str, Any]]:
        return self.broker.events(event_type="resource_accessed", sid=claims.sid or "")


@pytest.fixture(params=[Direct, OnLoop], ids=["threads", "loop"])
def reporter(request: pytest.FixtureRequest, broker: BrokerProcess) -> Iterator[Reporter]:
    reporter = Reporter(request.param, broker)
    yield reporter
    reporter.verifier.end()


def test_what_is_reported_is_soon_in_the_log(reporter: Reporter) -> None:
    claims = reporter.claims()
    for _ in range(3):
        reporter.report(claims)
    reporter.report(claims, "write:data:1", outcome="denied", resource="PUT /orders/1")
    eventually(lambda: sum(event["data"]["count"] for event in reporter.events(claims)) == 4)
    by_resource = {event["resource"]: event for event in reporter.events(claims)}
    assert by_resource["PUT /orders/1"]["outcome"] == "denied"
    assert by_resource["GET /orders/1"]["principal"] == f"app:{reporter.server.app.app_id}"


def test_what_waits_is_told_when_the_verifier_is_closed(reporter: Reporter) -> None:
    claims = reporter.claims()
    for number in range(150):
        reporter.report(claims, resource=f"GET /orders/{number}")
    reporter.verifier.close()
    assert len(reporter.events(claims)) == 150
    reporter.report(claims, resource="GET /later")  # a closed one begins anew
    reporter.verifier.close()
    assert len(reporter.events(claims)) == 151
    assert reporter.verifier.unreported == 0


def test_what_the_broker_does_not_take_is_counted_and_not_told_again(reporter: Reporter) -> None:
    claims = reporter.claims()
    reporter.broker.http.put(
        f"/v1/admin/apps/{reporter.server.app.app_id}", json={"reports_for": []}, headers=reporter.broker.admin()
    )
    for _ in range(5):
        reporter.report(claims)
    reporter.verifier.close()
    assert reporter.events(claims) == []
    assert reporter.verifier.unreported == 5


def test_a_use_beyond_the_token_is_no_report(reporter: Reporter) -> None:
    claims = reporter.claims()
    with pytest.raises(ScopeDenied):
        reporter.report(claims, "read:data:2")
    with pytest.raises(ValueError, match="outcome"):
        reporter.report(claims, outcome="perhaps")
    with pytest.raises(ValueError, match="resource"):
        reporter.report(claims, resource="")
    with pytest.raises(AgentWritError, match="scope"):
        reporter.report(claims, "read")


def test_a_resource_of_any_characters_and_length_can_be_reported(reporter: Reporter) -> None:
    claims = reporter.claims()
    reporter.report(claims, resource="GET /\ud800" + "x" * 1000)
    reporter.verifier.close()
    [event] = reporter.events(claims)
    assert event["resource"] == "GET /?" + "x" * 250


def test_reporting_takes_a_login_and_half_of_one_is_none() -> None:
    with pytest.raises(AgentWritError, match="client_id="):
        Verifier("http://127.0.0.1:1").report(CLAIMS, scope="read:data:1", resource="GET /")
    for kind in (Verifier, AsyncVerifier):
        with pytest.raises(AgentWritError, match="goes with"):
            kind("http://127.0.0.1:1", client_id="client-1")


def test_the_secret_of_a_verifier_shows_nowhere() -> None:
    verifier = Verifier("http://127.0.0.1:1", client_id="client-1", client_secret="the-secret")
    assert "the-secret" not in repr(verifier)
    with pytest.raises((TypeError, AttributeError)):
        pickle.dumps(verifier)


# -- over a wire that fails -------------------------------------------------------------------------------------------


def test_a_report_whose_answer_was_lost_is_the_same_report_again() -> None:
    with peer(LOGIN, hang_up, answer(503, {}), TAKEN) as broker:
        verifier = Verifier(broker.url, client_id="client-1", client_secret="a-secret")
        verifier.report(CLAIMS, scope="read:data:1", resource="GET /")
        eventually(lambda: len(broker.seen) >= 4)
        verifier.close()
        told = [(body, headers["idempotency-key"]) for path, body, headers in broker.seen if path.endswith("accesses")]
        assert len(told) == 3
        assert told[0] == told[1] == told[2]
        assert verifier.unreported == 0


@pytest.mark.alone
def test_a_broker_that_says_nothing_holds_up_no_request() -> None:
    with peer(never) as broker:
        verifier = Verifier(broker.url, client_id="client-1", client_secret="a-secret", timeout=0.5)
        began = time.monotonic()
        for number in range(5_000):
            verifier.report(CLAIMS, scope="read:data:1", resource=f"GET /{number}")
        assert time.monotonic() - began < 2
        assert verifier.unreported > 5_000 - 2 * MAX_WAITING
        verifier.close()
        assert time.monotonic() - began < 10
        assert verifier.unreported == 5_000


def test_the_end_of_the_process_tells_what_waits() -> None:
    program = """
import json, sys
from agentwrit import AgentClaims, Verifier
verifier = Verifier(sys.argv[1], client_id="client-1", client_secret="a-secret")
verifier.report(AgentClaims(**json.loads(sys.argv[2])), scope="read:data:1", resource="GET /")
"""
    claims = json.dumps({name: value for name, value in vars(CLAIMS).items() if value is not None})
    with peer(LOGIN, TAKEN) as broker:
        command = [sys.executable, "-c", program, broker.url, claims]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert [path for path, _, _ in broker.seen] == ["/v1/app/auth", "/v1/audit/accesses"]


def test_a_child_does_not_tell_what_its_parent_has_to_tell() -> None:
    program = """
import json, os, sys
from agentwrit import AgentClaims, Verifier
verifier = Verifier(sys.argv[1], client_id="client-1", client_secret="a-secret")
claims = AgentClaims(**json.loads(sys.argv[2]))
verifier.report(claims, scope="read:data:1", resource="GET /parent")
pid = os.fork()
verifier.report(claims, scope="read:data:1", resource="GET /child" if pid == 0 else "GET /after")
verifier.close()
if pid:
    assert os.waitpid(pid, 0)[1] == 0
"""
    claims = json.dumps({name: value for name, value in vars(CLAIMS).items() if value is not None})
    every = answer(200, {"access_token": "an-app-token", "expires_in": 1800, "recorded": 1, "refused": []})
    with peer(every) as broker:
        command = [sys.executable, "-c", program, broker.url, claims]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        told = [body["accesses"] for path, body, _ in broker.seen if path.endswith("accesses")]
        assert sorted(access["resource"] for batch in told for access in batch) == [
            "GET /after",
            "GET /child",
            "GET /parent",
        ]


def test_the_thread_of_a_forgotten_reporter_tells_what_waits_and_ends() -> None:
    with peer(LOGIN, TAKEN) as broker:
        verifier = Verifier(broker.url, client_id="client-1", client_secret="a-secret")
        others = set(threading.enumerate())
        verifier.report(CLAIMS, scope="read:data:1", resource="GET /")
        [thread] = [found for found in set(threading.enumerate()) - others if found.name == "agentwrit-reports"]
        gone = weakref.ref(verifier)
        del verifier
        gc.collect()
        assert gone() is None
        thread.join(5)
        assert not thread.is_alive()
        assert len(broker.seen) == 2


def test_what_one_loop_left_untold_the_next_one_tells() -> None:
    with peer(LOGIN, TAKEN) as broker:
        verifier = AsyncVerifier(broker.url, client_id="client-1", client_secret="a-secret")

        async def first() -> None:
            verifier.report(CLAIMS, scope="read:data:1", resource="GET /first")

        async def second() -> None:
            async with verifier:
                verifier.report(CLAIMS, scope="read:data:1", resource="GET /second")

        asyncio.run(first())
        asyncio.run(second())
        [told] = [body["accesses"] for path, body, _ in broker.seen if path.endswith("accesses")]
        assert [access["resource"] for access in told] == ["GET /first", "GET /second"]


# -- without a wire ---------------------------------------------------------------------------------------------------


class Telling:
    """Someone who carries out what reporting asks for, by the test's word."""

    def __init__(self) -> None:
        self.now = 0.0
        self.reports = Reports(Clock(lambda: 1_800_000_000 + self.now, lambda: self.now))
        self.is_ending = False
        self.steps: Reporting = reporting(self.reports, lambda: self.is_ending)

    def note(self, *resources: str) -> list[bool]:
        return [self.reports.note(CLAIMS, "read:data:1", resource, "success") for resource in resources]

    def refused(self, status: int) -> ProblemResponseError:
        return ProblemResponseError(ProblemDetail("", "", "", ""), status)


@pytest.fixture
def telling() -> Telling:
    return Telling()


def test_it_rests_until_there_is_something_and_then_gathers_more(telling: Telling) -> None:
    assert next(telling.steps) == Rest(None)
    assert telling.note("GET /1", "GET /1", "GET /2") == [True, False, False]
    assert isinstance(telling.steps.send(None), Rest)
    assert isinstance(telling.steps.send(None), Tell)
    assert telling.steps.send([]) == Rest(None)


def test_what_comes_while_it_tells_is_gathered_too(telling: Telling) -> None:
    telling.note("GET /1")
    assert next(telling.steps) == Rest(GATHER_SECONDS)
    for number in range(5):
        assert isinstance(telling.steps.send(None), Tell)
        assert telling.note(f"GET /while/{number}") == [False]
        assert telling.steps.send([]) == Rest(GATHER_SECONDS)


def test_a_full_batch_is_told_at_once(telling: Telling) -> None:
    next(telling.steps)
    assert telling.note(*(f"GET /{number}" for number in range(65)))[63:] == [True, False]
    assert isinstance(telling.steps.send(None), Tell)
    assert isinstance(telling.steps.send([]), Tell)
    assert telling.steps.send([]) == Rest(None)


@pytest.mark.parametrize("status", [400, 409, 413])
def test_what_will_never_be_taken_is_given_up_at_once(telling: Telling, status: int) -> None:
    telling.note("GET /1", "GET /1")
    next(telling.steps)
    telling.steps.send(None)
    assert telling.steps.throw(telling.refused(status)) == Rest(None)
    assert telling.reports.unreported == 2


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503, None])
def test_what_may_be_taken_later_is_told_again_until_the_broker_would_take_it_for_new(
    telling: Telling, status: int | None
) -> None:
    error = TransportError("it is out of reach") if status is None else telling.refused(status)
    telling.note("GET /1")
    next(telling.steps)
    needed = telling.steps.send(None)
    pauses: list[float] = []
    while isinstance(needed, Tell):
        needed = telling.steps.throw(error)
        assert isinstance(needed, Rest)
        if needed.seconds is not None:
            pauses.append(needed.seconds)
            telling.now += needed.seconds
            needed = telling.steps.send(None)
    assert max(pauses) <= 30
    assert len(pauses) > 10
    assert GIVE_UP_SECONDS < telling.now < 600  # the broker remembers keys for as long
    assert telling.reports.unreported == 1


def test_at_the_end_a_failure_is_the_last_one(telling: Telling) -> None:
    telling.note(*(f"GET /{number}" for number in range(200)))
    telling.is_ending = True
    assert isinstance(next(telling.steps), Tell)
    with pytest.raises(StopIteration):
        telling.steps.throw(TransportError("it is out of reach"))
    assert telling.reports.unreported == 200


def test_the_same_thing_done_again_takes_no_more_room(telling: Telling) -> None:
    for number in range(MAX_WAITING + 10):
        telling.now = number
        telling.note(f"GET /{number}", "GET /0")
    assert telling.reports.unreported == 10
    batch = telling.reports.batch()
    assert batch is not None
    first = batch.members()[0]
    assert first["count"] == MAX_WAITING + 11
    assert (first["first"], first["last"]) == ("2027-01-15T08:00:00.000000Z", "2027-01-15T08:17:13.000000Z")


def test_threads_that_note_at_once_lose_nothing(telling: Telling) -> None:
    def note() -> None:
        for _ in range(500):
            telling.note("GET /1", "GET /2")

    threads = [threading.Thread(target=note) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batch = telling.reports.batch()
    assert batch is not None
    assert batch.count == 8_000
