"""Archiving the audit log: what goes into files leaves the store, and everything can still be proven."""

import contextlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import AGENTWRIT, CLEAN, one_line, run
from tests.support import ADMIN_SECRET, SOAK, BrokerProcess, TestApp, bearer, problem

TILE = 256
KILLS = 2 if SOAK == 1 else 3 * SOAK


def grow(broker: BrokerProcess, events: int, app: TestApp | None = None) -> None:
    """An event for each request."""
    headers, policy = bearer((app or broker.app()).token()), {"agent_name": "worker", "allowed_scope": ["read:data:1"]}
    for _ in range(events):
        assert broker.http.post("/v1/app/launch-tokens", json=policy, headers=headers).status_code == 201


def operator(broker: BrokerProcess) -> dict[str, str]:
    return {"AGENTWRIT_BROKER_URL": broker.url, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}


def at_rest(broker: BrokerProcess, *arguments: str, command: str = "verify-audit") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agentwrit.broker", command, str(broker.data_dir), *arguments],
        env=CLEAN,
        capture_output=True,
        text=True,
        timeout=60,
    )


def wait_until_removed(broker: BrokerProcess, event: str) -> None:
    headers = broker.admin()
    while broker.http.get("/v1/audit/archives", headers=headers).json()["removed"] != event:
        pass


class Archived:
    """A broker whose first 512 events were archived."""

    def __init__(self, directory: Path) -> None:
        self.broker = BrokerProcess(directory / "data")
        grow(self.broker, 800)
        self.key = run("audit", "keys", **operator(self.broker)).stdout.strip()
        self.before = run("audit", "export", "--output", str(directory / "whole.jsonl"), **operator(self.broker))
        assert self.before.returncode == 0, self.before
        self.whole = directory / "whole.jsonl"
        self.files = directory / "archive"
        [last] = self.broker.events(after="evt-000519", limit=1)
        given = ("--before", last["timestamp"], "--to", str(self.files), "--key", self.key)
        self.done = run("audit", "archive", *given, **operator(self.broker))
        assert self.done.returncode == 0, self.done
        [self.file] = self.files.iterdir()
        wait_until_removed(self.broker, "evt-000512")


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archived]:
    made = Archived(tmp_path_factory.mktemp("archives"))
    with made.broker:
        yield made


def test_an_archive_verifies_on_its_own_and_with_the_export_that_follows(archived: Archived, tmp_path: Path) -> None:
    assert "archived evt-000001 to evt-000512 in " in archived.done.stdout
    alone = run("audit", "verify", str(archived.file), "--key", archived.key)
    assert (alone.returncode, alone.stdout) == (0, "verified 512 events of agentwrit.local/audit\n"), alone
    rest = str(tmp_path / "rest.jsonl")
    exported = run("audit", "export", "--output", rest, **operator(archived.broker))
    assert "those behind evt-000512" in exported.stderr, exported
    both = run("audit", "verify", str(archived.file), rest, "--key", archived.key, "--json")
    shown = json.loads(both.stdout)
    assert (shown["verified"], shown["after"], shown["events"]) == (True, None, int(shown["last"][4:]))
    one_line(run("audit", "verify", rest, str(archived.file), "--key", archived.key), 1, "does not follow")
    [_, *lines] = archived.file.read_bytes().splitlines()
    assert lines == archived.whole.read_bytes().splitlines()[1:513]


def test_a_log_whose_beginning_was_archived_verifies_in_all_ways(archived: Archived) -> None:
    online = run("audit", "verify", "--key", archived.key, **operator(archived.broker))
    assert (online.returncode, "those behind evt-000512" in online.stdout) == (0, True), online
    assert at_rest(archived.broker).returncode == 0
    assert at_rest(archived.broker, command="verify-store").returncode == 0


def test_what_was_archived_is_proven_from_its_file(archived: Archived, tmp_path: Path) -> None:
    environment, proof = operator(archived.broker), str(tmp_path / "proof")
    one_line(run("audit", "prove", "evt-000007", **environment), 1, "archived")
    given = ("--archive", str(archived.file), "--output", proof)
    assert run("audit", "prove", "evt-000007", *given, **environment).returncode == 0
    shown = run("audit", "check", proof, "--key", archived.key)
    assert json.loads(shown.stdout)["id"] == "evt-000007"
    one_line(run("audit", "prove", "evt-000600", *given, **environment), 2, "not in")


