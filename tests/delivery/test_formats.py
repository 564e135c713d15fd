"""Events in the words of others, whatever they hold."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.delivery import LEAST_MESSAGE_BYTES, MESSAGE_BYTES, cef, ocsf, syslog
from agentwrit.domain import audit
from agentwrit.domain.audit import Draft, EventType, Head, Outcome
from agentwrit.domain.text import to_json
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
    expected = [
        "rt",
        "externalId",
        "cat",
        "outcome",
        *(["msg"] if shown["detail"] else []),
        *(["suser"] if principal else []),
    ]
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


def long_record(char: str = "x") -> dict[str, Any]:
    """An event as long as an app can make one."""
    scopes = [f"read:data:{number:02}" + char * 244 for number in range(64)]
    data: audit.Data = {"scope_requested": scopes, "scope_held": scopes, "scope_exceeding": scopes, "name": char * 2048}
    return record(agent_id=f"spiffe://x/{char * 500}", resource=char * 256, detail="denied", data=data)


@pytest.mark.parametrize("char", ["x", "é", "🙂", "\x1b", '"', "\\", "=", "\u2028", "\U000e0041"])
@pytest.mark.parametrize("longest", [LEAST_MESSAGE_BYTES, MESSAGE_BYTES])
def test_a_message_that_would_be_too_long_says_so_and_stays_what_it_is(char: str, longest: int) -> None:
    event = long_record(char)
    assert len(to_json(ocsf.event(event))) > longest
    as_json = syslog.fitting(event, lambda each: to_json(ocsf.event(each)).encode(), "host", longest)
    assert len(as_json) <= longest
    told = json.loads(as_json.partition(b" - token_issued - ")[2])
    assert told["unmapped"]["cut"].startswith("yes")
    assert (told["metadata"]["uid"], told["unmapped"]["hash"]) == (event["id"], event["hash"])
    assert told["message"].startswith("denied: ")
    as_cef = syslog.fitting(event, lambda each: cef.line(each).encode(), "host", longest)
    assert len(as_cef) <= longest
    assert as_cef.decode().isprintable()
    assert (" flexString2Label=cut flexString2=yes" in as_cef.decode()) == (len(cef.line(event).encode()) > longest)
    assert event["id"] in as_cef.decode()


def test_a_message_that_fits_is_sent_as_it_is() -> None:
    event = record(data={"scope": ["read:data:1"] * 64})
    sent = syslog.fitting(event, lambda each: cef.line(each).encode(), "host", MESSAGE_BYTES)
    assert sent == syslog.message(event, cef.line(event).encode(), "host")
    assert b"cut" not in sent


def test_nothing_that_a_broker_sends_stands_in_the_header_of_a_message() -> None:
    forged = {**record(), "event_type": "x - \n<0>1 - y" * 9, "timestamp": "now\r\n<13>"}
    head, _, _ = syslog.message(forged, b"text", "ho st\n").partition(b"text")
    assert len(head.split(b" ")) == 8
    assert head.decode().isprintable()


def test_what_is_no_event_is_cut_where_the_receiver_ends() -> None:
    many = {**record(), "data": {}, **{f"field-{number}": "x" * 64 for number in range(500)}}
    sent = syslog.fitting(many, lambda each: json.dumps(each).encode(), "host", LEAST_MESSAGE_BYTES)
    assert len(sent) == LEAST_MESSAGE_BYTES
