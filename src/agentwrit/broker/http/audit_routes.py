"""The audit log on the wire."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import partial

from agentwrit.broker.http import wire
from agentwrit.broker.http.exchange import Answer, Exchange, integer_parameter, large_json_answer
from agentwrit.broker.http.routing import Resource
from agentwrit.broker.services.audit import MAX_LIMIT, AuditService, Found
from agentwrit.broker.services.turns import Asker, Turns
from agentwrit.broker.storage.base import DATA_FIELDS, EQUAL_FIELDS, EventQuery
from agentwrit.domain import audit, timestamps
from agentwrit.domain.audit import EventType, Outcome
from agentwrit.domain.errors import InvalidRequest


class Order(StrEnum):
    """Which events come first: the oldest, unless it says otherwise."""

    ASCENDING = "asc"
    DESCENDING = "desc"


class AuditRoutes:
    """Routes under /v1/audit."""

    def __init__(self, events: AuditService, turns: Turns) -> None:
        self._events = events
        self._turns = turns

    def resources(self) -> Sequence[Resource]:
        return [Resource("/v1/audit/events", {"GET": self.events})]

    async def events(self, exchange: Exchange) -> Answer:
        principal = await self._events.authorize(exchange.caller, exchange.bearer())
        query = _event_query(exchange)
        async with self._turns.turn(Asker.who(principal)):
            found = await self._events.events(principal, query)
            return await large_json_answer(partial(_shown, found, query))


def _shown(found: Found, query: EventQuery) -> dict[str, object]:
    members: dict[str, object] = {
        "events": [wire.event(event) for event in found.events],
        "total": found.total,
        "offset": query.offset,
        "limit": query.limit,
    }
    if found.pruned:
        members["archived"] = audit.event_id(found.pruned)
    return members


def _event_query(exchange: Exchange) -> EventQuery:
    """The filters. A bad one is an error: ignored, it would show more than was asked for."""
    given = exchange.query(*EQUAL_FIELDS, *DATA_FIELDS, "since", "until", "order", "limit", "offset", "after")
    _choice(given, "event_type", EventType)
    _choice(given, "outcome", Outcome)
    return EventQuery(
        **{name: given.get(name) for name in (*EQUAL_FIELDS, *DATA_FIELDS)},
        since=_time(given, "since"),
        until=_time(given, "until"),
        is_newest_first=_choice(given, "order", Order) == Order.DESCENDING,
        after=_event_id(given),
        limit=integer_parameter(given, "limit", 100, low=1, high=MAX_LIMIT),
        offset=integer_parameter(given, "offset", 0, low=0, high=wire.MAX_INTEGER),
    )


def _choice(given: Mapping[str, str], name: str, choices: type[EventType | Outcome | Order]) -> str | None:
    text = given.get(name)
    if text is not None and text not in set(choices):
        raise InvalidRequest(f"{name} has no such value", hint=f"one of {', '.join(choices)}")
    return text


def _time(given: Mapping[str, str], name: str) -> str | None:
    text = given.get(name)
    if text is None:
        return None
    try:
        return timestamps.rfc3339_micros(timestamps.parse_rfc3339(text))
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{name} is not an RFC 3339 time", hint="for example 2026-01-31T23:59:59Z") from None


def _event_id(given: Mapping[str, str]) -> int:
    text = given.get("after")
    if text is None:
        return 0
    try:
        return audit.parse_event_id(text)
    except ValueError:
        raise InvalidRequest("after is not an event id", hint="for example evt-000001") from None
