"""The wire contract: headers, error documents, limits on input."""

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import ADMIN_SECRET, BrokerProcess, bearer, problem, registration

EVERY_ANSWER = {"x-content-type-options": "nosniff", "x-frame-options": "DENY"}


def test_every_answer_carries_the_security_headers(broker: BrokerProcess) -> None:
    for answer in (
        broker.http.get("/v1/health"),
        broker.http.get("/v1/challenge"),
        broker.http.get("/nowhere"),
        broker.http.post("/v1/admin/auth", json={"secret": ADMIN_SECRET}),
    ):
        assert EVERY_ANSWER.items() <= dict(answer.headers).items()
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers


@pytest.mark.parametrize("request_id", ["abc", "~" * 128, "!x:1"])
def test_a_clients_request_id_is_kept(broker: BrokerProcess, request_id: str) -> None:
    answer = broker.http.get("/v1/challenge", headers={"x-request-id": request_id})
    assert answer.headers["x-request-id"] == request_id


@pytest.mark.parametrize("request_id", ["", "with space", "x" * 129, "tab\there", "é".encode().decode("latin-1")])
def test_a_request_id_that_is_none_is_replaced(broker: BrokerProcess, request_id: str) -> None:
    answer = broker.http.get("/v1/challenge", headers=[(b"x-request-id", request_id.encode("latin-1"))])
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])


def test_an_unknown_route_is_a_problem(broker: BrokerProcess) -> None:
    body = problem(broker.http.get("/v1/nothing/here"), 404, "not_found")
    assert body["instance"] == "/v1/nothing/here"
    assert body["title"] == "Not Found"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/v1/health", "GET, HEAD"),
        ("GET", "/v1/register", "POST"),
        ("PATCH", "/v1/admin/apps", "GET, HEAD, POST"),
        ("POST", "/v1/admin/apps/app-1", "DELETE, GET, HEAD, PUT"),
        ("OPTIONS", "/v1/token/validate", "POST"),
    ],
)
def test_a_wrong_method_is_told_which_are_right(broker: BrokerProcess, method: str, path: str, allow: str) -> None:
    answer = broker.http.request(method, path)
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allow


def test_head_answers_like_get_without_a_body(broker: BrokerProcess) -> None:
    answer = broker.http.head("/v1/health")
    assert answer.status_code == 200
    assert answer.content == b""


BODIES_THAT_ARE_NONE = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"[]", "object"),
    (b"null", "object"),
    (b'"text"', "object"),
    (b"{}", "token"),
    (b'{"token":""}', "token"),
    (b'{"token":1}', "token"),
    (b'{"token":null}', "token"),
    (b'{"token":["a"]}', "token"),
    (b'{"token":"a","x":NaN}', "not JSON"),
    (b'{"token":"\xff"}', "not JSON"),
    (b'{"token":"a","other":"\xff"}', "not JSON"),
    (b'{"token":"a","deep":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "not JSON"),
    ('{"token":"a"}'.encode("utf-16"), "not JSON"),
]


@pytest.mark.parametrize(("body", "named"), BODIES_THAT_ARE_NONE, ids=range(len(BODIES_THAT_ARE_NONE)))
def test_a_body_that_is_none_is_refused_and_the_field_named(broker: BrokerProcess, body: bytes, named: str) -> None:
    answer = broker.http.post("/v1/token/validate", content=body)
    assert named in problem(answer, 400, "invalid_request")["detail"]


def test_unknown_fields_are_ignored(broker: BrokerProcess) -> None:
    answer = broker.http.post("/v1/token/validate", json={"token": "x", "more": {"of": ["it"]}})
    assert answer.json() == {"valid": False, "error": "token is invalid or expired"}


def test_a_body_over_1_mib_is_refused_when_declared(broker: BrokerProcess) -> None:
    answer = broker.http.post("/v1/token/validate", content=b" " * (1024 * 1024 + 1))
    problem(answer, 413, "payload_too_large")


def test_a_body_over_1_mib_is_refused_when_streamed(broker: BrokerProcess) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(17):
            yield b" " * 65_536

    answer = broker.http.post("/v1/token/validate", content=chunks())
    problem(answer, 413, "payload_too_large")
    assert answer.headers["connection"] == "close"


