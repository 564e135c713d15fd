"""The SDK against a real broker."""

import os
import pickle
import secrets
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import agentwrit
from agentwrit import (
    AgentWritApp,
    AgentWritError,
    AuthenticationError,
    AuthorizationError,
    CryptoError,
    ProblemResponseError,
    RateLimitError,
    TransportError,
    validate,
)
from tests.support import BrokerProcess, TestApp

THREADS = 8


@pytest.fixture
def registered(broker: BrokerProcess) -> TestApp:
    return broker.app(audiences=["https://orders.example"])


@pytest.fixture
def app(broker: BrokerProcess, registered: TestApp) -> AgentWritApp:
    return AgentWritApp(broker.url + "/", registered.client_id, registered.client_secret)


def test_an_agents_life(app: AgentWritApp) -> None:
    agent = app.create_agent("orders", "o-1", ["read:data:customer-1"], max_ttl=120, label="worker")
    assert agent.expires_in == 120
    assert agent.scope == ["read:data:customer-1"]
    assert (agent.orch_id, agent.task_id) == ("orders", "o-1")
    assert agent.bearer_header == {"Authorization": f"Bearer {agent.access_token}"}
    result = validate(app.broker_url, agent.access_token)
    assert result.valid
    assert result.claims is not None
    assert result.claims.sub == agent.agent_id
    before = agent.access_token
    agent.renew()
    assert agent.access_token != before
    assert not app.validate(before).valid
    agent.release()
    agent.release()
    assert app.validate(agent.access_token).error == "token is invalid or expired"
    with pytest.raises(AgentWritError, match="released"):
        agent.renew()


def test_the_with_block_releases_and_does_not_hide_what_happened_inside(app: AgentWritApp) -> None:
    agent = app.create_agent("o", "t", ["read:data:1"])
    with pytest.raises(ZeroDivisionError), agent:
        raise ZeroDivisionError
    assert not app.validate(agent.access_token).valid


def test_a_release_that_fails_does_not_hide_what_happened_inside(registered: TestApp) -> None:
    with httpx2.Client() as client:
        app = AgentWritApp(
            registered.broker.url, registered.client_id, registered.client_secret, http_client=client, timeout=1
        )
        agent = app.create_agent("o", "t", ["read:data:1"])
        agent._driver.broker_url = "http://127.0.0.1:9"  # the broker is gone
        with pytest.raises(ZeroDivisionError) as caught, agent:
            raise ZeroDivisionError
    assert "could not be released" in caught.value.__notes__[0]


def test_a_release_that_did_not_reach_the_broker_can_be_tried_again(app: AgentWritApp) -> None:
    agent = app.create_agent("o", "t", ["read:data:1"])
    url, app._driver.broker_url = app._driver.broker_url, "http://127.0.0.1:9"
    app.close()
    app._driver._timeout = 0.3
    with pytest.raises(TransportError):
        agent.release()
    app._driver.broker_url, app._driver._timeout = url, 10
    app.close()
    agent.release()
    assert not app.validate(agent.access_token).valid


def test_an_agent_whose_app_was_removed_counts_as_released(app: AgentWritApp, registered: TestApp) -> None:
    agent = app.create_agent("o", "t", ["read:data:1"])
    broker = registered.broker
    broker.http.delete(f"/v1/admin/apps/{registered.app_id}", headers=broker.admin())
    agent.release()


def test_eight_threads_share_one_app_and_one_login(app: AgentWritApp, registered: TestApp) -> None:
    def life(_: int) -> None:
        with app.create_agent("o", "t", ["read:data:1"]) as agent:
            assert validate(app.broker_url, agent.access_token).valid
        assert not validate(app.broker_url, agent.access_token).valid

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(life, range(THREADS * 25)))
    logins = [
        event
        for event in registered.broker.events(event_type="app_authenticated")
        if event.get("app_id") == registered.app_id
    ]
    assert len(logins) == 1


FORKED = """
import os
from agentwrit import AgentWritApp

app = AgentWritApp.from_env()
app.create_agent("parent", "warm", ["read:data:1"])  # its connection is open when the children are made

def live(name):
    for count in range(20):
        agent = app.create_agent(name, f"t-{count}", ["read:data:1"])
        assert f"/{name}/t-{count}/" in agent.agent_id, agent
        assert app.validate(agent.access_token).claims.sub == agent.agent_id
        agent.release()

children = []
for name in ("one", "two"):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            live(name)
            status = 0
        finally:
            os._exit(status)
    children.append(pid)
live("parent")
assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
"""


