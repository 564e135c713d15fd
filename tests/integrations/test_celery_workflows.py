"""Workflows of Celery with a real worker: each step acts on a token that whoever published the workflow had made."""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.contrib.testing.worker import start_worker
from celery.signals import before_task_publish, setup_logging

from agentwrit import AgentWritError, AuthorizationError, ScopeDenied, current_agent
from agentwrit.integrations.celery import HEADER, AgentWritTask
from tests.integrations import celery_jobs
from tests.integrations.celery_jobs import (
    add,
    fall,
    give_up,
    in_context,
    insist,
    jobs,
    pair,
    plain,
    publish,
    publish_anything,
    read,
    replaced,
    undo,
    write,
)
from tests.integrations.celery_shop import Shop, answer

ORDER_7 = ["write:data:order-7"]
ORDERS = ["write:data:*"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with closing(Shop(tmp_path_factory.mktemp("queue"))) as made:
        yield made


@pytest.fixture
def published() -> Iterator[list[dict[str, Any]]]:
    """The messages of a test as whoever can read the queue sees them."""
    messages: list[dict[str, Any]] = []

    def see(headers: Mapping[str, Any], body: Any, **_: Any) -> None:
        messages.append(json.loads(json.dumps({"headers": headers, "body": body}, default=str)))

    before_task_publish.connect(see)
    yield messages
    before_task_publish.disconnect(see)


def new(shop: Shop, before: int) -> list[list[Any]]:
    return shop.ran()[before:]


def test_each_step_of_a_chain_has_what_its_arguments_need(shop: Shop) -> None:
    before = len(shop.ran())
    with shop.app.agent_for(task_id="checkout", scope=ORDERS):
        assert answer((write.si(7) | plain.s() | write.si(8)).apply_async()) == 8
    assert new(shop, before) == [["write", 7, ORDER_7], ["write", 8, ["write:data:order-8"]]]


def test_what_a_step_gets_from_the_one_before_is_held_to_the_publishers_scope(shop: Shop) -> None:
    before = len(shop.ran())
    with shop.app.agent_for(task_id="checkout", scope=ORDER_7):
        assert answer(chain(plain.s(6), write.s()).delay()) == 7
        with pytest.raises(Exception, match="needed write:data:order-999, held write:data:order-7"):
            answer(chain(plain.s(998), write.s()).delay())
    assert new(shop, before) == [["write", 7, ORDER_7]]


@pytest.mark.parametrize(
    "workflow",
    [
        lambda: plain.s(1) | write.si(999),
        lambda: plain.s(1).on_error(write.si(999)),
        lambda: plain.s(1).set(link=write.si(999)),
        lambda: chord([plain.s(1), plain.s(2)], write.si(999)),
        lambda: chord([plain.s(1), write.s(999)], plain.si(1)),
        lambda: plain.s(1) | group(write.si(7), plain.s() | write.si(999)),
        lambda: plain.s(1) | read.s(),
        lambda: write.map([7, 999]),
        lambda: plain.s(1) | write.chunks([(7,), (999,)], 1),
        lambda: plain.s(1) | write.chunks([(7,), (999,)], 1) | plain.si(1),
        lambda: pair.starmap([(7, 1), (999, 2)]),
    ],
)
def test_a_workflow_with_a_step_that_exceeds_the_publisher_is_not_published(
    shop: Shop, published: list[dict[str, Any]], workflow: Any
) -> None:
    with shop.app.agent_for(task_id="checkout", scope=ORDER_7), pytest.raises((AuthorizationError, ScopeDenied)):
        workflow().apply_async()
    assert [message for message in published if "write" in str(message)] == []


def test_what_was_made_for_a_workflow_that_is_not_published_has_ended(shop: Shop) -> None:
    with shop.app.agent_for(task_id="checkout", scope=ORDER_7) as agent:
        with pytest.raises(AuthorizationError):
            (write.si(7) | write.si(7) | write.si(999)).apply_async()
        assert len(shop.broker.operator.list_agents(agent_id=agent.agent_id)["agents"]) == 1


def test_callbacks_and_errbacks_have_tokens_of_their_own(shop: Shop) -> None:
    before = len(shop.ran())
    linked, failed = write.si(7).set(task_id="linked-7"), write.si(8).set(task_id="failed-8")
    with shop.app.agent_for(task_id="checkout", scope=ORDERS):
        answer(plain.apply_async([1], link=linked))
        assert answer("linked-7") == 7
        with pytest.raises(ValueError, match="given up"):
            answer(give_up.apply_async(link_error=failed))
        assert answer("failed-8") == 8
    assert new(shop, before) == [["write", 7, ORDER_7], ["write", 8, ["write:data:order-8"]]]
    assert HEADER not in str(linked), "a signature is not changed: it may be published again"


def test_an_errback_that_is_called_in_place_is_held_to_its_token(shop: Shop) -> None:
    before = len(shop.ran())
    with shop.app.agent_for(task_id="checkout", scope=ORDER_7):
        for errback in (undo.s(7), pair.si(7, 5).set(task_id="paired-7")):
            with pytest.raises(ValueError, match="given up"):
                answer(give_up.apply_async(link_error=errback))
        assert (answer("undone-7"), answer("paired-7")) == (7, 7)
        with pytest.raises((AuthorizationError, ScopeDenied)):
            give_up.apply_async(link_error=undo.s(8))
    assert sorted(new(shop, before)) == [["pair", 7, 5, ORDER_7], ["undo", 7, ORDER_7]]


def test_a_chord_and_its_body(shop: Shop) -> None:
    before = len(shop.ran())
    with shop.app.agent_for(task_id="checkout", scope=ORDERS):
        workflow = chord([write.s(1), write.s(2)], add.s() | write.s())
        assert answer(workflow.apply_async(headers={"reason": "spring"})) == 3
    assert sorted(new(shop, before)) == [
        ["add", 3, ["write:data:sum"]],
        ["write", 1, ["write:data:order-1"]],
        ["write", 2, ["write:data:order-2"]],
        ["write", 3, ORDERS],
    ]


def test_a_workflow_of_nobody_has_agents_of_its_own(shop: Shop) -> None:
    before = len(shop.ran())
    assert answer((write.si(7) | group(write.si(8), write.si(9)) | add.s()).apply_async()) == 17
    assert sorted(what[-1] for what in new(shop, before)) == [
        ["write:data:order-7"],
        ["write:data:order-8"],
        ["write:data:order-9"],
        ["write:data:sum"],
    ]


def test_headers_of_ones_own_reach_the_steps_beside_the_tokens(shop: Shop, published: list[dict[str, Any]]) -> None:
    with shop.app.agent_for(task_id="checkout", scope=ORDERS):
        workflow = plain.s(1) | group(write.si(7), write.si(8)).set(headers={"reason": "spring"})
        for each in answer_all(workflow.apply_async(headers={"wave": "2"})):
            assert each in (7, 8)
    assert published[0]["headers"]["wave"] == "2"


def answer_all(result: Any) -> list[int]:
    return list(result.get(timeout=60, interval=0.02))


@pytest.mark.parametrize(
    "workflow", [lambda: write.map([7, 8]), lambda: write.starmap([(7,), (8,)]), lambda: write.chunks([(7,), (8,)], 2)]
)
def test_a_scoped_task_is_mapped(shop: Shop, workflow: Any) -> None:
    before = len(shop.ran())
    both = ["write:data:order-7", "write:data:order-8"]
    with shop.app.agent_for(task_id="checkout", scope=ORDERS) as agent:
        done = answer(workflow().apply_async())
        assert done in ([7, 8], [[7, 8]])
        assert agent.seconds_left > 0
    assert new(shop, before) == [["write", 7, both], ["write", 8, both]]


def test_chunks_in_a_chain_delegate_to_each_part(shop: Shop) -> None:
    before = len(shop.ran())
    with shop.app.agent_for(task_id="checkout", scope=ORDERS):
        parts = answer((plain.s(1) | write.chunks([(7,), (8,)], 1)).apply_async())
        assert sorted(answer(part[0][0]) for part in parts[1]) == [[7], [8]]
    assert sorted(new(shop, before)) == [["write", 7, ORDER_7], ["write", 8, ["write:data:order-8"]]]


def test_a_map_that_needs_more_scopes_than_a_token_has_says_what_to_do(shop: Shop) -> None:
    with (
        shop.app.agent_for(task_id="checkout", scope=ORDERS),
        pytest.raises(AgentWritError, match="need 65 scopes, and a token has 64 at most: publish it in parts"),
    ):
        write.map(range(65)).apply_async()


def test_what_a_body_publishes_it_delegates_and_need_not_wait_for(shop: Shop) -> None:
    before = len(shop.ran())
    with shop.app.agent_for(task_id="checkout", scope=ORDERS):
        published, token = answer(publish.delay(7, 8))
        assert answer(published) == 8
        assert not shop.is_valid(token)
    assert new(shop, before) == [["write", 8, ["write:data:order-8"]]]
    assert answer(answer(publish_anything.delay(9))) == 9


@pytest.mark.parametrize(("how", "comes_out"), [("task", 7), ("chain", 7), ("group", [7, 8]), ("chord", 15)])
def test_a_scoped_task_is_replaced(shop: Shop, how: str, comes_out: Any) -> None:
    before = len(shop.ran())
    with shop.app.agent_for(task_id="checkout", scope=ORDERS):
        workflow = replaced.s(how, 7) | write.si(1) if how == "task" else replaced.s(how, 7)
        assert answer(workflow.apply_async()) == (1 if how == "task" else comes_out)
    ran = new(shop, before)
    assert ran[0] == ["replaced", 7, ORDERS]
    assert ["write", 7, ORDER_7] in ran


def test_a_task_that_calls_itself_is_held_to_its_token(shop: Shop) -> None:
    before = len(shop.ran())
    with shop.app.agent_for(task_id="checkout", scope=ORDERS):
        with pytest.raises(Exception, match="needed write:data:order-8, held write:data:order-9"):
            answer(celery_jobs.count_down.delay(9))
        assert answer(celery_jobs.count_down.delay(7)) == 7
    assert new(shop, before) == [["count_down", 9, ["write:data:order-9"]], ["count_down", 7, ORDER_7]]


def test_autoretry_covers_what_is_raised_before_the_body_and_keeps_the_token(shop: Shop) -> None:
    before = len(shop.ran())
    with shop.app.agent_for(task_id="checkout", scope=ORDERS) as agent:
        assert answer(fall.delay(7)) == 7
        token = agent.delegate(agent.agent_id, ORDER_7).access_token
        assert answer(insist.apply_async([8], headers={HEADER: token})) == 7
        assert not shop.is_valid(token)
    assert new(shop, before) == [["fall", 7, ORDER_7]] * 2 + [["insist", 7, ORDER_7]]


def test_a_task_with_a_call_of_its_own_is_checked_and_over_after_it(shop: Shop) -> None:
    with shop.app.agent_for(task_id="checkout", scope=ORDERS) as agent:
        assert not shop.is_valid(answer(in_context.delay(7)))
        token = agent.delegate(agent.agent_id, ORDER_7).access_token
        with pytest.raises(Exception, match="needed write:data:order-8, held write:data:order-7"):
            answer(in_context.apply_async([8], headers={HEADER: token}))
        assert not shop.is_valid(token)


def test_a_task_that_is_applied_here_acts_as_it_would_in_a_worker(shop: Shop) -> None:
    before = len(shop.ran())
    with shop.app.agent_for(task_id="checkout", scope=ORDERS) as agent:
        assert (plain.s(6) | write.s() | write.si(8)).apply().get() == 8
        assert current_agent() is agent
        assert shop.is_valid(agent.access_token)
        assert replaced.apply(("chain", 7)).get() == 7
    with shop.app.agent_for(task_id="checkout", scope=ORDER_7), pytest.raises(AuthorizationError):
        write.apply([8])
    assert [what[:2] for what in new(shop, before)] == [
        ["write", 7],
        ["write", 8],
        ["replaced", 7],
        ["write", 7],
        ["write", 7],
    ]


def test_eager_workflows_act_as_the_publisher_too(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(jobs.conf, "task_always_eager", True)
    before = len(shop.ran())
    with shop.app.agent_for(task_id="checkout", scope=ORDER_7):
        assert plain.apply_async([6], link=write.s()).get() == 7
        assert chord([write.s(7), plain.s(0)], plain.si(1)).apply_async().get() == 2
        with pytest.raises((AuthorizationError, ScopeDenied)):
            write.delay(8)
    assert new(shop, before) == [["write", 7, ORDER_7]] * 2


def leave_logging(**_: Any) -> None:
    """Whoever listens keeps a worker in this process from setting up its logging."""


def test_the_body_of_a_chord_that_comes_with_each_task_has_one_token(shop: Shop) -> None:
    """Result backends that count carry a copy of the body in each message of the header; these are one step."""
    celery = Celery("counting", broker="memory://", backend="cache+memory://", task_cls=AgentWritTask)
    celery.set_current()
    at_work: list[list[str]] = []

    @celery.task(name="counted", scope=["write:data:order-{order}"], agentwrit=shop.app)  # type: ignore[untyped-decorator]
    def counted(order: int) -> int:
        return order

    @celery.task(name="summed", scope=["write:data:sum"], agentwrit=shop.app)  # type: ignore[untyped-decorator]
    def summed(numbers: list[int]) -> int:
        at_work.append(current_agent().scope)
        return sum(numbers)

    bodies: set[str] = set()

    def see(headers: Mapping[str, Any], body: Any, **_: Any) -> None:
        if headers["task"] == "counted":
            bodies.add(body[2]["chord"]["options"]["headers"][HEADER])

    before_task_publish.connect(see)
    setup_logging.connect(leave_logging)
    try:
        with (
            start_worker(celery, perform_ping_check=False, shutdown_timeout=60),
            shop.app.agent_for(task_id="checkout", scope=ORDERS),
        ):
            assert chord([counted.s(number) for number in range(4)], summed.s())().get(timeout=60) == 6
            assert counted.map([1, 2]).apply_async().get(timeout=60) == [1, 2]
    finally:
        setup_logging.disconnect(leave_logging)
        before_task_publish.disconnect(see)
        jobs.set_current()
        jobs.set_default()
    assert at_work == [["write:data:sum"]]
    assert len(bodies) == 1
