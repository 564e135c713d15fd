"""Suspending an app, and resuming it: what dies, what is refused, and what comes back."""

from typing import Any

import httpx2
import pytest

from tests.proofs import Creation
from tests.support import BrokerProcess, TestApp, bearer, problem, registration
from tests.wire.test_feed import digest, head, page


def suspend(app: TestApp) -> httpx2.Response:
    return app.broker.http.post(f"/v1/admin/apps/{app.app_id}/suspend", headers=app.broker.admin())


def resume(app: TestApp) -> httpx2.Response:
    return app.broker.http.post(f"/v1/admin/apps/{app.app_id}/resume", headers=app.broker.admin())


def test_a_suspended_app_and_its_agents_are_dead_at_once(broker: BrokerProcess) -> None:
    app, other = broker.app(), broker.app()
    token = app.token()
    root, leaf, stranger = app.agent(), app.agent(), other.agent()
    delegated = broker.delegate(root["access_token"], leaf["agent_id"]).json()["access_token"]
    held = [token, root["access_token"], leaf["access_token"], delegated]
    answer = suspend(app)
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["app_id"]) == ("suspended", app.app_id)
    assert answer.json()["grants_ended"] >= len(held)
    assert not any(broker.is_valid(each) for each in held)
    assert broker.is_valid(stranger["access_token"])
    problem(broker.renew(root["access_token"]), 401, "unauthorized")
    problem(broker.delegate(root["access_token"], leaf["agent_id"]), 403, "insufficient_scope")
    shown = broker.http.get(f"/v1/admin/apps/{app.app_id}", headers=broker.admin()).json()
    assert shown["status"] == "suspended"


def test_nobody_can_tell_a_suspended_app_from_one_that_is_not_there(broker: BrokerProcess) -> None:
    app, removed = broker.app(), broker.app()
    launch_token = app.launch_token()
    suspend(app)
    broker.http.delete(f"/v1/admin/apps/{removed.app_id}", headers=broker.admin())

    def told(answer: httpx2.Response) -> dict[str, Any]:
        return {**problem(answer, 401, "unauthorized"), "request_id": ""}

    unknown = broker.http.post("/v1/app/auth", json={"client_id": "client-none", "client_secret": "s"})
    assert told(app.login()) == told(removed.login()) == told(app.login("wrong")) == told(unknown)
    refused = broker.http.post("/v1/register", json=registration(launch_token, broker.nonce()))
    forged = broker.http.post("/v1/register", json=registration("00" * 32, broker.nonce()))
    assert told(refused) == told(forged)
    form = {"grant_type": "client_credentials", "client_id": app.client_id, "client_secret": app.client_secret}
    assert broker.http.post("/oauth2/token", data=form).json()["error"] == "invalid_client"


def test_resumed_it_logs_in_with_the_same_secret_and_nothing_else_comes_back(broker: BrokerProcess) -> None:
    app = broker.app()
    token, agent, launch_token = app.token(), app.agent(), app.launch_token(ttl=600, single_use=False)
    creation = Creation(app)
    assert creation.post(key="k").status_code == 201
    suspend(app)
    answer = resume(app)
    assert (answer.status_code, answer.json()["status"]) == (200, "active")
    assert not broker.is_valid(token)
    assert not broker.is_valid(agent["access_token"])
    problem(broker.http.post("/v1/register", json=registration(launch_token, broker.nonce())), 401, "unauthorized")
    problem(creation.post(key="k"), 403, "insufficient_scope")
    assert app.login().status_code == 200
    assert broker.is_valid(app.agent()["access_token"])


def test_suspending_and_resuming_again_do_nothing_more(broker: BrokerProcess) -> None:
    app = broker.app()
    first = resume(app).json()
    assert first["status"] == "active"
    suspended = suspend(app).json()
    again = suspend(app).json()
    assert (again["grants_ended"], {**again, "grants_ended": 0}) == (0, {**suspended, "grants_ended": 0})
    resumed = resume(app).json()
    agent = app.agent()
    assert resume(app).json() == resumed
    assert broker.is_valid(agent["access_token"])
    types = [event["event_type"] for event in broker.events(app_id=app.app_id) if "token" not in event["event_type"]]
    assert [kind for kind in types if kind in ("app_suspended", "app_resumed")] == ["app_suspended", "app_resumed"]


def test_a_suspension_is_in_the_log_with_all_that_it_ended(broker: BrokerProcess) -> None:
    app = broker.app()
    agent = app.agent()
    ended = suspend(app).json()["grants_ended"]
    [event] = broker.events(app_id=app.app_id, event_type="app_suspended")
    assert (event["principal"], event["outcome"], event["data"]["grants_ended"]) == ("admin", "success", ended)
    revoked = broker.events(app_id=app.app_id, event_type="token_revoked")
    assert [each["data"]["reason"] for each in revoked] == ["app_suspended"] * ended
    assert agent["agent_id"] in {each.get("agent_id") for each in revoked}


def test_who_follows_the_feed_learns_of_all_that_died(broker: BrokerProcess) -> None:
    app = broker.app()
    agents = [app.agent() for _ in range(3)]
    sids = {broker.validate(agent["access_token"])["claims"]["sid"] for agent in agents}
    before = head(broker)
    ended = suspend(app).json()["grants_ended"]
    assert ended == len(agents) * 2  # each had a login for it
    news = page(broker, before)
    assert news["head"] == before + ended
    assert {digest(sid) for sid in sids} <= {name for _, name, _, _ in news["entries"]}


def test_a_suspended_app_can_be_changed_and_given_a_new_secret(broker: BrokerProcess) -> None:
    app = broker.app()
    suspend(app)
    path = f"/v1/admin/apps/{app.app_id}"
    assert broker.http.put(path, json={"max_ttl": 60}, headers=broker.admin()).json()["status"] == "suspended"
    rotated = broker.http.post(f"{path}/secret", headers=broker.admin()).json()
    problem(app.login(rotated["client_secret"]), 401, "unauthorized")
    resume(app)
    problem(app.login(), 401, "unauthorized")
    assert app.login(rotated["client_secret"]).status_code == 200


def test_a_suspended_app_keeps_its_name_and_can_be_removed_for_good(broker: BrokerProcess) -> None:
    app = broker.app()
    suspend(app)
    body = {"name": app.name, "scopes": ["a:b:c"]}
    problem(broker.http.post("/v1/admin/apps", json=body, headers=broker.admin()), 409, "conflict")
    removed = broker.http.delete(f"/v1/admin/apps/{app.app_id}", headers=broker.admin())
    assert removed.json()["status"] == "inactive"
    for act in (resume, suspend):
        assert "removed" in problem(act(app), 409, "conflict")["detail"]
    assert broker.http.post("/v1/admin/apps", json=body, headers=broker.admin()).status_code == 201


@pytest.mark.parametrize("act", ["suspend", "resume"])
def test_only_the_operator_suspends_and_resumes_and_only_apps_that_there_are(broker: BrokerProcess, act: str) -> None:
    app = broker.app()
    path = f"/v1/admin/apps/{app.app_id}/{act}"
    problem(broker.http.post(path), 401, "unauthorized")
    for token in (app.token(), app.agent()["access_token"]):
        problem(broker.http.post(path, headers=bearer(token)), 403, "insufficient_scope")
    problem(broker.http.post(f"/v1/admin/apps/app-none/{act}", headers=broker.admin()), 404, "not_found")
    assert broker.http.get(path).status_code == 405