def test_a_body_of_1_mib_is_read(broker: BrokerProcess) -> None:
    body = b'{"token":"x"}'
    answer = broker.http.post("/v1/token/validate", content=body + b" " * (1024 * 1024 - len(body)))
    assert answer.status_code == 200


@pytest.mark.parametrize("token", ["x", "a.b.c", "." * 100, "eyJ" * 5000, "\u0000", "🙂"])
def test_validate_answers_200_for_any_text(broker: BrokerProcess, token: str) -> None:
    assert broker.validate(token) == {"valid": False, "error": "token is invalid or expired"}


def test_a_missing_bearer_token_is_401_with_a_challenge(broker: BrokerProcess) -> None:
    for headers in ({}, {"authorization": "Basic abc"}, {"authorization": "Bearer"}, bearer("nonsense")):
        answer = broker.http.get("/v1/admin/apps", headers=headers)
        problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'


def test_two_authorization_headers_are_none(broker: BrokerProcess) -> None:
    token = broker.admin()["authorization"]
    answer = broker.http.get("/v1/admin/apps", headers=[("authorization", token), ("authorization", token)])
    problem(answer, 401, "unauthorized")


def test_a_missing_scope_is_named(broker: BrokerProcess) -> None:
    answer = broker.http.get("/v1/admin/apps", headers=bearer(broker.app().token()))
    problem(answer, 403, "insufficient_scope")
    expected = 'Bearer error="insufficient_scope", scope="admin:launch-tokens:*"'
    assert answer.headers["www-authenticate"] == expected


def test_health_says_what_monitors_ask(broker: BrokerProcess) -> None:
    body = broker.http.get("/v1/health").json()
    assert body["status"] == "ok"
    assert body["db_connected"] is True
    assert isinstance(body["uptime"], int)
    assert body["audit_events_count"] > 0
    assert broker.http.get("/livez").status_code == broker.http.get("/readyz").status_code == 200


