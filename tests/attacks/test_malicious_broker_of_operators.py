"""Whoever answers in place of a broker: the command line ends with an answer or one line, and no traceback."""

import contextlib
import copy
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentwrit import AgentWritError, TransportError
from agentwrit.cli.commands import run
from agentwrit.client.audit_log import AuditLog
from agentwrit.client.operator import OperatorClient
from agentwrit.client.usage import Usage, add_up
from agentwrit.delivery import cef, ocsf
from agentwrit.delivery.following import Cursor, Delivery
from agentwrit.delivery.sinks import FileSink
from agentwrit.testing import LocalBroker
from tests.client.peer import Handler, answer, peer

LOGIN = {"access_token": "a.b.c", "expires_in": 60, "token_type": "Bearer"}
COMMANDS: dict[str, Sequence[str]] = {
    "app list": ("app", "list"),
    "app show": ("app", "show", "shop"),
    "app register": ("app", "register", "new-app", "--scope", "read:data:*"),
    "app rotate-secret": ("app", "rotate-secret", "shop"),
    "agents list": ("agents", "list"),
    "agents show": ("agents", "show", "AGENT"),
    "delegations show": ("delegations", "show", "AGENT"),
    "revoke": ("revoke", "task", "t"),
    "keys list": ("keys", "list"),
    "keys rotate": ("keys", "rotate", "--force"),
    "operator add": ("operator", "add", "bob"),
    "operator list": ("operator", "list"),
    "audit events": ("audit", "events", "--limit", "3"),
}
INSTEAD: tuple[Any, ...] = (None, 5, 10**400, -1, "x", [], {}, [[[]]], {"a": {}})


def mutations(content: Any, at: tuple[Any, ...] = ()) -> Iterator[Any]:
    """The same with one thing that is missing, or is something else."""
    places = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, inner in list(places):
        changed = copy.copy(content)
        if isinstance(content, dict):
            del changed[name]
            yield changed
        for instead in INSTEAD:
            changed = copy.copy(content)
            changed[name] = instead
            yield changed
        for below in mutations(inner, (*at, name)):
            changed = copy.copy(content)
            changed[name] = below
            yield changed


def shown_by(arguments: Sequence[str]) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    return code, err.getvalue()


@pytest.fixture(scope="module")
def real() -> Iterator[dict[str, Any]]:
    """An answer to each command, of a real broker."""
    with LocalBroker(log_level="error") as broker:
        operator = broker.operator
        shop = operator.register_app("shop", ["read:data:*"])
        agent = broker.app("read:data:*").create_agent("o", "t", ["read:data:1"])
        agent.delegate(agent.agent_id, ["read:data:1"])
        log = AuditLog(broker.url, broker._secret)
        shown = operator.show_agent(agent.agent_id)
        yield {
            "apps": operator.list_apps(),
            "app list": operator.list_apps(),
            "app show": operator.get_app(shop["app_id"]),
            "app register": shop,
            "app rotate-secret": operator.rotate_secret(shop["app_id"]),
            "agents list": operator.list_agents(),
            "agents show": shown,
            "delegations show": shown,
            "revoke": operator.revoke("task", "nobody's"),
            "keys list": operator.list_keys(),
            "keys rotate": operator.rotate_key(purpose="access_token", force=True),
            "operator add": operator.add_operator("bob"),
            "operator list": operator.list_operators(),
            "audit events": log.events({"limit": 3}),
        }


def replies(real: dict[str, Any], command: str, answers: list[Any]) -> Any:
    """What a peer answers: a login, the apps where an app is looked up, and else the next of these."""

    def reply(handler: Handler) -> None:
        if handler.path == "/v1/admin/auth":
            answer(200, LOGIN)(handler)
        elif handler.path == "/v1/admin/apps" and handler.command == "GET" and command != "app list":
            answer(200, real["apps"])(handler)
        else:
            answer(200, answers[0])(handler)

    return reply


@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_is_answered_a_command_says_so_in_a_line(
    real: dict[str, Any], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTWRIT_ADMIN_SECRET", "secret")
    answers = [real[command]]
    with peer(replies(real, command, answers)) as broker:
        monkeypatch.setenv("AGENTWRIT_BROKER_URL", broker.url)
        assert shown_by(COMMANDS[command])[0] == 0
        every = list(mutations(real[command]))
        for changed in every[:: max(1, len(every) // 60)]:
            answers[0] = changed
            code, said = shown_by(COMMANDS[command])
            assert code in (0, 1, 2), (changed, said)
            assert said.count("\n") <= 1, (changed, said)


@pytest.mark.parametrize("depth", [5, 300, 900, 3000])
def test_however_deep_an_answer_is_a_command_says_so_in_a_line(
    real: dict[str, Any], monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    monkeypatch.setenv("AGENTWRIT_ADMIN_SECRET", "secret")
    grant = {**real["agents show"]["grants"][0], "delegations": []}
    before, after = json.dumps({**grant, "delegations": ["#"]}).split('"#"')
    body = before * depth + json.dumps(grant) + after * depth
    answers = [f'{{"agent_id":"x","grants":[{body}]}}'.encode()]
    with peer(replies(real, "agents show", answers)) as broker:
        monkeypatch.setenv("AGENTWRIT_BROKER_URL", broker.url)
        code, said = shown_by(COMMANDS["agents show"])
    assert (code == 0) is (depth == 5) or depth == 300
    assert said.count("\n") <= 1


def test_a_list_that_has_no_end_and_nothing_in_it_ends(real: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTWRIT_ADMIN_SECRET", "secret")
    with peer(replies(real, "agents list", [{"agents": [], "next": "x"}])) as broker:
        monkeypatch.setenv("AGENTWRIT_BROKER_URL", broker.url)
        assert shown_by(("agents", "list")) == (0, "")


def test_whatever_events_are_they_are_delivered_or_refused(real: dict[str, Any], tmp_path: Path) -> None:
    answers = [real["audit events"]]
    every = list(mutations(real["audit events"]))
    delivered = 0
    with peer(replies(real, "audit events", answers)) as broker, AuditLog(broker.url, "secret", timeout=2) as log:
        for number, changed in enumerate(every[:: max(1, len(every) // 80)]):
            answers[0] = changed
            cursor = Cursor(tmp_path / str(number))
            sink = FileSink(
                tmp_path / "log", lambda event: json.dumps(ocsf.event(event)).encode(), max_bytes=10**9, keep=0
            )
            with contextlib.suppress(AgentWritError):
                events = Delivery(log, sink, cursor, batch=3, say=print)._next()
                sink.deliver(events)
                cursor.advance(events[-1])
                delivered += len([cef.line(event) for event in events])
            with contextlib.suppress(AgentWritError), Usage() as usage:
                add_up(log, usage, "app")
    assert delivered


def test_what_a_client_of_operators_is_answered_has_its_shape(real: dict[str, Any]) -> None:
    with (
        peer(replies(real, "", [{"count": -1}])) as broker,
        OperatorClient(broker.url, "secret", timeout=2) as operator,
    ):
        for call in (operator.list_keys, operator.list_operators, lambda: operator.revoke("task", "t")):
            with pytest.raises(TransportError, match="not of the protocol"):
                call()
