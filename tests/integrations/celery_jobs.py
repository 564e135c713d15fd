"""Tasks that tests publish and a worker of theirs runs."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from celery import Celery, chain, chord, group

from agentwrit import Agent, AgentWritError, current_agent
from agentwrit.integrations.celery import AgentWritTask


class JobTask(AgentWritTask):
    abstract = True


jobs = Celery("jobs", task_cls=JobTask)


def use(queue: Path) -> None:
    """Take a directory as the queue, in place of the one before."""
    jobs.close()
    jobs.__dict__.pop("amqp", None)  # which has connections to the queue before
    jobs._local, jobs._backend_cache = threading.local(), None
    jobs.conf.update(
        broker_url="filesystem://",
        broker_transport="tests.integrations.celery_files:Transport",
        result_backend=f"file://{queue}",
        broker_transport_options={
            "data_folder_in": str(queue),
            "data_folder_out": str(queue),
            "control_folder": str(queue / "control"),
            "polling_interval": 0.02,
        },
        result_chord_retry_interval=0.05,
    )


def at_work() -> dict[str, Any]:
    agent = current_agent()
    return {"scope": agent.scope, "agent_id": agent.agent_id, "token": agent.access_token, "task_id": agent.task_id}


@jobs.task(name="read", scope=["read:data:customer-{customer}"])
def read(customer: str = "7") -> dict[str, Any]:
    return at_work()


@jobs.task(name="fail", scope=["write:data:{number}"])
def fail(number: int) -> None:
    raise ValueError(at_work()["token"])


@jobs.task(name="twice", bind=True, scope=["write:data:{number}"], default_retry_delay=0)
def twice(self: Any, number: int, note: str) -> dict[str, Any]:
    """Comes again once, after its token was renewed."""
    if self.request.retries == 0:
        agent = current_agent()
        assert isinstance(agent, Agent)
        agent.renew()
        Path(note).write_text(agent.access_token)
        raise self.retry()
    return at_work()


@jobs.task(name="show_request", bind=True, scope=["write:data:{number}"])
def show_request(self: Any, number: int) -> tuple[str, str]:
    return repr(vars(self.request)), current_agent().access_token


@jobs.task(name="plain")
def plain(number: int) -> int:
    return number + 1


def note(*what: Any) -> dict[str, Any]:
    """Have it on file that this body ran, and as whom."""
    ran = at_work()
    with (Path(jobs.conf.broker_transport_options["data_folder_in"]) / "ledger").open("a") as ledger:
        ledger.write(json.dumps([*what, ran["scope"]]) + "\n")
    return ran


@jobs.task(name="write", scope=["write:data:order-{order}"])
def write(order: int, *, kind: str = "") -> int:
    note("write", order)
    return order


@jobs.task(name="add", scope=["write:data:sum"])
def add(numbers: list[int]) -> int:
    note("add", sum(numbers))
    return sum(numbers)


@jobs.task(name="pair", scope=["write:data:order-{order}"])
def pair(order: int, amount: int) -> int:
    note("pair", order, amount)
    return order


@jobs.task(name="give_up")
def give_up(*_: Any) -> None:
    raise ValueError("given up")


@jobs.task(name="idle", bind=True)
def idle(self: Any, seconds: float) -> None:
    time.sleep(seconds)


@jobs.task(name="undo", scope=["write:data:order-{order}"])
def undo(request: Any, error: Any, trace: Any, order: int) -> None:
    """An errback of the kind that Celery calls in place, and of which it stores no result."""
    note("undo", order)
    jobs.backend.store_result(f"undone-{order}", order, "SUCCESS")


@jobs.task(name="publish", scope=["write:data:order-{order}", "write:data:order-{other}"])
def publish(order: int, other: int) -> tuple[str, str]:
    """Publishes, and does not wait."""
    return write.delay(other).id, at_work()["token"]


@jobs.task(name="publish_anything")
def publish_anything(order: int) -> str:
    """Has no scope, and acts as nobody: what it publishes, it publishes as the app."""
    return str(write.delay(order).id)


@jobs.task(name="replaced", bind=True, scope=["write:data:*"])
def replaced(self: Any, how: str, order: int) -> Any:
    note("replaced", order)
    how_it_goes_on = {
        "task": write.si(order),
        "chain": chain(write.si(order), write.s()),
        "group": group(write.si(order), write.si(order + 1)),
        "chord": chord([write.si(order), write.si(order + 1)], add.s()),
    }
    return self.replace(how_it_goes_on[how])


@jobs.task(name="replaced_by_plain", bind=True)
def replaced_by_plain(self: Any) -> Any:
    return self.replace(plain.si(1))


@jobs.task(name="again", bind=True, default_retry_delay=0)
def again(self: Any) -> int:
    if self.request.retries == 0:
        self.retry()
    return int(self.request.retries)


@jobs.task(
    name="insist",
    scope=["write:data:order-{order}"],
    autoretry_for=(AgentWritError,),
    retry_kwargs={"args": [7]},
    default_retry_delay=0,
)
def insist(order: int) -> int:
    """Comes again with another order."""
    note("insist", order)
    return order


@jobs.task(
    name="fall", bind=True, scope=["write:data:order-{order}"], autoretry_for=(ValueError,), default_retry_delay=0
)
def fall(self: Any, order: int) -> int:
    note("fall", order)
    if self.request.retries == 0:
        raise ValueError("once")
    return order


@jobs.task(name="count_down", scope=["write:data:order-{order}"])
def count_down(order: int) -> int:
    """Calls itself."""
    note("count_down", order)
    return order if order == 7 else int(count_down(order - 1))


class OwnCall(JobTask):
    """As applications have it that enter a context around each task."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


@jobs.task(name="in_context", base=OwnCall, scope=["write:data:order-{order}"])
def in_context(order: int) -> str:
    return str(note("in_context", order)["token"])


if "TESTS_QUEUE" in os.environ:
    use(Path(os.environ["TESTS_QUEUE"]))