def test_the_public_key_is_at_the_well_known_place(broker: BrokerProcess) -> None:
    answer = broker.http.get("/.well-known/jwks.json")
    active, following = answer.json()["keys"]
    assert set(active) == set(following) == {"kty", "crv", "x", "kid", "use", "alg"}
    assert answer.headers["cache-control"] == "public, max-age=300"
    tag = answer.headers["etag"]
    again = broker.http.get("/.well-known/jwks.json", headers={"if-none-match": f'"other", W/{tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    changed = broker.http.get("/.well-known/jwks.json", headers={"if-none-match": '"other"'})
    assert changed.content == answer.content


def test_an_off_the_shelf_library_verifies_our_tokens(broker: BrokerProcess) -> None:
    import jwt

    token = broker.app().agent()["access_token"]
    keys = jwt.PyJWKSet.from_dict(broker.http.get("/.well-known/jwks.json").json())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, algorithms=["EdDSA"], audience="agentwrit", issuer="agentwrit")
    assert claims["scope"] == "read:data:1"
    assert list(jwt.get_unverified_header(token)) == ["alg", "typ", "kid"]
    assert jwt.get_unverified_header(token)["typ"] == "at+jwt"


def test_metrics_count_by_route_and_never_by_what_a_caller_chose(broker: BrokerProcess) -> None:
    broker.http.get("/v1/chosen-by-a-caller")
    broker.http.get("/v1/admin/apps/chosen-by-a-caller")
    broker.http.request("CHOSEN", "/v1/health")
    text = broker.http.get("/v1/metrics").text
    assert "agentwrit_http_requests_total" in text
    assert 'route="unknown"' in text
    assert "chosen" not in text.lower()
    assert all(line.startswith(("#", "agentwrit_")) for line in text.splitlines())


def test_metrics_tell_how_long_the_event_loop_is_held(broker: BrokerProcess) -> None:
    told = dict(line.split(" ") for line in broker.http.get("/v1/metrics").text.splitlines() if line[0] != "#")
    assert float(told["agentwrit_loop_hold_seconds_count"]) > 0
    assert float(told["agentwrit_loop_hold_seconds_sum"]) >= float(told["agentwrit_loop_longest_hold_seconds"]) > 0


# -- apps -----------------------------------------------------------------------------------------------------------


def test_an_app_is_registered_listed_shown_changed_and_removed(broker: BrokerProcess) -> None:
    admin = broker.admin()
    app = broker.app("read:data:*", token_ttl=120)
    shown = broker.http.get(f"/v1/admin/apps/{app.app_id}", headers=admin).json()
    fields = {"app_id", "name", "client_id", "scopes", "audiences", "token_ttl", "status", "created_at", "updated_at"}
    fields |= {"require_bound", "reports_for", "max_live_agents", "max_ttl", "creates_per_second"}
    assert set(shown) == fields
    assert (shown["status"], shown["token_ttl"], shown["scopes"]) == ("active", 120, ["read:data:*"])
    listed = broker.http.get("/v1/admin/apps", headers=admin).json()
    assert shown in listed["apps"]
    assert listed["total"] == len(listed["apps"])
    changed = broker.http.put(
        f"/v1/admin/apps/{app.app_id}", json={"scopes": ["read:data:1"], "token_ttl": 60}, headers=admin
    ).json()
    assert (changed["scopes"], changed["token_ttl"]) == (["read:data:1"], 60)
    removed = broker.http.delete(f"/v1/admin/apps/{app.app_id}", headers=admin).json()
    assert set(removed) == {"app_id", "status", "deregistered_at"}
    assert removed["status"] == "inactive"
    assert broker.http.delete(f"/v1/admin/apps/{app.app_id}", headers=admin).json() == removed


def test_a_refused_change_changes_nothing(broker: BrokerProcess) -> None:
    admin, app = broker.admin(), broker.app()
    before = broker.http.get(f"/v1/admin/apps/{app.app_id}", headers=admin).json()
    bad = {"scopes": ["read:data:2"], "token_ttl": 1}
    problem(broker.http.put(f"/v1/admin/apps/{app.app_id}", json=bad, headers=admin), 400, "invalid_ttl")
    assert broker.http.get(f"/v1/admin/apps/{app.app_id}", headers=admin).json() == before


@pytest.mark.parametrize(
    ("body", "error_code"),
    [
        ({"scopes": ["a:b:c"]}, "invalid_request"),
        ({"name": "x", "scopes": ["a:b:c"]}, "invalid_request"),
        ({"name": "Upper", "scopes": ["a:b:c"]}, "invalid_request"),
        ({"name": "ok-name", "scopes": []}, "invalid_request"),
        ({"name": "ok-name", "scopes": ["a:b"]}, "invalid_request"),
        ({"name": "ok-name", "scopes": ["*:b:c"]}, "invalid_request"),
        ({"name": "ok-name", "scopes": ["a:b:c"], "token_ttl": 59}, "invalid_ttl"),
        ({"name": "ok-name", "scopes": ["a:b:c"], "token_ttl": 86_401}, "invalid_ttl"),
        ({"name": "ok-name", "scopes": ["a:b:c"], "token_ttl": 10**30}, "invalid_request"),
        ({"name": "ok-name", "scopes": ["a:b:c"] * 65}, "invalid_request"),
    ],
)
def test_an_app_that_is_none_is_refused(broker: BrokerProcess, body: dict[str, Any], error_code: str) -> None:
    problem(broker.http.post("/v1/admin/apps", json=body, headers=broker.admin()), 400, error_code)


def test_a_name_that_is_taken_is_a_conflict_until_its_app_is_removed(broker: BrokerProcess) -> None:
    admin, app = broker.admin(), broker.app()
    body = {"name": app.name, "scopes": ["a:b:c"]}
    problem(broker.http.post("/v1/admin/apps", json=body, headers=admin), 409, "conflict")
    broker.http.delete(f"/v1/admin/apps/{app.app_id}", headers=admin)
    assert broker.http.post("/v1/admin/apps", json=body, headers=admin).status_code == 201


def test_unknown_apps_are_404(broker: BrokerProcess) -> None:
    admin = broker.admin()
    for method, path in [("GET", ""), ("DELETE", ""), ("POST", "/secret")]:
        problem(broker.http.request(method, f"/v1/admin/apps/app-none{path}", headers=admin), 404, "not_found")
    problem(broker.http.put("/v1/admin/apps/app-none", json={"token_ttl": 60}, headers=admin), 404, "not_found")


def test_removing_an_app_kills_everything_that_came_through_it(broker: BrokerProcess) -> None:
    app = broker.app()
    app_token, launch_token, agent = app.token(), app.launch_token(), app.agent()
    broker.http.delete(f"/v1/admin/apps/{app.app_id}", headers=broker.admin())
    assert not broker.is_valid(app_token)
    assert not broker.is_valid(agent["access_token"])
    problem(app.login(), 401, "unauthorized")
    refused = broker.http.post("/v1/register", json=registration(launch_token, broker.nonce()))
    problem(refused, 401, "unauthorized")
    problem(broker.renew(agent["access_token"]), 401, "unauthorized")


def test_a_rotated_secret_works_at_once_and_the_old_one_and_its_tokens_do_not(broker: BrokerProcess) -> None:
    app = broker.app()
    old_token = app.token()
    rotated = broker.http.post(f"/v1/admin/apps/{app.app_id}/secret", headers=broker.admin()).json()
    assert rotated["previous_secret_expires_at"] is None
    problem(app.login(), 401, "unauthorized")
    assert not broker.is_valid(old_token)
    assert app.login(rotated["client_secret"]).status_code == 200


def test_in_the_overlap_both_secrets_work(broker: BrokerProcess) -> None:
    app = broker.app()
    old_token = app.token()
    path = f"/v1/admin/apps/{app.app_id}/secret"
    rotated = broker.http.post(path, json={"overlap": 60}, headers=broker.admin()).json()
    assert rotated["previous_secret_expires_at"].endswith("Z")
    on_old, on_new = app.login(), app.login(rotated["client_secret"])
    assert (on_old.status_code, on_new.status_code) == (200, 200)
    assert on_old.json()["expires_in"] <= 60 < on_new.json()["expires_in"]
    assert broker.is_valid(old_token)


def test_narrowing_a_ceiling_ends_the_grants_that_exceed_it(broker: BrokerProcess) -> None:
    app = broker.app("read:data:*", "write:data:*")
    reader, writer = app.agent("read:data:1"), app.agent("write:data:1")
    path = f"/v1/admin/apps/{app.app_id}"
    changed = broker.http.put(path, json={"scopes": ["read:data:*"]}, headers=broker.admin()).json()
    assert changed["grants_ended"] == 1
    assert broker.is_valid(reader["access_token"])
    assert not broker.is_valid(writer["access_token"])


def test_a_grant_that_was_kept_lives_but_is_not_renewed(broker: BrokerProcess) -> None:
    app = broker.app("read:data:*")
    agent = app.agent("read:data:1")
    path = f"/v1/admin/apps/{app.app_id}?keep_grants=true"
    changed = broker.http.put(path, json={"scopes": ["read:data:2"]}, headers=broker.admin()).json()
    assert changed["grants_ended"] == 0
    assert broker.is_valid(agent["access_token"])
    problem(broker.renew(agent["access_token"]), 401, "unauthorized")
    assert broker.is_valid(agent["access_token"])


# -- launch tokens and registration ---------------------------------------------------------------------------------


def test_a_launch_tokens_policy_is_shown_and_max_ttl_is_cut(broker: BrokerProcess) -> None:
    body = {"agent_name": "a/b", "allowed_scope": ["read:data:*"], "max_ttl": 10**6}
    answer = broker.http.post("/v1/app/launch-tokens", json=body, headers=bearer(broker.app().token()))
    assert answer.status_code == 201
    assert re.fullmatch(r"[0-9a-f]{64}", answer.json()["launch_token"])
    assert answer.json()["policy"] == {"allowed_scope": ["read:data:*"], "max_ttl": 86_400}
    assert answer.json()["expires_at"].endswith("Z")


@pytest.mark.parametrize(
    ("fields", "error_code"),
    [
        ({"max_ttl": 0}, "invalid_ttl"),
        ({"max_ttl": -1}, "invalid_ttl"),
        ({"ttl": 0}, "invalid_ttl"),
        ({"max_ttl": "300"}, "invalid_request"),
        ({"max_ttl": True}, "invalid_request"),
        ({"single_use": "no"}, "invalid_request"),
        ({"agent_name": ""}, "invalid_request"),
        ({"agent_name": "x" * 257}, "invalid_request"),
        ({"agent_name": "line\nbreak"}, "invalid_request"),
        ({"allowed_scope": []}, "invalid_request"),
        ({"allowed_scope": "read:data:1"}, "invalid_request"),
        ({"max_uses": 2}, "invalid_request"),
        ({"audience": [""]}, "invalid_request"),
    ],
)
def test_a_bad_launch_policy_is_refused(broker: BrokerProcess, fields: dict[str, Any], error_code: str) -> None:
    body = {"agent_name": "a", "allowed_scope": ["read:data:1"], **fields}
    answer = broker.http.post("/v1/app/launch-tokens", json=body, headers=bearer(broker.app().token()))
    problem(answer, 400, error_code)


def test_a_launch_token_that_is_not_single_use_registers_many(broker: BrokerProcess) -> None:
    app = broker.app()
    unlimited, twice = {"single_use": False}, {"single_use": False, "max_uses": 2}
    for fields, expected in ((unlimited, [200] * 4), (twice, [200, 200, 401])):
        launch_token = app.launch_token(**fields)
        answers = [
            broker.http.post("/v1/register", json=registration(launch_token, broker.nonce())).status_code
            for _ in expected
        ]
        assert answers == expected


def test_an_audience_reaches_the_token(broker: BrokerProcess) -> None:
    app = broker.app(audiences=["https://orders.example", "billing"])
    agent = app.agent(audience=["https://orders.example", "billing"])
    assert broker.validate(agent["access_token"])["claims"]["aud"] == ["https://orders.example", "billing"]
    assert broker.renew(agent["access_token"]).status_code == 200


def test_audiences_are_kept_with_the_app(broker: BrokerProcess) -> None:
    admin, app = broker.admin(), broker.app(audiences=["billing"])
    path = f"/v1/admin/apps/{app.app_id}"
    assert broker.http.get(path, headers=admin).json()["audiences"] == ["billing"]
    changed = broker.http.put(path, json={"audiences": ["billing", "orders"]}, headers=admin).json()
    assert (changed["audiences"], changed["grants_ended"]) == (["billing", "orders"], 0)
    [event] = broker.events(event_type="app_updated")[-1:]
    assert (event["data"]["before"], event["data"]["after"]) == (["billing"], ["billing", "orders"])
    assert broker.http.put(path, json={"token_ttl": 60}, headers=admin).json()["audiences"] == ["billing", "orders"]
    assert broker.http.put(path, json={"audiences": []}, headers=admin).json()["audiences"] == []


@pytest.mark.parametrize("audiences", [[""], ["line\nbreak"], ["x" * 257], [str(n) for n in range(17)], "billing"])
def test_audiences_that_are_none_are_refused(broker: BrokerProcess, audiences: object) -> None:
    body = {"name": "audience-app", "scopes": ["a:b:c"], "audiences": audiences}
    refused = problem(broker.http.post("/v1/admin/apps", json=body, headers=broker.admin()), 400, "invalid_request")
    assert "audiences" in refused["detail"]


def test_a_launch_token_for_others_than_the_apps_audiences_is_refused(broker: BrokerProcess) -> None:
    app = broker.app(audiences=["billing"])
    body = {"agent_name": "a", "allowed_scope": ["read:data:1"], "audience": ["billing", "payroll"]}
    answer = broker.http.post("/v1/app/launch-tokens", json=body, headers=bearer(app.token()))
    assert "audience" in problem(answer, 403, "scope_violation")["detail"]
    [event] = broker.events(event_type="scope_ceiling_exceeded")[-1:]
    assert event["data"]["audience_exceeding"] == ["payroll"]
    assert app.launch_token(audience=["billing", "agentwrit"])  # the broker's own is always among them
    by_operator = broker.http.post("/v1/admin/launch-tokens", json=body, headers=broker.admin())
    assert by_operator.status_code == 201


def test_audiences_taken_away_since_hold_at_registration(broker: BrokerProcess) -> None:
    app = broker.app(audiences=["billing"])
    launch_token = app.launch_token(audience=["billing"])
    broker.http.put(f"/v1/admin/apps/{app.app_id}", json={"audiences": []}, headers=broker.admin())
    refused = broker.http.post("/v1/register", json=registration(launch_token, broker.nonce()))
    problem(refused, 403, "scope_violation")


def test_taking_an_audience_away_ends_the_grants_for_it(broker: BrokerProcess) -> None:
    app = broker.app(audiences=["billing", "orders"])
    billing, orders = app.agent(audience=["billing"]), app.agent(audience=["orders"])
    path = f"/v1/admin/apps/{app.app_id}"
    changed = broker.http.put(path, json={"audiences": ["orders"]}, headers=broker.admin()).json()
    assert changed["grants_ended"] == 1
    assert not broker.is_valid(billing["access_token"])
    kept = broker.http.put(path + "?keep_grants=true", json={"audiences": []}, headers=broker.admin()).json()
    assert kept["grants_ended"] == 0
    assert broker.is_valid(orders["access_token"])
    problem(broker.renew(orders["access_token"]), 401, "unauthorized")
    to_itself = {"delegate_to": orders["agent_id"], "scope": ["read:data:1"]}
    refused = broker.http.post("/v1/delegate", json=to_itself, headers=bearer(orders["access_token"]))
    problem(refused, 403, "scope_violation")


def test_a_scope_violation_does_not_consume_the_launch_token(broker: BrokerProcess) -> None:
    launch_token = broker.app().launch_token("read:data:1")
    refused = broker.http.post("/v1/register", json=registration(launch_token, broker.nonce(), "read:data:2"))
    problem(refused, 403, "scope_violation")
    accepted = broker.http.post("/v1/register", json=registration(launch_token, broker.nonce(), "read:data:1"))
    assert accepted.status_code == 200


def test_a_ceiling_narrowed_since_holds_at_registration(broker: BrokerProcess) -> None:
    app = broker.app("read:data:*")
    launch_token = app.launch_token("read:data:1")
    path = f"/v1/admin/apps/{app.app_id}"
    broker.http.put(path, json={"scopes": ["read:data:2"]}, headers=broker.admin())
    refused = broker.http.post("/v1/register", json=registration(launch_token, broker.nonce()))
    problem(refused, 403, "scope_violation")


def test_the_reason_of_a_refused_registration_goes_to_the_log_and_not_to_the_caller(broker: BrokerProcess) -> None:
    app = broker.app()
    launch_token = app.launch_token()
    wrong_nonce = registration(launch_token, broker.nonce())
    wrong_nonce["nonce"] = "0" * 64
    wrong_signature = {**registration(launch_token, broker.nonce()), "nonce": broker.nonce()}
    wrong_launch_token = registration("0" * 64, broker.nonce())
    answers = [
        problem(broker.http.post("/v1/register", json=body), 401, "unauthorized")
        for body in (wrong_nonce, wrong_signature, wrong_launch_token)
    ]
    assert len({answer["detail"] for answer in answers}) == 1


@pytest.mark.parametrize("field", ["launch_token", "nonce", "public_key", "signature", "orch_id", "task_id"])
def test_a_registration_names_the_field_that_is_missing(broker: BrokerProcess, field: str) -> None:
    body = registration("0" * 64, broker.nonce())
    del body[field]
    assert field in problem(broker.http.post("/v1/register", json=body), 400, "invalid_request")["detail"]


def test_a_token_too_large_is_refused_by_the_name_of_its_scope_list(broker: BrokerProcess) -> None:
    scopes = [f"read:data:{'x' * 200}{number}" for number in range(40)]
    app = broker.app("read:data:*")
    body = registration(app.launch_token(*scopes), broker.nonce(), *scopes)
    assert "requested_scope" in problem(broker.http.post("/v1/register", json=body), 400, "invalid_request")["detail"]


# -- the audit log --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "offset=-1",
        "event_type=nothing",
        "outcome=maybe",
        "since=yesterday",
        "since=2026-01-01T00:00:00",
        "until=9999999999",
        "after=42",
        "after=evt-1",
        "order=newest",
        "agent=x",
        "limit=1&limit=2",
    ],
)
def test_a_bad_filter_is_refused(broker: BrokerProcess, query: str) -> None:
    problem(broker.http.get(f"/v1/audit/events?{query}", headers=broker.admin()), 400, "invalid_request")


