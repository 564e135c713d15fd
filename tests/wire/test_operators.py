"""Operators on the wire: each with a secret of their own, all able to do the same, and named in the audit log."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from agentwrit.broker.passwords import hash_password
from tests.support import ADMIN_SECRET, BrokerProcess, bearer, problem

OPERATORS = "/v1/admin/operators"


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path / "data") as broker:
        yield broker


def login(broker: BrokerProcess, secret: str, **body: object) -> httpx2.Response:
    return broker.http.post("/v1/admin/auth", json={"secret": secret, **body})


def add(broker: BrokerProcess, name: str, by: dict[str, str] | None = None, **body: object) -> dict[str, Any]:
    answer = broker.http.post(OPERATORS, json={"name": name, **body}, headers=by or broker.admin())
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def header(broker: BrokerProcess, name: str, secret: str) -> dict[str, str]:
    """The header of a named operator's token."""
    answer = login(broker, secret, name=name)
    assert answer.status_code == 200, answer.text
    return bearer(answer.json()["access_token"])


def token_of(by: dict[str, str]) -> str:
    return by["authorization"].removeprefix("Bearer ")


def test_an_operator_who_was_added_logs_in_by_name(own_broker: BrokerProcess) -> None:
    added = add(own_broker, "ana")
    assert sorted(added) == ["created_at", "name", "secret", "status", "updated_at"]
    assert len(added["secret"]) == 64
    answer = login(own_broker, added["secret"], name="ana")
    assert sorted(answer.json()) == ["access_token", "expires_in", "token_type"]
    claims = own_broker.validate(answer.json()["access_token"])["claims"]
    assert (claims["sub"], claims["operator"], claims["client_id"]) == ("admin", "ana", "")
    assert claims["scope"] == ["admin:launch-tokens:*", "admin:revoke:*", "admin:audit:*"]


def test_the_first_operator_logs_in_as_ever(own_broker: BrokerProcess) -> None:
    for body in ({}, {"name": ""}, {"name": "admin"}):
        claims = own_broker.validate(login(own_broker, ADMIN_SECRET, **body).json()["access_token"])["claims"]
        assert claims["sub"] == "admin"
        assert "operator" not in claims


def test_everything_that_an_operator_does_names_them_in_the_log(own_broker: BrokerProcess) -> None:
    ana = header(own_broker, "ana", add(own_broker, "ana")["secret"])
    http = own_broker.http
    app = http.post("/v1/admin/apps", json={"name": "shop", "scopes": ["read:data:*"]}, headers=ana).json()
    http.put(f"/v1/admin/apps/{app['app_id']}", json={"scopes": ["read:data:1"]}, headers=ana)
    http.post(f"/v1/admin/apps/{app['app_id']}/secret", headers=ana)
    launching = {"agent_name": "tester", "allowed_scope": ["read:data:1"]}
    assert http.post("/v1/admin/launch-tokens", json=launching, headers=ana).status_code == 201
    http.post("/v1/revoke", json={"level": "task", "target": "task-1"}, headers=ana)
    http.post("/v1/admin/keys/rotate", json={"force": True}, headers=ana)
    http.delete(f"/v1/admin/apps/{app['app_id']}", headers=ana)
    add(own_broker, "bo", by=ana)
    http.post(f"{OPERATORS}/bo/secret", headers=ana)
    http.delete(f"{OPERATORS}/bo", headers=ana)
    assert [event["event_type"] for event in own_broker.events(principal="admin:ana")] == [
        "admin_auth",
        "app_registered",
        "scopes_ceiling_updated",
        "app_secret_rotated",
        "launch_token_issued",
        "token_revoked",
        "signing_key_rotated",
        "app_deregistered",
        "operator_added",
        "operator_secret_rotated",
        "operator_removed",
    ]
    assert {event["event_type"] for event in own_broker.events(principal="admin")} == {"admin_auth", "operator_added"}


