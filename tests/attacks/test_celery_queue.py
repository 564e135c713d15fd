"""A stranger writes to the queue of a worker that has an app's secret: nothing is done by it that needs a scope."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from celery import Celery, chain, chord, group, signature
from celery.utils import uuid

from agentwrit import AgentWritError
from agentwrit.client.audit_log import AuditLog
from tests.integrations import celery_jobs
from tests.integrations.celery_shop import Shop, answer


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with closing(Shop(tmp_path_factory.mktemp("queue"))) as made:
        yield made


@pytest.fixture(scope="module")
def stranger(shop: Shop) -> Celery:
    """Whoever can write to the queue: with Celery, and no credential of any kind."""
    celery = Celery("stranger", set_as_current=False)
    celery.conf.update({name: celery_jobs.jobs.conf[name] for name in SAME})
    return celery


SAME = ["broker_url", "broker_transport", "broker_transport_options", "result_backend"]


def steps(stranger: Celery, *names: str) -> list[tuple[Any, str]]:
    """Signatures of the stranger's, and the ids that they run under."""
    ids = [uuid() for _ in names]
    made = [
        signature(name, args=(666,), immutable=True, options={"task_id": task_id}, app=stranger)
        for name, task_id in zip(names, ids, strict=True)
    ]
    return list(zip(made, ids, strict=True))


def assert_refused(shop: Shop, task_id: str) -> None:
    with pytest.raises(AgentWritError, match="carries no token"):
        answer(task_id)


def made_so_far(shop: Shop) -> int:
    """How many agents were registered, or delegated to."""
    kinds = ("agent_registered", "delegation_created")
    with AuditLog(shop.broker.url, shop.broker._secret) as log:
        return sum(int(log.events({"event_type": kind, "limit": 1})["total"]) for kind in kinds)


@pytest.fixture(autouse=True)
def nothing_is_made(shop: Shop) -> Iterator[None]:
    made, ran = made_so_far(shop), shop.ran()
    yield
    assert made_so_far(shop) == made
    assert shop.ran() == ran


def test_a_callback_of_a_harmless_task(shop: Shop, stranger: Celery) -> None:
    [(write, task_id)] = steps(stranger, "write")
    stranger.send_task("plain", [1], link=write)
    assert_refused(shop, task_id)


def test_the_rest_of_a_chain(shop: Shop, stranger: Celery) -> None:
    (write, first), (again, second) = steps(stranger, "write", "write")
    stranger.send_task("plain", [1], chain=[again, write])
    assert_refused(shop, first)
    stranger.send_task("plain", [1], chain=[chain(again, app=stranger)])
    assert_refused(shop, second)


def test_an_errback(shop: Shop, stranger: Celery) -> None:
    [(write, task_id)] = steps(stranger, "write")
    stranger.send_task("give_up", link_error=write)
    assert_refused(shop, task_id)
    undo = signature("undo", args=(666,), app=stranger)
    failed = stranger.send_task("give_up", link_error=undo)
    with pytest.raises(ValueError, match="given up"):
        answer(failed.id)
    answer(stranger.send_task("plain", [1]).id)


def test_an_errback_of_what_a_workers_first_process_ends(shop: Shop, stranger: Celery) -> None:
    [(write, task_id)] = steps(stranger, "write")
    stranger.send_task("idle", [600], time_limit=1, link_error=write)
    assert_refused(shop, task_id)


def test_the_body_of_a_chord(shop: Shop, stranger: Celery) -> None:
    (write, first), (again, second) = steps(stranger, "write", "write")
    done = stranger.send_task("plain", [1])
    answer(done.id)
    stranger.send_task("celery.chord_unlock", [uuid(), write], {"result": [done.as_tuple()], "interval": 0.05})
    assert_refused(shop, first)
    chord([signature("plain", args=(1,), app=stranger)], again, app=stranger).apply_async()
    assert_refused(shop, second)


@pytest.mark.parametrize("name", ["again", "replaced_by_plain"])
@pytest.mark.parametrize("place", ["chain", "link"])
def test_what_follows_a_task_that_publishes_itself_anew(shop: Shop, stranger: Celery, name: str, place: str) -> None:
    """Retrying and replacing publish in the body of the task, and with it what is to follow."""
    [(write, task_id)] = steps(stranger, "write")
    stranger.send_task(name, **{place: [write]})
    assert_refused(shop, task_id)


@pytest.mark.parametrize("name", ["celery.map", "celery.starmap", "celery.chunks"])
def test_maps(shop: Shop, stranger: Celery, name: str) -> None:
    write = signature("write", app=stranger)
    items = [666] if name == "celery.map" else [[666]]
    more = {"n": 1} if name == "celery.chunks" else {}
    job = stranger.send_task(name, kwargs={"task": write, "it": items, **more})
    assert_refused(shop, job.id)


def test_a_message_that_says_of_itself_that_it_is_run_where_it_is_published(shop: Shop, stranger: Celery) -> None:
    [(write, task_id)] = steps(stranger, "write")
    headers = {"is_eager": True, "called_directly": True, "agentwrit_message": True}
    stranger.send_task("plain", [1], link=write, headers=headers)
    with pytest.raises(Exception):  # noqa: B017, PT011 # whichever way it is refused
        answer(stranger.send_task("write", [666], headers=headers).id)
    assert_refused(shop, task_id)


@pytest.mark.parametrize("bad", [7, "x", [7], [{"task": "write"}], [{"options": 7}]])
def test_what_is_no_workflow(shop: Shop, stranger: Celery, bad: Any) -> None:
    job = stranger.send_task("plain", [1], chain=bad)
    with pytest.raises(Exception):  # noqa: B017, PT011 # whatever Celery or we have to say
        answer(job.id)
    assert answer(stranger.send_task("plain", [1]).id) == 2


def test_groups_in_chains(shop: Shop, stranger: Celery) -> None:
    (write, first), (again, second) = steps(stranger, "write", "write")
    stranger.send_task("plain", [1], chain=[group(write, again, app=stranger)])
    assert_refused(shop, first)
    assert_refused(shop, second)