def test_every_filter_filters(broker: BrokerProcess) -> None:
    agent = broker.app().agent()
    broker.release(agent["access_token"])
    mine = broker.events(agent_id=agent["agent_id"])
    assert [event["event_type"] for event in mine] == ["agent_registered", "token_issued", "token_released"]
    assert broker.events(agent_id=agent["agent_id"], event_type="token_issued") == [mine[1]]
    assert broker.events(agent_id=agent["agent_id"], after=mine[0]["id"]) == mine[1:]
    assert broker.events(agent_id=agent["agent_id"], limit=1, offset=1) == [mine[1]]
    assert broker.events(agent_id=agent["agent_id"], order="asc") == mine
    assert broker.events(agent_id=agent["agent_id"], order="desc") == mine[::-1]
    assert broker.events(agent_id=agent["agent_id"], order="desc", after=mine[2]["id"], limit=1) == [mine[1]]
    assert broker.events(agent_id=agent["agent_id"], since=mine[2]["timestamp"]) == [mine[2]]
    assert broker.events(agent_id=agent["agent_id"], until=mine[0]["timestamp"])[0] == mine[0]
    assert broker.events(agent_id=agent["agent_id"], outcome="denied") == []
    assert broker.events(agent_id=agent["agent_id"], task_id="task-1") == mine
    assert broker.events(agent_id=agent["agent_id"], task_id="task-2") == []
    page = broker.http.get("/v1/audit/events?limit=2&offset=1", headers=broker.admin()).json()
    assert (page["limit"], page["offset"], len(page["events"])) == (2, 1, 2)


