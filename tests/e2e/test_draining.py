"""A broker that is told to stop says so before it does, and what is asked of it meanwhile is answered."""

import os
import signal
import time
from pathlib import Path

import httpx2
import pytest

from agentwrit.broker.config import Config
from agentwrit.broker.offline.verification import verify_audit_log
from agentwrit.domain.audit_export import unwatched
from tests.cluster.support import member
from tests.support import PLAIN, BrokerProcess, problem

LONG = "600"  # seconds; a test that waited for its end would fail


def tell(broker: BrokerProcess, number: signal.Signals) -> None:
    os.kill(broker.pid, number)


def wait_until_unready(broker: BrokerProcess) -> httpx2.Response:
    # The signal reaches the broker's loop some time after `kill` has returned; the broker is asked until it has.
    deadline = time.monotonic() + 10
    while (answer := broker.http.get("/readyz")).status_code == 200:
        assert time.monotonic() < deadline
    return answer


def test_a_broker_that_drains_is_not_ready_and_serves_on(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_DRAIN_SECONDS=LONG) as broker:
        app = broker.app()
        assert broker.http.get("/readyz").status_code == 200
        tell(broker, signal.SIGTERM)
        problem(wait_until_unready(broker), 503, "unavailable")
        assert broker.http.get("/livez").status_code == broker.http.get("/v1/health").status_code == 200
        token = app.agent()["access_token"]
        assert broker.is_valid(token)
        assert broker.release(token).status_code == 204
        assert not broker.is_valid(token)
        tell(broker, signal.SIGTERM)  # the second: somebody is in a hurry
        assert broker.process.wait(20) == 0


def test_connections_are_let_go_with_the_answers_of_a_broker_that_drains(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_DRAIN_SECONDS=LONG) as broker:
        assert "connection" not in broker.http.get("/livez").headers
        tell(broker, signal.SIGTERM)
        wait_until_unready(broker)
        assert broker.http.get("/livez").headers["connection"] == "close"
        tell(broker, signal.SIGINT)


def test_a_terminal_that_closes_ends_a_broker_like_any_other_and_the_log_is_covered_to_its_end(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_DRAIN_SECONDS=LONG) as broker:
        broker.app().agent()
        tell(broker, signal.SIGHUP)
        assert broker.process.wait(20) == 0
        said = broker.log.read_text()
        assert '"stopped"' in said
    count, covered = verify_audit_log(broker.data_dir, Config(), (), progress=unwatched)
    assert covered is not None
    assert covered.size == count


def test_a_broker_whose_terminal_is_to_be_ignored_serves_on(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", wrapper=("nohup",)) as broker:
        tell(broker, signal.SIGHUP)
        assert broker.http.get("/readyz").status_code == 200


def test_it_stops_by_itself_when_it_has_drained(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_DRAIN_SECONDS="1") as broker:
        asked_at = time.monotonic()
        tell(broker, signal.SIGTERM)
        wait_until_unready(broker)
        assert broker.process.wait(20) == 0
        assert time.monotonic() - asked_at >= 1
        said = broker.log.read_text()
        assert said.index('"draining"') < said.index('"stopping"') < said.index('"stopped"')


@pytest.mark.parametrize("is_draining", [False, True], ids=["serving", "draining"])
def test_ctrl_c_never_waits(tmp_path: Path, is_draining: bool) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_DRAIN_SECONDS=LONG) as broker:
        if is_draining:
            tell(broker, signal.SIGTERM)
            wait_until_unready(broker)
        tell(broker, signal.SIGINT)
        assert broker.process.wait(20) == 0


def test_nothing_drains_unless_it_is_told_to(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        assert broker.stop() == 0
        assert '"draining"' not in broker.log.read_text()


def test_workers_drain_together_and_their_keeper_waits_for_them(database_url: str, tmp_path: Path) -> None:
    settings = {"AGENTWRIT_WORKERS": "2", "AGENTWRIT_DRAIN_SECONDS": LONG}
    with member(database_url, tmp_path / "data", **settings) as broker:
        token = broker.app().agent()["access_token"]
        tell(broker, signal.SIGTERM)
        deadline = time.monotonic() + 10
        # Each connection may be another worker's.
        unready = 0
        while unready < 20:
            unready = (
                unready + 1
                if httpx2.get(f"{broker.url}/readyz", trust_env=False, verify=PLAIN).status_code == 503
                else 0
            )
            assert time.monotonic() < deadline
        assert broker.is_valid(token)
        tell(broker, signal.SIGTERM)
        assert broker.process.wait(20) == 0


def test_workers_stop_by_themselves_when_they_have_drained(database_url: str, tmp_path: Path) -> None:
    settings = {"AGENTWRIT_WORKERS": "2", "AGENTWRIT_DRAIN_SECONDS": "1"}
    with member(database_url, tmp_path / "data", **settings) as broker:
        tell(broker, signal.SIGTERM)
        assert broker.process.wait(20) == 0
        said = broker.log.read_text()
        assert said.count('"draining"') == 3  # the keeper, and each worker
        assert "started again" not in said
