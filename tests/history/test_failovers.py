"""Failovers under load: what was dead stays dead, and where commits wait for the standby there is one history of all.

Brokers find the primary through HAProxy, and clients find brokers through it or by themselves. In `make soak` there are
a hundred failovers of each kind, and now and then a broker ends with the primary.
"""

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import httpx2
import psycopg
import pytest

from agentwrit import Verifier
from agentwrit.errors import AgentWritError
from tests import postgres
from tests.cluster.support import member
from tests.history import haproxy
from tests.history.checker import Told, Violation, check, check_nobody_revived
from tests.history.clients import CLIENTS, Client, Shared, sid_of
from tests.history.test_histories import SEED, log_of
from tests.postgres import FAST, STANDBY, PostgresServer, free_port
from tests.support import SOAK, BrokerProcess

FAILOVERS: Final = 2 * SOAK if SOAK > 1 else 1
BROKER: Final = "agentwrit.broker"
VERIFIERS: Final = 10 if SOAK > 1 else 2
BEFORE_SECONDS: Final = 1.0  # of undisturbed work
OWN_TOKENS: Final = 3
LOST_SECONDS: Final = 0.5  # of work that the standby does not get
FROZEN: Final = 0.3  # of primaries hang before they are ended; the others crash
KILLED: Final = 0.2 if SOAK > 1 else 0.0  # of failovers take a broker with them
READY_SECONDS: Final = 60
HEARD_SECONDS: Final = 20  # by a verifier, of all that is dead


