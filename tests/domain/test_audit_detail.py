"""What an event says in its one line: what happened and to whom, whatever its ids and names hold."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain import audit
from agentwrit.domain.audit import Draft, EventType

AGENT = "spiffe://agentwrit.local/agent/orch/task/0123456789abcdef"
TEXTS = st.text(max_size=600)


def told(**fields: object) -> str:
    draft = msgspec.structs.replace(Draft(event_type=EventType.TOKEN_ISSUED, detail="it happened"), **fields)
    return audit.append(draft, audit.Head(), now=1.0).event.detail


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "it happened"),
        ({"app_id": "app-1", "principal": "app:app-1", "sid": "s"}, "it happened: app app-1, login s"),
        ({"app_id": "app-1", "principal": "admin:ana", "sid": "s"}, "it happened: app app-1, login s, by admin:ana"),
        ({"agent_id": AGENT, "task_id": "task", "orch_id": "orch"}, f"it happened: agent {AGENT}"),
        ({"agent_id": AGENT, "principal": AGENT, "sid": "s"}, f"it happened: agent {AGENT}, grant s"),
        ({"task_id": "task", "orch_id": "orch"}, "it happened: task task, orchestration orch"),
        ({"data": {"kid": "k", "purpose": "access_token"}}, "it happened: key k, for access_token"),
        ({"data": {"name": "", "jti": "j", "exp": 7}}, "it happened: token j"),
        ({"data": {"scope_exceeding": ["read:a:1", "read:a:2"]}}, "it happened: beyond it read:a:1 read:a:2"),
        ({"data": {"scope_exceeding": ["a:b:c"] * 10}}, f"it happened: beyond it{' a:b:c' * 8} and 2 more"),
        ({"data": {"target": "t, by admin"}}, 'it happened: target "t, by admin"'),
        ({"data": {"target": 'a", by "b'}}, r'it happened: target "a\", by \"b"'),
    ],
)
def test_a_line_names_what_there_is_and_nothing_else(fields: dict[str, object], line: str) -> None:
    assert told(**fields) == line


@given(TEXTS, TEXTS, TEXTS)
def test_whatever_stands_in_an_event_its_detail_is_one_line(target: str, delegate: str, name: str) -> None:
    data = {"target": target, "delegate": delegate, "agent_name": name}
    try:
        line = told(data=data)
    except UnicodeEncodeError:  # a lone surrogate has no place in an event at all
        return
    assert line.isprintable()
    assert len(line) < 3 * 4 * 600


@given(TEXTS)
def test_nobody_words_a_line_by_choosing_a_name(name: str) -> None:
    line = told(data={"target": name, "grants_ended": 1})
    rest = line.removeprefix("it happened: ")
    if name:
        rest = rest.removeprefix("target ")
        shown, _, rest = rest.rpartition(", ")
        if shown != name:
            assert msgspec.json.decode(shown, type=str)
    assert rest == "grants ended 1"