def test_a_total_grows_with_the_log(broker: BrokerProcess) -> None:
    app = broker.app()
    asked = "/v1/audit/events?event_type=agent_registered&limit=1"
    totals = []
    for _ in range(3):
        app.agent()
        page = broker.http.get(asked, headers=broker.admin()).json()
        totals.append(page["total"])
        assert page["total"] == broker.http.get(asked, headers=broker.admin()).json()["total"]
    assert totals == [totals[0], totals[0] + 1, totals[0] + 2]


def test_a_trace_is_taken_over_into_the_log(broker: BrokerProcess) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01", "x-request-id": "trace-test"}
    token = broker.app().agent()["access_token"]
    broker.http.post("/v1/token/release", headers={**bearer(token), **headers})
    [event] = [event for event in broker.events(event_type="token_released") if event.get("request_id") == "trace-test"]
    assert event["trace_id"] == trace_id


# -- below HTTP ------------------------------------------------------------------------------------------------------


def raw(broker: BrokerProcess, data: bytes) -> bytes:
    """Everything that the broker answers to these bytes, until it closes the connection."""
    host, port = broker.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        received = b""
        try:
            while chunk := connection.recv(65_536):
                received += chunk
        except ConnectionResetError:
            pass  # closed with some of what we sent unread
        return received


def test_what_is_not_http_is_a_problem_too(broker: BrokerProcess) -> None:
    head, _, body = raw(broker, b"\x16\x03\x01 this is not HTTP\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request")
    assert json.loads(body)["error_code"] == "invalid_request"


def test_a_head_that_does_not_end_is_cut_off(broker: BrokerProcess) -> None:
    answer = raw(broker, b"GET / HTTP/1.1\r\nx-endless: " + b"a" * 400_000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 Bad Request")
    assert broker.http.get("/livez").status_code == 200
