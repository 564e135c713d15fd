"""What is done beside requests goes on whatever happens to it, and health and metrics say when it fails."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from agentwrit.broker.bootstrap import Broker, open_on
from agentwrit.broker.clock import Clock
from agentwrit.broker.config import Config
from agentwrit.broker.keystore import MasterKey
from agentwrit.broker.metrics import Metrics
from agentwrit.broker.services import background, checkpoints, housekeeping, retention, timekeeping
from agentwrit.broker.services.background import Background, Work
from agentwrit.broker.services.operators import set_secret
from agentwrit.broker.storage.memory import MemoryStore
from agentwrit.domain import feed
from agentwrit.domain.errors import Unavailable
from tests.in_process import InProcess
from tests.support import ADMIN_SECRET

EVERY = 0.01
READING = {"read", "catch_up"}
DEFECT = RuntimeError("a defect")


class Setup:
    """A broker with work in the background that is due all the time, over a store whose faults the test chooses."""

    def __init__(self) -> None:
        self.fault: BaseException | None = None
        self.store = MemoryStore(Clock(), fault=self._fault)
        self.http: httpx2.AsyncClient
        self.broker: Broker

    def _fault(self, point: str) -> None:
        # Requests ask the store as well: only what nobody waits for is to fail, and not so that the store tells of it.
        task = asyncio.current_task()
        if self.fault is not None and task is not None and task.get_name() == "background" and point in READING:
            raise self.fault.with_traceback(None)

    async def health(self) -> dict[str, Any]:
        answer = await self.http.get("/v1/health")
        assert answer.status_code == 200
        return dict(answer.json())

    async def metric(self, name: str) -> dict[str, float]:
        """Its values by kind of work."""
        text = (await self.http.get("/v1/metrics")).text
        samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
        return {each.labels["work"]: each.value for each in samples if each.name == name}

    async def until(self, is_reached: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(20):
            while not await is_reached():
                await asyncio.sleep(EVERY)


@asynccontextmanager
async def made(tmp_path: Path) -> AsyncIterator[Setup]:
    setup = Setup()
    await set_secret(setup.store, ADMIN_SECRET)
    config = Config(admin_secret=ADMIN_SECRET, audit_archive=tmp_path, audit_retention=1)
    async with open_on(
        setup.store,
        Clock(),
        config,
        MasterKey(b"m" * 32),
        is_draining=lambda: False,
        is_stopping=lambda: False,
    ) as setup.broker:
        transport = InProcess(setup.broker.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://broker", trust_env=False) as setup.http:
            yield setup


@pytest.fixture(autouse=True)
def told() -> Iterator[list[Any]]:
    """The lines of the log, which nobody has to render."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture(autouse=True)
def is_always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (checkpoints, housekeeping, retention, timekeeping):
        monkeypatch.setattr(module, "INTERVAL_SECONDS", EVERY)
    monkeypatch.setattr(feed, "HEARTBEAT_SECONDS", EVERY)


@pytest.mark.parametrize("defect", [DEFECT, OSError(28, "No space left on device"), asyncio.CancelledError()], ids=repr)
def test_work_that_raises_what_nobody_expects_goes_on_and_is_named_meanwhile(
    tmp_path: Path, defect: BaseException
) -> None:
    expected = {Work.CHECKPOINTS, Work.KEYS, Work.RESUMING, Work.FOLLOWING, Work.RETENTION}

    async def claim() -> None:
        async with made(tmp_path) as setup:
            assert (await setup.health())["failing"] == []

            async def is_failing() -> bool:
                return expected <= set((await setup.health())["failing"])

            async def is_well() -> bool:
                return not (await setup.health())["failing"]

            setup.fault = defect
            await setup.until(is_failing)
            assert (await setup.health())["status"] == "degraded"
            failing = await setup.metric("agentwrit_background_failing")
            assert set(failing) == set(Work)
            assert all(failing[work] == 1 for work in expected)
            before = await setup.metric("agentwrit_background_failures_total")

            async def is_tried_again() -> bool:
                now = await setup.metric("agentwrit_background_failures_total")
                return all(now[work] >= before[work] + 2 for work in expected)

            await setup.until(is_tried_again)
            setup.fault = None
            await setup.until(is_well)
            assert (await setup.health())["status"] == "ok"
            assert not any((await setup.metric("agentwrit_background_failing")).values())

    asyncio.run(claim())


def test_checkpoints_and_the_feed_go_on_after_a_defect(tmp_path: Path) -> None:
    async def claim() -> None:
        async with made(tmp_path) as setup:
            setup.fault = DEFECT

            async def is_failing() -> bool:
                return Work.CHECKPOINTS in (await setup.health())["failing"]

            await setup.until(is_failing)
            setup.fault = None
            body = {"secret": ADMIN_SECRET}
            token = (await setup.http.post("/v1/admin/auth", json=body)).json()["access_token"]
            headers = {"authorization": f"Bearer {token}"}
            await setup.http.post("/v1/admin/apps", json={"name": "a", "scopes": ["read:data:*"]}, headers=headers)
            count: int = (await setup.health())["audit_events_count"]

            async def is_covered() -> bool:
                note = (await setup.http.get("/v1/audit/checkpoint", headers=headers)).text
                covered = int(note.splitlines()[1])
                return covered >= count

            await setup.until(is_covered)

    asyncio.run(claim())


def test_a_failure_is_told_once_and_so_is_its_end() -> None:
    async def fail() -> None:
        raise DEFECT

    async def succeed() -> None:
        pass

    async def claim() -> None:
        books = Background(Metrics())
        with structlog.testing.capture_logs() as lines:
            for part in (fail, fail, fail, succeed, succeed):
                await books.attempt(Work.FEED, part)
        assert [(line["log_level"], line["work"]) for line in lines] == [("error", "feed"), ("info", "feed")]
        assert lines[0]["exc_info"] is DEFECT

    asyncio.run(claim())


def test_a_store_out_of_reach_for_a_moment_is_health_s_own_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> None:
        raise Unavailable("the store is out of reach")

    async def claim() -> None:
        books = Background(Metrics())
        assert not await books.attempt(Work.KEYS, fail)
        assert books.failing() == []
        monkeypatch.setattr(background, "PATIENCE_SECONDS", -1.0)
        assert books.failing() == ["keys"]

    asyncio.run(claim())


def test_work_that_is_cancelled_ends() -> None:
    async def claim() -> None:
        books = Background(Metrics())
        never = asyncio.Event()
        task = asyncio.create_task(books.attempt(Work.KEYS, never.wait))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert books.failing() == []

    asyncio.run(claim())
