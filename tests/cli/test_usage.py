"""`agentwrit audit usage`: what was granted, and what was used of it."""

import json
import resource
from collections.abc import Iterator
from typing import Any

import pytest

from agentwrit.client.usage import Usage
from agentwrit.errors import TransportError
from tests.cli.support import one_line, run
from tests.reports import AUDIENCE, ResourceServer, access, at
from tests.support import ADMIN_SECRET, BrokerProcess, TestApp


class Shop:
    """An app whose agents were granted more than they used."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.broker = broker
        self.server = ResourceServer(broker)
        self.app = self._app_with_uses(broker)
        self.other = self._app_with_uses(broker)
        self.operator = {"AGENTWRIT_BROKER_URL": broker.url, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}

    def _app_with_uses(self, broker: BrokerProcess) -> TestApp:
        app = broker.app(audiences=[AUDIENCE])
        scopes = ("read:data:*", "write:data:1", "write:data:2")
        tokens = [str(app.agent(*scopes, audience=[AUDIENCE])["access_token"]) for _ in range(2)]
        self.server.taken(
            access(broker, tokens[0], "read:data:7", count=3),
            access(broker, tokens[1], "read:data:8", "read:data:9", resource="GET /both"),
            access(broker, tokens[1], "write:data:1", resource="PUT /1"),
            access(broker, tokens[1], "write:data:2", "delete:data:1", resource="PUT /2", outcome="denied"),
        )
        return app

    def usage(self, *arguments: str) -> dict[str, dict[str, Any]]:
        done = run("audit", "usage", "--app", self.app.name, "--json", *arguments, **self.operator)
        assert done.returncode == 0, done
        return {found["scope"]: found for found in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with BrokerProcess(tmp_path_factory.mktemp("shop") / "data") as broker:
        yield Shop(broker)


def test_it_says_what_was_granted_what_was_used_and_what_never_was(shop: Shop) -> None:
    found = shop.usage()
    assert {name: (scope["granted"], scope["used"]) for name, scope in found.items()} == {
        "read:data:*": (2, 4),
        "write:data:1": (2, 1),
        "write:data:2": (2, 0),  # it was tried, and refused
    }
    assert list(found) == ["read:data:*", "write:data:1", "write:data:2"]
    assert (found["read:data:*"]["used_as"], found["read:data:*"]["used_as_count"]) == (
        ["read:data:7", "read:data:8", "read:data:9"],
        3,
    )
    assert found["write:data:1"]["last_used"] > at(-600)
    assert found["write:data:2"]["last_used"] == ""
    assert set(shop.usage("--never-used")) == {"write:data:2"}


def test_it_is_a_table_too(shop: Shop) -> None:
    done = run("audit", "usage", "--app", shop.app.app_id, **shop.operator)
    lines = done.stdout.splitlines()
    assert lines[0].split("  ")[0] == "scope"
    assert lines[-1].split() == ["write:data:2", "2", "never"]
    assert done.stderr == "agentwrit: 3 scopes: 2 used, 1 never used\n"


def test_it_looks_back_as_far_as_it_is_told(shop: Shop) -> None:
    assert shop.usage("--since", "2100-01-01T00:00:00Z") == {}
    assert len(shop.usage("--since", "2020-01-01T00:00:00Z")) == 3
    one_line(run("audit", "usage", "--app", shop.app.name, "--since", "lately", **shop.operator), 2, "since")


def test_what_was_delegated_was_granted(shop: Shop) -> None:
    app = shop.broker.app(audiences=[AUDIENCE])
    from_, to = (app.agent("read:data:1", "read:data:2", audience=[AUDIENCE]) for _ in range(2))
    given = shop.broker.delegate(from_["access_token"], to["agent_id"], "read:data:1").json()["access_token"]
    shop.server.taken(access(shop.broker, given, "read:data:1"))
    done = run("audit", "usage", "--app", app.name, "--json", **shop.operator)
    counts = [(found["granted"], found["used"]) for found in map(json.loads, done.stdout.splitlines())]
    assert counts == [(3, 1), (2, 0)]


def test_an_app_that_there_is_not_is_named(shop: Shop) -> None:
    one_line(run("audit", "usage", "--app", "nobody", **shop.operator), 1, "no such app")


def test_memory_does_not_grow_with_the_log() -> None:
    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def take(usage: Usage, numbers: range) -> None:
        for number in numbers:
            usage.take({"event_type": "token_issued", "data": {"scope": [f"read:data:customer-{number}"]}})

    with Usage() as usage:
        take(usage, range(20_000))
        before = peak()
        take(usage, range(20_000, 100_000))
        assert usage.totals == (100_000, 0)
        assert peak() - before < 8 * 1024  # KiB: as a dictionary it would be 20 MB


@pytest.mark.parametrize(
    "event",
    [
        {"event_type": "token_issued", "data": {}},
        {"event_type": "resource_accessed", "outcome": "success", "data": {"scope_granted": ["a:b:c"]}},
        {"outcome": "success"},
    ],
)
def test_what_is_no_event_is_no_crash(event: dict[str, Any]) -> None:
    with Usage() as usage, pytest.raises(TransportError, match="broker"):
        usage.take(event)
