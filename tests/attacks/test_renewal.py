"""Attempts to live longer, or twice."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support import SOAK, BrokerProcess, problem


def test_a_predecessor_presented_after_its_successor_was_renewed_ends_the_grant(broker: BrokerProcess) -> None:
    agent = broker.app().agent()
    second = broker.renew(agent["access_token"]).json()["access_token"]
    third = broker.renew(second).json()["access_token"]
    answer = problem(broker.renew(agent["access_token"]), 401, "unauthorized")
    assert answer["detail"] == "token renewal failed"
    assert not broker.is_valid(third)
    [event] = broker.events(agent_id=agent["agent_id"], event_type="token_revoked")
    assert event["data"]["reason"] == "renewal_reuse"


def test_a_superseded_token_used_elsewhere_is_merely_dead(broker: BrokerProcess) -> None:
    token = broker.app().agent()["access_token"]
    successor = broker.renew(token).json()["access_token"]
    assert not broker.is_valid(token)
    assert broker.http.get("/v1/audit/events", headers={"authorization": f"Bearer {token}"}).status_code == 403
    assert broker.is_valid(successor)


def test_renew_after_release(broker: BrokerProcess) -> None:
    token = broker.app().agent()["access_token"]
    broker.release(token)
    assert problem(broker.renew(token), 401, "unauthorized")["detail"] == "token renewal failed"


def test_renew_and_release_racing_leave_nothing_alive(broker: BrokerProcess) -> None:
    app = broker.app()
    with ThreadPoolExecutor(8) as threads:
        for _ in range(10 * SOAK):
            token = app.agent()["access_token"]
            renewals = [threads.submit(broker.renew, token) for _ in range(4)]
            release = threads.submit(broker.release, token)
            assert release.result().status_code == 204
            for renewal in renewals:
                answer = renewal.result()
                if answer.status_code == 200:
                    assert not broker.is_valid(answer.json()["access_token"])


def test_no_renewal_goes_past_the_grants_end(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_MAX_LIFETIME="400", AGENTWRIT_MAX_TTL="300") as broker:
        agent = broker.app().agent(max_ttl=300)
        token = agent["access_token"]
        end = broker.validate(token)["claims"]["iat"] + 400
        for _ in range(5):
            token = broker.renew(token).json()["access_token"]
            assert broker.validate(token)["claims"]["exp"] <= end
