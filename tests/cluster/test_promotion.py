"""A standby takes over: what was lost revives nobody, whichever broker is asked, and what was not goes on."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from agentwrit import Verifier
from agentwrit.errors import InvalidToken
from tests import postgres
from tests.cluster.support import member
from tests.cluster.test_as_one import at, wait_for
from tests.postgres import STANDBY, PostgresServer
from tests.support import BrokerProcess, TestApp, bearer, problem
from tests.wire.test_feed import page


class Pair:
    """A primary and its standby, and perhaps another one."""

    def __init__(self, stack: ExitStack, *, standbys: int = 1) -> None:
        self.primary = PostgresServer()
        stack.callback(self.primary.close)
        self.standbys = [PostgresServer(primary=self.primary) for _ in range(standbys)]
        for standby in self.standbys:
            stack.callback(standby.close)
        self.standby = self.standbys[0]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in (self.primary, *self.standbys))
        return f"postgresql://{postgres.USER}@{hosts}/postgres"

    def wait_for_the_standby(self) -> None:
        """Let every commit wait for it, or for any of several."""
        names = STANDBY if len(self.standbys) == 1 else f"ANY 1 ({STANDBY})"
        postgres.ask(self.primary.url, f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        postgres.ask(self.primary.url, "SELECT pg_reload_conf()")
        states = "SELECT sync_state FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')"
        wait_for(lambda: [name for [name] in postgres.ask(self.primary.url, states)][len(self.standbys) - 1 :])

    def fail_over(self) -> None:
        self.primary.stop("immediate")
        self.standby.promote()

    def change_places(self) -> None:
        """Make the old primary, which is down, the standby of the new one, with no more than that has."""
        self.primary.rewind(self.standby)
        self.primary, self.standby = self.standby, self.primary
        self.standbys = [self.standby]

    def catch_up(self) -> None:
        """Wait until the standby has all that was committed so far."""
        [(here,)] = postgres.ask(self.primary.url, "SELECT pg_current_wal_lsn()")
        has_all = "SELECT 1 WHERE pg_last_wal_replay_lsn() >= %s::pg_lsn"
        wait_for(lambda: postgres.ask(self.standby.url, has_all, here))


@pytest.fixture
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(stack)


def refuses_everything(broker: BrokerProcess, app: TestApp, token: str) -> None:
    problem(broker.http.post("/v1/token/validate", json={"token": token}), 503, "unavailable")
    problem(broker.http.post("/v1/token/release", headers=bearer(token)), 503, "unavailable")
    problem(at(broker, app).login(), 503, "unavailable")
    problem(broker.http.get("/v1/revocations", params={"after": 0}), 503, "unavailable")
    assert [broker.http.get(path).status_code for path in ("/readyz", "/v1/health", "/livez")] == [503, 503, 200]


def promotions(broker: BrokerProcess) -> list[dict[str, Any]]:
    return [event["data"] for event in broker.events(event_type="store_promoted")]


def test_a_release_that_a_failover_lost_revives_nobody_at_any_broker(pair: Pair, tmp_path: Path) -> None:
    with member(pair.url, tmp_path / "knowing") as knowing, member(pair.url, tmp_path / "other") as other:
        app = knowing.app()
        live, released = (app.agent()["access_token"] for _ in range(2))
        assert other.is_valid(released)
        epoch = page(other, 0)["epoch"]
        other.kill()
        pair.standby.stop()
        assert knowing.release(released).status_code == 204
        pair.primary.stop("immediate")
        pair.standby.start()
        pair.standby.promote()
        refuses_everything(knowing, app, live)
        other.start()  # it finds all that it had seen, but knows that the server had waited for nobody
        app.broker = other
        for _ in range(3):  # as many events as were lost, and more
            assert not any(other.is_valid(token) for token in (live, released))
            other.release(app.agent()["access_token"])
            refuses_everything(knowing, app, live)
        assert other.is_valid(app.agent()["access_token"])
        assert page(other, 0)["epoch"] != epoch
        [told] = promotions(other)
        assert (told["timeline_before"], told["timeline"], told["is_lossless"]) == (1, 2, "false")
        assert "acknowledged are lost" in knowing.logged()
        knowing.kill()
        knowing.start()  # whatever it had granted has ended
        assert not any(knowing.is_valid(token) for token in (live, released))
        assert knowing.is_valid(app.agent()["access_token"])


def test_of_two_standbys_the_one_that_lacks_a_release_revives_nobody_for_long(tmp_path: Path) -> None:
    """Each commit had waited for one of the two, so whoever did not see the last one takes nothing for lost."""
    with ExitStack() as stack:
        pair = Pair(stack, standbys=2)
        behind, ahead = pair.standbys
        pair.wait_for_the_standby()
        knowing, other = (stack.enter_context(member(pair.url, tmp_path / name)) for name in ("knowing", "other"))
        app = knowing.app()
        live, released = (app.agent()["access_token"] for _ in range(2))
        assert other.is_valid(live)
        other.kill()
        behind.stop()
        assert knowing.release(released).status_code == 204
        knowing.kill()  # with the primary, and the standby that has it all
        pair.primary.stop("immediate")
        ahead.stop("immediate")
        behind.start()
        behind.promote()
        other.start()
        assert other.is_valid(live)
        knowing.start()
        for broker in (knowing, other):
            assert not any(broker.is_valid(token) for token in (live, released))
            there = at(broker, app)
            wait_for(lambda: [token for token in [there.token()] if broker.is_valid(token)])  # noqa: B023  # new keys sign
            assert broker.is_valid(there.agent()["access_token"])
        assert [told["is_lossless"] for told in promotions(knowing)] == ["true", "false"]


def test_a_standby_that_every_commit_waited_for_goes_on_and_nobody_dies_of_it(pair: Pair, tmp_path: Path) -> None:
    pair.wait_for_the_standby()
    with ExitStack() as stack:
        brokers = [stack.enter_context(member(pair.url, tmp_path / f"broker-{number}")) for number in range(2)]
        app = brokers[0].app()
        live, released = (app.agent()["access_token"] for _ in range(2))
        assert brokers[1].release(released).status_code == 204
        verifier = stack.enter_context(Verifier(brokers[0].url))
        verifier.verify(live)
        before = page(brokers[0], 0)
        pair.fail_over()
        wait_for(lambda: [broker for broker in brokers if broker.http.get("/readyz").status_code == 200][1:])
        follows_on(brokers, app, live, released, before)
        verifier.verify(live)
        with pytest.raises(InvalidToken):
            verifier.verify(released)
        assert brokers[1].release(live).status_code == 204
        wait_for(lambda: [token for token in [live] if is_refused(verifier, token)])


def test_brokers_that_were_killed_with_the_primary_remember_that_every_commit_waited(
    pair: Pair, tmp_path: Path
) -> None:
    pair.wait_for_the_standby()
    with member(pair.url, tmp_path / "broker") as broker:
        app = broker.app()
        live, released = (app.agent()["access_token"] for _ in range(2))
        assert broker.release(released).status_code == 204
        before = page(broker, 0)
        broker.kill()
        pair.fail_over()
        broker.start()
        follows_on([broker], app, live, released, before)


def test_a_primary_that_was_rewound_takes_over_again_and_nobody_dies_of_it(pair: Pair, tmp_path: Path) -> None:
    """Two failovers to where it began, with every commit on both sides, and brokers that never stop."""
    pair.wait_for_the_standby()
    with ExitStack() as stack:
        brokers = [stack.enter_context(member(pair.url, tmp_path / f"broker-{number}")) for number in range(2)]
        app = brokers[0].app()
        live, *released = (app.agent()["access_token"] for _ in range(3))
        for token in released:
            assert brokers[1].release(token).status_code == 204
            for broker in brokers:  # each has seen that commits wait: it looks every few seconds
                assert not broker.is_valid(token)
            pair.fail_over()
            wait_for(lambda: [broker for broker in brokers if broker.http.get("/readyz").status_code == 200][1:])
            pair.change_places()
            pair.wait_for_the_standby()
        for broker in brokers:
            assert [broker.is_valid(token) for token in (live, *released)] == [True, False, False]
            assert broker.is_valid(at(broker, app).agent()["access_token"])
        told = [(each["timeline_before"], each["timeline"], each["is_lossless"]) for each in promotions(brokers[0])]
        assert told == [(1, 2, "true"), (2, 3, "true")]


def test_whoever_saw_what_a_failover_lost_does_not_go_on_with_the_old_primary_either(
    pair: Pair, tmp_path: Path
) -> None:
    """It is the server that it knew, at the same address, and was rewound behind what was seen there."""
    with member(pair.url, tmp_path / "knowing") as knowing, member(pair.url, tmp_path / "other") as other:
        app = knowing.app()
        live, released = (app.agent()["access_token"] for _ in range(2))
        assert other.is_valid(released)
        pair.catch_up()
        pair.standby.stop()
        other.kill()
        assert knowing.release(released).status_code == 204
        pair.primary.stop("immediate")
        pair.standby.start()
        pair.standby.promote()
        other.start()
        app.broker = other
        refuses_everything(knowing, app, live)
        pair.change_places()
        pair.catch_up()
        pair.fail_over()
        wait_for(lambda: [broker for broker in [other] if broker.http.get("/readyz").status_code == 200])
        assert not any(other.is_valid(token) for token in (live, released))
        wait_for(lambda: new_agents(other, app))
        refuses_everything(knowing, app, live)
        knowing.kill()
        knowing.start()
        assert not any(knowing.is_valid(token) for token in (live, released))
        wait_for(lambda: new_agents(knowing, app))


def new_agents(broker: BrokerProcess, app: TestApp) -> list[str]:
    """The token of a new agent, if it lives: another broker that saw what was lost may let all end at this moment."""
    with suppress(AssertionError):
        token = app.agent()["access_token"]
        return [token] if broker.is_valid(token) else []
    return []


def follows_on(
    brokers: Sequence[BrokerProcess], app: TestApp, live: str, released: str, before: dict[str, Any]
) -> None:
    """Nobody died, nobody was revived, and it is told once."""
    for broker in brokers:
        assert broker.is_valid(live)
        assert not broker.is_valid(released)
        assert at(broker, app).agent()
        after = page(broker, 0)
        assert after["epoch"] != before["epoch"]
        assert after["entries"] == before["entries"]
        [told] = promotions(broker)
        assert (told["is_lossless"], told["feed_epoch"]) == ("true", after["epoch"])
        assert "nothing is lost" in "".join(each.logged() for each in brokers)


def is_refused(verifier: Verifier, token: str) -> bool:
    try:
        verifier.verify(token)
    except InvalidToken:
        return True
    return False
