"""The minimum content of a broker's answers to operators and auditors: the members that are used, with their types.

Other members are ignored, because a newer broker may send more.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, NotRequired, TypeAlias, TypedDict

import msgspec

from agentwrit.errors import TransportError

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Time: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]


class App(TypedDict):
    app_id: str
    name: str
    scopes: list[str]
    token_ttl: Count
    status: str
    created_at: Time


class Apps(TypedDict):
    apps: list[App]


class AppSecret(TypedDict):
    app_id: str
    client_id: str
    client_secret: str


class NewApp(AppSecret):
    scopes: list[str]
    token_ttl: Count


class NewAppSecret(AppSecret):
    previous_secret_expires_at: Time | None


class Removed(TypedDict):
    app_id: str


class Grant(TypedDict):
    agent_id: str
    sid: str
    task_id: str
    scope: list[str]
    expires_at: Time
    parent: str | None
    parent_agent: str | None


class Grants(TypedDict):
    agents: list[Grant]
    next: str | None


class GrantTree(Grant):
    status: str
    end_reason: str | None
    delegations: list["GrantTree"]


class Agent(TypedDict):
    agent_id: str
    grants: list[GrantTree]


class Killed(TypedDict):
    count: Count


class Key(TypedDict):
    kid: str
    purpose: str
    state: str
    created_at: Time
    active_since: Time | None
    verifies_until: Time | None
    revoked_at: Time | None


class Keys(TypedDict):
    keys: list[Key]


class Rotated(TypedDict):
    active: Key
    retired: Key
    next: Key


class Operator(TypedDict):
    name: str
    status: str
    created_at: Time
    updated_at: Time


class Operators(TypedDict):
    operators: list[Operator]


class NewOperator(TypedDict):
    name: str
    status: str
    updated_at: Time
    secret: NotRequired[str]


class Removal(TypedDict):
    name: str


class Event(TypedDict):
    id: Annotated[str, msgspec.Meta(pattern=r"\Aevt-([0-9]{6}|[1-9][0-9]{6,17})\Z")]
    timestamp: Time
    event_type: str
    outcome: str
    detail: str
    hash: str
    agent_id: NotRequired[str]
    task_id: NotRequired[str]
    orch_id: NotRequired[str]
    deleg_chain_hash: NotRequired[str]
    resource: NotRequired[str]
    principal: NotRequired[str]
    client_address: NotRequired[str]
    app_id: NotRequired[str]
    sid: NotRequired[str]
    request_id: NotRequired[str]
    trace_id: NotRequired[str]
    data: NotRequired[dict[str, Any]]


class Events(TypedDict):
    events: list[Event]
    total: Count


_ABSENT: Mapping[str, Any] = {name: {} if name == "data" else "" for name in sorted(Event.__optional_keys__)}


def completed(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """An event with its absent members, which are empty texts in the hashed form."""
    return {**_ABSENT, **event}


def check(answer: dict[str, Any], shape: type) -> dict[str, Any]:
    """An answer, if it has this shape.

    Raises:
        TransportError: it does not have the shape.
    """
    try:
        msgspec.convert(answer, shape)
    except (msgspec.ValidationError, RecursionError) as error:
        # The error's text names places and types, and contains nothing of the answer.
        what = str(error) if isinstance(error, msgspec.ValidationError) else "nested too deeply"
    else:
        return answer
    raise TransportError(f"the answer is not of the protocol ({what}): is this a broker?")
