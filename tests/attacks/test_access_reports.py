"""Lies about what was done with tokens, and reports that are meant to fill the disk."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.reports import AUDIENCE, ResourceServer, access, at
from tests.support import BrokerProcess, TestApp, bearer, problem


@pytest.fixture
def server(broker: BrokerProcess) -> ResourceServer:
    return ResourceServer(broker)


@pytest.fixture
def app(broker: BrokerProcess) -> TestApp:
    return broker.app(audiences=[AUDIENCE])


@pytest.fixture
def token(app: TestApp) -> str:
    return str(app.agent(audience=[AUDIENCE])["access_token"])


def test_nobody_reports_but_an_app_that_the_operator_lets(broker: BrokerProcess, app: TestApp, token: str) -> None:
    body = {"accesses": [access(broker, token)]}
    post = broker.http.post
    problem(post("/v1/audit/accesses", json=body), 401, "unauthorized")
    for headers in (broker.admin(), bearer(token), bearer(app.token())):
        problem(post("/v1/audit/accesses", json=body, headers=headers), 403, "insufficient_scope")
    assert broker.events(event_type="resource_accessed", sid=body["accesses"][0]["sid"]) == []


def test_an_agent_that_holds_a_scope_of_that_name_reports_nothing(broker: BrokerProcess) -> None:
    app = broker.app("app:audit:report")
    agent = app.agent("app:audit:report")["access_token"]
    body = {"accesses": [access(broker, agent, "app:audit:report")]}
    answer = broker.http.post("/v1/audit/accesses", json=body, headers=bearer(agent))
    problem(answer, 403, "insufficient_scope")


def test_a_resource_server_says_nothing_of_tokens_for_others(broker: BrokerProcess, token: str) -> None:
    assert ResourceServer(broker, "payments").reason(access(broker, token)) == "unknown_token"


def test_a_resource_server_says_nothing_more_once_the_operator_took_that_from_it(
    broker: BrokerProcess, server: ResourceServer, token: str
) -> None:
    path = f"/v1/admin/apps/{server.app.app_id}"
    broker.http.put(path, json={"reports_for": []}, headers=broker.admin())
    assert server.reason(access(broker, token)) == "unknown_token"  # on a login of before
    broker.http.delete(path, headers=broker.admin())
    problem(server.report(access(broker, token)), 403, "insufficient_scope")


def test_tokens_that_were_never_issued_were_never_used(
    broker: BrokerProcess, server: ResourceServer, app: TestApp, token: str
) -> None:
    genuine = access(broker, token)
    for forged in ({"sid": "0" * 32}, {"jti": "0" * 32}, {"jti": genuine["sid"]}, {"sid": genuine["jti"]}):
        assert server.reason({**genuine, **forged}) == "unknown_token"
    login = broker.validate(app.token())["claims"]
    assert server.reason({**genuine, "sid": login["sid"], "jti": login["jti"]}) == "unknown_token"


@pytest.mark.parametrize("scope", ["read:data:2", "read:data:*", "write:data:1", "READ:data:1"])
def test_nothing_was_done_that_the_token_did_not_cover(
    broker: BrokerProcess, server: ResourceServer, token: str, scope: str
) -> None:
    assert server.reason(access(broker, token, "read:data:1", scope)) == "scope_not_covered"


@pytest.mark.parametrize(("first", "last"), [(-3600, 0), (0, 3600), (3600, 3600), (-3600, -3600)])
def test_nothing_was_done_before_the_grant_or_in_the_future(
    broker: BrokerProcess, server: ResourceServer, token: str, first: int, last: int
) -> None:
    assert server.reason(access(broker, token, first=at(first), last=at(last))) == "outside_of_lifetime"


def test_a_report_writes_data_and_never_structure(broker: BrokerProcess, server: ResourceServer, token: str) -> None:
    resource = 'GET /","outcome":"denied"}\n{"id":"evt-000001\u202e\x00\x1b[2J'
    done = access(broker, token, resource=resource)
    assert server.taken(done)["recorded"] == 1
    [event] = broker.events(event_type="resource_accessed", sid=done["sid"])
    assert event["resource"] == r'GET /","outcome":"denied"}\n{"id":"evt-000001\u202e\x00\x1b[2J'
    assert event["outcome"] == "success"


def test_lies_are_told_to_the_operator_once_and_then_counted(
    broker: BrokerProcess, server: ResourceServer, token: str
) -> None:
    lie = access(broker, token, "write:data:1")
    for _ in range(20):
        server.taken(*[lie] * 10)
    events = broker.events(event_type="access_report_denied", principal=f"app:{server.app.app_id}")
    assert [event["data"]["reasons"] for event in events] == [["scope_not_covered"]]


def test_one_lie_does_not_sink_the_truth_beside_it(broker: BrokerProcess, server: ResourceServer, token: str) -> None:
    truth = access(broker, token)
    receipt = server.taken({**truth, "jti": "0" * 32}, truth, {**truth, "scope": ["write:data:1"]})
    assert receipt["recorded"] == 1
    assert [refused["index"] for refused in receipt["refused"]] == [0, 2]


@pytest.mark.alone
def test_a_resource_server_that_was_taken_over_does_not_fill_the_disk(
    broker: BrokerProcess, server: ResourceServer, token: str
) -> None:
    batch = [access(broker, token, resource=f"GET /{number}") for number in range(64)]
    began, answers = time.monotonic(), [server.report(*batch) for _ in range(60)]
    limited = next(answer for answer in answers if answer.status_code != 200)
    problem(limited, 429, "rate_limited")
    assert int(limited.headers["retry-after"]) >= 1
    recorded = len([answer for answer in answers if answer.status_code == 200]) * 64
    assert recorded <= 2_000 + 200 * (time.monotonic() - began)
    events = broker.events(event_type="app_rate_limited", principal=f"app:{server.app.app_id}")
    assert len(events) == 1


def test_an_app_reads_what_was_done_by_its_own_agents_alone(
    broker: BrokerProcess, server: ResourceServer, app: TestApp, token: str
) -> None:
    done = access(broker, token)
    server.taken(done)
    for reader, expected in ((app, 1), (server.app, 0), (broker.app(), 0)):
        query = {"event_type": "resource_accessed"}
        answer = broker.http.get("/v1/audit/events", params=query, headers=bearer(reader.token())).json()
        assert len([event for event in answer["events"] if event.get("sid") == done["sid"]]) == expected


def test_no_token_is_in_what_a_report_writes(broker: BrokerProcess, server: ResourceServer, token: str) -> None:
    done = access(broker, token)
    server.taken(done)
    [event] = broker.events(event_type="resource_accessed", sid=done["sid"])
    assert token not in str(event)
    assert server.token not in str(event)


def test_a_report_that_is_made_many_times_at_once_is_recorded_once(
    broker: BrokerProcess, server: ResourceServer, token: str
) -> None:
    done = access(broker, token)
    with ThreadPoolExecutor(8) as threads:
        receipts = list(threads.map(lambda _: server.taken(done, key="at-once"), range(32)))
    assert receipts == [{"recorded": 1, "refused": []}] * 32
    assert len(broker.events(event_type="resource_accessed", sid=done["sid"])) == 1


def test_what_was_done_with_a_token_for_the_default_audience_is_reported_by_who_speaks_for_it(
    broker: BrokerProcess,
) -> None:
    token = broker.app().agent()["access_token"]
    assert ResourceServer(broker, "agentwrit").taken(access(broker, token))["recorded"] == 1
    assert ResourceServer(broker, "agentwri", "agentwrit ", "*").reason(access(broker, token)) == "unknown_token"
