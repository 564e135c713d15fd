"""Orders that a worker writes: each job in the queue carries a token for its one order, and no key.

agentwrit dev -- python examples/celery_orders.py
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import before_task_publish
from kombu.transport import filesystem

from agentwrit import AgentWritApp, AgentWritError, current_agent
from agentwrit.integrations.celery import HEADER, AgentWritTask

# A directory does for one machine. Any other queue of Celery's will do as well.
QUEUE = Path(os.environ.get("ORDERS_QUEUE") or tempfile.mkdtemp(prefix="orders-"))
DESK = Path(tempfile.mkdtemp(prefix="desk-", dir=QUEUE))  # this process's own
FOLDERS = {"data_folder_in": str(QUEUE), "data_folder_out": str(DESK), "control_folder": str(QUEUE / "control")}
QUICKLY = {"polling_interval": 0.05}


class Channel(filesystem.Channel):
    """A queue whose messages are whole when a worker finds them: they are written elsewhere, and moved into it then."""

    def _put(self, *message: Any, **options: Any) -> None:
        super()._put(*message, **options)  # type: ignore[no-untyped-call] # Celery has no types
        for written in DESK.iterdir():
            written.rename(QUEUE / written.name)


class Transport(filesystem.Transport):
    Channel = Channel


celery = Celery("celery_orders", broker="filesystem://", backend=f"file://{QUEUE}", task_cls=AgentWritTask)
celery.conf.update(broker_transport=Transport, broker_transport_options={**FOLDERS, **QUICKLY})


@celery.task(scope=["write:data:order-{order_id}"])  # type: ignore[untyped-decorator] # nor for these
def write_order(order_id: int) -> str:
    """Runs in the worker, as the agent whose token came with the job."""
    return f"order {order_id} written by an agent for {' '.join(current_agent().scope)}"


@contextlib.contextmanager
def worker() -> Iterator[None]:
    """A worker, in a process of its own."""
    command = [sys.executable, "-m", "celery", "-A", "celery_orders", "worker", "--pool=solo", "--loglevel=CRITICAL"]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parent,
        env={**os.environ, "ORDERS_QUEUE": str(QUEUE)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def work(app: AgentWritApp) -> bool:
    """Have orders written, with a thief at the queue. Returns whether what the thief got was of no use."""
    stolen: list[str] = []

    def read_queue(headers: Mapping[str, Any], **_: Any) -> None:
        stolen.append(headers[HEADER])

    before_task_publish.connect(read_queue)
    with app.agent_for(task_id="checkout", scope=["write:data:*"]):
        for order in (7, 8):
            print(write_order.delay(order).get(timeout=30, interval=0.05))
        print(f"Tokens of jobs that are done: {count_valid(app, stolen)} of {len(stolen)} are valid")
        try:
            write_order.apply_async([9], headers={HEADER: stolen[0]}).get(timeout=30, interval=0.05)
        except AgentWritError as refused:
            print(f"Order 9 with the token for order 7: {refused}")
        else:
            return False
    print(f"Fired and forgotten: {write_order.delay(10).get(timeout=30, interval=0.05)}")
    return count_valid(app, stolen) == 0


def count_valid(app: AgentWritApp, tokens: list[str]) -> int:
    return sum(app.validate(token).valid for token in tokens)


def main() -> int:
    try:
        with AgentWritApp.from_env() as app, worker():
            return 0 if work(app) else 1
    except AgentWritError as error:
        print(f"celery_orders: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
