"""A delivery that is killed, or told no, while its receiver has a batch and has not said that it has it."""

import json
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentwrit.client.audit_log import AuditLog
from agentwrit.delivery.following import Cursor, Delivery
from agentwrit.delivery.sinks import HttpSink, NotDelivered
from agentwrit.errors import ProblemResponseError
from tests.cli.support import AGENTWRIT, CLEAN
from tests.client.peer import Handler, Reply, answer, break_off, hang_up, never, peer
from tests.integrations.front import front
from tests.support import ADMIN_SECRET, BrokerProcess

DELIVERED = answer(200, {}, connection="close")


def delivery(broker: BrokerProcess, url: str, cursor: Path) -> list[str]:
    given = ("--to", url, "--cursor", str(cursor), "--batch", "5", "--once", "--broker-url", broker.url)
    return [AGENTWRIT, "audit", "deliver", *given]


ENVIRONMENT = {**CLEAN, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}


def as_json(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event).encode()


def ids(batch: Any) -> list[str]:
    return [event["metadata"]["uid"] for event in batch]


def test_a_batch_that_the_receiver_had_not_answered_for_is_delivered_again_and_none_before_it(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    cursor, has_come = tmp_path / "cursor", threading.Event()

    def silent(handler: Handler) -> None:
        has_come.set()
        never(handler)

    for _ in range(6):
        broker.admin()  # an event for each
    with peer(DELIVERED, silent, DELIVERED) as receiver:
        command = delivery(broker, receiver.url, cursor)
        with subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            assert has_come.wait(60)
            process.kill()
        first, second = (ids(body) for _, body, _ in receiver.seen)
        assert json.loads(cursor.read_text())["delivered"] == first[-1]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done
        delivered = [ids(body) for _, body, _ in receiver.seen]
    assert delivered[:3] == [first, second, second]
    last = delivered[-1][-1]
    assert [event for batch in (first, *delivered[2:]) for event in batch] == [
        f"evt-{number:06}" for number in range(1, int(last[4:]) + 1)
    ]
    assert json.loads(cursor.read_text())["delivered"] == last


@pytest.mark.parametrize(
    "reply",
    [*(answer(status, {}, connection="close") for status in (300, 302, 400, 403, 429, 500, 503)), hang_up, break_off],
)
def test_a_batch_has_arrived_when_the_receiver_says_so_and_not_before(reply: Reply) -> None:
    with peer(reply, DELIVERED) as receiver:
        sink = HttpSink(receiver.url, as_json, is_json=True, authorization=None, tls=None)
        with pytest.raises(NotDelivered):
            sink.deliver([{"id": "evt-000001"}])
        sink.deliver([{"id": "evt-000001"}])
        assert [body for _, body, _ in receiver.seen] == [[{"id": "evt-000001"}]] * 2


class Enough(Exception):
    """Ends a delivery, which goes on for ever."""


class FirstBatch:
    """Takes no batch, and says that one has come."""

    def deliver(self, events: Sequence[Mapping[str, Any]]) -> None:
        raise Enough


def refusal(status: int) -> bytes:
    body = b'{"type":"about:blank","title":"x","detail":"not now","status":%d}' % status
    head = b"HTTP/1.1 %d x\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    return head % (status, len(body)) + body


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_broker_that_fails_for_a_moment_is_asked_again(broker: BrokerProcess, tmp_path: Path, status: int) -> None:
    said: list[str] = []
    broker.admin()
    with front(broker.url) as before, AuditLog(before.url, ADMIN_SECRET) as log:

        def say(line: str) -> None:
            said.append(line)
            before.go("well")

        before.go(refusal(status))
        with pytest.raises(Enough):
            Delivery(log, FirstBatch(), Cursor(tmp_path / "cursor"), batch=5, say=say).run()
    assert [line.partition(":")[0] for line in said] == ["not delivered, trying again", "delivering again"]
    assert not (tmp_path / "cursor").exists()


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_broker_that_refuses_would_do_so_again(broker: BrokerProcess, tmp_path: Path, status: int) -> None:
    with front(broker.url) as before, AuditLog(before.url, ADMIN_SECRET) as log:
        before.go(refusal(status))
        with pytest.raises(ProblemResponseError):
            Delivery(log, FirstBatch(), Cursor(tmp_path / "cursor"), batch=5, say=pytest.fail).run()
