"""What brokers do when the database fails under them: kept or 503 and absent, never "valid" unknown, and on again soon.

The server and the brokers are real processes.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final

import httpx2
import psycopg
import pytest

from tests import postgres
from tests.cluster.support import member
from tests.cluster.test_as_one import at, at_once
from tests.loop_thread import LoopServer
from tests.postgres import FAST, PostgresServer
from tests.support import SOAK, BrokerProcess, TestApp, problem, registration

HUNG_SECONDS: Final = 8 if SOAK == 1 else 30
RECOVERY_SECONDS: Final = 5
ANSWER_SECONDS: Final = 12  # beyond that a client has given up

FULL_DISK: Final = 17 * 2**20  # a segment of the write-ahead log still fits
FILL: Final = (
    "INSERT INTO agentwrit.nonces SELECT uuid_send(gen_random_uuid()), 9999999999 FROM generate_series(1, 400000)"
)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that tests may stop, freeze and fill."""
    own = PostgresServer((*FAST, "max_connections=40"))
    try:
        yield own
    finally:
        own.close()


@pytest.fixture
def url(server: PostgresServer) -> Iterator[str]:
    with postgres.database(server.url) as made:
        yield made


@pytest.fixture
def brokers(url: str, tmp_path: Path) -> Iterator[Sequence[BrokerProcess]]:
    """Two brokers of one database."""
    with ExitStack() as stack:
        yield [stack.enter_context(member(url, tmp_path / f"broker-{number}")) for number in range(2)]


