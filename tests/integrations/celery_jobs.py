"""Tasks that tests publish and a worker of theirs runs."""

import os
from pathlib import Path
from typing import Any

from celery import Celery

from agentwrit import Agent, current_agent
from agentwrit.integrations.celery import AgentWritTask


class JobTask(AgentWritTask):
    abstract = True


jobs = Celery("jobs", task_cls=JobTask)


def use(queue: Path) -> None:
    """Take a directory as the queue, before anything is published or run."""
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


if "TESTS_QUEUE" in os.environ:
    use(Path(os.environ["TESTS_QUEUE"]))
