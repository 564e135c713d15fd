"""kill -9 is a crash and not a power cut: this looks at what reaches the disk, and when."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.cli.support import AGENTWRIT, CLEAN
from tests.proofs import Creation, Holder
from tests.reports import AUDIENCE, ResourceServer, access
from tests.support import ADMIN_SECRET, BrokerProcess, bearer, registration

REQUEST = re.compile(r'(?:recvfrom|read|recvmsg)\(.*"((?:POST|PUT|DELETE) /[^ ?]+)')
ANSWER = re.compile(r'(?:sendto|write|sendmsg)\(.*"HTTP/1\.1 [24]')
SYNC: Final = re.compile(r"f(?:data)?sync\(\d+<([^>]*)>\)\s*= 0")
WRITE: Final = re.compile(r"\b(?:write|pwrite64|writev)\(\d+<([^>]*)>,")
NAMING: Final = re.compile(
    r'\b(?:rename|link)(?:at2?)?\((?:AT_FDCWD<[^>]*>, )?"([^"]*)", (?:AT_FDCWD<[^>]*>, )?"([^"]*)"'
)

NAMES: Final = "rename,renameat,renameat2,link,linkat"


def tracing(trace: Path, calls: str) -> list[str]:
    """What a command is run by, to have its calls of the system written down with the paths of its files."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.fail("this test needs strace: install it, for example with `apt-get install strace`")
    return [strace, "-f", "-y", "-qq", "-s", "96", "--seccomp-bpf", "-e", f"trace={calls}", "-o", str(trace)]


# -- answers ----------------------------------------------------------------------------------------------------------