def test_a_denial_names_the_operator_too(own_broker: BrokerProcess) -> None:
    ana = header(own_broker, "ana", add(own_broker, "ana")["secret"])
    problem(own_broker.http.post("/v1/app/launch-tokens", json={}, headers=ana), 403, "insufficient_scope")
    assert [event["principal"] for event in own_broker.events(event_type="scope_violation")] == ["admin:ana"]


def test_a_new_secret_ends_what_was_granted_on_the_old_one_and_nothing_else(own_broker: BrokerProcess) -> None:
    first = add(own_broker, "ana")["secret"]
    ana, bo = header(own_broker, "ana", first), header(own_broker, "bo", add(own_broker, "bo")["secret"])
    admin = own_broker.admin()
    rotated = own_broker.http.post(f"{OPERATORS}/ana/secret", headers=ana).json()
    assert rotated["secret"] != first
    assert [own_broker.is_valid(token_of(each)) for each in (ana, bo, admin)] == [False, True, True]
    problem(login(own_broker, first, name="ana"), 401, "unauthorized")
    assert login(own_broker, rotated["secret"], name="ana").status_code == 200
    [ended] = own_broker.events(event_type="token_revoked")
    assert (ended["principal"], ended["data"]["operator"], ended["data"]["reason"]) == (
        "admin:ana",
        "ana",
        "secret_rotated",
    )
    [event] = own_broker.events(event_type="operator_secret_rotated")
    assert event["data"] == {"name": "ana", "revision": 2, "grants_ended": 1}


def test_a_removed_operator_is_out_at_once_and_for_good(own_broker: BrokerProcess) -> None:
    secret = add(own_broker, "ana")["secret"]
    ana = header(own_broker, "ana", secret)
    removed = own_broker.http.delete(f"{OPERATORS}/ana", headers=own_broker.admin())
    assert (removed.status_code, removed.json()["status"]) == (200, "removed")
    problem(own_broker.http.get("/v1/admin/apps", headers=ana), 403, "insufficient_scope")
    problem(login(own_broker, secret, name="ana"), 401, "unauthorized")
    assert own_broker.http.delete(f"{OPERATORS}/ana", headers=own_broker.admin()).json() == removed.json()
    assert len(own_broker.events(event_type="operator_removed")) == 1
    [ended] = own_broker.events(event_type="token_revoked")
    assert ended["data"]["reason"] == "operator_removed"
    own_broker.kill()
    own_broker.start()
    assert not own_broker.is_valid(token_of(ana))
    problem(login(own_broker, secret, name="ana"), 401, "unauthorized")


def test_the_name_of_one_who_was_removed_may_be_taken_again(own_broker: BrokerProcess) -> None:
    old = add(own_broker, "ana")["secret"]
    own_broker.http.delete(f"{OPERATORS}/ana", headers=own_broker.admin())
    new = add(own_broker, "ana")["secret"]
    problem(login(own_broker, old, name="ana"), 401, "unauthorized")
    assert login(own_broker, new, name="ana").status_code == 200
    assert [event["data"]["revision"] for event in own_broker.events(event_type="operator_added")] == [1, 3]


def test_operators_are_listed_by_name_and_without_their_secrets(own_broker: BrokerProcess) -> None:
    for name in ("bo", "ana"):
        add(own_broker, name)
    own_broker.http.delete(f"{OPERATORS}/bo", headers=own_broker.admin())
    listed = own_broker.http.get(OPERATORS, headers=own_broker.admin())
    assert [(each["name"], each["status"]) for each in listed.json()["operators"]] == [
        ("admin", "active"),
        ("ana", "active"),
        ("bo", "removed"),
    ]
    assert "argon2" not in listed.text