def test_processes_that_share_an_app_across_a_fork_do_not_get_each_others_answers(registered: TestApp) -> None:
    variables = {
        **os.environ,
        "AGENTWRIT_BROKER_URL": registered.broker.url,
        "AGENTWRIT_CLIENT_ID": registered.client_id,
        "AGENTWRIT_CLIENT_SECRET": registered.client_secret,
    }
    done = subprocess.run([sys.executable, "-c", FORKED], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


AGENT_OF_THE_PARENT = """
import asyncio, inspect, os, sys
import httpx2
from agentwrit import AgentWritApp, AgentWritError, AsyncAgentWritApp

async def did(what):
    return await what if inspect.isawaitable(what) else what

async def refuses(call):
    try:
        await did(call())
    except AgentWritError as error:
        assert "create one here" in str(error), error
        return True
    return False

async def child(app, agent):
    http = httpx2.AsyncClient(auth=agent.auth)
    assert await refuses(agent.renew) and await refuses(agent.release)
    assert await refuses(lambda: http.get(f"{app.broker_url}/v1/health"))
    assert (await did(app.validate(agent.access_token))).valid  # it may look at it
    own = await did(app.create_agent("child", "t", ["read:data:1"]))
    assert (await did(agent.delegate(own.agent_id, ["read:data:1"]))).access_token  # and hand on what it may do
    await did(own.renew())
    await did(own.release())

async def fork(app, agent):
    # A loop is left behind by a fork as it is: the child has one of its own.
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            asyncio.events._set_running_loop(None)
            asyncio.run(child(app, agent))
            status = 0
        finally:
            if status or sys.argv[1] != "leaves":
                os._exit(status)
    return pid

async def main(app):
    agent = await did(app.create_agent("o", "t", ["read:data:1"], max_ttl=60))
    if hasattr(agent, "__aexit__"):
        async with agent:
            pid = await fork(app, agent)
            if pid:
                assert os.waitpid(pid, 0)[1] == 0
                await did(agent.renew())
    else:
        with agent:
            pid = await fork(app, agent)
            if pid:
                assert os.waitpid(pid, 0)[1] == 0
                agent.renew()
                assert app.validate(agent.access_token).valid
    if pid == 0:
        os._exit(0)  # it left the `with` as well, and ended nothing

asyncio.run(main((AgentWritApp if sys.argv[2] == "blocking" else AsyncAgentWritApp).from_env()))
"""


@pytest.mark.parametrize("leaving", ["leaves", "stays"])
@pytest.mark.parametrize("kind", ["blocking", "asynchronous"])
def test_an_agent_is_renewed_and_released_by_the_process_that_made_it_alone(
    registered: TestApp, kind: str, leaving: str
) -> None:
    variables = {
        **os.environ,
        "AGENTWRIT_BROKER_URL": registered.broker.url,
        "AGENTWRIT_CLIENT_ID": registered.client_id,
        "AGENTWRIT_CLIENT_SECRET": registered.client_secret,
    }
    command = [sys.executable, "-c", AGENT_OF_THE_PARENT, leaving, kind]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_arguments_may_be_any_iterable_of_scopes_and_one_audience(app: AgentWritApp) -> None:
    agent = app.create_agent("o", "t", iter(["read:data:1"]), audience="https://orders.example")
    claims = app.validate(agent.access_token).claims
    assert claims is not None
    assert (agent.scope, claims.scope, claims.aud) == (["read:data:1"], ["read:data:1"], ["https://orders.example"])


def test_threads_that_renew_one_agent_leave_it_with_a_live_token(app: AgentWritApp) -> None:
    agent = app.create_agent("o", "t", ["read:data:1"])
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda _: agent.renew(), range(THREADS)))
    assert app.validate(agent.access_token).valid


def test_a_rotated_app_token_is_replaced_without_a_word(broker: BrokerProcess, registered: TestApp) -> None:
    app = AgentWritApp(broker.url, registered.client_id, registered.client_secret)
    app.create_agent("o", "t", ["read:data:1"])
    path = f"/v1/admin/apps/{registered.app_id}/secret"
    rotated = broker.http.post(path, headers=broker.admin()).json()["client_secret"]
    with pytest.raises(AuthenticationError):
        app.create_agent("o", "t", ["read:data:1"])
    AgentWritApp(broker.url, registered.client_id, rotated).create_agent("o", "t", ["read:data:1"])


def test_a_key_of_ones_own_is_used(app: AgentWritApp) -> None:
    key = Ed25519PrivateKey.generate()
    assert app.create_agent("o", "t", ["read:data:1"], private_key=key).expires_in == 300
    with pytest.raises(CryptoError, match="Ed25519"):
        app.create_agent("o", "t", ["read:data:1"], private_key=object())  # type: ignore[arg-type]  # the point


def test_an_audience_is_asked_for(app: AgentWritApp) -> None:
    agent = app.create_agent("o", "t", ["read:data:1"], audience=["https://orders.example"])
    claims = app.validate(agent.access_token).claims
    assert claims is not None
    assert claims.aud == ["https://orders.example"]


