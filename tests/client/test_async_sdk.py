"""The asynchronous SDK against a real broker: what it shares with the blocking one, and what tasks and loops add."""

import asyncio
import pickle
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from agentwrit import (
    AgentWritError,
    AsyncAgent,
    AsyncAgentWritApp,
    AuthenticationError,
    AuthorizationError,
    ProblemResponseError,
    RateLimitError,
    TransportError,
)
from tests.client.peer import Peer, Reply, answer, break_off, hang_up, never, peer
from tests.support import BrokerProcess, TestApp

DEAD = {"valid": False, "error": "token is invalid or expired"}
SCOPE = ["read:data:1"]


@pytest.fixture
def registered(broker: BrokerProcess) -> TestApp:
    return broker.app()


def app_of(registered: TestApp) -> AsyncAgentWritApp:
    return AsyncAgentWritApp(registered.broker.url, registered.client_id, registered.client_secret)


@asynccontextmanager
async def at(broker: Peer, timeout: float = 10) -> AsyncIterator[AsyncAgentWritApp]:
    async with AsyncAgentWritApp(broker.url, "id", "secret", timeout=timeout) as app:
        yield app


def logins(registered: TestApp) -> int:
    events = registered.broker.events(event_type="app_authenticated")
    return sum(event.get("app_id") == registered.app_id for event in events)


def test_an_agents_life(registered: TestApp) -> None:
    async def life() -> None:
        async with app_of(registered) as app:
            assert (await app.health()).status == "ok"
            one = await app.create_agent("orders", "o-1", iter(SCOPE), max_ttl=120, label="worker")
            two = await app.create_agent("orders", "o-2", SCOPE)
            assert (one.expires_in, one.scope, one.orch_id, one.task_id) == (120, SCOPE, "orders", "o-1")
            assert one.bearer_header == {"Authorization": f"Bearer {one.access_token}"}
            before = one.access_token
            await one.renew()
            assert not (await app.validate(before)).valid
            accepted = two.accept(await one.delegate(two.agent_id, SCOPE))
            claims = (await app.validate(accepted.access_token)).claims
            assert claims is not None
            assert (claims.sub, claims.task_id) == (two.agent_id, "o-1")
            await one.release()
            await one.release()
            assert not (await app.validate(accepted.access_token)).valid
            with pytest.raises(AgentWritError, match="released"):
                await one.renew()
            with pytest.raises(AuthorizationError):
                await app.create_agent("o", "t", ["delete:data:1"])
            with pytest.raises(TypeError, match="list of scopes"):
                await app.create_agent("o", "t", "read:data:1")

    asyncio.run(life())


def test_the_with_block_releases_and_does_not_hide_what_happened_inside(registered: TestApp) -> None:
    async def life() -> None:
        async with app_of(registered) as app:
            agent = await app.create_agent("o", "t", SCOPE)
            with pytest.raises(ZeroDivisionError):
                async with agent:
                    raise ZeroDivisionError
            assert not (await app.validate(agent.access_token)).valid
            lost = await app.create_agent("o", "t", SCOPE)
            app._driver.broker_url, app._driver._timeout = "http://127.0.0.1:9", 0.5  # the broker is gone
            await app.aclose()
            with pytest.raises(ZeroDivisionError) as caught:
                async with lost:
                    raise ZeroDivisionError
            assert "could not be released" in caught.value.__notes__[0]

    asyncio.run(life())


def test_a_thousand_agents_at_once_share_one_login_and_few_connections(registered: TestApp) -> None:
    async def create() -> None:
        async with app_of(registered) as app:
            agents = await asyncio.gather(*(app.create_agent("o", f"t-{count}", SCOPE) for count in range(1000)))
            assert len({agent.agent_id for agent in agents}) == 1000

    asyncio.run(create())
    assert logins(registered) == 1


def test_an_app_at_its_limit_is_told_which_and_how_long_to_wait(broker: BrokerProcess) -> None:
    registered = broker.app(max_live_agents=2)

    async def main() -> None:
        async with app_of(registered) as app:
            asked = (app.create_agent("o", f"t-{number}", ["read:data:1"]) for number in range(6))
            answers = await asyncio.gather(*asked, return_exceptions=True)
            refused = [each for each in answers if isinstance(each, BaseException)]
            assert len(refused) == 4
            assert all(isinstance(each, RateLimitError) and each.retry_after == 5 for each in refused)
            assert "max_live_agents" in str(refused[0])

    asyncio.run(main())
    assert broker.events(app_id=registered.app_id, event_type="launch_token_issued") == []


