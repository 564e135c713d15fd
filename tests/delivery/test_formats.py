"""Events in the words of others, whatever they hold."""

import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentwrit.delivery import cef, ocsf, syslog
from agentwrit.domain import audit
from agentwrit.domain.audit import Draft, EventType, Head, Outcome
from tests.domain.records import NOW

TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)


def record(**fields: Any) -> dict[str, Any]:
    return audit.record(audit.append(Draft(**{"event_type": EventType.TOKEN_ISSUED, **fields}), Head(), now=NOW).event)


def unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: {"n": "\n"}.get(match[1], match[1]), text)


@given(detail=TEXTS, principal=TEXTS, value=TEXTS)
def test_no_text_forges_a_field_or_a_line_of_cef(detail: str, principal: str, value: str) -> None:
    shown = record(detail=detail, principal=principal, data={"name": value})
    line = cef.line(shown)
    assert line.splitlines() == [line]
    extension = re.split(r"(?<!\\)\|", line, maxsplit=7)[7]
    names = re.findall(r"(?:^| )([A-Za-z0-9]+)(?<!\\)=", extension)
    expected = ["rt", "externalId", "cat", "outcome", *(["msg"] if detail else []), *(["suser"] if principal else [])]
    assert names == [*expected, "cs6Label", "cs6", "flexString1Label", "flexString1"]


def test_cef_escapes_as_it_says() -> None:
    line = cef.line(record(detail="a=b|c\\d\ne", outcome=Outcome.DENIED))
    assert r" msg=a\=b|c\\d\ne" in line
    assert "|token_issued|token issued|6|" in line


@given(st.sampled_from(EventType), st.sampled_from(Outcome), TEXTS)
def test_every_event_has_what_ocsf_requires_of_its_class(kind: EventType, outcome: Outcome, detail: str) -> None:
    shown = record(event_type=kind, outcome=outcome, detail=detail, data={"scope": ["read:data:1"]})
    event = ocsf.event(shown)
    assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
    assert event["category_uid"] == event["class_uid"] // 1000
    assert event["time"] == NOW * 1000
    assert event["status"] == ("Success" if outcome is Outcome.SUCCESS else "Failure")
    assert event["metadata"]["product"]["vendor_name"] == "AgentWrit"
    assert event["user"]["uid"]
    assert event["actor"]["user"]["uid"]
    assert event["api"]["operation"]
    assert event["src_endpoint"]
    assert event["privileges"] == ["read:data:1"]
    assert json.loads(json.dumps(event))["unmapped"] == shown


def test_every_type_of_event_has_its_class() -> None:
    assert set(ocsf._CLASSES) == set(EventType)


def test_a_syslog_message_has_the_severity_of_its_outcome() -> None:
    assert syslog.message(record(), b"x", "host").startswith(b"<110>1 2027-01-15T08:00:00.000000Z host agentwrit - ")
    assert syslog.message(record(outcome=Outcome.DENIED), b"x", "host").startswith(b"<108>1 ")
