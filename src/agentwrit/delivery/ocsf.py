"""Events in the Open Cybersecurity Schema Framework (OCSF 1.5): plain JSON objects.

Each event type maps to the OCSF class that describes it. The whole event, with its hash, is in `unmapped`.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from agentwrit._version import __version__
from agentwrit.domain import timestamps
from agentwrit.domain.audit import EventType, Outcome

VERSION: Final = "1.5.0"

_OTHER: Final = 99
_INFORMATIONAL, _MEDIUM = (1, "Informational"), (3, "Medium")
_SUCCESS, _FAILURE = (1, "Success"), (2, "Failure")


class _Class(NamedTuple):
    """A class of OCSF events, with the activities of it that occur here."""

    uid: int
    name: str
    category: tuple[int, str]
    activities: Mapping[int, str]


_IAM: Final = (3, "Identity & Access Management")
_ACCOUNT_CHANGE = _Class(
    3001,
    "Account Change",
    _IAM,
    {1: "Create", 2: "Enable", 3: "Password Change", 5: "Disable", 6: "Delete", 7: "Attach Policy", _OTHER: "Other"},
)
_AUTHENTICATION = _Class(
    3002,
    "Authentication",
    _IAM,
    {1: "Logon", 2: "Logoff", 3: "Authentication Ticket", 5: "Service Ticket Renew", _OTHER: "Other"},
)
_AUTHORIZE_SESSION = _Class(3003, "Authorize Session", _IAM, {1: "Assign Privileges", _OTHER: "Other"})
_API_ACTIVITY = _Class(
    6003,
    "API Activity",
    (6, "Application Activity"),
    {1: "Create", 2: "Read", 3: "Update", 4: "Delete", _OTHER: "Other"},
)

_CLASSES: Final[Mapping[str, tuple[_Class, int]]] = {
    EventType.ADMIN_AUTH: (_AUTHENTICATION, 1),
    EventType.ADMIN_AUTH_FAILED: (_AUTHENTICATION, 1),
    EventType.APP_AUTHENTICATED: (_AUTHENTICATION, 1),
    EventType.APP_AUTH_FAILED: (_AUTHENTICATION, 1),
    EventType.APP_RATE_LIMITED: (_AUTHENTICATION, 1),
    EventType.AGENT_REGISTERED: (_AUTHENTICATION, 1),
    EventType.REGISTRATION_POLICY_VIOLATION: (_AUTHENTICATION, 1),
    EventType.TOKEN_AUTH_FAILED: (_AUTHENTICATION, 1),
    EventType.TOKEN_REVOKED_ACCESS: (_AUTHENTICATION, 1),
    EventType.TOKEN_ISSUED: (_AUTHENTICATION, 3),
    EventType.TOKEN_RENEWED: (_AUTHENTICATION, 5),
    EventType.TOKEN_RENEWAL_FAILED: (_AUTHENTICATION, 5),
    EventType.TOKEN_RELEASED: (_AUTHENTICATION, 2),
    EventType.TOKEN_REVOKED: (_AUTHENTICATION, 2),
    EventType.TOKEN_REVOCATION_DENIED: (_AUTHENTICATION, 2),
    EventType.LAUNCH_TOKEN_ISSUED: (_AUTHORIZE_SESSION, 1),
    EventType.LAUNCH_TOKEN_DENIED: (_AUTHORIZE_SESSION, 1),
    EventType.DELEGATION_CREATED: (_AUTHORIZE_SESSION, 1),
    EventType.DELEGATION_DENIED: (_AUTHORIZE_SESSION, 1),
    EventType.DELEGATION_ATTENUATION_VIOLATION: (_AUTHORIZE_SESSION, 1),
    EventType.SCOPE_VIOLATION: (_AUTHORIZE_SESSION, 1),
    EventType.SCOPE_CEILING_EXCEEDED: (_AUTHORIZE_SESSION, 1),
    EventType.APP_REGISTERED: (_ACCOUNT_CHANGE, 1),
    EventType.APP_UPDATED: (_ACCOUNT_CHANGE, _OTHER),
    EventType.SCOPES_CEILING_UPDATED: (_ACCOUNT_CHANGE, 7),
    EventType.APP_SECRET_ROTATED: (_ACCOUNT_CHANGE, 3),
    EventType.ADMIN_SECRET_SET: (_ACCOUNT_CHANGE, 3),
    EventType.OPERATOR_ADDED: (_ACCOUNT_CHANGE, 1),
    EventType.OPERATOR_SECRET_ROTATED: (_ACCOUNT_CHANGE, 3),
    EventType.OPERATOR_REMOVED: (_ACCOUNT_CHANGE, 6),
    EventType.APP_SUSPENDED: (_ACCOUNT_CHANGE, 5),
    EventType.APP_RESUMED: (_ACCOUNT_CHANGE, 2),
    EventType.APP_DEREGISTERED: (_ACCOUNT_CHANGE, 6),
    EventType.RESOURCE_ACCESSED: (_API_ACTIVITY, 2),
    EventType.ACCESS_REPORT_DENIED: (_API_ACTIVITY, 1),
    EventType.SIGNING_KEY_CREATED: (_API_ACTIVITY, 1),
    EventType.SIGNING_KEY_ROTATED: (_API_ACTIVITY, 3),
    EventType.SIGNING_KEY_EXPIRED: (_API_ACTIVITY, 4),
    EventType.SIGNING_KEY_REVOKED: (_API_ACTIVITY, 4),
    EventType.MASTER_KEY_CHANGED: (_API_ACTIVITY, 3),
    EventType.AUDIT_ARCHIVED: (_API_ACTIVITY, 4),
    EventType.STORE_RESTORED: (_API_ACTIVITY, 3),
    EventType.STORE_PROMOTED: (_API_ACTIVITY, 3),
    EventType.ENDING_BEGUN: (_API_ACTIVITY, 3),
    EventType.ENDING_COMPLETED: (_API_ACTIVITY, 3),
    EventType.STORE_RENAMED: (_API_ACTIVITY, 3),
    EventType.STORE_TIME_SET: (_API_ACTIVITY, 3),
}


def event(record: Mapping[str, Any]) -> dict[str, Any]:
    """An event, as the broker shows it, in OCSF."""
    known, activity = _CLASSES.get(record["event_type"], (_API_ACTIVITY, _OTHER))
    is_denied = record["outcome"] == Outcome.DENIED
    (severity_id, severity), (status_id, status) = (_MEDIUM, _FAILURE) if is_denied else (_INFORMATIONAL, _SUCCESS)
    return {
        "category_uid": known.category[0],
        "category_name": known.category[1],
        "class_uid": known.uid,
        "class_name": known.name,
        "activity_id": activity,
        "activity_name": known.activities[activity],
        "type_uid": known.uid * 100 + activity,
        "type_name": f"{known.name}: {known.activities[activity]}",
        "severity_id": severity_id,
        "severity": severity,
        "status_id": status_id,
        "status": status,
        "time": round(timestamps.parse_rfc3339(record["timestamp"]) * 1000),
        "message": record["detail"],
        "metadata": {
            "version": VERSION,
            "product": {"name": "AgentWrit", "vendor_name": "AgentWrit", "version": __version__},
            "uid": record["id"],
            "event_code": record["event_type"],
            "log_name": "audit",
            **_given(correlation_uid=record["trace_id"] or record["request_id"]),
        },
        "user": {"uid": record["agent_id"] or record["app_id"] or record["principal"] or "unknown"},
        "actor": {
            "user": {"uid": record["principal"] or "unknown"},
            **_given(app_uid=record["app_id"], session=_given(uid=record["sid"])),
        },
        "src_endpoint": _given(ip=record["client_address"]) or {"name": "broker"},
        "api": {"operation": record["resource"] or record["event_type"], "request": {"uid": record["request_id"]}},
        **_given(privileges=record["data"].get("scope")),
        "unmapped": dict(record),
    }


def _given(**members: object) -> dict[str, object]:
    """The members that have a value."""
    return {name: value for name, value in members.items() if value}
