"""`agentwrit audit deliver`: whoever is killed, each event arrives, and none before the one that it follows."""

import hashlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self

import pytest
import rfc8785

from tests.cli.support import AGENTWRIT, CLEAN, one_line, run
from tests.e2e.test_archives import grow, wait_until_removed
from tests.e2e.test_tls import self_signed
from tests.support import ADMIN_SECRET, BrokerProcess

ROOT = Path(__file__).parents[2]
SECRET = "Splunk a-token-of-the-receiver"


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with closing(socket.socket(type=kind)) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Process:
    """A process that prints lines."""

    def __init__(self, *command: str, **environment: str) -> None:
        self._command, self._environment = command, {**CLEAN, **environment}
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command, env=self._environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def kill(self) -> str:
        """kill -9. Returns what it had printed and nobody had read."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        with self.process.stdout as printed:
            return printed.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()


class Siem(Process):
    """The receiver, and the numbers of the events that have arrived."""

    def __init__(self, kind: str, *files: Path) -> None:
        self.port = free_port(socket.SOCK_DGRAM if kind == "syslog+udp" else socket.SOCK_STREAM)
        self.arrived: list[int] = []
        self.messages: list[Any] = []
        super().__init__(sys.executable, "-m", "tests.delivery.receiver", kind, str(self.port), *map(str, files))

    def start(self) -> None:
        super().start()
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "listening\n"

    def kill(self) -> str:
        rest = super().kill()
        for line in rest.splitlines(keepends=True):
            if line.endswith("\n"):
                self._take(line)
        return rest

    def wait_for(self, number: int) -> None:
        assert self.process.stdout is not None
        while not self.arrived or self.arrived[-1] < number:
            line = self.process.stdout.readline()
            assert line
            self._take(line)

    def _take(self, line: str) -> None:
        [content] = json.loads(line).values()
        self.messages.append(content)
        text = content["metadata"]["uid"] if isinstance(content, dict) else content
        self.arrived.append(int(re.findall(r"evt-([0-9]+)", text)[0]))


def in_order(numbers: list[int]) -> bool:
    """Whether all have arrived, and each for the first time only behind the one before it."""
    highest = 0
    for number in numbers:
        if number > highest + 1:
            return False
        highest = max(highest, number)
    return True


def head(broker: BrokerProcess) -> int:
    return int(broker.events(order="desc", limit=1)[0]["id"][4:])


@pytest.fixture
def own(tmp_path: Path) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_PORT=str(free_port())) as broker:
        yield broker


def environment(broker: BrokerProcess) -> dict[str, str]:
    return {
        "AGENTWRIT_BROKER_URL": broker.url,
        "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET,
        "AGENTWRIT_SINK_AUTHORIZATION": SECRET,
    }


@pytest.mark.parametrize("kind", ["http", "https", "syslog+tcp", "syslog+tls"])
def test_each_event_arrives_in_order_whoever_is_killed(own: BrokerProcess, tmp_path: Path, kind: str) -> None:
    files = self_signed(tmp_path) if kind in ("https", "syslog+tls") else ()
    grow(own, 60)
    with ExitStack() as stack:
        siem = stack.enter_context(Siem(kind, *files))
        given = ["--to", f"{kind}://127.0.0.1:{siem.port}", "--cursor", str(tmp_path / "cursor"), "--batch", "7"]
        if files:
            given += ["--ca", str(files[0])]
        delivery = stack.enter_context(Process(AGENTWRIT, "audit", "deliver", *given, **environment(own)))
        siem.wait_for(20)
        siem.kill()
        grow(own, 20)
        siem.start()
        siem.wait_for(60)
        delivery.kill()
        grow(own, 20)
        delivery.start()
        siem.wait_for(80)
        own.kill()
        own.start()
        grow(own, 20)
        last = head(own)
        siem.wait_for(last)
        assert in_order(siem.arrived)
        assert set(siem.arrived) >= set(range(1, last + 1))
        assert delivery.process.poll() is None


def test_a_syslog_receiver_gets_cef_as_the_standards_say(own: BrokerProcess, tmp_path: Path) -> None:
    with Siem("syslog+udp") as siem:
        to = ("--to", f"syslog+udp://127.0.0.1:{siem.port}", "--cursor", str(tmp_path / "cursor"))
        assert run("audit", "deliver", *to, "--once", **environment(own)).returncode == 0
        siem.wait_for(1)
        assert re.fullmatch(
            r"<(110|108)>1 [0-9-]{10}T[0-9:.]{15}Z 127\.0\.0\.1 agentwrit - [a-z_]{1,32} -"
            r" CEF:0\|AgentWrit\|broker\|[^|]+\|[a-z_]+\|[a-z ]+\|[36]\|rt=[0-9]{13} externalId=evt-000001 .*",
            siem.messages[0],
        ), siem.messages[0]


@pytest.mark.parametrize("form", ["cef", "ocsf"])
def test_no_message_is_longer_than_its_receiver_takes(own: BrokerProcess, tmp_path: Path, form: str) -> None:
    app = own.app("read:data:*")
    app.launch_token(*[f"read:data:{number:02}" + "x" * 240 for number in range(64)])
    with Siem("syslog+tcp") as siem:
        to = ("--to", f"syslog+tcp://127.0.0.1:{siem.port}", "--cursor", str(tmp_path / "cursor"), "--format", form)
        assert run("audit", "deliver", *to, "--once", "--message-bytes", "5000", **environment(own)).returncode == 0
        siem.wait_for(head(own) - 1)  # but for the login of whoever asks
        assert max(len(message.encode()) for message in siem.messages) <= 5000
        [cut] = [message for message in siem.messages if "it is longer than this receiver takes" in message]
        assert "launch_token_issued" in cut
        assert in_order(siem.arrived)


def test_a_second_run_delivers_what_is_new(own: BrokerProcess, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    given = ("--to", f"file:{file}", "--cursor", str(tmp_path / "cursor"), "--once")
    assert run("audit", "deliver", *given, **environment(own)).returncode == 0
    before = len(file.read_text().splitlines())
    own.app()
    assert run("audit", "deliver", *given, **environment(own)).returncode == 0
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(events) > before
    uids = [event["metadata"]["uid"] for event in events]
    assert uids == [f"evt-{number:06d}" for number in range(1, len(events) + 1)]
    shown = {event["id"]: event for event in own.events(limit=100)}
    for event in events:  # an answer leaves out what an event does not have, and its entry does not
        said = {name: value for name, value in event["unmapped"].items() if value != "" or name == "detail"}
        assert said == shown[event["metadata"]["uid"]]
        entry = {name: value for name, value in event["unmapped"].items() if name != "hash"}
        assert hashlib.sha256(rfc8785.dumps(entry)).hexdigest() == event["unmapped"]["hash"]


def test_a_full_file_is_put_aside_and_a_torn_line_written_anew(own: BrokerProcess, tmp_path: Path) -> None:
    grow(own, 100)
    file, cursor = tmp_path / "out.jsonl", tmp_path / "cursor"
    given = ("--to", f"file:{file}", "--cursor", str(cursor), "--once", "--batch", "10", "--rotate-bytes", "30000")
    assert run("audit", "deliver", *given, **environment(own)).returncode == 0
    aside = sorted(tmp_path.glob("out.jsonl.0*"))
    assert len(aside) >= 3
    lines = [line for path in [*aside, file] for line in path.read_text().splitlines()]
    assert in_order([int(json.loads(line)["metadata"]["uid"][4:]) for line in lines])
    assert all(path.stat().st_size <= 30000 for path in aside)
    with file.open("a") as torn:
        torn.write('{"half')
    own.app()
    assert run("audit", "deliver", *given, "--keep", "2", **environment(own)).returncode == 0
    types = [json.loads(line)["unmapped"]["event_type"] for line in file.read_text().splitlines()]
    assert "app_registered" in types


def test_a_delivery_that_cannot_go_on_says_why(own: BrokerProcess, tmp_path: Path) -> None:
    cursor = tmp_path / "cursor"
    with Siem("http") as siem:
        refused = ("--to", f"http://127.0.0.1:{siem.port}/refuse", "--cursor", str(cursor), "--once")
        one_line(run("audit", "deliver", *refused, **environment(own)), 2, "the answer is 403")
    given = ("--to", f"http://127.0.0.1:{free_port()}", "--cursor", str(cursor), "--once")
    failed = run("audit", "deliver", *given, **environment(own))
    one_line(failed, 2, "ConnectError")
    assert SECRET not in failed.stderr
    one_line(run("audit", "deliver", "--to", "ftp://x", "--cursor", str(cursor), **environment(own)), 2, "--to")
    cursor.write_text('{"delivered": "evt-000001", "hash": "another"}')
    one_line(run("audit", "deliver", *given, **environment(own)), 2, "the log is another one")
    cursor.write_text('{"delivered": "evt-900001", "hash": "x"}')
    one_line(run("audit", "deliver", *given, **environment(own)), 2, "it is another one")
    cursor.write_text("nonsense")
    one_line(run("audit", "deliver", *given, **environment(own)), 2, "no cursor")


def test_events_that_were_archived_before_they_were_delivered_are_not_passed_over(
    own: BrokerProcess, tmp_path: Path
) -> None:
    cursor, archives = str(tmp_path / "cursor"), str(tmp_path / "archives")
    given = ("--to", f"file:{tmp_path / 'out.jsonl'}", "--cursor", cursor, "--once")
    assert run("audit", "deliver", *given, **environment(own)).returncode == 0
    grow(own, 300)
    assert run("audit", "archive", "--before", "0s", "--to", archives, **environment(own)).returncode == 0
    wait_until_removed(own, "evt-000256")
    one_line(run("audit", "deliver", *given, **environment(own)), 2, "was archived before it was delivered", "--after")
    Path(cursor).unlink()
    again = (*given, "--after", "evt-000256")
    assert run("audit", "deliver", *again, **environment(own)).returncode == 0
    assert int(json.loads(Path(cursor).read_text())["delivered"][4:]) > 300