def test_refusals_say_what_they_are(app: AgentWritApp, broker: BrokerProcess) -> None:
    with pytest.raises(AuthorizationError) as beyond:
        app.create_agent("o", "t", ["delete:data:1"])
    assert beyond.value.problem.error_code == "scope_violation"
    with pytest.raises(ProblemResponseError, match="task_id"):
        app.create_agent("o", "..", ["read:data:1"])
    with pytest.raises(AuthenticationError):
        AgentWritApp(broker.url, "client-none", "none").create_agent("o", "t", ["read:data:1"])
    with pytest.raises(TypeError, match="list of scopes"):
        app.create_agent("o", "t", "read:data:1")


def test_an_app_at_its_limit_is_told_which_and_how_long_to_wait(broker: BrokerProcess) -> None:
    registered = broker.app(max_live_agents=1)
    with AgentWritApp(broker.url, registered.client_id, registered.client_secret) as app:
        with app.create_agent("o", "t", ["read:data:1"]):
            with pytest.raises(RateLimitError, match="max_live_agents") as caught:
                app.create_agent("o", "t", ["read:data:1"])
            assert (caught.value.retry_after, caught.value.problem.error_code) == (5, "rate_limited")
            assert broker.events(app_id=registered.app_id, event_type="launch_token_issued") == []  # no way around
        assert app.create_agent("o", "t", ["read:data:1"]).scope == ["read:data:1"]


def test_a_suspended_app_is_refused_and_goes_on_when_it_is_resumed(
    app: AgentWritApp, registered: TestApp, broker: BrokerProcess
) -> None:
    path = f"/v1/admin/apps/{registered.app_id}"
    agent = app.create_agent("o", "t", ["read:data:1"])
    broker.http.post(f"{path}/suspend", headers=broker.admin())
    with pytest.raises(AuthenticationError):
        app.create_agent("o", "t", ["read:data:1"])
    with pytest.raises(AuthenticationError):
        agent.renew()
    agent.release()
    broker.http.post(f"{path}/resume", headers=broker.admin())
    with app.create_agent("o", "t", ["read:data:1"]) as another:
        assert app.validate(another.access_token).valid


def test_missing_variables_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGENTWRIT_BROKER_URL", "AGENTWRIT_CLIENT_ID", "AGENTWRIT_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AGENTWRIT_CLIENT_ID", "id")
    with pytest.raises(AgentWritError) as caught:
        AgentWritApp.from_env()
    assert "AGENTWRIT_BROKER_URL" in str(caught.value)
    assert "AGENTWRIT_CLIENT_SECRET" in str(caught.value)
    assert "AGENTWRIT_CLIENT_ID" not in str(caught.value)


def test_secrets_are_neither_shown_nor_pickled(app: AgentWritApp, registered: TestApp, broker: BrokerProcess) -> None:
    agent = app.create_agent("o", "t", ["read:data:1"])
    for thing in (app, agent, agent._key, app._driver, app._driver._login):
        assert registered.client_secret not in repr(thing)
        assert agent.access_token not in repr(thing)
    for thing in (app, agent, agent._key):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(thing)
    wrong = secrets.token_hex(32)
    for url in (broker.url, "http://127.0.0.1:9"):
        with pytest.raises(AgentWritError) as caught:
            AgentWritApp(url, "client-none", wrong, timeout=0.3).create_agent("o", "t", ["read:data:1"])
        shown = "".join(traceback.format_exception(caught.value))
        assert wrong not in shown
        assert caught.value.__cause__ is None


def test_errors_survive_pickling(app: AgentWritApp) -> None:
    with pytest.raises(AuthorizationError) as caught:
        app.create_agent("o", "t", ["delete:data:1"])
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), copy.problem, str(copy)) == (AuthorizationError, caught.value.problem, str(caught.value))


# -- what importing costs -------------------------------------------------------------------------------------------


def loaded_by(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_sdk_loads_neither_a_client_nor_a_server() -> None:
    loaded = loaded_by("from agentwrit import AgentWritApp, validate, scope_is_subset")
    assert loaded.isdisjoint({"httpx2", "httpcore2", "uvicorn", "starlette", "cryptography", "structlog", "click"})


@pytest.mark.alone
def test_importing_the_package_takes_less_than_30_ms() -> None:
    program = "import time; began = time.process_time(); import agentwrit; print(time.process_time() - began)"
    command = [sys.executable, "-c", program]
    # The best of several, in processor time: what else the machine does is not what importing costs.
    took = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(5)]
    assert min(took) < 0.030, took


def test_importing_the_scope_rule_loads_the_standard_library_alone() -> None:
    loaded = loaded_by("from agentwrit import scope_is_subset")
    assert loaded - sys.stdlib_module_names - loaded_by("pass") == {"agentwrit"}


def test_every_public_name_is_there() -> None:
    for name in agentwrit.__all__:
        assert getattr(agentwrit, name) is not None
    assert set(agentwrit.__all__) == set(agentwrit._HOMES) | {"__version__"}
    with pytest.raises(AttributeError):
        agentwrit.nothing  # type: ignore[attr-defined]  # noqa: B018  # the point