def test_of_many_calls_few_are_under_way_and_none_runs_out_of_time() -> None:
    with peer(answer(200, DEAD)) as broker:

        async def validate() -> None:
            async with at(broker, timeout=2) as app:
                await asyncio.gather(*(app.validate("x") for _ in range(2000)))

        asyncio.run(validate())
        assert len({headers["x-peer-port"] for _, _, headers in broker.seen}) <= 16


@pytest.mark.alone
def test_calls_that_wait_behind_a_silent_broker_end_with_it() -> None:
    with peer(never) as broker:

        async def validate() -> None:
            async with at(broker, timeout=0.5) as app:
                async with asyncio.timeout(3):
                    results = await asyncio.gather(*(app.validate("x") for _ in range(100)), return_exceptions=True)
                assert all(isinstance(result, TransportError) for result in results)

        asyncio.run(validate())


def test_one_app_and_agent_live_on_several_loops(registered: TestApp) -> None:
    app = app_of(registered)  # and nothing is closed: the end of each loop is enough
    agent = asyncio.run(app.create_agent("o", "t", SCOPE))
    asyncio.run(agent.renew())
    assert asyncio.run(app.validate(agent.access_token)).valid

    async def many() -> None:
        await asyncio.gather(*(agent.renew() for _ in range(20)))
        await agent.release()

    asyncio.run(many())
    assert not asyncio.run(app.validate(agent.access_token)).valid
    assert logins(registered) == 1


def test_tasks_that_renew_one_agent_renew_it_once(registered: TestApp) -> None:
    async def renew() -> None:
        async with app_of(registered) as app, await app.create_agent("o", "t", SCOPE) as agent:
            await asyncio.gather(*(agent.renew() for _ in range(50)))
            assert (await app.validate(agent.access_token)).valid
            renewals = registered.broker.events(event_type="token_renewed", agent_id=agent.agent_id)
            assert len(renewals) == 1

    asyncio.run(renew())


# -- cancellation -----------------------------------------------------------------------------------------------------


def test_a_cancelled_task_releases_its_agent(registered: TestApp) -> None:
    async def work(agent: AsyncAgent, inside: asyncio.Event) -> None:
        async with agent:
            inside.set()
            await asyncio.Event().wait()

    async def life() -> None:
        async with app_of(registered) as app:
            for times in (1, 2, 3):
                agent = await app.create_agent("o", "t", SCOPE)
                inside = asyncio.Event()
                task = asyncio.create_task(work(agent, inside))
                await inside.wait()
                for _ in range(times):
                    task.cancel()
                    await asyncio.sleep(0)  # it gets as far as the release, where it is cancelled again
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert not (await app.validate(agent.access_token)).valid

    asyncio.run(life())


def test_an_agent_is_released_when_the_time_for_its_work_is_up(registered: TestApp) -> None:
    async def life() -> None:
        async with app_of(registered) as app:
            agent = await app.create_agent("o", "t", SCOPE)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), agent:
                    await asyncio.Event().wait()
            assert not (await app.validate(agent.access_token)).valid

    asyncio.run(life())


def test_a_cancelled_renewal_goes_on_and_loses_no_token(registered: TestApp) -> None:
    async def renew() -> None:
        async with app_of(registered) as app:
            agent = await app.create_agent("o", "t", SCOPE)
            before = agent.access_token
            task = asyncio.create_task(agent.renew())
            while not app._driver._homes[asyncio.get_running_loop()].tasks:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await agent.renew()  # waits for its turn, and finds it done
            assert agent.access_token != before
            assert (await app.validate(agent.access_token)).valid
            assert len(registered.broker.events(event_type="token_renewed", agent_id=agent.agent_id)) == 1

    asyncio.run(renew())


def test_a_renewal_that_ends_with_its_loop_can_be_made_up_for(registered: TestApp) -> None:
    app = app_of(registered)
    agent = asyncio.run(app.create_agent("o", "t", SCOPE))
    before = agent.access_token
    successor = registered.broker.renew(before).json()["access_token"]  # made, and its answer lost
    asyncio.run(agent.renew())
    assert agent.access_token == successor
    asyncio.run(agent.release())


def test_a_cancelled_login_is_made_by_whoever_comes_next(registered: TestApp) -> None:
    async def create() -> None:
        async with app_of(registered) as app:
            first = asyncio.create_task(app.create_agent("o", "t", SCOPE))
            others = [asyncio.create_task(app.create_agent("o", "t", SCOPE)) for _ in range(5)]
            await asyncio.sleep(0)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            await asyncio.gather(*others)

    asyncio.run(create())


# -- transport --------------------------------------------------------------------------------------------------------


