"""Three brokers of one database are one: what holds for one holds for the set."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import psutil

from agentwrit.domain import audit
from tests import postgres
from tests.cli.support import run
from tests.cluster.support import MASTER_KEY, member
from tests.proofs import Creation
from tests.support import ADMIN_SECRET, BrokerProcess, TestApp, bearer, registration
from tests.wire.test_feed import following, page

T = TypeVar("T")

Brokers = Sequence[BrokerProcess]


def at(broker: BrokerProcess, app: TestApp) -> TestApp:
    """The same app, at another broker."""
    same = {"app_id": app.app_id, "client_id": app.client_id, "client_secret": app.client_secret}
    return TestApp(broker, app.name, same)


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What calls answer that begin together."""
    barrier = threading.Barrier(len(calls))

    def call(made: Callable[[], Any]) -> Any:
        barrier.wait()
        return made()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(call, calls))


def test_what_is_done_at_one_is_known_at_the_others(brokers: Brokers) -> None:
    first, second, third = brokers
    app = first.app()
    agent = at(second, app).agent()
    token = agent["access_token"]
    assert all(broker.is_valid(token) for broker in brokers)
    successor = third.renew(token).json()["access_token"]
    assert not any(broker.is_valid(token) for broker in brokers)
    assert all(broker.is_valid(successor) for broker in brokers)
    assert first.release(successor).status_code == 204
    assert not any(broker.is_valid(successor) for broker in brokers)


def test_limits_are_those_of_all_together(brokers: Brokers) -> None:
    first = brokers[0]
    crowded, hasty = first.app(max_live_agents=4), first.app(creates_per_second=1)
    for app, allowed in ((crowded, 4), (hasty, 1)):
        calls = [Creation(at(broker, app)).post for broker in brokers for _ in range(4)]
        answers = at_once(*calls)
        made = [answer.json() for answer in answers if answer.status_code == 201]
        assert len(made) >= allowed
        assert len(made) == allowed or app is hasty  # it may take a second
        assert {answer.status_code for answer in answers} == {201, 429}
    agents = first.http.get("/v1/agents", params={"app_id": crowded.app_id}, headers=first.admin()).json()["agents"]
    assert len(agents) == 4
    assert first.revoke("agent", agents[0]["agent_id"]) == 1
    assert [Creation(at(broker, crowded)).post().status_code for broker in brokers[1:]] == [201, 429]


def test_an_app_that_is_suspended_at_one_is_suspended_at_the_others_at_once(brokers: Brokers) -> None:
    first, second, third = brokers
    app = first.app()
    token = at(second, app).agent()["access_token"]
    path = f"/v1/admin/apps/{app.app_id}"
    assert third.http.post(f"{path}/suspend", headers=third.admin()).status_code == 200
    assert not any(broker.is_valid(token) for broker in brokers)
    assert {at(broker, app).login().status_code for broker in brokers} == {401}
    assert second.http.post(f"{path}/resume", headers=second.admin()).status_code == 200
    assert {at(broker, app).login().status_code for broker in brokers} == {200}
    assert not any(broker.is_valid(token) for broker in brokers)


def test_a_token_that_was_revoked_at_one_is_refused_at_the_others_at_once(brokers: Brokers) -> None:
    first, *others = brokers
    app = first.app()
    for _ in range(20):
        token = app.agent()["access_token"]
        assert all(broker.is_valid(token) for broker in others)
        assert first.release(token).status_code == 204
        assert not any(broker.is_valid(token) for broker in others)


def test_a_launch_token_is_used_once_whoever_is_asked(brokers: Brokers) -> None:
    app = brokers[0].app()
    for _ in range(5):
        launch_token = app.launch_token()
        bodies = [registration(launch_token, broker.nonce()) for broker in brokers]
        answers = at_once(
            *(
                lambda broker=broker, body=body: broker.http.post("/v1/register", json=body).status_code
                for broker, body in zip(brokers, bodies, strict=True)
            )
        )
        assert sorted(answers) == [200, 401, 401]


def test_a_nonce_is_used_once_whoever_made_it(brokers: Brokers) -> None:
    app = brokers[0].app()
    nonce = brokers[0].nonce()
    bodies = [registration(app.launch_token(), nonce) for _ in brokers]
    answers = [
        broker.http.post("/v1/register", json=body).status_code
        for broker, body in zip(brokers[::-1], bodies, strict=True)
    ]
    assert answers == [200, 401, 401]


def test_a_renewal_raced_at_three_brokers_gives_one_successor(brokers: Brokers) -> None:
    token = brokers[0].app().agent()["access_token"]
    answers = at_once(*(lambda broker=broker: broker.renew(token) for broker in brokers))
    assert [answer.status_code for answer in answers] == [200] * 3
    [successor] = {answer.json()["access_token"] for answer in answers}
    assert all(broker.is_valid(successor) for broker in brokers)


def test_there_is_one_log_and_one_tree_whoever_is_asked(brokers: Brokers) -> None:
    registered = brokers[0].app()
    apps = [at(broker, registered) for broker in brokers]

    def live(app: TestApp) -> None:
        for _ in range(10):
            app.broker.release(app.agent()["access_token"])

    at_once(*(lambda app=app: live(app) for app in apps))
    logs = [broker.events() for broker in brokers]
    assert len(brokers[0].events(event_type="token_released", app_id=registered.app_id)) == 30
    for broker in brokers:
        verified = run("audit", "verify", AGENTWRIT_BROKER_URL=broker.url, AGENTWRIT_ADMIN_SECRET=ADMIN_SECRET)
        assert verified.returncode == 0, verified.stderr
    shortest = min(map(len, logs))
    assert [log[:shortest] for log in logs] == [logs[0][:shortest]] * 3
    assert [event["id"] for event in logs[0]] == [audit.event_id(number + 1) for number in range(len(logs[0]))]