class Servers:
    """A primary and its standby at two ports, which change places."""

    def __init__(self, *, is_synchronous: bool) -> None:
        self._is_synchronous = is_synchronous
        self.ports = [free_port(), free_port()]
        self.primary = PostgresServer((*FAST, "max_connections=80"), port=self.ports[0])
        self.standby = self._new_standby(self.ports[1])

    @property
    def url(self) -> str:
        """Whoever is the primary of the two."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"postgresql://{postgres.USER}@{hosts}/postgres"

    def catch_up(self) -> None:
        """Wait until the standby has all that was committed so far."""
        [(here,)] = postgres.ask(self.primary.url, "SELECT pg_current_wal_lsn()")
        has_all = "SELECT coalesce(pg_last_wal_receive_lsn() >= %s::pg_lsn, false)"
        until(READY_SECONDS, lambda: postgres.ask(self.standby.url, has_all, here) == [(True,)])

    def lose(self) -> None:
        """Let the standby hear no more."""
        self.standby.stop()

    def fail_over(self, *, is_frozen: bool) -> None:
        """Let the standby go on, while the primary is down, or hangs until it is ended by whoever fences it."""
        if is_frozen:
            self.primary.freeze()
        else:
            self.primary.stop("immediate")
        if not (self.standby.data / "postmaster.pid").exists():
            self.standby.start()
        self.standby.promote()
        if is_frozen:
            self.primary.kill()

    def replace(self) -> None:
        """Have a new standby, in the place of the primary that crashed."""
        crashed, self.primary = self.primary, self.standby
        port = crashed.port
        crashed.close()
        self.standby = self._new_standby(port)

    def close(self) -> None:
        self.standby.close()
        self.primary.close()

    def _new_standby(self, port: int) -> PostgresServer:
        made = PostgresServer((*FAST, "max_connections=80"), primary=self.primary, port=port)
        if self._is_synchronous:
            postgres.ask(self.primary.url, f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'")
            postgres.ask(self.primary.url, "SELECT pg_reload_conf()")
            state = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
            until(READY_SECONDS, lambda: postgres.ask(self.primary.url, state) == [(1,)])
        return made


def until(seconds: float, is_so: Callable[[], bool]) -> None:
    deadline, waiting = time.monotonic() + seconds, threading.Event()
    while not is_so():
        assert time.monotonic() < deadline, "it took too long"
        waiting.wait(0.1)


class World:
    """Three brokers and their database, clients who go on whatever happens, and verifiers who follow the feed."""

    def __init__(self, servers: Servers, directory: Path, stack: ExitStack, module: str = BROKER) -> None:
        self.servers = servers
        self.random = random.Random(SEED)
        ports = [free_port() for _ in range(3)]
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.database_url = servers.url
        if haproxy.IS_DEMANDED:
            proxy = stack.enter_context(haproxy.Proxy(directory, servers.ports, self.urls))
            self.urls.append(proxy.url)
            self.database_url = f"postgresql://{postgres.USER}@127.0.0.1:{proxy.database}/postgres"
            self._wait_for_database()
        self.brokers = [
            stack.enter_context(
                member(self.database_url, directory / f"broker-{at}", module=module, AGENTWRIT_PORT=str(port))
            )
            for at, port in enumerate(ports)
        ]
        self.shared = Shared()
        self.app = self.brokers[0].app()
        self.clients = self._new_clients()
        followed = [self.urls[at % len(self.urls)] for at in range(VERIFIERS)] if module == BROKER else []
        self.verifiers = [stack.enter_context(Verifier(url)) for url in followed]
        self._waiting = threading.Event()
        self._failovers = 0
        print(f"seed {SEED}")
        stack.callback(self.close)

    def _new_clients(self) -> list[Client]:
        return [Client(self.urls, self.app, self.shared, f"{self.random.random()}") for _ in range(CLIENTS)]

    def _wait_for_database(self) -> None:
        """Wait until HAProxy leads to the primary alone.

        It takes turns, and holds a server that has just been started or lost to be one until it has checked.
        """

        def is_there() -> bool:
            with suppress(psycopg.OperationalError):
                turns = [postgres.ask(self.database_url, "SELECT pg_is_in_recovery()") for _ in range(4)]
                return turns == [[(False,)]] * 4
            return False

        until(READY_SECONDS, is_there)

    def close(self) -> None:
        for client in self.clients:
            client.close()

    def work(self, meanwhile: Callable[[], None]) -> None:
        """Let the clients go on while this is done."""
        is_over = threading.Event()
        threads = [threading.Thread(target=client.live, args=[is_over]) for client in self.clients]
        for thread in threads:
            thread.start()
        try:
            meanwhile()
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
        self.clients = self._new_clients()

    def pause(self, seconds: float) -> None:
        self._waiting.wait(seconds)

    def is_ready(self, broker: BrokerProcess) -> bool:
        try:
            return is_running(broker) and broker.http.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def tokens_of_its_own(self) -> Mapping[str, str]:
        """Some tokens (by their sid) that no client ends meanwhile: the machine may be slow."""
        tokens: dict[str, str] = {}

        def has_made_one() -> bool:
            with suppress(AssertionError, httpx2.TransportError):  # it is out of order for a moment
                token = str(self.app.agent()["access_token"])
                tokens[sid_of(token)] = token
            return len(tokens) == OWN_TOKENS

        until(READY_SECONDS, has_made_one)
        return tokens

    def release_one_of(self, tokens: Mapping[str, str]) -> None:
        """Release one of these tokens (by their sid)."""
        done = map(self.clients[0].release_on_purpose, tokens, tokens.values())
        assert any(done), "none of them could be released"

    def fail_over(self) -> None:
        """See `Servers`; a broker may end with the primary."""
        if self.random.random() < KILLED:
            end(self.random.choice(self.brokers))
        self.servers.fail_over(is_frozen=self.random.random() < FROZEN)
        self._failovers += 1
        print(f"failover {self._failovers} of {FAILOVERS}, after {len(self.shared.history)} requests", flush=True)

    def make_ready(self) -> None:
        """What the runbook says: whoever does not go on is started again."""
        with suppress(AssertionError):
            until(READY_SECONDS / 6, lambda: all(map(self.is_ready, filter(is_running, self.brokers))))
        self.restart(broker for broker in self.brokers if not self.is_ready(broker))
        until(READY_SECONDS, lambda: all(map(self.is_ready, self.brokers)))

    def restart(self, brokers: Iterable[BrokerProcess]) -> None:
        """kill -9, and start again once the database is there; once more if HAProxy cuts its connections meanwhile."""

        def has_started(broker: BrokerProcess) -> bool:
            self._wait_for_database()
            with suppress(AssertionError):
                broker.start()
            return is_running(broker)

        for broker in brokers:
            end(broker)
            until(READY_SECONDS, lambda: has_started(broker))  # noqa: B023

    def ask(self) -> None:
        """Ask about all tokens, at each broker; and verifiers, until they know what is dead."""
        self.clients[0].ask_about_all()
        dead = self._dead()
        tokens = [token for sid, token in self.shared.tokens.items() if sid in dead]
        for verifier in self.verifiers:
            until(HEARD_SECONDS, lambda: not any(says_valid(verifier, token) for token in tokens))  # noqa: B023

    def forget(self) -> None:
        """Ask no more about what is known to be dead for long."""
        for sid in list(self.shared.tokens)[:-40]:
            del self.shared.tokens[sid]

    def _dead(self) -> set[str]:
        return {each.subject for each in self.shared.history if each.kind == "validate" and each.told is Told.NO}


def is_running(broker: BrokerProcess) -> bool:
    return broker.process.poll() is None


def end(broker: BrokerProcess) -> None:
    """kill -9, unless it has ended."""
    if is_running(broker):
        broker.kill()


def says_valid(verifier: Verifier, token: str) -> bool:
    try:
        verifier.verify(token)
    except AgentWritError:
        return False
    return True


def answered(world: World) -> Sequence[object]:
    return [operation for operation in world.shared.history if operation.told is not Told.NOTHING]


def test_with_a_standby_that_every_commit_waits_for_there_is_one_history(tmp_path: Path) -> None:
    with ExitStack() as stack:
        servers = Servers(is_synchronous=True)
        stack.callback(servers.close)
        world = World(servers, tmp_path, stack)

        def fail_over() -> None:
            world.pause(BEFORE_SECONDS)
            world.fail_over()
            world.make_ready()
            world.pause(BEFORE_SECONDS)

        for _ in range(FAILOVERS):
            world.work(fail_over)
            world.ask()
            servers.replace()
            world.forget()
        assert len(answered(world)) > 20 * FAILOVERS
        check(world.shared.history, log_of(world.brokers[0], world.app.app_id))
        promoted = world.brokers[0].events(event_type="store_promoted")
        assert [event["data"]["is_lossless"] for event in promoted] == ["true"] * FAILOVERS


def lose_commits(world: World) -> None:
    """A failover to a standby that lacks the last commits, the end of a token among them that it has."""
    world.pause(BEFORE_SECONDS)
    known = world.tokens_of_its_own()
    world.servers.catch_up()
    world.servers.lose()
    world.release_one_of(known)
    world.pause(LOST_SECONDS)
    world.fail_over()


def test_with_a_standby_that_lacks_commits_nobody_who_was_dead_lives_again(tmp_path: Path) -> None:
    with ExitStack() as stack:
        servers = Servers(is_synchronous=False)
        stack.callback(servers.close)
        world = World(servers, tmp_path, stack)

        def fail_over() -> None:
            lose_commits(world)
            world.make_ready()
            world.pause(BEFORE_SECONDS)

        for _ in range(FAILOVERS):
            world.work(fail_over)
            world.ask()
            check_nobody_revived(world.shared.history)
            servers.replace()
            world.forget()
        assert len(answered(world)) > 20 * FAILOVERS


def test_brokers_that_go_on_with_any_history_are_found_out(tmp_path: Path) -> None:
    with ExitStack() as stack:
        servers = Servers(is_synchronous=False)
        stack.callback(servers.close)
        world = World(servers, tmp_path, stack, "tests.history.without_lineage")

        def fail_over() -> None:
            lose_commits(world)
            world.restart(world.brokers)  # who knows no better says what is in the database

        world.work(fail_over)
        world.ask()
        with pytest.raises(Violation, match=r"valid after it was dead|was used 2 times"):
            check_nobody_revived(world.shared.history)