def test_what_is_idempotent_is_retried() -> None:
    with peer(hang_up, break_off, answer(503, {}, retry_after="0"), answer(200, DEAD)) as broker:

        async def validate() -> None:
            async with at(broker) as app:
                assert (await app.validate("x")).error == DEAD["error"]
                assert (await app.validate("\ud800")).error == DEAD["error"]

        asyncio.run(validate())
        assert len(broker.seen) == 4


@pytest.mark.parametrize(
    "failure", [hang_up, answer(503, {"error_code": "unavailable"}), answer(307, b"", location="/")]
)
def test_what_is_not_is_made_once(failure: Reply) -> None:
    with peer(failure) as broker:

        async def create() -> None:
            async with at(broker) as app:
                with pytest.raises(AgentWritError):
                    await app.create_agent("o", "t", SCOPE)

        asyncio.run(create())
        assert len(broker.seen) == 1


@pytest.mark.alone
def test_a_timeout_is_for_the_whole_call() -> None:
    with peer(answer(503, {"error_code": "unavailable"})) as broker:

        async def validate() -> None:
            async with at(broker, timeout=0.5) as app, asyncio.timeout(1.5):
                with pytest.raises(ProblemResponseError):
                    await app.validate("x")

        asyncio.run(validate())


@pytest.mark.parametrize("reply", [hang_up, never, answer(401, {}), answer(200, b"[]")])
def test_no_variable_of_a_traceback_holds_the_secret(reply: Reply) -> None:
    with peer(reply) as broker:

        async def create() -> None:
            app = AsyncAgentWritApp(broker.url, "id", "the" + "-secret-itself", timeout=0.3)
            with pytest.raises(AgentWritError) as caught:
                await app.create_agent("o", "t", SCOPE)
            shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
            assert "the-secret-itself" not in "".join(shown.format())
            assert not isinstance(caught.value.__context__, httpx2.HTTPError | TimeoutError)

        asyncio.run(create())


def test_secrets_are_neither_shown_nor_pickled(registered: TestApp) -> None:
    async def create() -> None:
        async with app_of(registered) as app:
            agent = await app.create_agent("o", "t", SCOPE)
            for thing in (app, agent, app._driver, app._driver._login):
                assert registered.client_secret not in repr(thing)
                assert agent.access_token not in repr(thing)
            for thing in (app, agent):
                with pytest.raises(TypeError, match="not pickled"):
                    pickle.dumps(thing)

    asyncio.run(create())


def test_a_client_of_ones_own_is_left_open_and_missed_when_it_is_closed(registered: TestApp) -> None:
    async def create() -> None:
        async with httpx2.AsyncClient() as client:
            arguments = (registered.broker.url, registered.client_id, registered.client_secret)
            async with AsyncAgentWritApp(*arguments, http_client=client) as app:
                await app.create_agent("o", "t", SCOPE)
            assert not client.is_closed
        with pytest.raises(AgentWritError, match="http_client of this app is closed"):
            await app.create_agent("o", "t", SCOPE)

    asyncio.run(create())


def test_a_closed_app_opens_new_connections(registered: TestApp) -> None:
    async def validate() -> None:
        app = app_of(registered)
        for _ in range(2):
            assert not (await app.validate("x")).valid
            await app.aclose()
            await app.aclose()

    asyncio.run(validate())


def test_a_login_that_is_refused_is_replaced_once(registered: TestApp) -> None:
    login = answer(200, {"access_token": "t", "expires_in": 600})
    refused = answer(401, {"title": "Unauthorized", "detail": "no", "error_code": "unauthorized"})
    with peer(login, refused, login, refused) as broker:

        async def create() -> None:
            async with at(broker) as app:
                with pytest.raises(AuthenticationError):
                    await app.create_agent("o", "t", SCOPE)

        asyncio.run(create())
        expected = ["/v1/app/auth", "/v1/agents", "/v1/app/auth", "/v1/agents"]
        assert [path for path, _, _ in broker.seen] == expected


def test_from_env_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, registered: TestApp) -> None:
    monkeypatch.setenv("AGENTWRIT_BROKER_URL", registered.broker.url)
    monkeypatch.setenv("AGENTWRIT_CLIENT_ID", registered.client_id)
    monkeypatch.delenv("AGENTWRIT_CLIENT_SECRET", raising=False)
    with pytest.raises(AgentWritError, match="AGENTWRIT_CLIENT_SECRET"):
        AsyncAgentWritApp.from_env()
    monkeypatch.setenv("AGENTWRIT_CLIENT_SECRET", registered.client_secret)
    asyncio.run(AsyncAgentWritApp.from_env().create_agent("o", "t", SCOPE))
