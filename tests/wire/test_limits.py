"""An app's limits on the wire: how they are set, what refuses, and what it says."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.proofs import Creation
from tests.support import BrokerProcess, TestApp, bearer, problem, registration

LIMITS = ("max_live_agents", "max_ttl", "creates_per_second")

Ask = Callable[[TestApp], httpx2.Response]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """One of its own: what happens here at once, or again and again, fills the log."""
    with BrokerProcess(tmp_path_factory.mktemp("limits") / "data") as process:
        yield process


def directly(app: TestApp, **fields: Any) -> httpx2.Response:
    """Ask for an agent in one trip."""
    return Creation(app, **fields).post()


def by_launch_token(app: TestApp, **policy: Any) -> httpx2.Response:
    """Ask for an agent with a launch token."""
    body = registration(app.launch_token(**policy), app.broker.nonce())
    return app.broker.http.post("/v1/register", json=body)


both_ways = pytest.mark.parametrize("ask", [directly, by_launch_token])


def put(app: TestApp, **body: Any) -> httpx2.Response:
    return app.broker.http.put(f"/v1/admin/apps/{app.app_id}", json=body, headers=app.broker.admin())


def shown(app: TestApp) -> dict[str, Any]:
    return dict(app.broker.http.get(f"/v1/admin/apps/{app.app_id}", headers=app.broker.admin()).json())


def limits(record: dict[str, Any]) -> list[int | None]:
    return [record[name] for name in LIMITS]


def refused(answer: httpx2.Response, limit: str) -> dict[str, Any]:
    body = problem(answer, 429, "rate_limited")
    assert limit in body["detail"]
    assert int(answer.headers["retry-after"]) >= 1
    return body


# -- as fields of an app ---------------------------------------------------------------------------------------------


def test_an_app_has_no_limits_unless_it_is_given_some(broker: BrokerProcess) -> None:
    assert limits(shown(broker.app())) == [None, None, None]
    assert limits(shown(broker.app(max_live_agents=None, max_ttl=None, creates_per_second=None))) == [None] * 3
    assert limits(shown(broker.app(max_live_agents=2, max_ttl=60, creates_per_second=5))) == [2, 60, 5]


def test_limits_are_changed_one_by_one_and_taken_away_with_null(broker: BrokerProcess) -> None:
    app = broker.app(max_live_agents=2, max_ttl=60, creates_per_second=5)
    assert limits(put(app, max_ttl=30).json()) == [2, 30, 5]
    assert limits(put(app, token_ttl=60).json()) == [2, 30, 5]
    assert limits(put(app, max_live_agents=None, creates_per_second=1).json()) == [None, 30, 1]
    assert limits(put(app, max_ttl=None, creates_per_second=None).json()) == [None] * 3
    assert limits(shown(app)) == [None] * 3


@pytest.mark.parametrize(
    ("limit", "error_code"),
    [
        ({"max_live_agents": 0}, "invalid_request"),
        ({"max_live_agents": -1}, "invalid_request"),
        ({"max_live_agents": 1_000_001}, "invalid_request"),
        ({"max_live_agents": "5"}, "invalid_request"),
        ({"max_live_agents": 1.5}, "invalid_request"),
        ({"max_live_agents": True}, "invalid_request"),
        ({"max_live_agents": 10**30}, "invalid_request"),
        ({"creates_per_second": 0}, "invalid_request"),
        ({"creates_per_second": 0.5}, "invalid_request"),
        ({"creates_per_second": []}, "invalid_request"),
        ({"max_ttl": 0}, "invalid_ttl"),
        ({"max_ttl": -5}, "invalid_ttl"),
        ({"max_ttl": "60"}, "invalid_request"),
    ],
    ids=str,
)
def test_what_is_no_limit_is_refused_by_name_and_changes_nothing(
    broker: BrokerProcess, limit: dict[str, Any], error_code: str
) -> None:
    [name] = limit
    app = broker.app(max_live_agents=7, max_ttl=70, creates_per_second=9)
    answer = put(app, **{"scopes": ["read:data:1"], "token_ttl": 60, **limit})
    assert name in problem(answer, 400, error_code)["detail"]
    after = shown(app)
    assert (limits(after), after["token_ttl"], len(after["scopes"])) == ([7, 70, 9], 1800, 2)
    body = {"name": "limited-app", "scopes": ["read:data:1"], **limit}
    answer = broker.http.post("/v1/admin/apps", json=body, headers=broker.admin())
    assert name in problem(answer, 400, error_code)["detail"]


def test_a_limit_that_is_refused_takes_the_others_with_it(broker: BrokerProcess) -> None:
    app = broker.app(max_live_agents=7)
    problem(put(app, max_live_agents=9, max_ttl=0), 400, "invalid_ttl")
    assert limits(shown(app)) == [7, None, None]


def test_limits_are_in_the_apps_events(broker: BrokerProcess) -> None:
    app = broker.app(max_live_agents=3, max_ttl=60)
    put(app, creates_per_second=4, max_ttl=None)
    put(app, creates_per_second=4)
    registered, updated = (
        broker.events(app_id=app.app_id, event_type=event_type) for event_type in ("app_registered", "app_updated")
    )
    assert [registered[0]["data"].get(name) for name in LIMITS] == [3, 60, None]
    assert [[event["data"].get(name) for name in LIMITS] for event in updated] == [[3, None, 4]]


# -- max_ttl ---------------------------------------------------------------------------------------------------------


def test_a_longer_life_is_cut_to_the_apps_max_ttl(broker: BrokerProcess) -> None:
    app = broker.app(max_ttl=50)
    assert directly(app).json()["expires_in"] == 50  # the broker's default is longer
    assert directly(app, max_ttl=300).json()["expires_in"] == 50
    assert directly(app, max_ttl=20).json()["expires_in"] == 20
    assert by_launch_token(app, max_ttl=300).json()["expires_in"] == 50
    body = {"agent_name": "a", "allowed_scope": ["read:data:1"], "max_ttl": 300}
    launched = broker.http.post("/v1/app/launch-tokens", json=body, headers=bearer(app.token())).json()
    assert launched["policy"]["max_ttl"] == 50
    event = broker.events(app_id=app.app_id, event_type="launch_token_issued")[-1]
    assert event["data"]["max_ttl"] == 50


def test_a_max_ttl_that_was_lowered_since_holds_at_registration_renewal_and_delegation(broker: BrokerProcess) -> None:
    app = broker.app()
    launch_token = app.launch_token(max_ttl=300)
    before, other = app.agent(), app.agent()
    assert put(app, max_ttl=40).json()["grants_ended"] == 0
    registered = broker.http.post("/v1/register", json=registration(launch_token, broker.nonce())).json()
    assert registered["expires_in"] == 40
    assert broker.is_valid(before["access_token"])
    delegated = broker.delegate(before["access_token"], other["agent_id"], ttl=200).json()
    assert delegated["expires_in"] == 40
    renewed = broker.renew(before["access_token"]).json()
    assert renewed["expires_in"] == 40
    assert broker.renew(renewed["access_token"]).json()["expires_in"] == 40


def test_what_would_outlive_a_token_that_was_cut_ends_with_its_renewal(broker: BrokerProcess) -> None:
    app = broker.app()
    root, other = app.agent(), app.agent()
    long = broker.delegate(root["access_token"], other["agent_id"], ttl=200).json()["access_token"]
    short = broker.delegate(root["access_token"], other["agent_id"], ttl=20).json()["access_token"]
    put(app, max_ttl=40)
    assert broker.is_valid(long)
    assert broker.renew(root["access_token"]).status_code == 200
    assert not broker.is_valid(long)
    assert broker.is_valid(short)
    [event] = broker.events(app_id=app.app_id, event_type="token_revoked")
    assert event["data"]["reason"] == "ancestor_shortened"


# -- max_live_agents -------------------------------------------------------------------------------------------------


@both_ways
def test_one_agent_more_than_an_app_may_have_is_refused_until_one_ends(broker: BrokerProcess, ask: Ask) -> None:
    app = broker.app(max_live_agents=2)
    first, second = ask(app).json(), ask(app).json()
    body = refused(ask(app), "max_live_agents")
    assert "agentwrit app update" in body["hint"]
    assert broker.release(second["access_token"]).status_code == 204
    assert ask(app).status_code in (200, 201)
    refused(ask(app), "max_live_agents")
    assert broker.revoke("agent", first["agent_id"]) == 1
    assert ask(app).status_code in (200, 201)
    refused(ask(app), "max_live_agents")


def test_a_refusal_spends_nothing(broker: BrokerProcess) -> None:
    app = broker.app(max_live_agents=1)
    first = app.agent()
    body = registration(app.launch_token(), broker.nonce())
    creation = Creation(app)
    refused(broker.http.post("/v1/register", json=body), "max_live_agents")
    refused(creation.post(), "max_live_agents")
    broker.release(first["access_token"])
    assert broker.http.post("/v1/register", json=body).status_code == 200
    put(app, max_live_agents=2)
    assert creation.post().status_code == 201


def test_neither_renewals_nor_delegations_count_and_other_apps_do_not_either(broker: BrokerProcess) -> None:
    app, other = broker.app(max_live_agents=2), broker.app(max_live_agents=1)
    root, leaf = app.agent(), app.agent()
    delegated = broker.delegate(root["access_token"], leaf["agent_id"]).json()["access_token"]
    token = broker.renew(root["access_token"]).json()["access_token"]
    assert other.agent()
    refused(directly(app), "max_live_agents")
    assert broker.release(delegated).status_code == 204  # no agent ended
    refused(directly(app), "max_live_agents")
    assert broker.release(token).status_code == 204
    assert directly(app).status_code == 201
    refused(directly(app), "max_live_agents")


def test_an_agent_that_expired_makes_room(broker: BrokerProcess) -> None:
    app = broker.app(max_live_agents=1)
    expiring = directly(app, max_ttl=3)  # long enough for a busy machine to ask again
    assert expiring.status_code == 201
    statuses = []
    deadline = time.monotonic() + 10
    while 201 not in statuses and time.monotonic() < deadline:
        statuses.append(directly(app).status_code)
    assert (statuses[0], statuses[-1], set(statuses)) == (429, 201, {429, 201})
    assert broker.release(expiring.json()["access_token"]).status_code == 401
    refused(directly(app), "max_live_agents")


def test_a_limit_counts_the_agents_that_were_there_before_it(broker: BrokerProcess) -> None:
    app = broker.app()
    agents = [app.agent() for _ in range(3)]
    put(app, max_live_agents=2)
    assert all(broker.is_valid(agent["access_token"]) for agent in agents)
    for agent in agents[:2]:
        refused(directly(app), "max_live_agents")
        broker.release(agent["access_token"])
    assert directly(app).status_code == 201
    refused(directly(app), "max_live_agents")
    put(app, max_live_agents=None)
    late = [directly(app).json() for _ in range(3)]
    broker.release(late[0]["access_token"])
    put(app, max_live_agents=5)
    assert directly(app).status_code == 201
    refused(directly(app), "max_live_agents")


def test_a_retry_of_a_creation_gets_its_answer_although_the_app_is_full(broker: BrokerProcess) -> None:
    app = broker.app(max_live_agents=1)
    creation = Creation(app)
    first = creation.post(key="k")
    assert first.status_code == 201
    again = creation.post(key="k")
    assert (again.status_code, again.json()["access_token"]) == (201, first.json()["access_token"])
    refused(creation.post(key="another"), "max_live_agents")


@both_ways
def test_of_many_who_come_at_once_as_many_get_an_agent_as_there_is_room_for(broker: BrokerProcess, ask: Ask) -> None:
    app = broker.app(max_live_agents=5)
    gate = threading.Barrier(20)

    def come(_: int) -> httpx2.Response:
        gate.wait(30)
        return ask(app)

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(come, range(20)))
    made = [answer.json() for answer in answers if answer.status_code in (200, 201)]
    assert len(made) == 5
    assert {answer.status_code for answer in answers} <= {200, 201, 429}
    live = broker.http.get("/v1/agents", params={"app_id": app.app_id}, headers=broker.admin()).json()["agents"]
    assert {agent["agent_id"] for agent in live} == {agent["agent_id"] for agent in made}


# -- creates_per_second ----------------------------------------------------------------------------------------------


@pytest.mark.alone
@both_ways
def test_an_app_creates_a_burst_and_then_at_its_rate(broker: BrokerProcess, ask: Ask) -> None:
    app = broker.app(creates_per_second=1)
    started = time.monotonic()
    answers = [ask(app)]
    deadline = started + 20
    while sum(answer.status_code != 429 for answer in answers) < 3 and time.monotonic() < deadline:
        answers.append(ask(app))
    took = time.monotonic() - started
    assert answers[0].status_code != 429
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 429)
    refused(next(answer for answer in answers if answer.status_code == 429), "creates_per_second")
    assert 1.9 < took < 10


def test_only_creations_that_succeed_take_a_permit(broker: BrokerProcess) -> None:
    app = broker.app("read:data:*", creates_per_second=1)
    for _ in range(3):
        problem(directly(app, requested_scope=["write:data:1"]), 403, "scope_violation")
        problem(directly(app, proof="none"), 401, "unauthorized")
    assert directly(app).status_code == 201


@pytest.mark.alone
def test_a_rate_that_was_raised_holds_within_a_second(broker: BrokerProcess) -> None:
    app = broker.app(creates_per_second=1)
    assert directly(app).status_code == 201
    refused(directly(app), "creates_per_second")
    put(app, creates_per_second=None)
    deadline = time.monotonic() + 5
    while (answer := directly(app)).status_code == 429 and time.monotonic() < deadline:
        pass
    assert [answer.status_code, *(directly(app).status_code for _ in range(5))] == [201] * 6


# -- in the audit log ------------------------------------------------------------------------------------------------


def test_a_refusal_by_a_limit_is_recorded_once_a_minute_however_often_it_happens(broker: BrokerProcess) -> None:
    app, other = broker.app(max_live_agents=1), broker.app(max_live_agents=1)
    app.agent()
    other.agent()
    for _ in range(20):
        refused(directly(app), "max_live_agents")
    refused(directly(other), "max_live_agents")
    [event] = broker.events(app_id=app.app_id, event_type="app_rate_limited")
    assert (event["outcome"], event["data"]) == ("denied", {"limit": "max_live_agents", "allowed": 1})
    assert (event["orch_id"], event["resource"]) == ("orchestrator", "POST /v1/agents")
    assert len(broker.events(app_id=other.app_id, event_type="app_rate_limited")) == 1
