"""The context of a request: what every use case needs to record what was done."""

import ipaddress
from collections.abc import Sequence
from typing import TypedDict

import msgspec

from agentwrit.domain.audit import Draft, EventType, Outcome

EventData = dict[str, str | int | list[str]]


def scope_data(requested: Sequence[str], held: Sequence[str], exceeding: Sequence[str]) -> EventData:
    """The reason for refusing a scope, for operators only: what was requested, what was held, and what exceeded it."""
    return {"scope_requested": list(requested), "scope_held": list(held), "scope_exceeding": list(exceeding)}


def audience_data(requested: Sequence[str], held: Sequence[str], exceeding: Sequence[str]) -> EventData:
    """The reason for refusing an audience, likewise."""
    return {"audience_requested": list(requested), "audience_held": list(held), "audience_exceeding": list(exceeding)}


class Who(TypedDict):
    """The subject of an event, in the event's own fields. Empty where a field does not apply."""

    principal: str
    app_id: str
    agent_id: str
    task_id: str
    orch_id: str
    sid: str
    deleg_depth: int
    deleg_chain_hash: str


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request came from. `route`: the method and the path template."""

    address: str = ""
    route: str = ""
    request_id: str = ""
    trace_id: str = ""

    @property
    def network(self) -> str:
        """The address, or for IPv6 its /64, which one client usually controls as a whole."""
        try:
            address = ipaddress.ip_address(self.address)
        except ValueError:
            return self.address
        if isinstance(address, ipaddress.IPv4Address):
            return self.address
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))

    def event(
        self,
        event_type: EventType,
        outcome: Outcome = Outcome.SUCCESS,
        *,
        detail: str = "",
        principal: str = "",
        app_id: str = "",
        agent_id: str = "",
        task_id: str = "",
        orch_id: str = "",
        sid: str = "",
        deleg_depth: int = 0,
        deleg_chain_hash: str = "",
        data: EventData | None = None,
    ) -> Draft:
        """An event of this request, ready to be recorded."""
        return Draft(
            event_type=event_type,
            outcome=outcome,
            detail=detail,
            resource=self.route,
            principal=principal,
            app_id=app_id,
            agent_id=agent_id,
            task_id=task_id,
            orch_id=orch_id,
            sid=sid,
            deleg_depth=deleg_depth,
            deleg_chain_hash=deleg_chain_hash,
            client_address=self.address,
            request_id=self.request_id,
            trace_id=self.trace_id,
            data=data or {},
        )