class World:
    """What clients were told, by which it is judged what is there later."""

    def __init__(self, brokers: Sequence[BrokerProcess]) -> None:
        self.brokers = brokers
        registered = brokers[0].app()
        self.apps = [at(broker, registered) for broker in brokers]
        self.app_tokens = [app.token() for app in self.apps]
        self.live = [app.agent()["access_token"] for app in self.apps]
        self.dead = [app.agent()["access_token"] for app in self.apps]
        for token in self.dead:
            brokers[0].release(token)

    def check(self) -> None:
        """Everything that was acknowledged holds, at every broker."""
        for broker in self.brokers:
            assert all(broker.is_valid(token) for token in self.live)
            assert not any(broker.is_valid(token) for token in self.dead)

    def recovered(self) -> None:
        """Every broker does all of its work again, within the seconds that it has for it."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        for broker, app in zip(self.brokers, self.apps, strict=True):
            until(deadline, partial(is_ok, partial(validate, broker, self.live[0])))
            until(deadline, partial(is_ok, app.login))
            until(deadline, partial(is_ok, partial(broker.http.get, "/readyz")))
        self.check()


def validate(broker: BrokerProcess, token: str) -> httpx2.Response:
    return broker.http.post("/v1/token/validate", json={"token": token})


def is_ok(ask: Callable[[], httpx2.Response]) -> bool:
    return ask().status_code == 200


def until(deadline: float, is_so: Callable[[], bool]) -> None:
    while not is_so():
        assert time.monotonic() < deadline, "it took too long"
        threading.Event().wait(0.05)


def refused(answers: Sequence[httpx2.Response]) -> None:
    for answer in answers:
        problem(answer, 503, "unavailable")
        assert answer.elapsed.total_seconds() < ANSWER_SECONDS


def everything(world: World) -> list[httpx2.Response]:
    """A validation and a write at every broker, at once."""
    calls: list[Callable[[], httpx2.Response]] = []
    for broker, app in zip(world.brokers, world.apps, strict=True):
        calls += [app.login, partial(validate, broker, world.live[0]), partial(validate, broker, world.dead[0])]
    return at_once(*calls)


@pytest.mark.alone
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_is_restarted_is_found_again(
    server: PostgresServer, brokers: Sequence[BrokerProcess], mode: str
) -> None:
    world = World(brokers)
    server.stop(mode)
    refused(everything(world))
    assert brokers[0].http.get("/readyz").status_code == 503
    server.start()
    world.recovered()


def test_a_server_that_was_restarted_between_two_requests_costs_nobody_an_error(
    server: PostgresServer, brokers: Sequence[BrokerProcess]
) -> None:
    world = World(brokers)
    server.restart()
    world.check()
    assert all(app.login().status_code == 200 for app in world.apps)


def test_connections_that_are_cut_are_made_anew_and_nobody_notices(
    server: PostgresServer, url: str, brokers: Sequence[BrokerProcess]
) -> None:
    world = World(brokers)
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'agentwrit'"
    for _ in range(3 * SOAK):
        assert len(postgres.ask(server.url, cut)) >= 4
        world.check()
        assert all(app.login().status_code == 200 for app in world.apps)


@pytest.mark.alone
def test_a_server_that_hangs_is_answered_for_with_503_and_found_again(
    server: PostgresServer, brokers: Sequence[BrokerProcess]
) -> None:
    world = World(brokers)
    server.freeze()
    thaw_at = time.monotonic() + HUNG_SECONDS
    try:
        while time.monotonic() < thaw_at:
            refused(everything(world))
    finally:
        server.thaw()
    world.recovered()


FOLLOW: Final = {"accept": "text/event-stream"}


@pytest.mark.alone
def test_while_the_database_is_away_who_would_follow_the_feed_is_refused_and_who_follows_is_not_cut_off(
    server: PostgresServer, brokers: Sequence[BrokerProcess]
) -> None:
    broker = brokers[0]
    with broker.http.stream("GET", "/v1/revocations", headers=FOLLOW) as following:
        assert following.status_code == 200
        pages = following.iter_raw()
        next(pages)
        server.stop()
        try:
            # A page from before is shared for a second.
            until(time.monotonic() + 5, lambda: broker.http.get("/v1/revocations").status_code == 503)
            refused([broker.http.get("/v1/revocations", headers=FOLLOW) for _ in range(20)])
            refused([broker.http.get(f"/v1/revocations{rest}") for rest in ("", "?wait=1", "/snapshot")])
        finally:
            server.start()
        for _ in range(3):
            next(pages)  # who followed hears on
    metrics = broker.http.get("/v1/metrics").text
    assert 'agentwrit_unavailable_total{cause="store_read"}' in metrics
    log = broker.logged()
    assert not any(words in log for words in ("Traceback", "internal error", "broke off"))


@pytest.mark.alone
def test_a_lock_that_somebody_else_holds_keeps_writes_waiting_and_no_validation(
    url: str, brokers: Sequence[BrokerProcess]
) -> None:
    world = World(brokers)
    with psycopg.connect(url) as intruder:
        intruder.execute("SELECT state FROM agentwrit.cluster FOR UPDATE")
        refused([app.login() for app in world.apps])
        world.check()
    world.recovered()


@pytest.mark.alone
def test_a_disk_that_is_full_is_answered_for_with_503_and_nothing_is_half_done(
    server: PostgresServer, url: str, brokers: Sequence[BrokerProcess]
) -> None:
    world = World(brokers)
    bodies = [registration(app.launch_token(), app.broker.nonce()) for app in world.apps]
    server.limit_files(FULL_DISK)
    try:
        with pytest.raises(psycopg.Error, match="File too large"):
            postgres.ask(url, FILL)
        grants = postgres.ask(url, "SELECT count(*) FROM agentwrit.grants")
        refused([app.broker.http.post("/v1/register", json=body) for app, body in zip(world.apps, bodies, strict=True)])
        assert postgres.ask(url, "SELECT count(*) FROM agentwrit.grants") == grants
        world.check()
    finally:
        server.limit_files(-1)
    world.recovered()
    # Neither launch tokens nor nonces were used up by what was refused.
    for app, body in zip(world.apps, bodies, strict=True):
        assert app.broker.http.post("/v1/register", json=body).status_code == 200


@pytest.mark.alone
def test_a_server_without_a_free_connection_is_answered_for_with_503_and_found_again(
    server: PostgresServer, brokers: Sequence[BrokerProcess]
) -> None:
    world = World(brokers)
    with ExitStack() as hog:
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'agentwrit'"
        first = hog.enter_context(psycopg.connect(server.url, autocommit=True))
        first.execute(cut)
        while take_one(server, hog):
            first.execute(cut)
        refused(everything(world))
    world.recovered()


def take_one(server: PostgresServer, hog: ExitStack) -> bool:
    """Whether there was a connection to be had; then it is had."""
    try:
        hog.enter_context(psycopg.connect(server.url))
    except psycopg.OperationalError:
        return False
    return True


def test_a_broker_that_is_killed_under_load_leaves_whole_what_it_acknowledged(brokers: Sequence[BrokerProcess]) -> None:
    world = World(brokers)
    doomed, survivor = brokers
    released: list[str] = []
    enough = threading.Event()

    def live(app: TestApp) -> None:
        try:
            while True:
                token = app.agent()["access_token"]
                assert app.broker.release(token).status_code == 204
                released.append(token)
                if len(released) >= 20:
                    enough.set()
        except httpx2.TransportError:
            return  # the broker is gone

    threads = [threading.Thread(target=live, args=[app]) for app in [world.apps[0]] * 4]
    for thread in threads:
        thread.start()
    assert enough.wait(60)
    doomed.process.kill()  # and not its client too, which the threads are using
    doomed.process.wait()
    assert not any(survivor.is_valid(token) for token in list(released))
    for thread in threads:
        thread.join()
    assert not any(survivor.is_valid(token) for token in released)
    assert at(survivor, world.apps[0]).agent()
    doomed.start()
    world.check()


@pytest.mark.alone
def test_brokers_whose_clocks_are_seconds_apart_agree_on_every_end(url: str, tmp_path: Path) -> None:
    def skewed(seconds: int) -> BrokerProcess:
        place = tmp_path / f"skewed-by-{seconds}"
        return member(url, place, module="tests.cluster.skewed", SKEW_SECONDS=str(seconds))

    with skewed(-3) as behind, skewed(3) as ahead:
        app = ahead.app()
        for one, other in ((behind, ahead), (ahead, behind)):
            token = at(one, app).agent()["access_token"]
            assert other.is_valid(token)
            assert one.release(token).status_code == 204
            assert not other.is_valid(token)
        short = at(ahead, app).agent(max_ttl=2)["access_token"]
        issued_at = time.monotonic()
        until(issued_at + 4, lambda: not ahead.is_valid(short))
        assert not behind.is_valid(short)
        assert 0.9 < time.monotonic() - issued_at < 3
        times = [event["timestamp"] for event in behind.events()]
        assert times == sorted(times)


def test_a_server_that_is_slow_makes_answers_late_and_never_wrong(server: PostgresServer, tmp_path: Path) -> None:
    with postgres.database(server.url) as url, SlowWay(server.port, seconds=0.02) as way:
        slow_url = url.replace(f":{server.port}/", f":{way.port}/")
        with member(slow_url, tmp_path / "slow") as slow, member(url, tmp_path / "quick") as quick:
            app = quick.app()
            for _ in range(5):
                token = app.agent()["access_token"]
                assert slow.is_valid(token)
                assert quick.release(token).status_code == 204
                assert not slow.is_valid(token)


class SlowWay(LoopServer):
    """A way to a port of this machine on which everything takes a while."""

    def __init__(self, to: int, *, seconds: float) -> None:
        self._to = to
        self._seconds = seconds

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))
        for end in (writer, back):
            end.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while some := await reader.read(65_536):
            await asyncio.sleep(self._seconds)
            writer.write(some)
            await writer.drain()
        writer.close()
