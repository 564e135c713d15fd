"""Behind the proxy of deploy/caddy, really running, brokers are replaced and no request fails."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx2

from agentwrit import AgentWritApp, AgentWritError
from tests.cluster.support import member
from tests.e2e.test_settings import free_port
from tests.support import BrokerProcess, TestApp

CADDY = str(Path(sys.executable).parent / "caddy")
CADDYFILE = Path(__file__).parents[2] / "deploy/caddy/Caddyfile"
DRAIN_SECONDS = 3  # the proxy asks every second
CALLERS = 4
SECONDS = 30  # for anything that is waited for


class Load:
    """Callers that ask one thing after the other through a proxy, and keep what failed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._is_over = threading.Event()
        self.failures: list[str] = []
        self.answered = 0
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        with httpx2.Client(base_url=self._url, timeout=10, trust_env=False) as http:
            while not self._is_over.is_set():
                try:
                    for answer in (http.get("/v1/challenge"), http.post("/v1/token/validate", json={"token": "none"})):
                        if answer.status_code != 200:
                            self.failures.append(f"{answer.status_code} {answer.text}")
                except httpx2.TransportError as error:
                    self.failures.append(repr(error))
                self.answered += 1


class Lives:
    """Agents that come and go, by the SDK: whole lives, one after the other."""

    def __init__(self, url: str, app: TestApp) -> None:
        self._app = AgentWritApp(url, app.client_id, app.client_secret)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._live)
        self.failures: list[str] = []
        self.count = 0

    def __enter__(self) -> "Lives":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._app.close()

    def _live(self) -> None:
        while not self._is_over.is_set():
            try:
                with self._app.create_agent("o", f"t-{self.count}", ["read:data:1"]) as agent:
                    self.count += 1
                    if not self._app.validate(agent.access_token).valid:
                        self.failures.append("refused while it lived")
                if self._app.validate(agent.access_token).valid:
                    self.failures.append("taken after its end")
            except AgentWritError as error:
                self.failures.append(repr(error))


@contextmanager
def caddy(directory: Path, *brokers: BrokerProcess, url: str = "") -> Iterator[str]:
    """The URL of a proxy with the configuration that we ship. `url`: the one that it is to have, if any."""
    url = url or f"http://127.0.0.1:{free_port()}"
    environment = {
        "HOME": str(directory),
        "SITE": url,
        "BROKERS": " ".join(broker.url.removeprefix("http://") for broker in brokers),
    }
    with (directory / "caddy.log").open("wb") as log:
        process = subprocess.Popen([CADDY, "run", "--config", str(CADDYFILE)], env=environment, stderr=log)
    try:
        yield url
    finally:
        process.terminate()
        assert process.wait(SECONDS) == 0


def until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline, f"waited in vain until {what}"


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def validations(broker: BrokerProcess) -> int:
    """How many a broker has answered since it started."""
    counts = broker.http.get("/v1/metrics").text
    lines = re.findall(r'^agentwrit_http_requests_total{.*"/v1/token/validate".*} (\S+)$', counts, re.MULTILINE)
    return int(sum(map(float, lines)))


def is_sent_requests(broker: BrokerProcess) -> bool:
    return validations(broker) > 20


def test_the_configuration_is_valid_and_in_its_own_form() -> None:
    for command in (["validate", "--config", str(CADDYFILE)], ["fmt", str(CADDYFILE)]):
        adapter = ["--adapter", "caddyfile"] if command[0] == "validate" else []
        done = subprocess.run([CADDY, *command, *adapter], capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        if command[0] == "fmt":
            assert done.stdout == CADDYFILE.read_text()


def test_brokers_are_replaced_one_by_one_and_nothing_fails(database_url: str, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    settings = {"AGENTWRIT_DRAIN_SECONDS": str(DRAIN_SECONDS), "AGENTWRIT_PUBLIC_URL": url}
    with ExitStack() as stack:
        brokers = [
            stack.enter_context(member(database_url, tmp_path / name, AGENTWRIT_PORT=str(free_port()), **settings))
            for name in ("one", "other")
        ]
        stack.enter_context(caddy(tmp_path, *brokers, url=url))
        until(partial(answers, url), "the proxy serves")
        app = brokers[0].app()
        with Load(url) as load, Lives(url, app) as lives:
            for broker in brokers:
                before, lived = load.answered, lives.count
                os.kill(broker.pid, signal.SIGTERM)
                assert broker.process.wait(SECONDS) == 0
                assert load.answered > before
                assert lives.count > lived
                broker.start()
                until(partial(is_sent_requests, broker), "it is back")
        assert (load.failures, lives.failures) == ([], [])
        made = brokers[0].events(app_id=app.app_id, event_type="agent_registered")
        assert len(made) == lives.count  # each exactly once, whatever the SDK tried again
        for broker in brokers:
            broker.kill()  # nobody is left who would be told


def test_a_broker_that_drains_is_sent_nothing_before_it_stops(tmp_path: Path) -> None:
    with (
        BrokerProcess(tmp_path / "one", AGENTWRIT_DRAIN_SECONDS="600") as leaving,
        BrokerProcess(tmp_path / "other") as staying,
        caddy(tmp_path, leaving, staying) as url,
    ):
        until(lambda: answers(url), "the proxy serves")
        with Load(url) as load:
            until(partial(is_sent_requests, leaving), "it is sent requests")
            os.kill(leaving.pid, signal.SIGTERM)

            def is_left_alone() -> bool:
                before, elsewhere = validations(leaving), validations(staying)
                until(lambda: validations(staying) > elsewhere + 50, "the other one is sent requests")
                return validations(leaving) == before

            until(is_left_alone, "the proxy sends it nothing more")
        os.kill(leaving.pid, signal.SIGINT)
        assert load.failures == []


def test_a_broker_that_dies_takes_no_request_with_it_that_changes_nothing(tmp_path: Path) -> None:
    with (
        BrokerProcess(tmp_path / "one") as dying,
        BrokerProcess(tmp_path / "other") as staying,
        caddy(tmp_path, dying, staying) as url,
        httpx2.Client(base_url=url, timeout=10, trust_env=False) as http,
    ):
        until(lambda: answers(url), "the proxy serves")
        dying.kill()
        assert [http.get("/v1/challenge").status_code for _ in range(100)] == [200] * 100