def test_a_secret_can_be_given_plain_or_as_its_hash(own_broker: BrokerProcess) -> None:
    assert "secret" not in add(own_broker, "ana", secret="a secret of ana's")
    assert "secret" not in add(own_broker, "bo", secret=hash_password("a secret of bo's"))
    assert login(own_broker, "a secret of ana's", name="ana").status_code == 200
    assert login(own_broker, "a secret of bo's", name="bo").status_code == 200
    given = {"secret": "another secret of bo's"}
    assert own_broker.http.post(f"{OPERATORS}/bo/secret", json=given, headers=own_broker.admin()).status_code == 200
    assert login(own_broker, "another secret of bo's", name="bo").status_code == 200
    database = (own_broker.data_dir / "agentwrit.db").read_bytes()
    database += (own_broker.data_dir / "agentwrit.db-wal").read_bytes()
    assert b"$argon2id$" in database
    assert b"of ana's" not in database


@pytest.mark.parametrize(
    ("body", "status", "error_code", "said"),
    [
        ({"name": "Ana"}, 400, "invalid_request", "name is not"),
        ({"name": ""}, 400, "invalid_request", "name"),
        ({}, 400, "invalid_request", "name"),
        ({"name": "ana", "secret": "short"}, 400, "invalid_request", "8 characters"),
        ({"name": "ana", "secret": ""}, 400, "invalid_request", "8 characters"),
        ({"name": "ana", "secret": 12345678}, 400, "invalid_request", "secret"),
        (
            {"name": "ana", "secret": "$argon2id$v=19$m=4194304,t=9,p=1$c29tZXNhbHRzYWx0$" + "A" * 43},
            400,
            "invalid_request",
            "another cost",
        ),
        ({"name": "admin"}, 409, "conflict", "exists"),
    ],
)
def test_what_cannot_be_added_is_refused_by_name(
    broker: BrokerProcess, body: dict[str, object], status: int, error_code: str, said: str
) -> None:
    answer = broker.http.post(OPERATORS, json=body, headers=broker.admin())
    assert said in problem(answer, status, error_code)["detail"]


def test_who_is_no_operator_is_not_found(broker: BrokerProcess) -> None:
    for method, path in (("DELETE", f"{OPERATORS}/nobody"), ("POST", f"{OPERATORS}/nobody/secret")):
        problem(broker.http.request(method, path, headers=broker.admin()), 404, "not_found")


def test_what_a_setting_sets_is_not_changed_elsewhere(own_broker: BrokerProcess) -> None:
    """The next start would undo it."""
    add(own_broker, "ana")
    for method, path in (("DELETE", f"{OPERATORS}/admin"), ("POST", f"{OPERATORS}/admin/secret")):
        refused = problem(own_broker.http.request(method, path, headers=own_broker.admin()), 409, "conflict")
        assert "AGENTWRIT_ADMIN_SECRET" in refused["detail"]


def test_the_first_operator_can_go_when_another_one_is_left_and_come_back(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        ana = add(broker, "ana")["secret"]
        broker.stop()
        broker.settings["AGENTWRIT_ADMIN_SECRET"] = ""
        broker.start()
        by = header(broker, "ana", ana)
        rotated = broker.http.post(f"{OPERATORS}/admin/secret", headers=by).json()["secret"]
        problem(login(broker, ADMIN_SECRET), 401, "unauthorized")
        assert login(broker, rotated).status_code == 200
        assert broker.http.delete(f"{OPERATORS}/admin", headers=by).status_code == 200
        problem(login(broker, rotated), 401, "unauthorized")
        last = problem(broker.http.delete(f"{OPERATORS}/ana", headers=by), 409, "conflict")
        assert "last operator" in last["detail"]
        broker.stop()
        broker.start()  # without a first operator there is still one
        assert header(broker, "ana", ana)
        broker.stop()
        broker.settings["AGENTWRIT_ADMIN_SECRET"] = "the-first-operators-next-secret"
        broker.start()
        assert broker.is_valid(token_of(by))
        assert login(broker, "the-first-operators-next-secret").status_code == 200
        assert header(broker, "ana", ana)
