"""Guessing secrets, and keeping others from using theirs."""

import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support import ADMIN_SECRET, BrokerProcess, problem


@pytest.mark.alone
def test_guessing_the_operators_secret_is_limited(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        answers = [broker.http.post("/v1/admin/auth", json={"secret": f"guess-{n}"}) for n in range(40)]
        limited = [answer for answer in answers if answer.status_code == 429]
        assert limited
        assert {answer.status_code for answer in answers} == {401, 429}
        problem(limited[0], 429, "rate_limited")
        assert int(limited[0].headers["retry-after"]) >= 1


def test_right_logins_are_not_limited(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        for _ in range(25):
            assert broker.http.post("/v1/admin/auth", json={"secret": ADMIN_SECRET}).status_code == 200


def test_an_app_cannot_be_locked_out_by_naming_its_client_id(broker: BrokerProcess) -> None:
    app = broker.app()
    guesses = [app.login("0" * 64) for _ in range(10)]
    assert [guess.status_code for guess in guesses] == [401] * 3 + [429] * 7
    assert app.login().status_code == 200


def test_an_unknown_client_and_a_wrong_secret_are_one_answer(broker: BrokerProcess) -> None:
    app = broker.app()
    wrong = problem(app.login("0" * 64), 401, "unauthorized")
    body = {"client_id": "client-0000000000000000", "client_secret": "0" * 64}
    unknown = problem(broker.http.post("/v1/app/auth", json=body), 401, "unauthorized")
    assert {**wrong, "request_id": ""} == {**unknown, "request_id": ""}


@pytest.mark.alone
def test_forwarded_addresses_do_not_get_around_the_limit(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        answers = [
            broker.http.post(
                "/v1/admin/auth", json={"secret": "guess"}, headers={"x-forwarded-for": f"198.51.100.{n}"}
            ).status_code
            for n in range(40)
        ]
        assert 429 in answers
        broker.stop()
        broker.start()  # the limit lives in memory, and bars this address's operator too
        assert {event["client_address"] for event in broker.events(event_type="admin_auth_failed")} == {"127.0.0.1"}


def test_a_trusted_proxys_word_is_taken_for_the_last_address_only(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_TRUSTED_PROXIES="127.0.0.0/8") as broker:
        headers = {"x-forwarded-for": "203.0.113.9, 198.51.100.7"}
        broker.http.post("/v1/admin/auth", json={"secret": "guess"}, headers=headers)
        [event] = broker.events(event_type="admin_auth_failed")
        assert event["client_address"] == "198.51.100.7"


def test_a_flood_of_bad_tokens_writes_one_event(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        for number in range(200):
            broker.http.get("/v1/admin/apps", headers={"authorization": f"Bearer bad-{number}"})
        assert len(broker.events(event_type="token_auth_failed")) == 1
        broker.stop()
        broker.start()
        first, counted = broker.events(event_type="token_auth_failed")
        assert "count" not in first["data"]
        assert counted["data"]["count"] == 199


def test_logins_at_the_same_time_are_bounded_and_the_rest_told_to_come_back(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker, ThreadPoolExecutor(10) as threads:
        answers = list(
            threads.map(lambda _: broker.http.post("/v1/admin/auth", json={"secret": ADMIN_SECRET}), range(10))
        )
        assert {answer.status_code for answer in answers} <= {200, 503, 429}
        assert 200 in {answer.status_code for answer in answers}
        for answer in answers:
            if answer.status_code == 503:
                assert answer.headers["retry-after"]


class Guessers:
    """Wrong logins from many addresses, each within its own limit, for as long as this is open."""

    def __init__(self, broker: BrokerProcess, addresses: int) -> None:
        self._host, port = broker.url.removeprefix("http://").split(":")
        self._port = int(port)
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._guess, args=(f"127.0.0.{number}",)) for number in range(2, 2 + addresses)
        ]

    def _guess(self, address: str) -> None:
        connection = http.client.HTTPConnection(self._host, self._port, source_address=(address, 0), timeout=30)
        while not self._is_over.is_set():
            connection.request("POST", "/v1/admin/auth", json.dumps({"secret": "guess-guess"}))
            connection.getresponse().read()
            self._is_over.wait(0.5)
        connection.close()

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()


def test_guesses_from_many_addresses_keep_no_operator_out(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        with Guessers(broker, 24):  # an operator who was never here waits for one guess of each address
            broker.admin()
        broker.stop()
        broker.start()
        with Guessers(broker, 24):  # and one who was, also before a restart, for one or two
            for name in ("ana", "bo"):  # likewise who has a password made
                answer = broker.http.post("/v1/admin/operators", json={"name": name}, headers=broker.admin())
                assert answer.status_code == 201


def test_a_secret_that_is_too_long_to_be_one_costs_no_check(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        process = psutil.Process(broker.pid)
        before = process.cpu_times().user
        for _ in range(8):
            problem(broker.http.post("/v1/admin/auth", json={"secret": "x" * 2000}), 401, "unauthorized")
        assert process.cpu_times().user - before < 0.1
        for secret in ("x" * 1025, "short"):
            answer = broker.http.post(
                "/v1/admin/operators", json={"name": "ana", "secret": secret}, headers=broker.admin()
            )
            problem(answer, 400, "invalid_request")
