"""Guessing who is an operator, and operators against each other."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support import BrokerProcess, bearer, problem
from tests.wire.test_operators import OPERATORS, add, header, login


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path / "data") as broker:
        yield broker


def test_unknown_removed_and_wrong_are_one_answer_in_one_time(own_broker: BrokerProcess) -> None:
    secret = add(own_broker, "gone")["secret"]
    own_broker.http.delete(f"{OPERATORS}/gone", headers=own_broker.admin())
    add(own_broker, "ana")
    broker = psutil.Process(own_broker.pid)
    answers, seconds = {}, {}
    for name, given in (("ana", "a wrong secret"), ("nobody", "a wrong secret"), ("gone", secret)):
        before = broker.cpu_times()
        for _ in range(3):
            answers[name] = {**problem(login(own_broker, given, name=name), 401, "unauthorized"), "request_id": ""}
        after = broker.cpu_times()
        seconds[name] = after.user + after.system - before.user - before.system
    assert answers["ana"] == answers["nobody"] == answers["gone"]
    # Of the processor: others at work on this machine do not count. Without a hash it is a tenth of that.
    assert max(seconds.values()) < 3 * min(seconds.values()), seconds


@pytest.mark.alone
def test_naming_others_does_not_get_around_the_limit(own_broker: BrokerProcess) -> None:
    answers = [login(own_broker, "guess", name=f"operator-{number}").status_code for number in range(40)]
    assert set(answers) == {401, 429}


def test_a_name_that_is_none_leaves_no_trace_in_the_log(own_broker: BrokerProcess) -> None:
    """People have been known to put the secret in the name's place."""
    for name in ("hunter2-hunter2", "\0", "x" * 100_000, "'; DROP TABLE operators; --", "admin:ana", "Admin"):
        problem(login(own_broker, "guess-guess", name=name), 401, "unauthorized")
    problem(login(own_broker, "guess-guess", name=7), 400, "invalid_request")
    events = own_broker.events(event_type="admin_auth_failed")
    assert not any("principal" in event for event in events)
    assert "hunter2" not in str(events)


def test_guesses_at_one_operator_do_not_hide_among_those_at_another(own_broker: BrokerProcess) -> None:
    for name in ("ana", "bo"):
        add(own_broker, name)
    for name in ("ana", "bo", "ana", "bo", "nobody", "no-one"):
        login(own_broker, "guess-guess", name=name)
    events = own_broker.events(event_type="admin_auth_failed")
    assert [event["data"].get("name") for event in events] == ["ana", "bo", None]


def test_one_operators_secret_is_not_anothers(own_broker: BrokerProcess) -> None:
    ana, bo = add(own_broker, "ana")["secret"], add(own_broker, "bo")["secret"]
    for secret, name in ((ana, "bo"), (bo, "ana"), (ana, "admin"), (ana, "")):
        problem(login(own_broker, secret, name=name), 401, "unauthorized")
    problem(login(own_broker, ana), 401, "unauthorized")


def test_apps_and_agents_do_not_manage_operators(own_broker: BrokerProcess) -> None:
    app = own_broker.app()
    for token in (app.token(), app.agent()["access_token"]):
        for method, path in (
            ("POST", OPERATORS),
            ("GET", OPERATORS),
            ("DELETE", f"{OPERATORS}/admin"),
            ("POST", f"{OPERATORS}/admin/secret"),
        ):
            answer = own_broker.http.request(method, path, json={"name": "ana"}, headers=bearer(token))
            problem(answer, 403, "insufficient_scope")
    assert [
        each["name"] for each in own_broker.http.get(OPERATORS, headers=own_broker.admin()).json()["operators"]
    ] == ["admin"]


def test_of_two_who_remove_each_other_one_stays(own_broker: BrokerProcess) -> None:
    for attempt in range(5):
        names = [f"ana-{attempt}", f"bo-{attempt}"]
        headers = [header(own_broker, name, add(own_broker, name)["secret"]) for name in names]
        with ThreadPoolExecutor(2) as threads:
            answers = list(
                threads.map(
                    lambda pair: own_broker.http.delete(f"{OPERATORS}/{pair[0]}", headers=pair[1]).status_code,
                    zip(reversed(names), headers, strict=True),
                )
            )
        assert sorted(answers) == [200, 403]


def test_of_two_who_add_one_name_one_does(own_broker: BrokerProcess) -> None:
    admin = own_broker.admin()
    with ThreadPoolExecutor(4) as threads:
        answers = list(
            threads.map(
                lambda _: own_broker.http.post(OPERATORS, json={"name": "ana"}, headers=admin).status_code, range(4)
            )
        )
    assert sorted(answers) == [201, 409, 409, 409]


def test_a_login_races_a_new_secret_and_does_not_outlive_it(own_broker: BrokerProcess) -> None:
    secret = add(own_broker, "ana")["secret"]
    admin = own_broker.admin()
    with ThreadPoolExecutor(3) as threads:
        logins = [threads.submit(login, own_broker, secret, name="ana") for _ in range(2)]
        assert own_broker.http.post(f"{OPERATORS}/ana/secret", headers=admin).status_code == 200
    for answer in (each.result() for each in logins):
        if answer.status_code == 200:
            assert not own_broker.is_valid(answer.json()["access_token"])