class Asker:
    """Asks for each kind of change, one after the other."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.broker = broker
        self.asked: list[str] = []

    def ask(self, method: str, path: str, json: Any = None, *, status: int = 0, **more: Any) -> Any:
        answer = self.broker.http.request(method, path, json=json, **more)
        assert answer.status_code == status or (not status and answer.status_code < 300), answer.text
        self.asked.append(f"{method} {path.partition('?')[0]}")
        return answer.json() if answer.content else None

    def all(self) -> None:
        """Every route that changes anything, and a refusal that is the first of its kind."""
        broker, ask = self.broker, self.ask
        admin = bearer(ask("POST", "/v1/admin/auth", {"secret": ADMIN_SECRET})["access_token"])
        server = ResourceServer(broker)
        holder = Holder(broker.app())
        creation = Creation(broker.app())
        bound = holder.proof("GET", "https://orders.example.com/1")
        app = broker.app(audiences=[AUDIENCE])
        agent = app.agent(audience=[AUDIENCE])
        report = access(broker, agent["access_token"])
        reporter = bearer(server.app.token())
        self.asked.clear()

        registered = ask("POST", "/v1/admin/apps", {"name": "shop", "scopes": ["read:data:*"]}, headers=admin)
        path, secret = f"/v1/admin/apps/{registered['app_id']}", registered["client_secret"]
        login = {"client_id": registered["client_id"], "client_secret": secret}
        token = ask("POST", "/v1/app/auth", login)["access_token"]
        policy = {"agent_name": "a", "allowed_scope": ["read:data:1"]}
        launched = ask("POST", "/v1/app/launch-tokens", policy, headers=bearer(token))["launch_token"]
        ask("POST", "/v1/admin/launch-tokens", policy, headers=admin)
        made = ask("POST", "/v1/register", registration(launched, broker.nonce()))
        assert creation.post().status_code == 201
        self.asked.append("POST /v1/agents")
        basic = (registered["client_id"], secret)
        form = {"grant_type": "client_credentials"}
        granted = ask("POST", "/oauth2/token", data=form, auth=basic)["access_token"]
        ask("POST", "/oauth2/revoke", data={"token": granted}, auth=basic)
        renewed = ask("POST", "/v1/token/renew", headers=bearer(made["access_token"]))["access_token"]
        to = {"delegate_to": made["agent_id"], "scope": ["read:data:1"]}
        ask("POST", "/v1/delegate", to, headers=bearer(renewed))
        shown = {"token": holder.token, "proof": bound, "htm": "GET", "htu": "https://orders.example.com/1"}
        assert ask("POST", "/v1/token/validate", shown)["valid"]
        ask("POST", "/v1/audit/accesses", {"accesses": [report]}, headers=reporter | {"idempotency-key": "report-1"})
        ask("POST", "/v1/token/release", headers=bearer(renewed))
        ask("POST", "/v1/token/renew", headers=bearer("no token"), status=401)
        ask("POST", "/v1/revoke", {"level": "agent", "target": agent["agent_id"]}, headers=admin)
        ask("PUT", path, {"scopes": ["read:data:1"]}, headers=admin)
        ask("POST", f"{path}/suspend", headers=admin)
        ask("POST", f"{path}/resume", headers=admin)
        ask("POST", f"{path}/secret", headers=admin)
        ask("DELETE", path, headers=admin)
        ask("POST", "/v1/admin/operators", {"name": "ana"}, headers=admin)
        ask("POST", "/v1/admin/operators/ana/secret", headers=admin)
        ask("DELETE", "/v1/admin/operators/ana", headers=admin)
        rotated = ask("POST", "/v1/admin/keys/rotate", {"force": True}, headers=admin)
        ask("POST", f"/v1/admin/keys/{rotated['retired']['kid']}/revoke", {"reason": "test"}, headers=admin)


class Traced:
    """A new broker that was asked for everything and stopped, and what it called the system for."""

    def __init__(self, directory: Path) -> None:
        trace = directory / "trace"
        wrapper = tracing(trace, f"fsync,fdatasync,read,recvfrom,recvmsg,write,pwrite64,sendto,sendmsg,{NAMES}")
        with BrokerProcess(directory / "data", wrapper=wrapper) as broker:
            asker = Asker(broker)
            asker.all()
            self.asked = asker.asked
            self.data = broker.data_dir
        # strace ends after the broker, so the trace is whole by now.
        self.lines = joined(trace.read_text().splitlines())


def joined(lines: Sequence[str]) -> list[str]:
    """The lines, each call in one: where another thread's came between, at the place where it ended."""
    whole, begun = [], {}
    for line in lines:
        thread, _, call = line.partition(" ")
        if call.rstrip().endswith("<unfinished ...>"):
            begun[thread] = call.strip().removesuffix("<unfinished ...>").rstrip()
        elif " resumed>" in call:
            whole.append(f"{thread} {begun.pop(thread)}{call.partition(' resumed>')[2]}")
        else:
            whole.append(line)
    return whole


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return Traced(tmp_path_factory.mktemp("traced"))


def test_every_answered_change_was_synced_between_its_request_and_its_answer(traced: Traced) -> None:
    answered: list[tuple[str, int]] = []
    asked, syncs = "", 0
    for line in traced.lines:
        request = REQUEST.search(line)
        if request is not None:
            asked, syncs = request[1], 0
        elif asked and SYNC.search(line):
            syncs += 1
        elif asked and ANSWER.search(line):
            answered.append((asked, syncs))
            asked = ""
    of_changes = answered[-len(traced.asked) :]
    assert [each for each, _ in of_changes] == traced.asked
    assert [each for each, count in of_changes if not count] == []  # these were answered before they were on disk


# -- files ------------------------------------------------------------------------------------------------------------


def assert_durable(lines: Sequence[str], path: Path) -> None:
    """A file got its name when it was on disk, and then the name was on disk."""
    place = os.path.realpath(path.parent)
    named = [number for number, line in enumerate(lines) if (found := NAMING.search(line)) and found[2] == str(path)]
    assert named, f"{path} was never given its name"
    for at in named:
        found = NAMING.search(lines[at])
        assert found is not None
        before = [line for line in lines[:at] if _touches(line, _former_names(lines[:at], found[1]))]
        assert before, f"{path} is of nothing that was written"
        assert SYNC.search(before[-1]), f"{path} got its name before it was on disk"
        after = [line for line in lines[at:] if (synced := SYNC.search(line)) and synced[1] == place]
        assert after, f"the name of {path} was never on disk"