def test_the_broker_says_where_events_are_that_it_no_longer_has(archived: Archived) -> None:
    http, headers = archived.broker.http, archived.broker.admin()
    page = http.get("/v1/audit/events", params={"after": "evt-000002", "limit": 1}, headers=headers).json()
    assert (page["archived"], page["events"][0]["id"]) == ("evt-000512", "evt-000513")
    last = http.get("/v1/audit/events", params={"order": "desc", "limit": 1}, headers=headers).json()
    assert last["total"] == int(last["events"][0]["id"][4:]) - 512
    gone = problem(http.get("/v1/audit/tile/entries/001", headers=headers), 404, "not_found")
    assert archived.file.name in gone["hint"]
    assert http.get("/v1/audit/tile/0/001").status_code == 200
    assert http.get("/v1/audit/proof/consistency", params={"old": 300, "new": 520}).status_code == 200
    assert http.get("/v1/health").json()["audit_events_count"] > 512
    told = archived.broker.events(event_type="audit_archived")
    assert [(event["principal"], event["data"]["last"]) for event in told] == [("admin", "evt-000512")]
    listed = http.get("/v1/audit/archives", headers=headers).json()
    [known] = listed["archives"]
    assert {name: known[name] for name in told[0]["data"]} == told[0]["data"]


def test_a_broker_with_an_archived_beginning_goes_on_through_crashes(archived: Archived) -> None:
    archived.broker.kill()
    archived.broker.start()
    grow(archived.broker, 3)
    assert run("audit", "verify", "--key", archived.key, **operator(archived.broker)).returncode == 0


def test_nothing_but_the_next_part_of_the_log_is_taken_for_archived(archived: Archived) -> None:
    http, headers = archived.broker.http, archived.broker.admin()
    good = {"first": "evt-000513", "last": "evt-000768", "root": "0" * 64, "file": "a.jsonl", "sha256": "0" * 64}
    for change, status, code in (
        ({}, 400, "invalid_request"),
        ({"first": "evt-000001", "last": "evt-000512"}, 409, "conflict"),
        ({"last": "evt-000700"}, 400, "invalid_request"),
        ({"last": "evt-999936"}, 400, "invalid_request"),
        ({"file": "../a.jsonl"}, 400, "invalid_request"),
        ({"sha256": "x"}, 400, "invalid_request"),
        ({"first": "1"}, 400, "invalid_request"),
    ):
        answer = http.post("/v1/audit/archives", json={**good, **change}, headers=headers)
        problem(answer, status, code)
    problem(http.post("/v1/audit/archives", json=good), 401, "unauthorized")
    again = run("audit", "archive", "--before", "1d", "--to", str(archived.files), **operator(archived.broker))
    assert re.match("nothing to archive", again.stdout), again


def test_killed_at_any_moment_of_archiving_nothing_is_lost(tmp_path: Path) -> None:
    """The command or the broker, at random; the seed is printed when it fails."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    files = tmp_path / "archive"
    with BrokerProcess(tmp_path / "data") as broker:
        key = run("audit", "keys", **operator(broker)).stdout.strip()
        for _ in range(KILLS):
            grow(broker, generator.randrange(200, 700))
            archiving = subprocess.Popen(
                [AGENTWRIT, "audit", "archive", "--before", "0s", "--to", str(files), "--key", key],
                env={**CLEAN, **operator(broker)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                archiving.wait(generator.uniform(0.2, 1.5))
            if generator.random() < 0.5:
                broker.kill()
                archiving.wait(60)
            else:
                archiving.kill()
                archiving.wait()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    broker.process.wait(generator.uniform(0, 6))  # housekeeping may be at it
                broker.kill()
            assert at_rest(broker).returncode == 0, at_rest(broker)
            broker.start()
            rest = tmp_path / "rest.jsonl"
            assert run("audit", "export", "--output", str(rest), **operator(broker)).returncode == 0
            after = json.loads(rest.read_bytes().partition(b"\n")[0])["after"]
            parts = [path for path in sorted(files.glob("*.jsonl")) if int(path.stem.split("-")[2]) <= after]
            whole = run("audit", "verify", *map(str, parts), str(rest), "--key", key, "--json")
            shown = json.loads(whole.stdout)
            assert (shown["verified"], shown["after"]) == (True, None), shown
