"""The revocation feed as a broker gives it: signed once for all, of one history, with places for those who wait."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx2
import msgspec
import psutil
import pytest
import uvloop

from agentwrit.broker import server
from agentwrit.broker.bootstrap import open_on
from agentwrit.broker.clock import Clock
from agentwrit.broker.config import Config
from agentwrit.broker.http.server import HttpServer, Limits
from agentwrit.broker.keystore import KeyWrap, MasterKey
from agentwrit.broker.metrics import Metrics
from agentwrit.broker.services.background import Background
from agentwrit.broker.services.feed import RevocationFeed
from agentwrit.broker.services.feed_pages import SignedPage
from agentwrit.broker.services.feed_places import MAX_OF_ADDRESS, MAX_OF_APP, MAX_STRANGERS, Asker, Places
from agentwrit.broker.services.keys import KeyRings
from agentwrit.broker.services.operators import set_secret
from agentwrit.broker.storage.base import Store, Transaction
from agentwrit.broker.storage.memory import MemoryStore
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sqlite import SqliteStore
from agentwrit.domain import base64url, feed
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.errors import Unavailable
from agentwrit.domain.feed import Page
from agentwrit.domain.revocation import Revocation, RevocationKind
from tests.in_process import InProcess
from tests.support import ADMIN_SECRET, problem

NOW = 1_800_000_000.0
ANYBODY = Asker("192.0.2.1")
MASTER_KEY = MasterKey.parse("00" * 32)


class Setup:
    """A feed over a store, at work, on a clock that tests move."""

    def __init__(self, store: Callable[[Clock], Store] | None = None) -> None:
        self.failing = False
        self.now = NOW
        self.clock = Clock(lambda: self.now, lambda: self.now)
        self.store = store(self.clock) if store is not None else MemoryStore(self.clock, fault=self._fault)
        self.feed: RevocationFeed

    def _fault(self, point: str) -> None:
        if self.failing and point == "read":
            raise Unavailable("the store cannot be read")

    async def revoke(self, *names: str, events: int = 1) -> None:
        def unit(transaction: Transaction) -> None:
            for name in names:
                transaction.revoke(
                    Revocation(kind=RevocationKind.GRANT, id=name, effective_at=int(NOW), last_exp=int(NOW) + 1_000_000)
                )
            for _ in range(events):
                transaction.record(Draft(event_type=EventType.TOKEN_RELEASED))

        await self.store.write(unit)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator["Setup"]:
        rings = await KeyRings.load(self.store, KeyWrap(MASTER_KEY))
        self.feed = RevocationFeed(self.store, rings.feed, "agentwrit", self.clock, is_stopping=lambda: False)
        running = asyncio.create_task(self.feed.run(Background(Metrics())))
        try:
            yield self
        finally:
            running.cancel()
            await asyncio.wait({running})
            await self.store.close()


def run(claim: Callable[[Setup], Awaitable[None]], store: Callable[[Clock], Store] | None = None) -> None:
    async def main() -> None:
        async with Setup(store).at_work() as setup:
            await claim(setup)

    asyncio.run(main())


def said(signed: SignedPage) -> Page:
    """What a page says, as whoever reads it finds it."""
    return msgspec.json.decode(base64url.decode(signed.body.decode("ascii").split(".")[1]), type=Page)


# -- shared -----------------------------------------------------------------------------------------------------------


def test_there_is_one_snapshot_for_all_who_ask_with_one_hash() -> None:
    async def claim(setup: Setup) -> None:
        await setup.revoke("a")
        first, second = await asyncio.gather(setup.feed.snapshot(), setup.feed.snapshot())
        assert first is second is await setup.feed.snapshot()
        assert first.tag is second.tag
        setup.now += 31
        later = await setup.feed.snapshot()
        assert later is not first

    run(claim)


def test_there_is_one_page_for_all_who_ask_in_a_second_until_there_is_news() -> None:
    async def claim(setup: Setup) -> None:
        await setup.revoke("a")
        pages = await asyncio.gather(*(setup.feed.page(0, ANYBODY) for _ in range(10)))
        assert all(page is pages[0] for page in pages)
        await setup.revoke("b")
        news = await setup.feed.page(0, ANYBODY)
        assert (news.page.last, pages[0].page.last) == (2, 1)
        assert news is await setup.feed.page(0, ANYBODY)
        setup.now += 1
        assert news is not await setup.feed.page(0, ANYBODY)

    run(claim)


def test_a_page_that_could_not_be_read_is_not_shared() -> None:
    async def claim(setup: Setup) -> None:
        setup.failing = True
        for _ in range(2):
            with pytest.raises(Unavailable):
                await setup.feed.page(0, ANYBODY)
        setup.failing = False
        await setup.feed.page(0, ANYBODY)

    run(claim)


def test_who_leaves_takes_no_page_from_the_others() -> None:
    async def claim(setup: Setup) -> None:
        await setup.revoke("a")
        leaving = asyncio.create_task(setup.feed.page(0, ANYBODY))
        staying = asyncio.create_task(setup.feed.page(0, ANYBODY))
        await asyncio.sleep(0)
        leaving.cancel()
        assert (await staying).page.last == 1

    run(claim)


def test_answers_are_made_for_each_question() -> None:
    async def claim(setup: Setup) -> None:
        one, two = [await setup.feed.page(0, ANYBODY, nonce=f"question-{number}-for-it") for number in range(2)]
        assert (said(one).nonce, said(two).nonce) == ("question-0-for-it", "question-1-for-it")

    run(claim)


def test_a_snapshot_of_an_epoch_that_is_over_is_not_given_again() -> None:
    async def claim(setup: Setup) -> None:
        before = await setup.feed.snapshot()
        await setup.store.write(lambda transaction: transaction.begin_feed_epoch("another"))
        setup.now += 1
        await setup.feed.page(0, ANYBODY)
        after = await setup.feed.snapshot()
        assert (after.epoch, before.epoch == after.epoch) == ("another", False)

    run(claim)


# -- one history ------------------------------------------------------------------------------------------------------


def test_a_page_says_where_the_log_ended_and_what_it_was_before() -> None:
    async def claim(setup: Setup) -> None:
        await setup.revoke("a", events=3)
        first = said(await setup.feed.page(0, ANYBODY))
        assert isinstance(first.log, feed.Place)
        known = first.log.number
        await setup.revoke("b", events=2)
        page = said(await setup.feed.page(1, ANYBODY, known=[known]))
        assert isinstance(page.log, feed.Place)
        assert page.log.number == known + 2
        assert page.since == (first.log,)
        assert said(await setup.feed.page(1, ANYBODY, known=[page.log.number])).since == (page.log,)
        ahead = said(await setup.feed.page(1, ANYBODY, known=[page.log.number + 1]))
        assert not ahead.since
        hashes = await setup.store.read(lambda snapshot: [snapshot.event_hash(number) for number in range(known + 3)])
        assert page.log == feed.place(known + 2, hashes[known + 2])
        assert all(str(each) not in msgspec.json.encode(page).decode() for each in hashes)

    run(claim)


async def take(pages: AsyncIterator[SignedPage], until: Callable[[Page], bool]) -> list[Page]:
    taken: list[Page] = []
    async for page in pages:
        taken.append(page.page)
        if until(page.page):
            break
    return taken


def test_each_page_of_a_stream_goes_on_from_the_one_before_however_busy_the_broker_is() -> None:
    async def claim(setup: Setup) -> None:
        await setup.revoke("a")
        known = said(await setup.feed.page(0, ANYBODY)).log
        assert isinstance(known, feed.Place)
        busy = asyncio.create_task(_be_busy(setup))
        async with AsyncExitStack() as stack:
            streams = []
            for _ in range(5):
                stream = setup.feed.follow(0, ANYBODY, known=[known.number])
                stack.push_async_callback(stream.aclose)
                streams.append(take(stream, lambda page: page.last >= 40))
                await asyncio.sleep(0.02)
            followed = await asyncio.gather(*streams)
        busy.cancel()
        for pages in followed:
            last, place = 0, known
            for page in pages:
                assert page.first == last + 1
                shown = (page.log, *(page.since or ()))
                assert place in shown
                assert isinstance(page.log, feed.Place)
                last, place = page.last, page.log
            assert last >= 40

    run(claim)


async def _be_busy(setup: Setup) -> None:
    for number in range(10_000):
        await setup.revoke(f"busy-{number}", events=number % 3 + 1)
        await asyncio.sleep(0.005)


def test_what_many_follow_is_made_once() -> None:
    async def claim(setup: Setup) -> None:
        known = said(await setup.feed.page(0, ANYBODY)).log
        assert isinstance(known, feed.Place)
        streams = [setup.feed.follow(0, ANYBODY, known=[known.number]) for _ in range(20)]
        for stream in streams:
            await anext(stream)
        await setup.revoke("a")
        news = [await anext(stream) for stream in streams]
        assert news[0].page.last == 1
        assert all(page is news[0] for page in news)
        for stream in streams:
            await stream.aclose()

    run(claim)


def test_an_end_of_thousands_reaches_those_who_follow_at_once() -> None:
    async def claim(setup: Setup) -> None:
        await setup.revoke(*(f"before-{number}" for number in range(100)))
        stream = setup.feed.follow(100, ANYBODY)
        await anext(stream)
        await setup.revoke(*(f"sid-{number}" for number in range(1500)))
        started = asyncio.get_running_loop().time()
        pages = await take(stream, lambda page: page.last >= 1600)
        assert asyncio.get_running_loop().time() - started < 1
        assert sum(len(page.entries) for page in pages) == 1500
        await stream.aclose()

    run(claim)


# -- places -----------------------------------------------------------------------------------------------------------


@contextmanager
def taken(places: Places, askers: Sequence[Asker]) -> Iterator[None]:
    with ExitStack() as stack:
        for asker in askers:
            stack.enter_context(places.place(asker))
        yield


def is_refused(places: Places, asker: Asker) -> bool:
    with suppress(Unavailable), places.place(asker):
        return False
    return True


def test_an_address_has_its_share_of_places() -> None:
    places = Places()
    with taken(places, [Asker("192.0.2.1")] * MAX_OF_ADDRESS):
        assert is_refused(places, Asker("192.0.2.1"))
        assert not is_refused(places, Asker("192.0.2.2"))
        assert not is_refused(places, Asker("192.0.2.1", "app-1"))
    assert len(places) == 0
    assert not is_refused(places, Asker("192.0.2.1"))


def test_strangers_leave_places_for_who_has_a_credential() -> None:
    places = Places()
    with taken(places, [Asker(f"192.0.2.{number}") for number in range(MAX_STRANGERS)]):
        assert is_refused(places, Asker("198.51.100.1"))
        with taken(places, [Asker("198.51.100.1", "app-1")] * MAX_OF_APP):
            assert is_refused(places, Asker("198.51.100.2", "app-1"))
            assert is_refused(places, Asker("198.51.100.2", "app-2"))  # now there are none at all


def test_an_app_has_its_share_of_places_from_wherever_it_comes() -> None:
    places = Places()
    with taken(places, [Asker(f"192.0.2.{number}", "app-1") for number in range(MAX_OF_APP)]):
        assert is_refused(places, Asker("192.0.2.1", "app-1"))
        assert not is_refused(places, Asker("192.0.2.1", "app-2"))


def test_who_was_refused_leaves_nothing_behind() -> None:
    places = Places()
    with taken(places, [Asker("192.0.2.1", "app-1")] * MAX_OF_APP):
        for number in range(100):
            assert is_refused(places, Asker("192.0.2.1", "app-1"))
            assert not is_refused(places, Asker(f"192.0.2.{number}"))
        assert len(places._taken) == 1


# -- on the wire ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving_on_small_buffers(setup: Setup, limits: Limits | None = None) -> AsyncIterator[tuple[str, int]]:
    """The broker over the setup's store, on a socket. Yields its address."""
    await set_secret(setup.store, ADMIN_SECRET)
    config = Config(port=0)
    async with open_on(
        setup.store, setup.clock, config, MASTER_KEY, is_draining=lambda: False, is_stopping=lambda: False
    ) as broker:
        http = HttpServer(broker.metrics, limits)
        with server.listening(config.host, config.port, "port") as [listener]:
            # As little as can be: the rest is the broker's to hold.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            await http.listen(listener, broker.app, None)
            try:
                yield listener.getsockname()
            finally:
                await http.stop(0)


