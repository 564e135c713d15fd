"""The way back from a clock that was wrong: the store believes it again, and nothing lives longer for it."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from agentwrit.broker import stores
from agentwrit.broker.clock import MAX_GAP_SECONDS, Clock
from agentwrit.broker.config import Config
from agentwrit.broker.keystore import KeyWrap
from agentwrit.broker.offline import time_setting, verification
from agentwrit.broker.services.keys import KeyRings
from agentwrit.broker.storage.base import EventQuery, GrantQuery, Snapshot, Transaction
from agentwrit.broker.stores import NewClock
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.errors import ConfigurationError
from agentwrit.domain.limits import AppUsage
from tests.domain.records import make_app, make_grant, make_launch_token

T = TypeVar("T")

KEY = "5a" * 32
YEARS = 10 * 365 * 86_400


def settings(place: Path | str) -> Config:
    if isinstance(place, Path):
        return Config(master_key=KEY, data_dir=place)
    return Config(master_key=KEY, database_url=place)


@pytest.fixture(params=["sqlite", "postgres"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    if request.param == "sqlite":
        return settings(tmp_path / "data")
    return settings(request.getfixturevalue("database_url"))


def ahead(seconds: float) -> NewClock:
    """A clock that is wrong."""
    return lambda wall: Clock(lambda: wall() + seconds)


def live(config: Config, new_clock: NewClock) -> None:
    """What a broker leaves whose clock this is."""

    async def unit() -> None:
        async with stores.open_store(config, new_clock=new_clock) as opened:
            await KeyRings.load(opened.store, KeyWrap(opened.master_key))
            await opened.store.write(fill)

    def fill(transaction: Transaction) -> None:
        now = int(transaction.now)
        app = make_app(max_live_agents=2, previous_secret_hash=b"p" * 32, previous_secret_until=now + 86_400)
        transaction.put(app)
        transaction.put(make_grant(exp=now + 300, is_counted=True))
        transaction.put(msgspec.structs.replace(make_launch_token(), expires_at=now + 60))
        usage = AppUsage(app_id=app.app_id, live_agents=1, counted_at=now, permits=1, refilled_at=now)
        transaction.put(usage)
        transaction.record(Draft(event_type=EventType.TOKEN_ISSUED))

    asyncio.run(unit())


def ask(config: Config, query: Callable[[Snapshot], T]) -> T:
    async def unit() -> T:
        async with stores.open_store(config) as opened:
            return await opened.store.read(query)

    return asyncio.run(unit())


def now_in(config: Config) -> float:
    async def unit() -> float:
        async with stores.open_store(config) as opened:
            return await opened.store.write(lambda transaction: transaction.now)

    return asyncio.run(unit())


def test_a_store_whose_time_was_years_ahead_goes_on_from_now_and_everything_that_was_granted_has_ended(
    config: Config,
) -> None:
    live(config, ahead(YEARS))
    assert now_in(config) > time.time() + YEARS - 60
    before = {key.kid for key in ask(config, lambda snapshot: snapshot.signing_keys())}
    done = time_setting.set_time(config)
    assert done.restored is not None
    assert abs(done.now - time.time()) < 60
    assert abs(now_in(config) - time.time()) < 60
    assert ask(config, lambda snapshot: snapshot.grants(GrantQuery(live_at=0))) == []
    assert ask(config, lambda snapshot: snapshot.launch_token_count()) == 0
    assert set(done.restored.kids) < before
    app = ask(config, lambda snapshot: snapshot.app("app-1"))
    assert app is not None
    assert not app.accepts(b"p" * 32, time.time())
    usage = ask(config, lambda snapshot: snapshot.app_usage("app-1"))
    assert usage is not None
    assert (usage.live_agents, usage.refilled_at) == (0, 0)
    assert usage.counted_at < time.time() + 60
    [event] = ask(config, lambda snapshot: snapshot.events(EventQuery(event_type=EventType.STORE_TIME_SET)))
    assert event.data["before"] == int(done.before)
    if config.database_url is None:
        verification.verify_store(config.data_dir, config, progress=lambda done, total: None)


def test_a_store_that_was_used_long_ago_goes_on_when_somebody_says_that_the_clock_is_right(config: Config) -> None:
    live(config, ahead(-MAX_GAP_SECONDS - 3600))
    with pytest.raises(ConfigurationError, match="agentwrit store clock"):
        now_in(config)
    done = time_setting.set_time(config)
    assert done.restored is None
    assert abs(now_in(config) - time.time()) < 60
    assert ask(config, lambda snapshot: snapshot.launch_token_count()) == 1


def test_there_has_to_be_a_store_that_no_broker_uses(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no store"):
        time_setting.set_time(settings(tmp_path / "none"))
    config = settings(tmp_path / "data")

    async def beside() -> None:
        async with stores.open_store(config):
            with pytest.raises(ConfigurationError, match="in use"):
                time_setting.set_time(config)

    asyncio.run(beside())
