"""Random histories of three brokers under faults are those of one broker, and a broker with a bug is found out."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import pytest

from tests import postgres
from tests.cli.support import run
from tests.cluster.support import member
from tests.history.checker import EVENTS, Logged, Operation, Told, Violation, check
from tests.history.clients import CLIENTS, Client, Shared
from tests.postgres import FAST, PostgresServer, free_port
from tests.support import ADMIN_SECRET, SOAK, BrokerProcess

SEED: Final = random.randrange(2**32)
FAULTS: Final = 4 * SOAK
BETWEEN_SECONDS: Final = 1.0  # of undisturbed work


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with closing(PostgresServer((*FAST, "max_connections=60"))) as own:
        yield own


class Cluster:
    """Three brokers, each at a port that it keeps when it is started again, and what can happen to them."""

    def __init__(self, server: PostgresServer, url: str, directory: Path, stack: ExitStack, module: str) -> None:
        self.server = server
        self.brokers = [
            stack.enter_context(
                member(url, directory / f"broker-{number}", module=module, AGENTWRIT_PORT=str(free_port()))
            )
            for number in range(3)
        ]

    def kill_a_broker(self, generator: random.Random) -> None:
        broker = generator.choice(self.brokers)
        broker.kill()
        broker.start()

    def cut_connections(self, generator: random.Random) -> None:
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'agentwrit'"
        postgres.ask(self.server.url, cut)

    def restart_the_server(self, generator: random.Random) -> None:
        self.server.restart(generator.choice(["fast", "immediate"]))

    def hang(self, generator: random.Random) -> None:
        self.server.freeze()
        try:
            time.sleep(generator.uniform(0.1, 3))  # that is the fault
        finally:
            self.server.thaw()

    @property
    def faults(self) -> Sequence[Callable[[random.Random], None]]:
        return [self.kill_a_broker, self.cut_connections, self.restart_the_server, self.hang]


def record(cluster: Cluster, faults: int, seed: int) -> tuple[list[Operation], list[Logged]]:
    """The history of clients who go on while so many faults happen, and the log that it left."""
    generator, shared, is_over = random.Random(seed), Shared(), threading.Event()
    app = cluster.brokers[0].app()
    urls = [broker.url for broker in cluster.brokers]
    clients = [Client(urls, app, shared, f"{seed}-{number}") for number in range(CLIENTS)]
    threads = [threading.Thread(target=client.live, args=[is_over]) for client in clients]
    for thread in threads:
        thread.start()
    order = list(cluster.faults)
    generator.shuffle(order)
    for number in range(faults):
        assert not is_over.wait(BETWEEN_SECONDS)
        order[number % len(order)](generator)
    assert not is_over.wait(BETWEEN_SECONDS)
    is_over.set()
    for thread in threads:
        thread.join()
    with closing(Client(urls, app, shared, f"{seed}")) as client:
        client.ask_elsewhere()
    return shared.history, log_of(cluster.brokers[0], app.app_id)


def log_of(broker: BrokerProcess, app_id: str) -> list[Logged]:
    found: list[Logged] = []
    after: dict[str, str] = {}
    while page := broker.events(app_id=app_id, **after):
        found += [Logged(event["event_type"], event["sid"]) for event in page if event["event_type"] in EVENTS.values()]
        after = {"after": page[-1]["id"]}
    return found


def test_the_history_of_three_brokers_under_faults_is_that_of_one(server: PostgresServer, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    with postgres.database(server.url) as url, ExitStack() as stack:
        cluster = Cluster(server, url, tmp_path, stack, "agentwrit.broker")
        history, log = record(cluster, FAULTS, SEED)
        answered = [operation for operation in history if operation.told is not Told.NOTHING]
        assert len(answered) > 50 * FAULTS
        check(history, log)
        settings = {"AGENTWRIT_BROKER_URL": cluster.brokers[0].url, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}
        assert run("audit", "verify", **settings).returncode == 0


def test_brokers_that_do_not_ask_each_other_are_found_out(server: PostgresServer, tmp_path: Path) -> None:
    with postgres.database(server.url) as url, ExitStack() as stack:
        cluster = Cluster(server, url, tmp_path, stack, "tests.history.without_barrier")
        history, log = record(cluster, 0, SEED)
        with pytest.raises(Violation, match="valid after it was dead"):
            check(history, log)
