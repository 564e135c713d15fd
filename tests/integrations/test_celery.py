"""Celery with a real worker in its own processes: each job runs as an agent for its arguments, and is over after it."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.signals import before_task_publish

from agentwrit import (
    AgentWritError,
    AsyncAgentWritApp,
    AuthorizationError,
    NoCurrentAgent,
    ScopeDenied,
    acting_as,
)
from agentwrit.integrations.celery import HEADER, AgentWritTask
from tests.integrations import celery_jobs
from tests.integrations.celery_shop import Shop, answer


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with closing(Shop(tmp_path_factory.mktemp("queue"))) as made:
        yield made


@pytest.fixture
def published() -> Iterator[list[dict[str, Any]]]:
    """The messages of a test, header and body, as whoever can read the queue sees them."""
    messages: list[dict[str, Any]] = []

    def read(headers: Mapping[str, Any], body: Any, **_: Any) -> None:
        messages.append({"headers": dict(headers), "body": body})

    before_task_publish.connect(read)
    yield messages
    before_task_publish.disconnect(read)


def test_a_job_has_what_its_arguments_need_by_delegation_and_is_over_after_it(shop: Shop) -> None:
    with shop.app.agent_for(task_id="checkout", scope=["read:data:*"]) as agent:
        job = answer(celery_jobs.read.delay(customer="7"))
        assert job["scope"] == ["read:data:customer-7"]
        assert (job["agent_id"], job["task_id"]) == (agent.agent_id, "checkout")
        assert not shop.is_valid(job["token"])
        assert shop.is_valid(agent.access_token)


def test_a_default_counts_as_the_body_gets_it(shop: Shop) -> None:
    with shop.app.agent_for(task_id="checkout", scope=["read:data:*"]):
        assert answer(celery_jobs.read.delay())["scope"] == ["read:data:customer-7"]


def test_a_job_of_nobody_gets_an_agent_of_its_own(shop: Shop) -> None:
    result = celery_jobs.read.delay("8")
    job = answer(result)
    assert (job["scope"], job["task_id"]) == (["read:data:customer-8"], result.id)
    assert not shop.is_valid(job["token"])


def test_a_message_carries_a_token_for_this_call_and_no_key(shop: Shop, published: list[dict[str, Any]]) -> None:
    with shop.app.agent_for(task_id="checkout", scope=["read:data:*"]) as agent:
        answer(celery_jobs.read.delay("7"))
        [message] = published
        token = message["headers"].pop(HEADER)
        assert agent.access_token not in json.dumps(message, default=str)
        assert token not in json.dumps(message, default=str)
        assert "PRIVATE" not in json.dumps(message, default=str)


def test_what_exceeds_the_current_agent_is_not_published(shop: Shop, published: list[dict[str, Any]]) -> None:
    with shop.app.agent_for(task_id="checkout", scope=["read:data:customer-7"]):
        with pytest.raises(AuthorizationError):
            celery_jobs.read.delay("8")
        for value in ("*", "7 read:data:*", "", "7:*"):
            with pytest.raises(ScopeDenied):
                celery_jobs.read.delay(value)
        with pytest.raises(TypeError):
            celery_jobs.read.delay(nobody="7")
    assert published == []


def test_a_live_token_is_refused_for_another_call(shop: Shop) -> None:
    """Who can write to the queue cannot use what is in it for something else; and the token is over then."""
    with shop.app.agent_for(task_id="checkout", scope=["read:data:*"]) as agent:
        token = agent.delegate(agent.agent_id, ["read:data:customer-7"]).access_token
        with pytest.raises(Exception, match="needed read:data:customer-8, held read:data:customer-7"):
            answer(celery_jobs.read.apply_async(["8"], headers={HEADER: token}))
        assert not shop.is_valid(token)


def test_a_job_without_a_token_that_holds_does_not_begin(shop: Shop) -> None:
    with pytest.raises(AgentWritError, match="carries no token"):
        answer(celery_jobs.jobs.send_task("read", ["7"]))
    with shop.app.agent_for(task_id="checkout", scope=["read:data:*"]) as agent:
        dead = agent.delegate(agent.agent_id, ["read:data:*"])
    head, _, signature = dead.access_token.rpartition(".")
    for token in (dead.access_token, f"{head}.{signature[::-1]}", "x", 7, None):
        with pytest.raises(AgentWritError, match=r"does not hold|carries no token"):
            answer(celery_jobs.read.apply_async(["7"], headers={HEADER: token}))


def test_a_job_that_fails_is_over_too(shop: Shop) -> None:
    with shop.app.agent_for(task_id="checkout", scope=["write:data:*"]):
        with pytest.raises(ValueError, match="ey") as failed:
            answer(celery_jobs.fail.delay(3))
        assert not shop.is_valid(str(failed.value))


def test_a_retry_goes_on_with_the_token_and_releases_it_in_the_end(shop: Shop, tmp_path: Path) -> None:
    with shop.app.agent_for(task_id="checkout", scope=["write:data:*"]):
        job = answer(celery_jobs.twice.delay(3, str(tmp_path / "note")))
        assert job["token"] == (tmp_path / "note").read_text()
        assert not shop.is_valid(job["token"])


def test_the_request_that_a_body_sees_shows_no_token(shop: Shop) -> None:
    shown, token = answer(celery_jobs.show_request.delay(3))
    assert token not in shown
    assert token not in (shop.queue / "worker.log").read_text()


def test_a_task_that_needs_nothing_is_a_task_like_any_other(shop: Shop, published: list[dict[str, Any]]) -> None:
    assert answer(celery_jobs.plain.delay(1)) == 2
    assert HEADER not in published[0]["headers"]


def test_jobs_at_once_run_as_different_agents(shop: Shop) -> None:
    """The worker's processes were forked from one: none takes another one's connection or token."""
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda number: (number, answer(celery_jobs.read.delay(str(number)))), range(24)))
    assert [job["scope"] for _, job in jobs] == [[f"read:data:customer-{number}"] for number, _ in jobs]
    assert len({job["agent_id"] for _, job in jobs}) == 24
    assert not any(shop.is_valid(job["token"]) for _, job in jobs)


def test_called_directly_it_is_the_callers_agent_that_is_checked(shop: Shop) -> None:
    with shop.app.agent_for(task_id="checkout", scope=["read:data:customer-7"]) as agent:
        assert celery_jobs.read("7")["token"] == agent.access_token
        with pytest.raises(ScopeDenied):
            celery_jobs.read("8")
        assert shop.is_valid(agent.access_token)
    with pytest.raises(NoCurrentAgent):
        celery_jobs.read("7")


def test_agents_that_cannot_hand_on_say_why(shop: Shop) -> None:
    bound = shop.app.create_agent("o", "t", ["read:data:*"], bound=True)
    with bound, acting_as(bound), pytest.raises(AgentWritError, match="bound token is of no use"):
        celery_jobs.read.delay("7")

    async def publish() -> None:
        token = shop.app.create_agent("o", "t", ["read:data:*"]).access_token
        async with (
            AsyncAgentWritApp(shop.broker.url, shop.app.client_id, "unused") as app,
            app.take_over(token) as agent,
        ):
            with acting_as(agent), pytest.raises(AgentWritError, match="does not await"):
                celery_jobs.read.delay("7")

    asyncio.run(publish())


def test_scopes_that_are_none_are_refused_where_the_task_is_made() -> None:
    def read(number: int) -> None: ...

    celery = Celery("none", task_cls=AgentWritTask, set_as_current=False)
    with pytest.raises(ValueError, match="template"):
        celery.task(scope=["read"], lazy=False, shared=False)(read)
    with pytest.raises(TypeError, match="list"):
        celery.task(scope="read:data:7", lazy=False, shared=False)(read)
    with pytest.raises(ValueError, match="no parameter 'customer'"):
        celery.task(scope=["read:data:{customer}"], lazy=False, shared=False)(read)