def test_a_key_that_one_broker_made_sign_is_believed_at_the_others(brokers: Brokers) -> None:
    first, second, third = brokers
    app = first.app()
    before = app.agent()["access_token"]
    forced = first.http.post(
        "/v1/admin/keys/rotate", json={"purpose": "access_token", "force": True}, headers=first.admin()
    )
    assert forced.status_code == 200, forced.text
    after = app.agent()["access_token"]
    assert all(broker.is_valid(token) for broker in brokers for token in (before, after))
    revoked = forced.json()["active"]["kid"]
    answer = second.http.post(f"/v1/admin/keys/{revoked}/revoke", json={"reason": "a test"}, headers=second.admin())
    assert answer.status_code == 200, answer.text
    assert not any(broker.is_valid(after) for broker in brokers)
    assert all(broker.is_valid(before) for broker in brokers)
    assert third.is_valid(at(third, app).agent()["access_token"])


def test_brokers_that_start_together_make_one_operator_and_one_set_of_keys(database_url: str, tmp_path: Path) -> None:
    started = at_once(
        *(lambda number=number: member(database_url, tmp_path / f"broker-{number}") for number in range(3))
    )
    try:
        events = [event["event_type"] for event in started[0].events() if event["event_type"] != "admin_auth"]
        assert sorted(events) == ["admin_secret_set"] + ["signing_key_created"] * 6
        assert len({broker.http.get("/.well-known/jwks.json").text for broker in started}) == 1
    finally:
        for broker in started:
            broker.stop()


def test_an_operators_token_and_an_apps_token_hold_at_every_broker(brokers: Brokers) -> None:
    first, second, third = brokers
    app = first.app()
    assert second.http.get("/v1/admin/apps", headers=first.admin()).status_code == 200
    body = {"agent_name": "a", "allowed_scope": ["read:data:1"]}
    answer = third.http.post("/v1/app/launch-tokens", json=body, headers=bearer(app.token()))
    assert answer.status_code == 201


def test_the_feed_goes_on_at_another_broker(own_brokers: Brokers) -> None:
    first, second, third = own_brokers
    app = first.app()
    first.release(app.agent()["access_token"])
    known = page(first, 0)
    assert known["last"] > 0
    with following(third, known["last"]) as pages:
        assert next(pages)["first"] == known["last"] + 1
        first.kill()
        token = at(second, app).agent()["access_token"]
        second.release(token)
        followed = next(page for page in pages if page["entries"])
    assert followed["epoch"] == known["epoch"]
    assert followed["first"] == known["last"] + 1
    assert page(second, known["last"])["entries"] == followed["entries"]


def test_one_broker_keeps_house_and_another_takes_over_when_it_is_killed(
    own_brokers: Brokers, database_url: str
) -> None:
    def holders() -> list[BrokerProcess]:
        held = (
            "SELECT client_port FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE locktype = 'advisory' AND granted AND datname = current_database()"
        )
        ports = [port for [port] in postgres.ask(database_url, held)]
        return [broker for broker in own_brokers if broker.process.poll() is None and local_ports(broker) & set(ports)]

    [before] = wait_for(holders)
    before.kill()
    [after] = wait_for(holders)
    assert after is not before


def local_ports(broker: BrokerProcess) -> set[int]:
    return {connection.laddr.port for connection in psutil.Process(broker.pid).net_connections()}


def wait_for(look: Callable[[], list[T]]) -> list[T]:
    """What is there as soon as something is."""
    waiting = threading.Event()
    for _ in range(200):
        found = look()
        if found:
            return found
        waiting.wait(0.1)
    raise AssertionError("nothing came")


def counted(http: httpx2.Client, name: str) -> float:
    lines = http.get("/v1/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_workers_serve_one_port_and_one_that_is_killed_is_started_again(database_url: str, tmp_path: Path) -> None:
    with member(database_url, tmp_path / "workers", AGENTWRIT_WORKERS="2") as broker:
        app = broker.app()
        token = app.agent()["access_token"]
        workers = psutil.Process(broker.process.pid).children()
        assert len(workers) == 2
        workers[0].kill()
        wait_for(lambda: [log for log in [broker.log.read_text()] if log.count("a worker serves") == 3])
        broker.http.close()
        with httpx2.Client(base_url=broker.url, trust_env=False) as http:
            assert http.post("/v1/token/validate", json={"token": token}).json()["valid"]
        # Whoever is asked, on however many connections, tells no less than was told before, and in the end all.
        told = [0.0]
        for _ in range(8):
            with httpx2.Client(base_url=broker.url, trust_env=False) as http:
                http.post("/v1/token/validate", json={"token": token})
                told.append(counted(http, "agentwrit_validations_total"))
        assert told == sorted(told)
        with httpx2.Client(base_url=broker.url, trust_env=False) as http:
            wait_for(lambda: [all_ for all_ in [counted(http, "agentwrit_validations_total")] if all_ >= len(told)])
            wait_for(lambda: [one for one in [counted(http, "agentwrit_in_charge")] if one == 1])
            assert counted(http, "agentwrit_commit_seconds_count") > 0
            assert counted(http, "agentwrit_lock_wait_seconds_count") > 0
            assert counted(http, "agentwrit_barrier_seconds_count") > 0
            assert counted(http, "agentwrit_audit_log_head") > 0
        assert len(psutil.Process(broker.process.pid).children()) == 2
        assert broker.stop() == 0
    assert MASTER_KEY not in broker.log.read_text()
