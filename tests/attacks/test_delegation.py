"""Attempts to hand on more than is held, for longer, further, or to others."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support import BrokerProcess, bearer, problem, registration


def delegated(
    broker: BrokerProcess, by: dict[str, Any], to: dict[str, Any], *scopes: str, **fields: Any
) -> dict[str, Any]:
    answer = broker.delegate(by["access_token"], to["agent_id"], *scopes, **fields)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def claims(broker: BrokerProcess, token: str) -> dict[str, Any]:
    return dict(broker.validate(token)["claims"])


def exp(token: str) -> int:
    return int(json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["exp"])


def without_names(answer: httpx2.Response) -> dict[str, Any]:
    return {name: value for name, value in answer.json().items() if name != "request_id"}


def until_dead(broker: BrokerProcess, token: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while broker.is_valid(token):
        assert time.monotonic() < deadline


def test_delegation_to_self_for_a_day_lives_as_long_as_the_agents_own_token(broker: BrokerProcess) -> None:
    agent = broker.app().agent(max_ttl=2)
    to_self = delegated(broker, agent, agent, ttl=86_400)
    assert to_self["expires_in"] <= 2
    again = delegated(broker, to_self, agent, ttl=86_400)
    assert exp(again["access_token"]) <= exp(to_self["access_token"]) <= exp(agent["access_token"])
    renewed = broker.renew(again["access_token"]).json()
    assert exp(renewed["access_token"]) <= exp(agent["access_token"])
    until_dead(broker, renewed["access_token"], 4)


def test_delegation_to_self_counts_as_a_hop(broker: BrokerProcess) -> None:
    agent = broker.app().agent()
    holder = agent
    for depth in range(1, 6):
        holder = delegated(broker, holder, agent)
        assert len(holder["delegation_chain"]) == depth
    refused = broker.delegate(holder["access_token"], agent["agent_id"], "read:data:1")
    problem(refused, 403, "scope_violation")


def test_depth_six_is_refused_and_says_so_in_the_log(broker: BrokerProcess) -> None:
    app = broker.app()
    holder = app.agent("read:data:*")
    for _ in range(5):
        holder = delegated(broker, holder, app.agent(), "read:data:*")
    last = app.agent()
    answer = broker.delegate(holder["access_token"], last["agent_id"], "read:data:1")
    assert "5 hops" in problem(answer, 403, "scope_violation")["detail"]
    [event] = broker.events(
        event_type="delegation_attenuation_violation", agent_id=claims(broker, holder["access_token"])["sub"]
    )
    assert (event["outcome"], event["deleg_depth"]) == ("denied", 5)


@pytest.mark.parametrize("end", ["release", "revoke", "expire"])
def test_a_dead_agent_is_delegated_nothing(broker: BrokerProcess, end: str) -> None:
    app = broker.app()
    agent, dead = app.agent(), app.agent(max_ttl=1 if end == "expire" else 300)
    if end == "release":
        broker.release(dead["access_token"])
    elif end == "revoke":
        broker.revoke("agent", dead["agent_id"])
    else:
        until_dead(broker, dead["access_token"], 3)
    problem(broker.delegate(agent["access_token"], dead["agent_id"]), 404, "not_found")


def test_another_apps_agent_is_as_if_there_were_none(broker: BrokerProcess) -> None:
    agent, stranger = broker.app().agent(), broker.app().agent()
    answers = [
        broker.delegate(agent["access_token"], target)
        for target in (stranger["agent_id"], "spiffe://agentwrit.local/agent/o/t/0000000000000000", "nobody", "admin")
    ]
    assert len({str(without_names(answer)) for answer in answers}) == 1
    problem(answers[0], 404, "not_found")
    [first, *_] = broker.events(event_type="delegation_denied", agent_id=agent["agent_id"])
    assert first["data"]["delegate"] == stranger["agent_id"]


def test_agents_of_the_operator_form_one_app_of_their_own(broker: BrokerProcess) -> None:
    def launched() -> dict[str, Any]:
        policy = {"agent_name": "ops", "allowed_scope": ["read:data:1"]}
        token = broker.http.post("/v1/admin/launch-tokens", json=policy, headers=broker.admin()).json()["launch_token"]
        return dict(broker.http.post("/v1/register", json=registration(token, broker.nonce())).json())

    one, other, apps = launched(), launched(), broker.app().agent()
    assert broker.is_valid(delegated(broker, one, other)["access_token"])
    problem(broker.delegate(one["access_token"], apps["agent_id"]), 404, "not_found")
    problem(broker.delegate(apps["access_token"], one["agent_id"]), 404, "not_found")


def test_a_longer_ttl_is_cut_to_what_the_delegator_has(broker: BrokerProcess) -> None:
    app = broker.app()
    agent, other = app.agent(max_ttl=100), app.agent(max_ttl=3000)
    token = delegated(broker, agent, other, ttl=3000)["access_token"]
    assert exp(token) <= exp(agent["access_token"])
    later = broker.renew(agent["access_token"]).json()["access_token"]
    assert broker.is_valid(token)  # renewing the delegator leaves it alive
    renewed = broker.renew(token).json()["access_token"]
    assert exp(renewed) == exp(token) <= exp(later)


@pytest.mark.parametrize("ttl", [0, -1])
def test_a_ttl_that_is_none_is_refused(broker: BrokerProcess, ttl: int) -> None:
    agent = broker.app().agent()
    problem(broker.delegate(agent["access_token"], agent["agent_id"], ttl=ttl), 400, "invalid_ttl")


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        ("read:data:1", "read:data:2"),
        ("read:data:1", "read:data:*"),
        ("read:data:1", "write:data:1"),
        ("read:data:1", "read:data:1:2"),
        ("read:data:a*", "read:data:ab"),
    ],
)
def test_more_than_is_held_is_refused_and_what_is_held_is_told_to_the_operator_alone(
    broker: BrokerProcess, held: str, wanted: str
) -> None:
    app = broker.app()
    agent, other = app.agent(held), app.agent(held)
    answer = broker.delegate(agent["access_token"], other["agent_id"], held, wanted)
    told = problem(answer, 403, "scope_violation")["detail"]
    assert told == f"scope exceeds the delegator's scope: nothing there covers {wanted}"
    [event] = broker.events(event_type="delegation_attenuation_violation", agent_id=agent["agent_id"])
    assert event["outcome"] == "denied"
    assert event["data"] == {"scope_requested": [held, wanted], "scope_held": [held], "scope_exceeding": [wanted]}


@pytest.mark.parametrize(
    "scope", [[], [""], ["read:data"], ["read:*:1"], ["read:data:1 write:data:1"], ["read:data:\n"]]
)
def test_what_is_no_scope_is_refused(broker: BrokerProcess, scope: list[str]) -> None:
    agent = broker.app().agent("read:data:*")
    body = {"delegate_to": agent["agent_id"], "scope": scope}
    problem(broker.http.post("/v1/delegate", json=body, headers=bearer(agent["access_token"])), 400, "invalid_request")


def test_after_a_release_or_a_renewal_the_old_token_delegates_nothing(broker: BrokerProcess) -> None:
    agent = broker.app().agent()
    successor = broker.renew(agent["access_token"]).json()["access_token"]
    problem(broker.delegate(agent["access_token"], agent["agent_id"]), 403, "insufficient_scope")
    broker.release(successor)
    problem(broker.delegate(successor, agent["agent_id"]), 403, "insufficient_scope")


def test_apps_and_the_operator_delegate_nothing(broker: BrokerProcess) -> None:
    app = broker.app()
    agent = app.agent()
    operator = broker.admin()["authorization"].removeprefix("Bearer ")
    for token in (app.token(), operator):
        problem(broker.delegate(token, agent["agent_id"]), 403, "insufficient_scope")
    for token in ("nonsense", agent["access_token"] + "."):
        problem(broker.delegate(token, agent["agent_id"]), 401, "unauthorized")


@pytest.mark.parametrize("keep", ["", "?keep_grants=true"])
def test_a_narrowed_ceiling_bounds_what_is_delegated_from_then_on(broker: BrokerProcess, keep: str) -> None:
    app = broker.app("read:data:*")
    agent, other = app.agent("read:data:1", "read:data:2"), app.agent("read:data:1")
    before = delegated(broker, agent, other, "read:data:1")["access_token"]
    body = {"scopes": ["read:data:1"]}
    answer = broker.http.put(f"/v1/admin/apps/{app.app_id}{keep}", json=body, headers=broker.admin())
    if keep:
        assert answer.json()["grants_ended"] == 0
        refused = broker.delegate(agent["access_token"], other["agent_id"], "read:data:2")
        assert "ceiling" in problem(refused, 403, "scope_violation")["detail"]
        assert broker.delegate(agent["access_token"], other["agent_id"], "read:data:1").status_code == 200
        assert broker.is_valid(before)
    else:
        assert answer.json()["grants_ended"] == 2  # the agent's own, and what it had handed on
        problem(broker.delegate(agent["access_token"], other["agent_id"], "read:data:1"), 403, "insufficient_scope")
        assert not broker.is_valid(before)
        assert broker.is_valid(other["access_token"])


def test_removing_the_app_ends_every_delegation(broker: BrokerProcess) -> None:
    app = broker.app()
    agent = app.agent()
    token = delegated(broker, delegated(broker, agent, agent), agent)["access_token"]
    broker.http.delete(f"/v1/admin/apps/{app.app_id}", headers=broker.admin())
    assert not broker.is_valid(token)


def test_a_token_that_would_be_too_large_is_refused_and_leaves_nothing(broker: BrokerProcess) -> None:
    app = broker.app("read:data:*")
    scopes = [f"read:data:{number:02}{'x' * 40}" for number in range(40)]
    agent = app.agent(*scopes)
    before = len(broker.events(agent_id=agent["agent_id"]))
    answer = broker.delegate(agent["access_token"], agent["agent_id"], *scopes)
    assert problem(answer, 400, "invalid_request")["detail"].startswith("scope makes a token")
    assert len(broker.events(agent_id=agent["agent_id"])) == before


def test_release_kills_every_delegation_below_and_nothing_above(broker: BrokerProcess) -> None:
    app = broker.app()
    root, middle, leaf = app.agent("read:data:*"), app.agent(), app.agent()
    first = delegated(broker, root, middle, "read:data:*")
    second = delegated(broker, first, leaf, "read:data:7")
    third = delegated(broker, second, leaf, "read:data:7")
    broker.release(first["access_token"])
    for token in (first, second, third):
        assert not broker.is_valid(token["access_token"])
        assert broker.renew(token["access_token"]).status_code == 401
        assert broker.delegate(token["access_token"], leaf["agent_id"], "read:data:7").status_code == 403
    for token in (root, middle, leaf):
        assert broker.is_valid(token["access_token"])
    [released] = broker.events(event_type="token_released", agent_id=middle["agent_id"])
    fallen = broker.events(event_type="token_revoked", agent_id=leaf["agent_id"])
    assert {event["data"]["reason"] for event in fallen} == {"ancestor_ended"}
    assert [event["data"]["ended_with"] for event in fallen] == [released["sid"]] * 2


def test_the_end_of_a_registration_ends_what_was_delegated_to_that_agent_and_below(broker: BrokerProcess) -> None:
    app = broker.app()
    root, middle, leaf = app.agent("read:data:*"), app.agent(), app.agent()
    first = delegated(broker, root, middle, "read:data:7")
    second = delegated(broker, first, leaf, "read:data:7")
    broker.release(middle["access_token"])
    assert not broker.is_valid(first["access_token"])
    assert not broker.is_valid(second["access_token"])
    assert broker.is_valid(root["access_token"])
    assert broker.is_valid(leaf["access_token"])


def test_theft_of_a_delegated_token_ends_what_is_below_it(broker: BrokerProcess) -> None:
    app = broker.app()
    root, leaf = app.agent("read:data:*"), app.agent()
    stolen = delegated(broker, root, leaf, "read:data:7")
    below = delegated(broker, stolen, leaf, "read:data:7")
    second = broker.renew(stolen["access_token"]).json()["access_token"]
    third = broker.renew(second).json()["access_token"]
    assert broker.is_valid(below["access_token"])
    problem(broker.renew(stolen["access_token"]), 401, "unauthorized")
    assert not broker.is_valid(third)
    assert not broker.is_valid(below["access_token"])
    assert broker.is_valid(root["access_token"])


def test_nothing_that_died_with_an_ancestor_is_revived_by_a_crash(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        app = broker.app()
        root, leaf = app.agent("read:data:*"), app.agent()
        kept = delegated(broker, root, leaf, "read:data:7")
        dead = delegated(broker, kept, leaf, "read:data:7")
        broker.release(dead["access_token"])
        broker.kill()
        broker.start()
        assert broker.is_valid(kept["access_token"])
        assert not broker.is_valid(dead["access_token"])
        broker.release(root["access_token"])
        broker.kill()
        broker.start()
        assert not broker.is_valid(kept["access_token"])


# -- safe retries -----------------------------------------------------------------------------------------------------


def retried(broker: BrokerProcess, token: str, key: str, **body: Any) -> httpx2.Response:
    headers = {**bearer(token), "idempotency-key": key}
    return broker.http.post("/v1/delegate", json={"scope": ["read:data:1"], **body}, headers=headers)


def test_an_idempotency_key_gets_the_first_answer_again(broker: BrokerProcess) -> None:
    agent = broker.app().agent()
    to = agent["agent_id"]
    first = retried(broker, agent["access_token"], "k", delegate_to=to).json()
    again = retried(broker, agent["access_token"], "k", delegate_to=to).json()
    assert again["access_token"] == first["access_token"]
    assert again["delegation_chain"] == first["delegation_chain"]
    successor = broker.renew(agent["access_token"]).json()["access_token"]  # the grant is what asks
    assert retried(broker, successor, "k", delegate_to=to).json()["access_token"] == first["access_token"]
    assert len(broker.events(event_type="delegation_created", agent_id=to)) == 1


def test_an_idempotency_key_with_another_body_is_a_conflict(broker: BrokerProcess) -> None:
    agent = broker.app().agent()
    retried(broker, agent["access_token"], "k", delegate_to=agent["agent_id"])
    problem(retried(broker, agent["access_token"], "k", delegate_to=agent["agent_id"], ttl=7), 409, "conflict")


def test_anothers_idempotency_key_opens_nothing(broker: BrokerProcess) -> None:
    app = broker.app()
    one, other = app.agent(), app.agent()
    first = retried(broker, one["access_token"], "k", delegate_to=one["agent_id"]).json()
    second = retried(broker, other["access_token"], "k", delegate_to=one["agent_id"]).json()
    assert claims(broker, second["access_token"])["delegation_chain"][0]["agent"] == other["agent_id"]
    assert first["access_token"] != second["access_token"]


@pytest.mark.parametrize("key", ["", "x" * 129, "a b"])
def test_what_is_no_idempotency_key_is_refused(broker: BrokerProcess, key: str) -> None:
    agent = broker.app().agent()
    problem(retried(broker, agent["access_token"], key, delegate_to=agent["agent_id"]), 400, "invalid_request")