def _former_names(lines: Sequence[str], path: str) -> set[str]:
    """The names that a file had by now."""
    names = {path}
    for line in reversed(lines):
        if (found := NAMING.search(line)) and found[2] in names:
            names.add(found[1])
    return names


def _touches(line: str, names: set[str]) -> bool:
    return any(found is not None and found[1] in names for found in (SYNC.search(line), WRITE.search(line)))


def test_a_new_master_key_is_on_disk_before_anything_is_under_it(traced: Traced) -> None:
    key = traced.data / "master.key"
    assert_durable(traced.lines, key)
    synced = next(number for number, line in enumerate(traced.lines) if SYNC.search(line) and _is_of(line, traced.data))
    database = next(
        number
        for number, line in enumerate(traced.lines)
        if (found := WRITE.search(line)) and found[1].startswith(str(traced.data / "agentwrit.db"))
    )
    assert synced < database, "the database was written before the key's name was on disk"


def _is_of(line: str, directory: Path) -> bool:
    found = SYNC.search(line)
    return found is not None and found[1] == os.path.realpath(directory)


@pytest.fixture(scope="module")
def serving(traced: Traced) -> Iterator[BrokerProcess]:
    with BrokerProcess(traced.data) as broker:
        yield broker


def run_traced(trace: Path, *arguments: str, **environment: str) -> list[str]:
    """Run a command to its end. Returns what it called the system for."""
    command = [*tracing(trace, f"fsync,fdatasync,write,pwrite64,writev,{NAMES}"), AGENTWRIT, *arguments]
    done = subprocess.run(command, env={**CLEAN, **environment}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done
    return joined(trace.read_text().splitlines())


def operator(broker: BrokerProcess) -> dict[str, str]:
    return {"AGENTWRIT_BROKER_URL": broker.url, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}


def test_what_a_witness_remembers_is_on_disk(serving: BrokerProcess, tmp_path: Path) -> None:
    path = tmp_path / "witness"
    assert_durable(run_traced(tmp_path / "trace", "audit", "witness", str(path), **operator(serving)), path)


def test_what_was_delivered_to_a_file_is_on_disk_before_the_cursor_says_so(
    serving: BrokerProcess, tmp_path: Path
) -> None:
    events, cursor = tmp_path / "events", tmp_path / "cursor"
    given = ("audit", "deliver", "--to", f"file:{events}", "--cursor", str(cursor), "--batch", "10", "--once")
    lines = run_traced(tmp_path / "trace", *given, **operator(serving))
    assert_durable(lines, cursor)
    is_synced, is_named, moves = False, False, 0
    for line in lines:
        if (written := WRITE.search(line)) and written[1] == str(events):
            is_synced = False
        elif synced := SYNC.search(line):
            is_synced = is_synced or synced[1] == str(events)
            is_named = is_named or synced[1] == os.path.realpath(tmp_path)
        elif (found := NAMING.search(line)) and found[2] == str(cursor):
            assert is_synced, "the cursor moved before what was delivered was on disk"
            assert is_named, "the cursor moved before the file's name was on disk"
            moves += 1
    assert moves > 1


def test_a_backup_a_restore_and_a_new_master_key_are_on_disk(
    traced: Traced, serving: BrokerProcess, tmp_path: Path
) -> None:
    backup, restored = tmp_path / "backup.db", tmp_path / "restored"
    place = {"AGENTWRIT_DATA_DIR": str(traced.data)}
    assert_durable(run_traced(tmp_path / "trace-backup", "backup", str(backup), **place), backup)
    restored.mkdir(mode=0o700)
    shutil.copy(traced.data / "master.key", restored)
    place = {"AGENTWRIT_DATA_DIR": str(restored)}
    lines = run_traced(tmp_path / "trace-restore", "restore", str(backup), **place)
    assert_durable(lines, restored / "agentwrit.db")
    lines = run_traced(tmp_path / "trace-rewrap", "keys", "rewrap", **place)
    for path in (restored / "master.key.new", restored / "master.key", *restored.glob("master.key.*")):
        assert_durable(lines, path)
    assert serving.http.get("/livez").status_code == 200