def test_who_does_not_read_a_large_snapshot_makes_the_broker_hold_no_copy_of_it(tmp_path: Path) -> None:
    """And may be as many as they like."""

    async def claim() -> None:
        setup = Setup(lambda clock: SqliteStore(tmp_path / "agentwrit.db", clock, Sealer(bytes(32))))
        await setup.revoke(*(f"sid-{number}" for number in range(12_000)))
        async with serving_on_small_buffers(setup) as (host, port), AsyncExitStack() as sleepers:
            http = await sleepers.enter_async_context(httpx2.AsyncClient(trust_env=False, timeout=60, verify=False))
            url = f"http://{host}:{port}/v1/revocations/snapshot"
            answer = await http.get(url)
            assert int(answer.headers["content-length"]) == len(answer.content) > 1_000_000
            unchanged = await http.get(url, headers={"if-none-match": answer.headers["etag"]})
            assert (unchanged.status_code, unchanged.content) == (304, b"")
            before = psutil.Process().memory_info().rss
            loop = asyncio.get_running_loop()
            for _ in range(60):
                sleeper = socket.socket()
                sleepers.callback(sleeper.close)
                sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sleeper.setblocking(False)
                await loop.sock_connect(sleeper, (host, port))
                await loop.sock_sendall(sleeper, b"GET /v1/revocations/snapshot HTTP/1.1\r\nhost: x\r\n\r\n")
            for _ in range(20):
                assert (await http.get(f"http://{host}:{port}/livez")).status_code == 200
            grown = psutil.Process().memory_info().rss - before
            assert grown < 20 * 1024 * 1024, f"{grown // 2**20} MiB"
        await setup.store.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # asyncio copies what waits
        runner.run(claim())


def test_who_does_not_read_is_cut_off_without_a_word_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:

    async def claim() -> None:
        setup = Setup(lambda clock: SqliteStore(tmp_path / "agentwrit.db", clock, Sealer(bytes(32))))
        await setup.revoke(*(f"sid-{number}" for number in range(4_000)))
        async with serving_on_small_buffers(setup, Limits(sweep=0.01, stall=0.1)) as (host, port):
            reader, writer = await asyncio.open_connection(host, port, limit=4096)
            writer.write(b"GET /v1/revocations/snapshot HTTP/1.1\r\nhost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await asyncio.sleep(0.5)  # it is the time that counts
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(length)
            writer.close()
        await setup.store.close()

    asyncio.run(claim())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_where_the_store_is_away_a_follower_is_refused_before_the_answer_begins() -> None:
    async def claim() -> None:
        setup = Setup()
        await set_secret(setup.store, ADMIN_SECRET)
        config = Config()
        async with open_on(
            setup.store, setup.clock, config, MASTER_KEY, is_draining=lambda: False, is_stopping=lambda: False
        ) as broker:
            transport = InProcess(broker.app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://broker") as http:
                setup.failing = True
                for headers in ({"accept": "text/event-stream"}, {}):
                    refused = await http.get("/v1/revocations", headers=headers)
                    problem(refused, 503, "unavailable")
                    assert refused.headers["retry-after"]
                setup.failing = False
                metrics = (await http.get("/v1/metrics")).text
                assert "agentwrit_feed_followers 0.0" in metrics

    asyncio.run(claim())
